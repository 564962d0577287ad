"""The figure of units: which are dead over training, how often each is active, and how each changed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import Palette, explain_palette, layer_palette, run_palette
from replay.plots.curves import AXES, draw_curves, explain_curves
from replay.plots.figure import GREY, drawing, headline, require, sorted_steps

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_neurons"]

UNITS = (*AXES, "unit")

LEAST_TOP = 0.02
"""The axis of dead units reaches at least so far, that none is seen as none."""

FAR = 20
"""The axis of shifts is logarithmic when the largest is more than this many times their median."""


def plot_neurons(ds: "xr.Dataset", path: Path) -> None:
    """Draw the share of dead units over steps, the duty cycle of each unit over steps, and the change of each unit.

    The map has the units of the first run and the deepest layer, sorted by their duty cycle at the last step. In the
    last panel a point is a unit of a layer and run: right and left of the middle its mean has moved, in pooled stds; at
    the top it still responds to the same probes, at 0 to others. With one layer a colour is a run.

    Parameters
    ----------
    ds
        Dataset over (run, step, layer, unit) with ``dead`` and ``duty_cycle``, over (run, layer, unit) with ``shift``
        and ``correlation``, and ``n_units`` (run, layer); attributes ``runs``, ``n_probes`` and ``compared``, the two
        steps of each run. Values that are not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or a variable is missing or lies over other dimensions.
    """
    require(ds, ["dead", "duty_cycle"], UNITS)
    require(ds, ["shift", "correlation"], ("run", "layer", "unit"))
    ds = sorted_steps(ds)
    shares = ds[["dead"]].mean("unit").assign_attrs(ds.attrs)
    palette = run_palette(ds["run"].values) if ds.sizes["layer"] == 1 else layer_palette(ds["layer"].values)
    single = [str(ds["layer"].values[0])] if ds.sizes["layer"] == 1 else []
    with drawing(path, size=(14.5, 4.4), title=headline(ds, "Units", *single)) as figure:
        axes = list(figure.subplots(1, 3))
        draw_curves(axes[0], shares, "dead", palette)
        axes[0].set_ylim(0, max(LEAST_TOP, 1.05 * float(np.nanmax(shares["dead"].values, initial=0))))
        axes[0].yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes[0].set_ylabel("dead units")
        if not (shares["dead"] > 0).any():
            axes[0].text(0.5, 0.5, "none", ha="center", color=GREY, transform=axes[0].transAxes)
        _draw_duty(figure, axes[1], ds)
        _draw_changes(axes[2], ds, palette)
        explain_palette(figure, axes, palette)
        explain_curves(figure, shares, ["dead"], palette, others=[])


def _draw_duty(figure: Any, ax: Any, ds: "xr.Dataset") -> None:
    """Draw the duty cycle, a row a unit and a column a checkpoint."""
    at = ds["duty_cycle"].isel(run=0, layer=-1).transpose("unit", "step").dropna("step", how="all")
    duty = at.dropna("unit", how="all").to_numpy()
    names = [name for name in ("run", "layer") if ds.sizes[name] > 1]
    ax.set_title("\n".join(str(at[name].item()) for name in names), fontsize=8.5)
    ax.set_xlabel("training step, a column a checkpoint")
    ax.set_ylabel("unit, by its last duty cycle")
    if not duty.size:
        ax.text(0.5, 0.5, "unavailable", ha="center", va="center", color=GREY, transform=ax.transAxes)
        return
    duty = duty[np.argsort(duty[:, -1], kind="stable")]
    image = ax.imshow(duty, vmin=0, vmax=1, cmap="viridis", origin="lower", aspect="auto", interpolation="nearest")
    shown = np.unique(np.linspace(0, at.sizes["step"] - 1, 6).round().astype(int))
    ax.set_xticks(shown, labels=[f"{int(step):,}" for step in at["step"].values[shown]])
    bar = figure.colorbar(image, ax=ax, pad=0.02, aspect=30)
    bar.set_label("duty cycle")


def _draw_changes(ax: Any, ds: "xr.Dataset", palette: Palette) -> None:
    """Draw correlation before and after against the shift of the mean."""
    colour_of = "run" if palette.kind == "run" else "layer"
    shift, correlation = (ds[name].transpose(colour_of, ..., "unit").to_numpy() for name in ("shift", "correlation"))
    size = float(np.clip(6000 / max(1, np.isfinite(shift).sum()), 3, 16))
    for x, y, colour in zip(shift, correlation, palette.colours, strict=True):
        ax.scatter(x.ravel(), y.ravel(), s=size, color=colour, alpha=0.6, linewidths=0)
    for line in (ax.axhline, ax.axvline):
        line(0, color="#bbbbbb", linewidth=0.7, zorder=0)
    ax.set_ylim(min(-0.3, 1.05 * float(np.nanmin(correlation, initial=0))), 1.05)
    sizes = np.abs(shift[np.isfinite(shift)])
    typical = float(np.median(sizes)) if sizes.size else 0.0
    if sizes.max(initial=0) > FAR * typical > 0:
        ax.set_xscale("symlog", linthresh=typical)
    pairs = {tuple(pair) for pair in ds.attrs.get("compared", {}).values() if not isinstance(pair, str)}
    where = f", step {pairs.copy().pop()[0]:,} to {pairs.copy().pop()[1]:,}" if len(pairs) == 1 else ""
    ax.set_xlabel(f"shift of the mean (pooled std){where}")
    ax.set_ylabel("correlation over probes, before with after")
    ax.grid(visible=True)
