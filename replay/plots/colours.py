"""Colours that mean something - a layer, a run, a label, a step - and the legends and colour bars that say what."""

from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.plots.figure import step_ticks

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "LEGEND_LAYERS",
    "MARKERS",
    "Palette",
    "draw_step_bar",
    "explain_palette",
    "label_palette",
    "layer_palette",
    "name_labels",
    "run_palette",
    "shorten",
    "step_colours",
]

LEGEND_LAYERS = 10
"""Up to this many layers are named in a legend; more are read from a colour bar."""

LEGEND_LABELS = 20
"""Up to this many labels have a colour of their own."""

RUN_COLOURS = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c564b", "#444444",
)  # fmt: skip
"""Distinct for most colour-blind readers; the first six after Okabe and Ito (2008)."""

MARKERS = "osD^vP*Xh"
"""A marker a run, in order; more runs begin again."""

UNLABELLED = "#8a8a8a"

NO_LABEL = "(none)"
"""How a probe without a label is named where others have one."""


class Palette(NamedTuple):
    """Names of one kind and the colour of each."""

    kind: str
    """What is named: ``layer``, ``run`` or ``label``."""
    names: list[str]
    colours: list[Any]
    shared: str
    """What all names have in common and the short ones leave out, with ``*`` for the rest; empty if nothing."""


def layer_palette(layers: Iterable[Any]) -> Palette:
    """Give layers from input to output colours from dark to light."""
    import matplotlib as mpl

    names, shared = shorten([str(layer) for layer in layers], ".:")
    return Palette("layer", names, list(mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(names)))), shared)


def run_palette(runs: Iterable[Any]) -> Palette:
    """Give runs colours that are easy to tell apart; beyond nine, hues in order."""
    import matplotlib as mpl

    names, shared = shorten([str(run) for run in runs], "/-_")
    colours = list(RUN_COLOURS[: len(names)])
    if len(names) > len(RUN_COLOURS):
        colours = list(mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(names))))
    return Palette("run", names, colours, shared)


def label_palette(ds: "xr.Dataset") -> tuple[Palette, npt.NDArray[np.intp]]:
    """Give each distinct ``label`` of the probes a colour; return the palette and the position in it of each probe.

    Without labels, or with more than twenty, all are grey, and the palette has one colour and no names.
    """
    import matplotlib as mpl

    given = ds["label"].values if "label" in ds else [""] * ds.sizes["probe"]
    texts = [str(label) if isinstance(label, str | int | np.integer) and label != "" else NO_LABEL for label in given]
    names, positions = np.unique(texts, return_inverse=True)
    if len(names) > LEGEND_LABELS or list(names) == [NO_LABEL]:
        return Palette("label", [], [UNLABELLED], ""), np.zeros(len(texts), np.intp)
    few = mpl.colormaps["tab10" if len(names) <= 10 else "tab20"]
    return Palette("label", names.tolist(), [few(i) for i in range(len(names))], ""), positions


def shorten(names: Sequence[str], boundaries: str) -> tuple[list[str], str]:
    """Cut what all names share at either end, at one of ``boundaries``; return them and what was cut.

    ``["org/m-seed1", "org/m-seed2"]`` at ``/-`` gives ``["seed1", "seed2"]`` and ``org/m-*``.
    """
    head, tail = _shared_start(names), _shared_start([name[::-1] for name in names])[::-1]
    head = head[: max(head.rfind(mark) for mark in boundaries) + 1]
    starts = [tail.find(mark) for mark in boundaries if mark in tail]
    tail = tail[min(starts) :] if starts else ""
    if len(names) < 2 or not head + tail or min(map(len, names)) <= len(head) + len(tail):
        return list(names), ""
    return [name[len(head) : len(name) - len(tail)] for name in names], f"{head}*{tail}"


def _shared_start(names: Sequence[str]) -> str:
    same = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)


def explain_palette(figure: Any, axes: Any, palette: Palette) -> None:
    """Name two colours or more right of the axes: in a legend, or for many layers by a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D

    n = len(palette.names)
    if n < 2:
        return
    if palette.kind != "layer" or n <= LEGEND_LAYERS:
        handles = [
            Line2D([], [], color=colour, linewidth=2.2, label=name)
            for name, colour in zip(palette.names, palette.colours, strict=True)
        ]
        title = f"{palette.kind}\n{palette.shared}".rstrip()
        figure.legend(handles=handles, loc="outside right center", frameon=False, title=title, alignment="left")
        return
    scale = ScalarMappable(BoundaryNorm(np.arange(-0.5, n), n), ListedColormap(palette.colours))
    bar = figure.colorbar(scale, ax=list(np.ravel(axes)), pad=0.02, aspect=30)
    shown = np.unique(np.linspace(0, n - 1, 8).round().astype(int))
    bar.set_ticks(shown, labels=[palette.names[i] for i in shown])
    bar.ax.minorticks_off()
    bar.set_label(f"{palette.kind}  {palette.shared}".rstrip())


def name_labels(figure: Any, palette: Palette) -> None:
    """Name the colours of labels right of the axes, if they have one."""
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=colour, marker="o", markersize=6, linewidth=0, label=name)
        for name, colour in zip(palette.names, palette.colours, strict=False)
    ]
    if marks:
        figure.legend(handles=marks, loc="outside right center", frameon=False, title="label", alignment="left")


def step_colours(steps: npt.NDArray[np.float64]) -> Any:
    """Map of ascending steps to colours, dark to light, logarithmic where the step axis is."""
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize, SymLogNorm

    colours = ListedColormap(mpl.colormaps["plasma"](np.linspace(0.0, 0.9, 256)))
    low, high = float(steps[0]), float(steps[-1]) if steps[-1] > steps[0] else float(steps[0]) + 1
    if step_ticks(steps) is None:
        return ScalarMappable(Normalize(low, high), colours)
    return ScalarMappable(SymLogNorm(steps[steps > 0][0], linscale=0.4, vmin=low, vmax=high), colours)


def draw_step_bar(figure: Any, axes: Any, scale: Any, steps: npt.NDArray[np.float64]) -> None:
    """Draw the colour bar of `step_colours`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ticks = step_ticks(steps)
    bar = figure.colorbar(scale, ax=list(np.ravel(axes)), pad=0.02, aspect=30)
    if ticks is None:
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=True) if len(set(steps)) > 1 else [steps[0]])
    else:
        bar.set_ticks(ticks)
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    bar.set_label("training step (log scale)" if ticks else "training step")
