"""Figures of stored results, drawn with matplotlib's object interface so that no global state is touched."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SUFFIXES", "plot_spread"]

SUFFIXES = (".png", ".svg", ".pdf")

LEGEND_LAYERS = 10
"""Up to this many layers are named in a legend; more are read from a colour bar."""

UNEVEN = 20
"""A step axis is logarithmic when its largest gap is more than this many times its smallest."""

STYLE = {
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 9.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "replay",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}

PANELS = (
    ("spread_normalized", "normalised spread  ‖P−Q‖ / √(‖P‖²+‖Q‖²)"),
    ("spread", "spread  ‖P−Q‖  (Frobenius norm)"),
)


def plot_spread(ds: "xr.Dataset", path: Path) -> None:
    """Draw the spread of several runs against the training step, a line a layer.

    The normalised spread stands on the left, the raw one on the right; bands are 95 % intervals over probes, dashed
    lines the permutation ceiling. Early layers are dark, late ones light. The step axis is logarithmic where the steps
    are unevenly spaced, with step 0 on it.

    Parameters
    ----------
    ds
        Dataset over (step, layer) with ``spread``, ``spread_low``, ``spread_high``, ``spread_ceiling`` and the same
        four of ``spread_normalized``; layers from input to output; attributes ``runs`` (names or a count) and
        ``n_probes``. Values that are not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or a variable, a step or a layer is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidInput(f"a plot is written as {', '.join(SUFFIXES)}, not {path.suffix or 'without a suffix'!r}")
    needed = [name + end for name, _ in PANELS for end in ("", "_low", "_high", "_ceiling")]
    missing = [name for name in needed if name not in ds]
    if missing:
        raise InvalidInput(f"the dataset to plot lacks {', '.join(missing)}")
    if not {"step", "layer"} <= set(ds.dims) or 0 in (ds.sizes["step"], ds.sizes["layer"]):
        raise InvalidInput(f"a spread to plot has steps and layers, not {dict(ds.sizes)}")

    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(1, 2)
        layers = [str(name) for name in ds["layer"].values]
        colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.88, len(layers)))
        steps = np.asarray(ds["step"].values, np.float64)
        order = np.argsort(steps)
        for ax, (name, label) in zip(axes, PANELS, strict=True):
            _draw_panel(ax, ds.isel(step=order), name, colours)
            _scale_steps(ax, steps[order])
            ax.set_ylabel(label)
        figure.suptitle(_title(ds), x=0.01, ha="left", fontsize=12, fontweight="bold", color="#222222")
        _explain(figure, axes, layers, colours)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        figure.savefig(path, dpi=200, metadata=metadata)


def _draw_panel(ax: Any, ds: "xr.Dataset", name: str, colours: Any) -> None:
    steps = np.asarray(ds["step"].values, np.float64)
    values, low, high, ceiling = (
        np.asarray(ds[name + end].transpose("step", "layer").values, np.float64)
        for end in ("", "_low", "_high", "_ceiling")
    )
    few = len(colours) <= LEGEND_LAYERS
    shade, width = (0.22, 0.9) if few else (0.08, 0.5)
    marker = "o" if few and len(steps) <= 40 else None
    for layer, colour in enumerate(colours):
        ax.fill_between(steps, low[:, layer], high[:, layer], color=colour, alpha=shade, linewidth=0)
        ax.plot(steps, ceiling[:, layer], color=colour, linewidth=width, linestyle=(0, (4, 3)), alpha=0.7)
        ax.plot(steps, values[:, layer], color=colour, linewidth=1.6, marker=marker, markersize=3)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.02)
    ax.grid(visible=True, axis="y")
    ax.set_axisbelow(True)


def _scale_steps(ax: Any, steps: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    gaps = np.diff(steps)
    positive = steps[steps > 0]
    if len(gaps) > 1 and len(positive) and gaps.max() > UNEVEN * gaps.min():
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.4)
        decades = LogLocator(base=10, numticks=12).tick_values(positive[0], positive[-1])
        ticks = [tick for tick in decades if positive[0] <= tick <= positive[-1]]
        ax.set_xticks(([0.0] if steps[0] <= 0 else []) + ticks)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(steps[0] - (0.1 * positive[0] if steps[0] <= 0 else 0), steps[-1] * 1.15)
        ax.set_xlabel("training step (log scale)")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 5, 10]))
        ax.set_xlabel("training step")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))


def _title(ds: "xr.Dataset") -> str:
    runs = ds.attrs.get("runs")
    n_runs = len(runs) if isinstance(runs, list | tuple | np.ndarray) else runs
    facts = [f"{n} {noun}" for n, noun in ((n_runs, "runs"), (ds.attrs.get("n_probes"), "probes")) if n is not None]
    return "Spread between runs" + (f"  ·  {', '.join(facts)}" if facts else "")


def _explain(figure: Any, axes: Any, layers: list[str], colours: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    grey = "#555555"
    marks = [
        Line2D([], [], color=grey, linewidth=1.6, label="mean over pairs of runs"),
        Patch(facecolor=grey, alpha=0.25, label="95 % interval over probes"),
        Line2D([], [], color=grey, linewidth=0.9, linestyle=(0, (4, 3)), label="ceiling: probes relabelled"),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False)
    if len(layers) <= LEGEND_LAYERS:
        names = [Line2D([], [], color=c, linewidth=2.2, label=name) for name, c in zip(layers, colours, strict=True)]
        figure.legend(handles=names, loc="outside right center", frameon=False, title="layer", alignment="left")
        return
    scale = BoundaryNorm(np.arange(-0.5, len(layers)), len(layers))
    bar = figure.colorbar(ScalarMappable(scale, ListedColormap(colours)), ax=list(axes), pad=0.02, aspect=30)
    shown = np.unique(np.linspace(0, len(layers) - 1, 8).round().astype(int))
    bar.set_ticks(shown, labels=[layers[i] for i in shown])
    bar.ax.minorticks_off()
    bar.ax.set_title("layer", fontsize=9.5, loc="left")
