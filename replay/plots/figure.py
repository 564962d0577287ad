"""What all figures share: the style, the checks, the title, the step axis, and the writing of the file."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "GREY",
    "SUFFIXES",
    "drawing",
    "headline",
    "require",
    "scale_steps",
    "sorted_steps",
    "step_ticks",
]

SUFFIXES = (".png", ".svg", ".pdf")

UNEVEN = 20
"""A step axis is logarithmic when its largest gap is more than this many times its smallest."""

GREY = "#555555"
"""Of marks in a legend that stand for any colour."""

TITLE_SIZE = 12
"""Points."""

TITLE_LETTERS = 9.0
"""Letters of the bold title that fit an inch."""

NO_BREAK = "\N{NO-BREAK SPACE}"
"""Keeps the words of one fact of a title on one line."""

STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#444444",
    "axes.labelcolor": "#222222",
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": "#222222",
    "axes.titlesize": 9.5,
    "font.size": 9.5,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "svg.hashsalt": "replay",
    "xtick.color": "#444444",
    "ytick.color": "#444444",
}

Steps = npt.NDArray[np.float64]


@contextmanager
def drawing(path: Path, *, size: tuple[float, float], title: str) -> Iterator[Any]:
    """Give a figure to draw on, and write it when the block ends without an error.

    Parameters
    ----------
    path
        Where to write; the suffix chooses png, svg or pdf. Equal drawings give equal bytes.
    size
        Width and height in inches.
    title
        Stands at the upper left, broken into lines that fit.

    Raises
    ------
    InvalidInput
        If the suffix is another.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InvalidInput(f"a plot is written as {', '.join(SUFFIXES)}, not {path.suffix or 'without a suffix'!r}")

    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        lines = textwrap.fill(title, int(size[0] * TITLE_LETTERS)).replace(NO_BREAK, " ")
        figure.suptitle(lines, x=0.01, ha="left", fontsize=TITLE_SIZE, fontweight="bold", color="#222222")
        yield figure
        undated: dict[str, dict[str, None]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
        figure.savefig(path, dpi=200, metadata=undated.get(suffix))


def require(ds: "xr.Dataset", names: Iterable[str], dims: Sequence[str]) -> None:
    """Refuse a dataset that lacks a variable, or in which one lies over other dimensions or over none of a kind.

    Raises
    ------
    InvalidInput
        With all that is missing.
    """
    names = list(names)
    missing = [name for name in names if name not in ds]
    if missing:
        raise InvalidInput(f"the dataset to plot lacks {', '.join(missing)}")
    for name in names:
        sizes = dict(ds[name].sizes)
        if set(sizes) != set(dims) or 0 in sizes.values():
            raise InvalidInput(f"{name} to plot lies over ({', '.join(dims)}), one of each at least, not {sizes}")


def headline(ds: "xr.Dataset", what: str, *more: str) -> str:
    """Title of a figure: what it shows, of how many runs and probes; a single run is named."""
    runs = ds.attrs.get("runs")
    names = list(runs) if isinstance(runs, list | tuple | np.ndarray) else []
    facts = []
    if len(names) == 1:
        facts.append(str(names[0]))
    elif runs is not None:
        facts.append(f"{len(names) or runs} runs")
    if ds.attrs.get("n_probes") is not None:
        facts.append(f"{ds.attrs['n_probes']} probes")
    facts += more
    unbroken = [fact.replace(" ", NO_BREAK) for fact in dict.fromkeys(facts)]
    return f"{what}  ·  {', '.join(unbroken)}" if facts else what


def sorted_steps(ds: "xr.Dataset") -> "xr.Dataset":
    """Bring the steps into training order."""
    return ds.isel(step=np.argsort(ds["step"].values, kind="stable"))


def step_ticks(steps: Steps, *, n_decades: int = 6) -> list[float] | None:
    """Ticks of a logarithmic step axis over ascending ``steps``, 0 among them; None where it is linear."""
    gaps = np.diff(np.unique(steps))
    positive = steps[steps > 0]
    if len(gaps) < 2 or gaps.max() <= UNEVEN * gaps.min():
        return None
    decades = 10.0 ** np.arange(np.ceil(np.log10(positive[0])), np.floor(np.log10(positive[-1])) + 1)
    shown = decades[:: max(1, -(-len(decades) // n_decades))]
    return ([0.0] if steps[0] <= 0 else []) + [float(tick) for tick in shown]


def scale_steps(ax: Any, steps: Steps, *, n_decades: int = 6) -> None:
    """Scale and label the x axis for ascending ``steps``: logarithmic where they are unevenly spaced, 0 on it.

    At most ``n_decades`` powers of ten are named.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    ticks = step_ticks(steps, n_decades=n_decades)
    if ticks is None:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, steps=[1, 2, 5, 10]))
        ax.margins(x=0.02)
    else:
        first = steps[steps > 0][0]
        ax.set_xscale("symlog", linthresh=first, linscale=0.4)
        ax.set_xticks(ticks)
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(steps[0] - (0.1 * first if steps[0] <= 0 else 0.1 * steps[0]), steps[-1] * 1.15)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:,.0f}"))
    ax.set_xlabel("training step (log scale)" if ticks else "training step")
