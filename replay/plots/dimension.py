"""The figure of the dimension of activations over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import explain_palette, shorten
from replay.plots.curves import AXES, curve_axes, curve_palette, curve_size, draw_curves, explain_curves
from replay.plots.figure import GREY, drawing, headline, require, sorted_steps
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_dimension", "plot_weight_ranks"]

MANY_ROWS = 16
"""Of more rows of the heat map, only every few are named."""

FAR = 1.5
"""A null more than this many times the largest value is told and not drawn."""

TITLES = {
    "participation_ratio_unbiased": "participation ratio (unbiased)",
    "participation_ratio_singular": "participation ratio (σ)",
    "alpha_req": "α of a power law of eigenvalues",
    "two_nn": "intrinsic dimension (two-NN)",
}
"""Axis labels of metrics whose names would not do."""

UNAVAILABLE = "#dcdcdc"


def plot_dimension(ds: "xr.Dataset", path: Path) -> None:
    """Draw each metric against the training step, a panel each, and the first one as a heat map of layers and steps.

    With several layers a colour is a layer, each run is thin and the mean of the runs thick; with one layer a colour is
    a run. Bands are 95 % intervals over probes, drawn where they are few. A dotted line, or a number where it lies far
    off, is the value for independent features, where all layers have the same. The heat map has a column a checkpoint,
    evenly spaced, and the mean of the runs; of one layer it has a row a run.

    Parameters
    ----------
    ds
        Dataset over (run, step, layer) with the metrics that ``attrs["metrics"]`` names, each with ``_low``, ``_high``
        and ``_null`` or without; layers from input to output; attributes ``runs`` and ``n_probes``. Values that are not
        finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, no metric is named, or one is missing or lies over other dimensions.
    """
    names = [str(name) for name in ds.attrs.get("metrics", ())]
    if not names:
        raise InvalidInput("a dimension to plot names its metrics in attrs['metrics'], and the dataset names none")
    ends = [f"{name}{end}" for name in names for end in ("_low", "_high", "_null") if f"{name}{end}" in ds]
    require(ds, names + ends, AXES)
    _draw(ds, path, names, "Dimension of the activations")


def plot_weight_ranks(ds: "xr.Dataset", path: Path) -> None:
    """Draw the stable rank of weight matrices against the training step, and as a heat map of tensors and steps.

    Parameters
    ----------
    ds
        Dataset with ``stable_rank`` over (run, step, tensor). Values that are not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or the stable rank is missing or lies over other dimensions.
    """
    require(ds, ["stable_rank"], ("run", "step", "tensor"))
    ds = ds[["stable_rank"]].rename(tensor="layer").assign_attrs(runs=[str(run) for run in ds["run"].values])
    _draw(ds, path, ["stable_rank"], "Stable rank of the weights")


def _draw(ds: "xr.Dataset", path: Path, names: list[str], what: str) -> None:
    ds = sorted_steps(ds)
    palette = curve_palette(ds)
    single = [str(ds["layer"].values[0])] if ds.sizes["layer"] == 1 else []
    title = headline(ds, what, *single)
    width, height = curve_size(len(names) + 1)
    longest = max(len(name) for name in palette.names)
    with drawing(path, size=(width + 0.15 * max(longest - 12, 0), height), title=title) as figure:
        axes = curve_axes(figure, len(names) + 1)
        for ax, name in zip(axes, names, strict=False):
            draw_curves(ax, ds, name, palette)
            ax.set_ylabel(_label(name))
            _draw_null(ax, ds, name)
        _draw_heat_map(figure, axes[len(names)], ds, names[0])
        explain_palette(figure, axes, palette)
        explain_curves(figure, ds, names, palette, others=[])


def _label(name: str) -> str:
    base = name.removesuffix("_uncentred")
    energy = base.removeprefix("cumulative_energy_")
    text = TITLES.get(base, f"eigenvalues for {energy} %\nof the energy" if energy != base else base.replace("_", " "))
    return text + (" (uncentred)" if name != base else "")


def _draw_null(ax: Any, ds: "xr.Dataset", name: str) -> None:
    nulls = np.unique(ds[f"{name}_null"].values) if f"{name}_null" in ds else np.empty(0)
    nulls = nulls[np.isfinite(nulls)]
    if len(nulls) != 1:
        return
    null, (low, high) = float(nulls[0]), ax.get_ylim()
    style = {"fontsize": 8, "color": GREY, "ha": "right"}
    if low <= null <= FAR * high:
        ax.axhline(null, color=GREY, linewidth=1, linestyle=":")
        ax.set_ylim(low, max(high, null + 0.12 * (max(high, null) - low)))
        ax.text(0.99, null, "independent features", va="bottom", transform=ax.get_yaxis_transform(), **style)
    else:
        text = f"independent features: {null:.3g} {'↑' if null > high else '↓'}"
        ax.set_ylim(low, high + 0.12 * (high - low))
        ax.text(0.99, 1.0, text, va="top", transform=ax.transAxes, **style)


def _draw_heat_map(figure: Any, ax: Any, ds: "xr.Dataset", name: str) -> None:
    import matplotlib as mpl
    from matplotlib.colors import LogNorm, Normalize

    by_run = ds.sizes["layer"] == 1
    values = ds[name].isel(layer=0) if by_run else ds[name].mean("run", skipna=False)
    kind = "run" if by_run else "layer"
    values = values.transpose(kind, "step") if by_run else values.transpose(kind, "step")[::-1]  # the input below
    matrix = np.ma.masked_invalid(values.values.astype(np.float64))
    rows, _ = shorten([str(row) for row in values[kind].values], "/-_" if by_run else ".:")
    finite = matrix.compressed()
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (1.0, 2.0)
    scale = LogNorm if low > 0 and high > 8 * low else Normalize
    colours = mpl.colormaps["viridis"].with_extremes(bad=UNAVAILABLE)
    norm = scale(low, high if high > low else low + 1)
    image = ax.imshow(matrix, cmap=colours, norm=norm, interpolation="nearest", aspect="auto")
    few = len(rows) <= MANY_ROWS
    shown = range(len(rows)) if few else np.unique(np.linspace(0, len(rows) - 1, 8).round().astype(int))
    ax.set_yticks(list(shown), labels=[rows[i] for i in shown], fontsize=8)
    steps = ds["step"].values
    columns = np.unique(np.linspace(0, len(steps) - 1, 6).round().astype(int))
    ax.set_xticks(columns, labels=[f"{int(steps[i]):,}" for i in columns], fontsize=8)
    ax.set_xlabel("training step, a column a checkpoint")
    ax.spines[:].set_visible(False)
    of_runs = f", mean of {ds.sizes['run']} runs" if not by_run and ds.sizes["run"] > 1 else ""
    bar = figure.colorbar(image, ax=ax, location="top", aspect=30, pad=0.02)  # right of it may be that of the layers
    bar.set_label(_label(name).replace("\n", " ") + of_runs)
    bar.ax.minorticks_off()
    if scale is LogNorm:
        ticks = np.geomspace(low, high, 5)
        bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])
