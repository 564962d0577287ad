"""The figure of trajectories in a plane: every checkpoint a point, every run a path through time."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import MARKERS, Palette, draw_step_bar, run_palette, shorten, step_colours
from replay.plots.figure import GREY, drawing, headline, require
from replay.plots.labels import place_labels
from replay.plots.planes import frame_plane, tell_trust
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_embedding"]

CROWDED = 300
"""More points than this in a panel are drawn smaller."""

Floats = npt.NDArray[np.float64]


def plot_embedding(ds: "xr.Dataset", path: Path) -> None:
    """Draw the first two components of an embedding of checkpoints, a panel a layer.

    A line joins the checkpoints of a run in the order of their steps, a colour is a step, a marker a run; the first
    step has a ring, the last a heavy edge, and both are named where there is room. Both axes have one scale. Each panel
    says how far it can be trusted, beside the same number for points dealt out at random.

    Parameters
    ----------
    ds
        Dataset with ``embedding`` over (point, component) or (layer, point, component), with ``run`` and ``step`` of
        each point; ``trustworthiness`` and ``random_agreement``, numbers or over layer, as variables or attributes;
        attributes ``runs``, ``n_probes``, ``method`` and ``measure_title``. A point that is not finite is left out.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, a variable is missing, or there are fewer than two components.
    """
    if "embedding" in ds and "layer" not in ds["embedding"].dims:
        ds = ds.assign(embedding=ds["embedding"].expand_dims("layer"))
    require(ds, ["embedding"], ("layer", "point", "component"))
    require(ds, ["run", "step"], ("point",))
    if ds.sizes["component"] < 2:
        raise InvalidInput("an embedding to plot has two components or more, and there is one")
    points = np.asarray(ds["embedding"].transpose("layer", "point", "component").values, np.float64)[..., :2]
    steps = np.asarray(ds["step"].values, np.float64)
    layers, shared = shorten(
        [str(layer) for layer in np.atleast_1d(ds["layer"].values)] if "layer" in ds else [""], ".:"
    )
    palette, runs = _runs(ds)
    paths = [_paths(Y, runs, steps) for Y in points]
    several = len(points) > 1
    n_columns = len(points) if len(points) <= 3 else int(np.ceil(np.sqrt(len(points))))
    n_rows = -(-len(points) // n_columns)
    side = 2.9 if len(points) > 9 else 3.6 if several else 5.6
    size = (side * n_columns + 1.4, (side + 0.45) * n_rows + (1.2 if len(palette.names) > 1 else 0.5))
    with drawing(path, size=size, title=_title(ds, shared or layers[0])) as figure:
        axes = list(np.ravel(figure.subplots(n_rows, n_columns)))
        scale = step_colours(np.unique(steps))
        for number, (ax, Y) in enumerate(zip(axes, points, strict=False)):
            _draw_paths(ax, Y, steps, paths[number].values(), scale, area=26.0 if several else 42.0)
            lines = [layers[number] if several else "", tell_trust(ds, layer=number)]
            ax.set_title("\n".join(filter(None, lines)), loc="left")
        for ax in axes[len(points) :]:
            ax.set_axis_off()
        draw_step_bar(figure, axes, scale, np.unique(steps))
        if len(palette.names) > 1:
            _name_runs(figure, palette, n_columns=max(1, int(size[0] / 1.6)))
        figure.draw_without_rendering()
        for ax, Y, lines_of_runs in zip(axes, points, paths, strict=False):
            _name_ends(figure, ax, Y, steps, lines_of_runs)


def _runs(ds: "xr.Dataset") -> tuple[Palette, npt.NDArray[np.str_]]:
    """Shorten the names of the runs; return them and the one of each point."""
    given = [str(run) for run in ds["run"].values]
    names = list(dict.fromkeys(given))
    palette = run_palette(names)
    return palette, np.array([palette.names[names.index(run)] for run in given])


def _title(ds: "xr.Dataset", layers: str) -> str:
    methods = {"phate": "PHATE", "mds": "Classical scaling", "diffusion": "Diffusion map"}
    method = ds.attrs.get("method")
    facts = [str(ds.attrs["measure_title"])] if ds.attrs.get("measure_title") else []
    facts += [layers] if layers else []
    return headline(ds, f"{methods.get(str(method), method or 'Embedding')} of checkpoints", *facts)


def _paths(Y: Floats, runs: npt.NDArray[np.str_], steps: Floats) -> dict[str, npt.NDArray[np.intp]]:
    """Find the points of each run that are there, in the order of their steps."""
    order = np.argsort(steps, kind="stable")
    order = order[np.isfinite(Y[order]).all(axis=1)]
    return {name: order[runs[order] == name] for name in dict.fromkeys(runs.tolist())}


def _draw_paths(
    ax: Any, Y: Floats, steps: Floats, paths: Iterable[npt.NDArray[np.intp]], scale: Any, *, area: float
) -> None:
    area *= 0.5 if len(steps) > CROWDED else 1.0
    for number, rows in enumerate(paths):
        if not len(rows):
            continue
        marker = MARKERS[number % len(MARKERS)]
        ax.plot(*Y[rows].T, color="#9a9a9a", linewidth=0.8, zorder=1)
        colours = scale.to_rgba(steps[rows])
        ax.scatter(*Y[rows].T, s=area, c=colours, marker=marker, linewidths=0.3, edgecolors="white", zorder=2)
        ax.scatter(*Y[rows[0]], s=3.2 * area, facecolors="none", edgecolors=GREY, linewidths=0.9, zorder=3)
        last = {"c": [colours[-1]], "edgecolors": "#111111", "linewidths": 1.4, "marker": marker}
        ax.scatter(*Y[rows[-1]], s=2.2 * area, zorder=4, **last)
    frame_plane(ax, Y)


def _name_runs(figure: Any, palette: Palette, *, n_columns: int) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=GREY, marker=MARKERS[number % len(MARKERS)], markersize=5, linewidth=0, label=name)
        for number, name in enumerate(palette.names)
    ]
    title = f"run  {palette.shared}".rstrip()
    place = {"loc": "outside lower center", "frameon": False, "columnspacing": 1.2, "handletextpad": 0.2}
    figure.legend(handles=marks, ncols=min(len(marks), n_columns), title=title, **place)


def _name_ends(figure: Any, ax: Any, Y: Floats, steps: Floats, paths: dict[str, npt.NDArray[np.intp]]) -> None:
    """Name the first step and the last; where there are several runs, the end of each by its run."""
    there = {name: rows for name, rows in paths.items() if len(rows)}
    first = [(Y[rows[0]], f"step {steps[rows[0]]:,.0f}") for rows in there.values()]
    last = [(Y[rows[-1]], name if len(paths) > 1 else f"step {steps[rows[-1]]:,.0f}") for name, rows in there.items()]
    lines = [
        Y[rows[:-1]] + part * np.diff(Y[rows], axis=0) for rows in there.values() for part in np.arange(0, 1, 0.125)
    ]
    place_labels(figure, ax, first + last, avoid=np.concatenate([Y[:0], *lines]))
