"""The figure of the jumps of metrics over training."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import explain_palette, run_palette
from replay.plots.figure import GREY, drawing, headline, require, scale_steps

if TYPE_CHECKING:
    import xarray as xr

    from replay.plots.colours import Palette

__all__ = ["plot_jumps"]

MOST_PANELS = 24
"""Panels of a figure; those with the surest jumps come first, and how many are left out is said."""

COLUMNS = 4

EVENTS = ("metric", "run", "layer", "kind", "start", "end", "before", "after", "q")

LOOKED_AT = ("series_metric", "series_run", "series_layer")


def plot_jumps(ds: "xr.Dataset", path: Path) -> None:
    """Draw each series against the training step, and mark its jumps; a panel a metric and layer, a colour a run.

    A jump is a shaded stretch from the last step before it to the first after it, with a dot at either end on the
    levels before and after. A departure of a single checkpoint is a hollow circle; a change at an end of the series,
    that one checkpoint alone shows, is a hollow diamond.

    Parameters
    ----------
    ds
        As from `replay.analyses.jumps.analyze_jumps`: over event ``metric``, ``run``, ``layer``, ``kind``, ``start``,
        ``end``, ``before``, ``after``, ``q``; over series ``series_metric``, ``series_run``, ``series_layer``; over
        (series, point) ``step`` and ``value``.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or the dataset lacks something.
    """
    require(ds, LOOKED_AT, ("series",))
    require(ds, ("step", "value"), ("series", "point"))
    if ds.sizes.get("event"):
        require(ds, EVENTS, ("event",))
    events = ds[list(EVENTS)].to_dataframe() if ds.sizes.get("event") else None
    places = list(zip(ds["series_metric"].values, ds["series_layer"].values, strict=True))
    surest = dict.fromkeys(places, 2.0)
    if events is not None:
        for event in events.to_dict("records"):
            place = event["metric"], event["layer"]
            surest[place] = min(surest[place], event["q"])
    kept = set(sorted(surest, key=lambda place: surest[place])[:MOST_PANELS])
    panels = [place for place in surest if place in kept]
    left_out = [f"{len(surest) - len(panels)} more panels left out"] if len(surest) > len(panels) else []
    n_columns = min(COLUMNS, len(panels))
    n_rows = -(-len(panels) // n_columns)
    palette = run_palette(dict.fromkeys(ds["series_run"].values))
    runs = list(dict.fromkeys(ds["series_run"].values))
    n_events = ds.sizes.get("event", 0)
    title = headline(ds, f"{n_events} jump{'' if n_events == 1 else 's'} over training", *left_out)
    with drawing(path, size=(3.1 * n_columns + 1.8, 2.3 * n_rows + 0.9), title=title) as figure:
        axes = list(np.ravel(figure.subplots(n_rows, n_columns)))
        for ax in axes[len(panels) :]:
            ax.set_axis_off()
        for ax, (metric, layer) in zip(axes, panels, strict=False):
            _draw_series(ax, ds, [i for i, place in enumerate(places) if place == (metric, layer)], runs, palette)
            if events is not None:
                _draw_events(ax, events[(events.metric == metric) & (events.layer == layer)], runs, palette)
            ax.set_title(str(layer) or "whole model", loc="left")
            ax.set_ylabel(str(metric).replace("_", " "))
        for number, ax in enumerate(axes[: len(panels)]):
            if number + n_columns < len(panels):
                ax.set_xlabel("")
        explain_palette(figure, axes, palette)
        _explain_marks(figure, set() if events is None else set(events.kind))


def _draw_series(ax: Any, ds: "xr.Dataset", rows: list[int], runs: list[Any], palette: "Palette") -> None:
    every: list[Any] = []
    for row in rows:
        steps, values = (ds[name].isel(series=row).to_numpy() for name in ("step", "value"))
        there = np.isfinite(steps)
        colour = palette.colours[runs.index(ds["series_run"].values[row])]
        marker = "." if there.sum() <= 40 else None
        ax.plot(steps[there], values[there], color=colour, linewidth=1.1, marker=marker, markersize=3.5)
        every.append(steps[there])
    scale_steps(ax, np.unique(np.concatenate(every)), n_decades=4)
    ax.grid(visible=True, axis="y")


def _draw_events(ax: Any, events: Any, runs: list[Any], palette: "Palette") -> None:
    for event in events.itertuples():
        colour = palette.colours[runs.index(event.run)]
        if event.kind == "single checkpoint":
            ax.plot(event.end, event.after, marker="o", markersize=8, color=colour, fillstyle="none", zorder=5)
            continue
        ax.axvspan(event.start, event.end, color=colour, alpha=0.12, linewidth=0)
        hollow = event.kind == "edge"
        style = {"marker": "D" if hollow else "o", "markersize": 5.5, "fillstyle": "none" if hollow else "full"}
        ends = ((event.start, event.before), (event.end, event.after))
        ax.plot(*zip(*ends, strict=True), linestyle="none", color=colour, zorder=5, **style)


def _explain_marks(figure: Any, kinds: set[str]) -> None:
    """Say under the panels what the marks stand for that are there."""
    from matplotlib.lines import Line2D

    named = {
        "jump": ("o", "full", "before and after a jump"),
        "edge": ("D", "none", "a change that one checkpoint at the end shows"),
        "single checkpoint": ("o", "none", "departure of a single checkpoint"),
    }
    marks = [
        Line2D([], [], color=GREY, linestyle="none", marker=marker, fillstyle=fill, markersize=6, label=text)
        for kind, (marker, fill, text) in named.items()
        if kind in kinds
    ]
    if marks:
        figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
