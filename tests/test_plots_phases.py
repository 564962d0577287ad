"""The figure of phases: written, legible, true to its dataset."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from matplotlib.text import Text
from test_plots_geometry import drawn_texts, figure_of, layers, runs

from replay.plots.phases import plot_phases
from store.errors import InvalidInput

STEPS = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]


def phases(n_runs: int, n_layers: int, *, k: int = 5, n_clusters: int = 3) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = n_runs, len(STEPS), n_layers
    occupancy = rng.dirichlet(np.ones(n_clusters), shape)
    overlap = 0.3 + 0.6 * rng.random(shape)
    overlap[:, 0] = np.nan  # nothing comes before the first step
    variables = {
        "centroid": (("run", "step", "layer", "component"), rng.standard_normal((*shape, k)).cumsum(axis=1)),
        "explained": (("layer", "component"), np.full((n_layers, k), 0.8 / k)),
        "overlap": (("run", "step", "layer"), overlap),
        "overlap_null": ("layer", np.full(n_layers, 0.15)),
        "angle": (("run", "step", "layer", "rank"), rng.random((*shape, 4))),
        "occupancy": (("run", "step", "layer", "cluster"), occupancy),
    }
    told = [
        {"run": run, "layer": layer, "first": first, "last": last}
        for run in runs(n_runs)
        for layer in layers(n_layers)
        for first, last in ((0, 32), (64, 1024))
    ]
    coords = {"run": runs(n_runs), "step": STEPS, "layer": layers(n_layers)}
    return xr.Dataset(variables, coords, {"runs": runs(n_runs), "n_probes": 512, "phases": told})


@pytest.mark.parametrize(("n_runs", "n_layers"), [(1, 1), (2, 3), (5, 2)])
def test_texts_stand_inside_the_figure_and_apart(
    n_runs: int, n_layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = figure_of(plot_phases, phases(n_runs, n_layers), tmp_path / "figure.svg", monkeypatch)
    figure.draw_without_rendering()
    texts = [text for text in drawn_texts(figure) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    width, height = figure.bbox.size
    assert not [t for t, box in boxes if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1]
    assert not [
        (words, others)
        for (words, box), (others, other) in combinations(boxes, 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]


def test_the_deepest_layer_is_drawn_with_its_boundaries_and_at_most_three_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = phases(5, 2)
    figure = figure_of(plot_phases, ds, Path("figure.svg"), monkeypatch)
    filled = [ax for ax in figure.axes if len(ax.collections) == 3 and ax.get_ylim() == (0, 1)]
    assert len(filled) == 3
    for number, ax in enumerate(filled):
        lines = [line.get_xdata()[0] for line in ax.lines]
        assert lines == [pytest.approx(np.sqrt(32 * 64))]
        lowest = ax.collections[0].get_paths()[0].vertices
        share = float(ds["occupancy"][number, 4, -1, 0])
        at = lowest[np.isclose(lowest[:, 0], STEPS[4])]
        assert np.isclose(at[:, 1], share).any()
    rings = [c for c in figure.axes[0].collections if c.get_sizes()[0] == 130]
    assert [len(ring.get_offsets()) for ring in rings] == [1] * 5
    np.testing.assert_allclose(rings[2].get_offsets()[0], ds["centroid"][2, 7, -1, :2])


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_equal_results_give_equal_files(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    plot_phases(phases(2, 1), files[0])
    plot_phases(phases(2, 1).isel(step=slice(None, None, -1)), files[1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_result_without_one_finite_number_is_drawn_and_says_so(tmp_path: Path) -> None:
    nothing = phases(2, 1).map(lambda a: a * np.nan).isel(cluster=slice(0, 0))
    nothing.attrs["phases"] = []
    plot_phases(nothing, tmp_path / "figure.svg")
    assert (tmp_path / "figure.svg").read_text().count(">unavailable<") == 3


def test_one_component_is_drawn_on_a_line(tmp_path: Path) -> None:
    plot_phases(phases(1, 1, k=1), tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_what_is_missing_or_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"\.png, \.svg, \.pdf, not '\.jpg'"):
        plot_phases(phases(1, 1), tmp_path / "figure.jpg")
    for name in ("centroid", "explained", "overlap", "overlap_null", "occupancy"):
        with pytest.raises(InvalidInput, match=f"lacks {name}"):
            plot_phases(phases(1, 1).drop_vars(name), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
