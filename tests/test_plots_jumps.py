"""The figure of jumps: a panel a metric and layer, marks that tell what kind of change, equal for equal results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from replay.plots.jumps import MOST_PANELS, plot_jumps
from store.errors import InvalidInput

STEPS = np.array([0, *(2**i for i in range(10)), 1000, 2000])


def result(*, n_layers: int = 2, events: list[tuple[Any, ...]] | None = None, steps: Any = STEPS) -> xr.Dataset:
    """Give two runs of one metric; an event is (run, layer, kind, start, end, before, after, q)."""
    events = [] if events is None else events
    places = [(f"seed{run}", f"blocks[{layer}]") for run in (1, 2) for layer in range(n_layers)]
    values = 10 + np.random.default_rng(0).random((len(places), len(steps)))
    fields = [list(column) for column in zip(*events, strict=True)] or [[] for _ in range(8)]
    names = ("run", "layer", "kind", "start", "end", "before", "after", "q")
    variables: dict[str, Any] = {name: ("event", field) for name, field in zip(names, fields, strict=True)}
    variables["metric"] = ("event", ["stable_rank"] * len(events))
    variables |= {
        "series_metric": ("series", ["stable_rank"] * len(places)),
        "series_run": ("series", [run for run, _ in places]),
        "series_layer": ("series", [layer for _, layer in places]),
        "step": (("series", "point"), np.tile(steps.astype(float), (len(places), 1))),
        "value": (("series", "point"), values),
    }
    return xr.Dataset(variables, attrs={"runs": ["seed1", "seed2"], "n_probes": 40})


EVENTS = [
    ("seed1", "blocks[0]", "jump", 16, 64, 19.0, 2.0, 1e-6),
    ("seed2", "blocks[0]", "single checkpoint", 64, 128, 10.0, 15.0, 0.01),
    ("seed2", "blocks[1]", "edge", 1000, 2000, 10.0, 15.0, 0.01),
]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written from now on."""
    figures: list[Figure] = []
    original = Figure.savefig

    def keeping(figure: Figure, *arguments: Any, **options: Any) -> None:
        figures.append(figure)
        original(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keeping)
    return figures


def marks(ax: Any) -> list[tuple[Any, Any, list[float], list[float]]]:
    """Marker, fill and places of what is drawn without a line."""
    lines = [line for line in ax.lines if line.get_linestyle() == "None" or len(line.get_xdata()) == 1]
    return [(line.get_marker(), line.get_fillstyle(), list(line.get_xdata()), list(line.get_ydata())) for line in lines]


def test_a_jump_is_marked_at_its_two_steps_and_levels_and_others_are_hollow(
    drawn: list[Figure], tmp_path: Path
) -> None:
    plot_jumps(result(events=EVENTS), tmp_path / "jumps.png")
    first, second = (ax for ax in drawn[0].axes if ax.lines)
    assert marks(first) == [("o", "full", [16, 64], [19.0, 2.0]), ("o", "none", [128], [15.0])]
    assert marks(second) == [("D", "none", [1000, 2000], [10.0, 15.0])]
    extents = [patch.get_extents().transformed(first.transData.inverted()) for patch in first.patches]
    np.testing.assert_allclose([[box.x0, box.x1] for box in extents], [[16, 64]])
    texts = {text.get_text() for legend in drawn[0].legends for text in legend.get_texts()}
    assert {"seed1", "seed2", "before and after a jump", "departure of a single checkpoint"} <= texts


def test_the_step_axis_is_logarithmic_where_the_grid_is_and_else_linear(drawn: list[Figure], tmp_path: Path) -> None:
    plot_jumps(result(events=EVENTS), tmp_path / "uneven.png")
    plot_jumps(result(steps=np.arange(0, 1300, 100)), tmp_path / "even.png")
    assert [figure.axes[0].get_xscale() for figure in drawn] == ["symlog", "linear"]


def test_many_panels_are_cut_to_those_with_the_surest_jumps_and_it_is_said(drawn: list[Figure], tmp_path: Path) -> None:
    late = ("seed1", "blocks[29]", "jump", 16, 64, 19.0, 2.0, 1e-6)
    plot_jumps(result(n_layers=30, events=[late]), tmp_path / "many.png")
    titles = [ax.get_title(loc="left") for ax in drawn[0].axes if ax.lines]
    assert len(titles) == MOST_PANELS
    assert "blocks[29]" in titles
    assert "6 more panels left out" in " ".join(drawn[0].get_suptitle().split())


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_equal_results_give_equal_files(suffix: str, tmp_path: Path) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    plot_jumps(result(n_layers=1, events=EVENTS[:2]), one)
    plot_jumps(result(n_layers=1, events=EVENTS[:2]), other)
    assert one.read_bytes() == other.read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.png, \.svg, \.pdf"):
        plot_jumps(result(), tmp_path / "jumps.gif")
    with pytest.raises(InvalidInput, match="lacks value"):
        plot_jumps(result().drop_vars("value"), tmp_path / "jumps.png")
    with pytest.raises(InvalidInput, match="lacks after"):
        plot_jumps(result(events=EVENTS).drop_vars("after"), tmp_path / "jumps.png")
