"""The figure of the spectra of operators over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import Palette, explain_palette
from replay.plots.curves import AXES, curve_axes, curve_palette, curve_size, draw_curves, explain_curves
from replay.plots.figure import GREY, drawing, headline, require, sorted_steps
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_spectrum"]

QUANTITIES = {
    "spectral_gap": "spectral gap  1 − |λ₂|",
    "stationary_entropy": "entropy of the stationary\ndistribution (nats)",
    "von_neumann_entropy": "von Neumann entropy (nats)",
    "diffusion_spectral_entropy": "diffusion spectral entropy (bits)",
    "neighbourhood_mean": "effective neighbours, mean",
    "neighbourhood_median": "effective neighbours, median",
    "effective_neighbours": "effective neighbours",
}
"""Axis label of each."""

SCREE = 3
"""Steps whose eigenvalues are drawn: the first, the last and those between them in the order of the list."""


def plot_spectrum(ds: "xr.Dataset", path: Path) -> None:
    """Draw the quantities of a spectrum against the training step, a panel each, and some eigenvalues by rank.

    With several layers a colour is a layer, each run is thin and the mean of the runs thick; with one layer a colour is
    a run. Bands are 95 % intervals over probes, drawn where they are few. A dotted line, or a number where it lies far
    off, is the value of a walk that sees no geometry. The last panel has the eigenvalues of the deepest layer at the
    first, middle and last step.

    Parameters
    ----------
    ds
        Dataset over (run, step, layer) with any of ``spectral_gap``, ``stationary_entropy``, ``von_neumann_entropy``,
        ``diffusion_spectral_entropy``, ``neighbourhood_mean``, ``neighbourhood_median``, ``effective_neighbours``, each
        with ``_low`` and ``_high`` or without, and ``eigenvalues`` with a further axis ``rank`` or without; layers from
        input to output; attributes ``runs``, ``n_probes`` and ``uniform``, reference values by name. Values that are
        not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, no quantity is there, or one lies over other dimensions.
    """
    names = [name for name in QUANTITIES if name in ds]
    if not names:
        raise InvalidInput(f"a spectrum to plot has one of {', '.join(QUANTITIES)}, and the dataset has none")
    ends = [f"{name}{end}" for name in names for end in ("_low", "_high") if f"{name}{end}" in ds]
    require(ds, names + ends, AXES)
    scree = "eigenvalues" in ds
    if scree:
        require(ds, ["eigenvalues"], (*AXES, "rank"))
    ds = sorted_steps(ds)
    palette = curve_palette(ds)
    uniform = ds.attrs.get("uniform") or {}
    n_panels = len(names) + scree
    single = [str(ds["layer"].values[0])] if ds.sizes["layer"] == 1 else []
    title = headline(ds, "Spectra of the operators", *single)
    with drawing(path, size=curve_size(n_panels), title=title) as figure:
        axes = curve_axes(figure, n_panels)
        for ax, name in zip(axes, names, strict=False):
            draw_curves(ax, ds, name, palette)
            ax.set_ylabel(QUANTITIES[name])
            if name in uniform:
                _draw_reference(ax, float(uniform[name]))
        if scree:
            _draw_scree(axes[-1], ds, palette)
        explain_palette(figure, axes, palette)
        explain_curves(figure, ds, names, palette, others=[])


def _draw_reference(ax: Any, value: float) -> None:
    """Draw the value of a walk that sees no geometry; where it lies far off, say only where."""
    low, high = ax.get_ylim()
    reach = 0.5 * (high - low)
    style = {"fontsize": 8, "color": GREY, "ha": "right", "transform": ax.get_yaxis_transform()}
    if low - reach <= value <= high + reach:
        ax.axhline(value, color=GREY, linewidth=1, linestyle=":")
        ax.set_ylim(min(low, value - 0.08 * reach), max(high, value + 0.16 * reach))
        ax.text(0.99, value, "no geometry", va="bottom", **style)
    else:
        above = value > high
        ax.set_ylim(low if above else low - 0.2 * reach, high + 0.2 * reach if above else high)
        place = {"xy": (0.99, 1.0 if above else 0.0), "va": "top" if above else "bottom"}
        text = f"no geometry: {value:.3g} {'↑' if above else '↓'}"
        ax.annotate(text, xycoords="axes fraction", ha="right", fontsize=8, color=GREY, **place)


def _draw_scree(ax: Any, ds: "xr.Dataset", palette: Palette) -> None:
    """Draw the eigenvalues of the deepest layer at a few steps: dashes tell the steps apart, the colour is no step."""
    values = np.asarray(ds["eigenvalues"].isel(layer=-1).transpose("run", "step", "rank").values, np.float64)
    ranks = np.arange(1, values.shape[2] + 1)
    chosen = np.unique(np.linspace(0, values.shape[1] - 1, SCREE).round().astype(int))
    dashes = [":", (0, (5, 2)), "-"][-len(chosen) :]
    for step, dash in zip(chosen, dashes, strict=True):
        label = f"step {int(ds['step'].values[step]):,}"
        for run, spectrum in enumerate(values[:, step]):
            colour = palette.colours[run] if palette.kind == "run" else palette.colours[-1]
            ax.plot(ranks, spectrum, color=colour, linewidth=1.2, linestyle=dash, alpha=0.8 if run else 1.0)
        ax.plot([], [], color=GREY, linewidth=1.2, linestyle=dash, label=label)
    ax.axhline(0, color="#bbbbbb", linewidth=0.7)
    if len(ranks) > 20 and np.isfinite(values).any():
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("")
    ax.set_xlabel("rank")
    ax.set_ylabel(f"eigenvalues of {palette.names[-1] if palette.kind == 'layer' else 'the layer'}")
    ax.legend(frameon=False, fontsize=8.5)
    ax.grid(visible=True, axis="y")
