"""Lines of a quantity over (run, step, layer) against the training step, a colour a layer or a run."""

from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import LEGEND_LAYERS, Palette, layer_palette, run_palette
from replay.plots.figure import GREY, scale_steps

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["AXES", "curve_axes", "curve_palette", "curve_size", "draw_curves", "explain_curves"]

AXES = ("run", "step", "layer")

FEW_BANDS = 12
"""Up to this many curves of a panel have their interval drawn."""

MANY_STEPS = 40
"""More steps than this are drawn without markers."""

STEEP = 100
"""A value axis is logarithmic when its largest value is more than this many times its smallest."""


def curve_palette(ds: "xr.Dataset") -> Palette:
    """Colours of the layers, or of the runs where there is one layer only."""
    return run_palette(ds["run"].values) if ds.sizes["layer"] == 1 else layer_palette(ds["layer"].values)


def curve_size(n_panels: int) -> tuple[float, float]:
    """Width and height in inches of a figure of so many panels of curves."""
    n_rows, n_columns = _grid(n_panels)
    return 3.7 * n_columns + 1.8, 2.8 * n_rows + 0.9


def curve_axes(figure: Any, n_panels: int) -> list[Any]:
    """Divide a figure into so many panels, row by row; a cell that is left over stays empty."""
    axes = list(np.ravel(figure.subplots(*_grid(n_panels))))
    for ax in axes[n_panels:]:
        ax.set_axis_off()
    return axes[:n_panels]


def _grid(n_panels: int) -> tuple[int, int]:
    n_rows = 1 if n_panels <= 3 else 2
    return n_rows, -(-n_panels // n_rows)


def draw_curves(ax: Any, ds: "xr.Dataset", name: str, palette: Palette, *, steep: bool = False) -> None:
    """Draw one variable, its steps in order: each run thin and their mean thick, or each run where it has a colour.

    The mean stands only where no run lacks the step, so that it never jumps because its members change. Intervals
    ``_low`` and ``_high`` are drawn as bands where they are few. Values that are not finite are gaps.

    Parameters
    ----------
    ax
        Where to draw.
    ds
        Over (run, step, layer).
    name
        The variable.
    palette
        From `curve_palette`.
    steep
        Whether the value axis may be logarithmic.
    """
    steps = np.asarray(ds["step"].values, np.float64)
    values = _values(ds, name)
    marker = "o" if len(steps) <= MANY_STEPS and len(palette.colours) <= LEGEND_LAYERS else None
    runs, layers = len(values), values.shape[2]
    by_run = palette.kind == "run"
    shade = 0.3 / np.sqrt(runs * layers)
    for layer in range(layers):
        for run in range(runs):
            colour = palette.colours[run if by_run else layer]
            if runs * layers <= FEW_BANDS and {name + "_low", name + "_high"} <= set(ds):
                low, high = (_values(ds, name + end)[run, :, layer] for end in ("_low", "_high"))
                ax.fill_between(steps, low, high, color=colour, alpha=shade, linewidth=0)
            single = by_run or runs == 1
            line = {"linewidth": 1.6, "marker": marker} if single else {"linewidth": 0.6, "alpha": 0.45}
            ax.plot(steps, values[run, :, layer], color=colour, markersize=3, **line)
        if runs > 1 and not by_run:
            mean = values[:, :, layer].mean(axis=0)
            ax.plot(steps, mean, color=palette.colours[layer], linewidth=1.8, marker=marker, markersize=3)
    scale_steps(ax, steps, n_decades=4)
    _scale_values(ax, values, steep=steep)
    ax.grid(visible=True, axis="y")


def explain_curves(figure: Any, ds: "xr.Dataset", names: list[str], palette: Palette, *, others: list[Any]) -> None:
    """Say under the panels what thick, thin and shaded stand for; ``others`` are further marks."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = []
    if ds.sizes["run"] > 1 and palette.kind == "layer":
        marks.append(Line2D([], [], color=GREY, linewidth=1.8, label=f"mean of {ds.sizes['run']} runs"))
        marks.append(Line2D([], [], color=GREY, linewidth=0.6, label="each run"))
    banded = any(np.isfinite(ds[name + "_low"]).any() for name in names if name + "_low" in ds)
    if banded and ds.sizes["run"] * ds.sizes["layer"] <= FEW_BANDS:
        marks.append(Patch(facecolor=GREY, alpha=0.25, label="95 % interval over probes"))
    marks += others
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)


def _values(ds: "xr.Dataset", name: str) -> Any:
    return np.asarray(ds[name].transpose(*AXES).values, np.float64)


def _scale_values(ax: Any, values: Any, *, steep: bool) -> None:
    """Make the axis logarithmic where values are positive and of several magnitudes, else let it begin at 0."""
    from matplotlib.ticker import NullLocator

    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if not len(positive) or finite.min() < 0:
        return
    if steep and positive.max() > STEEP * positive.min():
        if len(positive) == len(finite):
            ax.set_yscale("log")
        else:
            ax.set_yscale("symlog", linthresh=positive.min(), linscale=0.4)
        ax.yaxis.set_minor_locator(NullLocator())
    elif finite.min() < 0.6 * finite.max():
        ax.set_ylim(bottom=0)
