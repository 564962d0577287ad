"""The figure of correlations over training: three matrices, what is significant in full squares."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import shorten
from replay.plots.figure import GREY, drawing, headline, require
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_correlation"]

TITLES = {
    "level": "levels",
    "differenced": "changes between checkpoints",
    "detrended": "beside a trend in ln(1 + step)",
}

SIGNIFICANT = 0.05
"""The largest q of a full square."""

SMALL = 0.42
"""Side of the square of a coefficient that is not significant; a cell is 1."""

MAX_SERIES = 80
"""Series of one figure."""

UNAVAILABLE = "#dcdcdc"

Floats = npt.NDArray[np.float64]


def plot_correlation(ds: "xr.Dataset", path: Path) -> None:
    """Draw the correlations of every two series: levels, changes and residuals side by side, on one scale.

    The colour is the coefficient, over several runs the mean of Fisher's z. A square fills its cell where q is at most
    0.05 in more than half of the runs that have it, and is small elsewhere. Lines part scalars of training and metrics.
    Grey cells are unavailable.

    Parameters
    ----------
    ds
        Dataset with ``mean`` over (variant, series_a, series_b) and ``q`` over (run, variant, series_a, series_b);
        attributes ``series`` (metric and layer of each) and ``method``. NaN is unavailable.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, a variable is missing, or there are more than 80 series.
    """
    require(ds, ["mean"], ("variant", "series_a", "series_b"))
    require(ds, ["q"], ("run", "variant", "series_a", "series_b"))
    n = ds.sizes["series_a"]
    if n > MAX_SERIES:
        raise InvalidInput(
            f"a figure holds {MAX_SERIES} series, and there are {n}: choose fewer with --metric or --layers"
        )
    names, shared = _names(ds.attrs["series"])
    q = ds["q"].transpose("run", "variant", "series_a", "series_b").to_numpy()
    significant = 2 * (q <= SIGNIFICANT).sum(axis=0) > np.isfinite(q).sum(axis=0)
    values = ds["mean"].transpose("variant", "series_a", "series_b").to_numpy()
    side = float(np.clip(0.25 * n, 2.6, 7.5))
    margin = 0.2 + _letters(n) / 120 * max(map(len, names))
    size = (3 * side + margin + 1.5, side + margin + 0.6)
    title = headline(ds, f"{str(ds.attrs.get('method', '')).capitalize()} correlation over training steps".strip())
    with drawing(path, size=size, title=title) as figure:
        axes = list(figure.subplots(1, len(values), sharey=True))
        for ax, matrix, full, variant in zip(axes, values, significant, ds["variant"].to_numpy(), strict=True):
            squares = _draw_matrix(ax, matrix, full)
            _part(ax, ds.attrs["series"])
            ax.set_title(TITLES.get(str(variant), str(variant)))
            ax.set_xticks(range(n), labels=names, rotation=90, fontsize=_letters(n))
        axes[0].set_yticks(range(n), labels=names, fontsize=_letters(n))
        share = side / (side + margin)
        bar = figure.colorbar(squares, ax=axes, pad=0.015, aspect=20, shrink=share, anchor=(0, 1), panchor=False)
        bar.set_label("correlation" if ds.sizes["run"] == 1 else f"correlation, mean of {ds.sizes['run']} runs")
        where = "" if ds.sizes["run"] == 1 else " in more than half of the runs"
        notes = [f"full squares: q ≤ {SIGNIFICANT}{where}; small: not"]
        notes += [f"layers: {shared}"] if shared else []
        notes += ["grey: unavailable"] if np.isnan(values).any() else []
        figure.supxlabel("  ·  ".join(notes), fontsize=8.5, color=GREY)


def _names(series: list[tuple[str, str]]) -> tuple[list[str], str]:
    """Name each series by metric and layer, without what all layers share."""
    layers = list(dict.fromkeys(layer for _, layer in series if layer))
    short, shared = shorten(layers, ".:")
    called = dict(zip(layers, short, strict=True))
    return [f"{metric} {called.get(layer, '')}".strip() for metric, layer in series], shared


def _draw_matrix(ax: Any, matrix: Floats, full: npt.NDArray[np.bool_]) -> Any:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    n = len(matrix)
    ax.plot([-0.5, n - 0.5], [-0.5, n - 0.5], color="#bbbbbb", linewidth=0.8)
    for i, j in np.argwhere(np.isnan(matrix)):
        ax.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, color=UNAVAILABLE, linewidth=0))
    sides = np.where(full, 0.94, SMALL)
    known = np.isfinite(matrix) & ~np.eye(n, dtype=bool)
    squares = PatchCollection(
        [
            Rectangle((j - sides[i, j] / 2, i - sides[i, j] / 2), sides[i, j], sides[i, j])
            for i, j in np.argwhere(known)
        ],
        cmap="RdBu_r",
        linewidths=0,
    )
    squares.set_array(matrix[known])
    squares.set_clim(-1, 1)
    ax.add_collection(squares)
    ax.set(xlim=(-0.5, n - 0.5), ylim=(n - 0.5, -0.5), aspect="equal", anchor="N")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return squares


def _part(ax: Any, series: list[tuple[str, str]]) -> None:
    """Draw a line wherever a metric ends, but not between scalars."""
    families = [metric if layer else "" for metric, layer in series]
    for at in range(1, len(families)):
        if families[at] != families[at - 1]:
            ax.axhline(at - 0.5, color="#666666", linewidth=0.8)
            ax.axvline(at - 0.5, color="#666666", linewidth=0.8)


def _letters(n: int) -> float:
    return 8.0 if n <= 30 else 6.0 if n <= 50 else 4.5
