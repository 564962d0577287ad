"""The figure of the spread between runs, its doubt, and where it falls and rises."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.plots.colours import LEGEND_LAYERS, Palette, explain_palette, layer_palette
from replay.plots.curves import MANY_STEPS
from replay.plots.figure import GREY, drawing, headline, require, scale_steps, sorted_steps
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_spread"]

NORMALIZED = "normalised spread  ‖P−Q‖ / √(‖P‖²+‖Q‖²)"
RAW = "spread  ‖P−Q‖  (Frobenius norm)"

LAYERS_OVER_RUNS = 5
"""Up to this many layers have their interval over runs drawn."""

PHASES = {"falls": "#3b6fb6", "flat": "#c9c9c9", "rises": "#c8553d"}
"""Colour of each direction."""

WHOLE = ("", "_low", "_high", "_ceiling")


def plot_spread(ds: "xr.Dataset", path: Path) -> None:
    """Draw the spread of several runs against the training step, a line a layer.

    For the Frobenius distance the normalised spread stands on the left and the raw one on the right; other measures
    have one panel. Dark bands are 95 % intervals over probes; light bands with dotted edges, drawn for five layers or
    fewer, those over runs; dashed lines the permutation ceiling. Early layers are dark, late ones light. Under the
    first panel a strip a layer shows where its spread falls, rises and is flat, unless there are more than ten layers.
    The step axis is logarithmic where the steps are unevenly spaced, with step 0 on it.

    Parameters
    ----------
    ds
        Dataset over (step, layer) with ``spread``, ``spread_low``, ``spread_high``, ``spread_ceiling`` and, from four
        runs up, ``spread_runs_low`` and ``spread_runs_high``; the same of ``spread_normalized`` where there is one;
        layers from input to output; attributes ``runs`` (names or a count), ``n_probes``, ``measure_title`` and
        ``phases``, a list of [layer, first step, last step, ``falls`` | ``rises`` | ``flat``, ...]. Values that are not
        finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or a variable, a step, a layer or the direction of a phase is missing.
    """
    panels = [("spread", _label(ds))]
    if "spread_normalized" in ds:
        panels = [("spread_normalized", NORMALIZED), ("spread", RAW)]
    require(ds, [name + end for name, _ in panels for end in WHOLE], ("step", "layer"))
    ds = sorted_steps(ds)
    palette = layer_palette(ds["layer"].values)
    phases = _phases(ds)
    steps = np.asarray(ds["step"].values, np.float64)
    strip = 0.5 + 0.13 * ds.sizes["layer"] if phases else 0.0
    size = (5.0 * len(panels) + 2.0, 4.4 + strip)
    single = palette.names if len(palette.names) == 1 else []
    with drawing(path, size=size, title=headline(ds, "Spread between runs", *single)) as figure:
        grid = figure.add_gridspec(1 + bool(phases), len(panels), height_ratios=[4.0, strip] if phases else None)
        axes = [figure.add_subplot(grid[0, column]) for column in range(len(panels))]
        for ax, (name, label) in zip(axes, panels, strict=True):
            _draw_panel(ax, ds, name, palette)
            scale_steps(ax, steps)
            ax.set_ylabel(label)
        if phases:
            ax = figure.add_subplot(grid[1, 0], sharex=axes[0])
            _draw_phases(ax, phases, palette)
            _explain_phases(ax, {phase[2] for phase in phases}, beside=len(panels) == 1)
            axes.append(ax)
        explain_palette(figure, axes, palette)
        _explain(figure, ds, [name for name, _ in panels])


def _label(ds: "xr.Dataset") -> str:
    title = ds.attrs.get("measure_title") or ds.attrs.get("measure")
    return f"spread  ({title})" if isinstance(title, str) else "spread"


def _has(ds: "xr.Dataset", *names: str) -> bool:
    return all(name in ds and bool(np.isfinite(ds[name]).any()) for name in names)


def _over_runs(ds: "xr.Dataset", name: str) -> bool:
    return ds.sizes["layer"] <= LAYERS_OVER_RUNS and _has(ds, f"{name}_runs_low", f"{name}_runs_high")


def _draw_panel(ax: Any, ds: "xr.Dataset", name: str, palette: Palette) -> None:
    steps = np.asarray(ds["step"].values, np.float64)
    few = len(palette.names) <= LEGEND_LAYERS
    shade, width = (0.22, 0.9) if few else (0.08, 0.5)
    marker = "o" if few and len(steps) <= MANY_STEPS else None
    over_runs = _over_runs(ds, name)
    for layer, colour in enumerate(palette.colours):
        at = ds.isel(layer=layer)
        if over_runs:
            ends = [at[f"{name}_runs_{end}"].values for end in ("low", "high")]
            ax.fill_between(steps, *ends, color=colour, alpha=0.08, linewidth=0)
            for end in ends:
                ax.plot(steps, end, color=colour, linewidth=0.8, linestyle=":")
        ax.fill_between(steps, at[f"{name}_low"], at[f"{name}_high"], color=colour, alpha=shade, linewidth=0)
        ax.plot(steps, at[f"{name}_ceiling"], color=colour, linewidth=width, linestyle=(0, (4, 3)), alpha=0.7)
        ax.plot(steps, at[name], color=colour, linewidth=1.6, marker=marker, markersize=3)
    ax.set_ylim(bottom=0)
    ax.grid(visible=True, axis="y")


def _phases(ds: "xr.Dataset") -> list[tuple[int, tuple[float, float], str]]:
    """Phases to draw: position of the layer, first and last step, direction; none where there are many layers."""
    layers = [str(layer) for layer in ds["layer"].values]
    if len(layers) > LEGEND_LAYERS:
        return []
    found = []
    for layer, start, end, direction, *_ in ds.attrs.get("phases") or ():
        if str(layer) not in layers or direction not in PHASES:
            raise InvalidInput(
                f"a phase to plot is of a layer of the dataset and {', '.join(PHASES)}, not {direction!r} of {layer!r}"
            )
        found.append((layers.index(str(layer)), (float(start), float(end)), str(direction)))
    return found


def _draw_phases(ax: Any, phases: list[tuple[int, tuple[float, float], str]], palette: Palette) -> None:
    for layer, (start, end), direction in phases:
        ax.barh(layer, end - start, left=start, height=0.72, color=PHASES[direction], edgecolor="white", linewidth=1)
    ax.set_ylim(len(palette.names) - 0.5, -0.5)
    if len(palette.names) > 1:
        ax.set_yticks(range(len(palette.names)), labels=palette.names, fontsize=8)
    else:
        ax.set_yticks([])
    ax.set_title("phases of convergence", fontsize=8, loc="left", pad=3)
    ax.tick_params(axis="both", length=0, labelbottom=False)
    ax.spines[:].set_visible(False)


def _explain_phases(ax: Any, directions: set[str], *, beside: bool) -> None:
    """Name the colours at the right of the strip; unless ``beside``, in the empty cell there, without claiming room."""
    from matplotlib.patches import Patch

    marks = [Patch(facecolor=colour, label=name) for name, colour in PHASES.items() if name in directions]
    place = {"loc": "center left", "bbox_to_anchor": (1.02, 0.5), "frameon": False, "borderaxespad": 0.0}
    style = {"fontsize": 8, "handlelength": 1.2, "handleheight": 0.8, "labelspacing": 0.2}
    ax.legend(handles=marks, ncols=1 if beside else len(marks), **place, **style).set_in_layout(beside)


def _explain(figure: Any, ds: "xr.Dataset", names: list[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    marks: list[Any] = [
        Line2D([], [], color=GREY, linewidth=1.6, label="mean over pairs of runs"),
        Patch(facecolor=GREY, alpha=0.25, label="95 % interval over probes"),
    ]
    if any(_over_runs(ds, name) for name in names):
        marks.append(Patch(facecolor="#eeeeee", edgecolor=GREY, linestyle=":", label="95 % interval over runs"))
    if any(_has(ds, f"{name}_ceiling") for name in names):
        dashes = (0, (4, 3))
        marks.append(Line2D([], [], color=GREY, linewidth=0.9, linestyle=dashes, label="ceiling: probes relabelled"))
    figure.legend(handles=marks, loc="outside lower center", ncols=min(len(marks), 2 * len(names)), frameon=False)
