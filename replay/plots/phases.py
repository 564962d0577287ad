"""The figure of the phases of training: paths in a common basis, its variance, subspaces, and clusters of probes."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import MARKERS, Palette, draw_step_bar, explain_palette, run_palette, step_colours
from replay.plots.figure import GREY, drawing, headline, require, scale_steps, sorted_steps
from replay.plots.planes import frame_plane
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_phases"]

FILLED_RUNS = 3
"""Runs whose clusters are drawn."""

AXES = ("run", "step", "layer")

Floats = npt.NDArray[np.float64]


def plot_phases(ds: "xr.Dataset", path: Path) -> None:
    """Draw the phases of the deepest layer.

    Above: the path of the mean probe of each run along the first two components, a colour a step, a ring where a phase
    begins; the share of the variance that each component holds; the overlap of each checkpoint's subspace with the one
    before, beside that of random subspaces. Below: the share of the probes in each cluster, for the first three runs,
    with a line between phases.

    Parameters
    ----------
    ds
        Dataset with ``centroid`` (run, step, layer, component), ``explained`` (layer, component), ``overlap`` (run,
        step, layer), ``overlap_null`` (layer) and ``occupancy`` (run, step, layer, cluster); layers from input to
        output; attributes ``runs``, ``n_probes`` and ``phases``, each with ``run``, ``layer``, ``first`` and ``last``
        step. Values that are not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, a variable is missing or lies over other dimensions.
    """
    require(ds, ["centroid"], (*AXES, "component"))
    require(ds, ["explained"], ("layer", "component"))
    require(ds, ["overlap"], AXES)
    require(ds, ["overlap_null"], ("layer",))
    if "occupancy" not in ds:
        raise InvalidInput("the dataset to plot lacks occupancy")
    ds = sorted_steps(ds).isel(layer=-1)
    layer = str(ds["layer"].values)
    palette = run_palette(ds["run"].values)
    steps = np.asarray(ds["step"].values, np.float64)
    shown = min(FILLED_RUNS, len(palette.names))
    with drawing(path, size=(13.4, 7.4), title=headline(ds, "Phases of training", layer)) as figure:
        grid = figure.add_gridspec(2, 6, height_ratios=[1.25, 1.0])
        plane, variance, subspaces = (figure.add_subplot(grid[0, 2 * i : 2 * i + 2]) for i in range(3))
        _draw_paths(plane, ds, steps, layer, step_colours(steps))
        draw_step_bar(figure, plane, step_colours(steps), steps)
        _draw_variance(variance, np.asarray(ds["explained"].values, np.float64))
        _draw_overlap(subspaces, ds, steps, palette)
        width = 6 // shown
        for run in range(shown):
            ax = figure.add_subplot(grid[1, run * width : (run + 1) * width])
            _draw_clusters(ax, ds.isel(run=run), steps, _bounds(ds, run, layer))
            ax.set_title(palette.names[run] if len(palette.names) > 1 else "", loc="left")
            ax.set_ylabel("share of the probes" if run == 0 else "")
        explain_palette(figure, [plane], palette)
        _name_clusters(figure, int(ds["occupancy"].notnull().any(("run", "step")).sum()))


def _bounds(ds: "xr.Dataset", run: int, layer: str) -> list[tuple[float, float]]:
    """Return the last step of each phase but the last, and the first of the next."""
    name = str(ds["run"].values[run])
    told = [one for one in ds.attrs.get("phases") or [] if (one["run"], one["layer"]) == (name, layer)]
    told.sort(key=lambda one: one["first"])
    return [(float(one["last"]), float(other["first"])) for one, other in pairwise(told)]


def _draw_paths(ax: Any, ds: "xr.Dataset", steps: Floats, layer: str, scale: Any) -> None:
    centroids = np.asarray(ds["centroid"].transpose("run", "step", "component").values, np.float64)
    if centroids.shape[2] < 2:
        centroids = np.concatenate([centroids, np.zeros_like(centroids)], axis=2)
    centroids = centroids[..., :2]
    for run, Y in enumerate(centroids):
        there = np.isfinite(Y).all(axis=1)
        ax.plot(*Y[there].T, color="#9a9a9a", linewidth=0.8, zorder=1)
        marker = MARKERS[run % len(MARKERS)]
        colours = scale.to_rgba(steps[there])
        ax.scatter(*Y[there].T, s=30, c=colours, marker=marker, linewidths=0.3, edgecolors="white", zorder=2)
        begins = np.isin(steps, [first for _, first in _bounds(ds, run, layer)]) & there
        ax.scatter(*Y[begins].T, s=130, facecolors="none", edgecolors="#111111", linewidths=1.2, zorder=3)
    frame_plane(ax, centroids.reshape(-1, 2))
    shares = [f" ({share:.0%})" if np.isfinite(share) else "" for share in ds["explained"].values[:2]]
    ax.set_xlabel(f"component 1{shares[0]}")
    ax.set_ylabel(f"component 2{shares[1]}" if len(shares) > 1 else "")
    ax.set_title("mean probe; a ring begins a phase", loc="left")


def _draw_variance(ax: Any, explained: Floats) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    ranks = np.arange(1, len(explained) + 1)
    ax.bar(ranks, explained, color="#9db7d5", width=0.75)
    ax.plot(ranks, np.cumsum(explained), color="#1f4e79", marker="o", markersize=3, linewidth=1.4)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    ax.set_xlabel("component")
    ax.set_title("variance over all steps and runs; line: up to here", loc="left")
    ax.grid(visible=True, axis="y")


def _draw_overlap(ax: Any, ds: "xr.Dataset", steps: Floats, palette: Palette) -> None:
    values = np.asarray(ds["overlap"].transpose("run", "step").values, np.float64)
    for run, (line, colour) in enumerate(zip(values, palette.colours, strict=True)):
        marker = MARKERS[run % len(MARKERS)]
        there = np.isfinite(line)
        ax.plot(steps[there], line[there], color=colour, linewidth=1.4, marker=marker, markersize=3)
    null = float(ds["overlap_null"].values)
    if np.isfinite(null):
        ax.axhline(null, color=GREY, linewidth=1, linestyle=":")
        ax.text(
            0.99, null, "random", va="bottom", ha="right", fontsize=8, color=GREY, transform=ax.get_yaxis_transform()
        )
    ax.set_ylim(0, 1.03)
    scale_steps(ax, steps, n_decades=4)
    k = ds.sizes.get("rank", "")
    ax.set_title(f"overlap of the first {k} components\nwith those of the step before", loc="left")
    ax.grid(visible=True, axis="y")


def _draw_clusters(ax: Any, ds: "xr.Dataset", steps: Floats, bounds: Sequence[tuple[float, float]]) -> None:
    shares = np.asarray(ds["occupancy"].transpose("cluster", "step").values, np.float64)
    there = np.isfinite(shares).any(axis=0)
    if there.any():
        ax.stackplot(steps[there], np.nan_to_num(shares[:, there]), colors=_colours(len(shares)), alpha=0.85)
    else:
        ax.text(0.5, 0.5, "unavailable", ha="center", va="center", color=GREY, transform=ax.transAxes)
    scale_steps(ax, steps, n_decades=4)
    logarithmic = ax.get_xscale() != "linear"
    for last, first in bounds:
        at = np.sqrt(last * first) if logarithmic and last > 0 else (last + first) / 2
        ax.axvline(at, color="#111111", linewidth=1.1, linestyle=(0, (4, 2)))
    ax.set_ylim(0, 1)


def _colours(n_clusters: int) -> list[Any]:
    import matplotlib as mpl

    return [mpl.colormaps["tab20" if n_clusters > 10 else "tab10"](i) for i in range(n_clusters)]


def _name_clusters(figure: Any, n_clusters: int) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [
        Patch(facecolor=colour, alpha=0.85, label=f"cluster {i + 1}") for i, colour in enumerate(_colours(n_clusters))
    ]
    marks.append(Line2D([], [], color="#111111", linewidth=1.1, linestyle=(0, (4, 2)), label="between phases"))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 11), frameon=False)
