"""The figure of similarity matrices: layers by layers, steps by steps, or runs by runs."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import shorten
from replay.plots.figure import GREY, drawing, headline, require
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_similarity"]

LABELLED_ROWS = 12
"""Up to this many rows the cells carry their numbers."""

NAMED_ROWS = 26
"""Up to this many rows each has a tick; of more, every few."""

UNAVAILABLE = "#dcdcdc"

MAX_PANELS = 36
"""Panels of one figure."""

Floats = npt.NDArray[np.float64]


def plot_similarity(ds: "xr.Dataset", path: Path) -> None:
    """Draw similarity matrices as heat maps on one scale, with the value of relabelled probes on the colour bar.

    Light is alike, whether the measure is a similarity or a distance. On the colour bar a bracket spans what the null
    comes to over the cells, and a line is its mean. Up to twelve rows, cells carry their numbers. Grey cells are
    unavailable.

    Parameters
    ----------
    ds
        Dataset with ``similarity`` and ``null`` over (row, column) or (panel, row, column); coordinates ``label`` or
        ``row`` naming the rows, and ``panel`` naming the panels; attributes ``runs``, ``n_probes``, ``across`` (what
        the rows are: ``layers``, ``steps`` or ``runs``), ``measure_title`` and ``sense``. NaN is unavailable.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, a variable is missing, or there are more than 36 panels.
    """
    if "similarity" in ds and "panel" not in ds["similarity"].dims:
        single = [name for name in ("similarity", "null") if name in ds]
        ds = ds.assign({name: ds[name].expand_dims("panel") for name in single})
    require(ds, ["similarity", "null"], ("panel", "row", "column"))
    values, nulls = (
        np.asarray(ds[name].transpose("panel", "row", "column").values, np.float64) for name in ("similarity", "null")
    )
    if len(values) > MAX_PANELS:
        raise InvalidInput(
            f"a figure holds {MAX_PANELS} similarity matrices, and there are {len(values)}: choose fewer runs, layers "
            "or steps"
        )
    rows, shared = _row_names(ds)
    titles, common = _panel_titles(ds)
    what = str(ds.attrs.get("measure_title") or "similarity")
    n_columns = len(values) if len(values) <= 3 else int(np.ceil(np.sqrt(len(values))))
    n_rows = -(-len(values) // n_columns)
    side = float(np.clip(0.42 * len(rows) if len(rows) <= LABELLED_ROWS else 4.0, 2.6, 5.2))
    if len(values) > 4 and len(rows) > LABELLED_ROWS:
        side = 2.9
    margin = 0.3 + min(1.8, 0.075 * max(map(len, rows)))
    size = (n_columns * (side + margin) + 1.3, n_rows * (side + margin + 0.25) + 0.7)
    title = headline(ds, what[:1].upper() + what[1:], *common)
    with drawing(path, size=size, title=title) as figure:
        axes = list(np.ravel(figure.subplots(n_rows, n_columns)))
        scale = _scale(values, nulls, distance=ds.attrs.get("sense") == "distance")
        for ax, matrix, name in zip(axes, values, titles, strict=False):
            _draw_matrix(ax, matrix, rows, scale)
            ax.set_title(textwrap.fill(name, int(12 * side)))
        for ax in axes[len(values) :]:
            ax.set_axis_off()
        kind = str(ds.attrs.get("across") or ds.attrs.get("kind") or "")
        bar = figure.colorbar(scale, ax=axes, pad=0.03, aspect=28, shrink=min(1.0, 0.5 + 0.5 / n_rows))
        bar.set_label(what)
        _mark_null(bar, nulls)
        notes = [f"rows and columns: {kind} {shared}".rstrip()] if kind else []
        notes += ["grey: unavailable"] if np.isnan(values).any() else []
        if notes:
            figure.supxlabel("  ·  ".join(notes), fontsize=8.5, color=GREY)


def _row_names(ds: "xr.Dataset") -> tuple[list[str], str]:
    source = "label" if "label" in ds else "row"
    given = ds[source].values if source in ds else np.arange(ds.sizes["row"])
    names = [str(name) for name in given]
    if all(name.isdigit() for name in names):
        return [f"{int(name):,}" for name in names], ""
    boundaries = "/-_" if ds.attrs.get("across") == "runs" else ".:"
    return shorten(names, boundaries)


def _panel_titles(ds: "xr.Dataset") -> tuple[list[str], list[str]]:
    """Tell the panels apart, and name what they have in common."""
    if "panel" not in ds:
        return [""] * ds.sizes["panel"], []
    parts = [str(name).split(", ") for name in ds["panel"].values]
    if len({len(words) for words in parts}) > 1:
        return [", ".join(words) for words in parts], []
    same = [len(set(words)) == 1 for words in zip(*parts, strict=True)]
    common = [word for word, alike in zip(parts[0], same, strict=True) if alike and word]
    titles = [", ".join(w for w, alike in zip(words, same, strict=True) if not alike) for words in parts]
    return titles, common


def _scale(values: Floats, nulls: Floats, *, distance: bool) -> Any:
    """Colours from the least to the greatest of values and nulls, so that chance is on the scale too."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    finite = np.concatenate([values[np.isfinite(values)], nulls[np.isfinite(nulls)]])
    low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
    colours = mpl.colormaps["viridis_r" if distance else "viridis"].with_extremes(bad=UNAVAILABLE)
    return ScalarMappable(Normalize(low, high if high > low else low + 1), colours)


def _draw_matrix(ax: Any, matrix: Floats, rows: list[str], scale: Any) -> None:
    n = len(rows)
    ax.imshow(np.ma.masked_invalid(matrix), cmap=scale.cmap, norm=scale.norm, interpolation="nearest", aspect="equal")
    shown = range(n) if n <= NAMED_ROWS else np.unique(np.linspace(0, n - 1, 9).round().astype(int))
    names = [rows[i] for i in shown]
    upright = max(map(len, names)) * len(names) > 26
    ax.set_xticks(list(shown), labels=names, rotation=90 if upright else 0, fontsize=8)
    ax.set_yticks(list(shown), labels=names, fontsize=8)
    ax.tick_params(length=0 if n <= NAMED_ROWS else 3)
    ax.spines[:].set_visible(False)
    if n > LABELLED_ROWS:
        return
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            dark = sum(scale.to_rgba(value)[:3]) < 1.5
            text = f"{value:.2f}" if abs(value) < 9.995 else f"{value:.0f}"
            colour = "white" if dark else "#222222"
            ax.text(j, i, text, ha="center", va="center", fontsize=7.5, color=colour)


def _mark_null(bar: Any, nulls: Floats) -> None:
    """Mark the null beside the colour bar: a bracket from its least to its greatest, a line at its mean."""
    finite = nulls[np.isfinite(nulls)]
    if not len(finite):
        return
    low, mean, high = finite.min(), finite.mean(), finite.max()
    across = bar.ax.get_yaxis_transform()
    bar.ax.plot([-0.25, -0.25], [low, high], color="#222222", linewidth=2, transform=across, clip_on=False)
    bar.ax.plot([-0.35, 1], [mean, mean], color="#222222", linewidth=1.2, transform=across, clip_on=False)
    text = {"rotation": 90, "ha": "right", "fontsize": 8, "transform": across}
    if bar.norm(mean) < 0.5:
        bar.ax.text(-0.5, mean, "relabelled", va="bottom", **text)
    else:
        bar.ax.text(-0.5, mean, "relabelled", va="top", **text)
