"""The figure of correlations: written, legible, and its full squares are what is significant."""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.collections import PatchCollection
from matplotlib.text import Text
from test_plots_geometry import SIGNATURES, drawn_texts, figure_of, words

from replay.plots.correlation import plot_correlation
from store.errors import InvalidInput

VARIANTS = ("level", "differenced", "detrended")


def correlations(n_runs: int, n_layers: int) -> xr.Dataset:
    series = [["loss", ""], ["learning_rate", ""]]
    series += [[metric, f"blocks[{i}]:output:mean"] for metric in ("stable_rank", "two_nn") for i in range(n_layers)]
    n = len(series)
    values = np.random.default_rng(0).uniform(-1, 1, (3, n, n))
    mean = (values + values.transpose(0, 2, 1)) / 2
    q = np.tile(np.abs(mean), (n_runs, 1, 1, 1))
    q[:, :, np.arange(n), np.arange(n)] = np.nan
    mean[:, np.arange(n), np.arange(n)] = 1
    axes = ("variant", "series_a", "series_b")
    attrs = {"runs": [f"seed{i}" for i in range(n_runs)], "series": series, "method": "spearman"}
    return xr.Dataset({"mean": (axes, mean), "q": (("run", *axes), q)}, {"variant": list(VARIANTS)}, attrs)


def squares(figure: Any) -> list[dict[tuple[int, int], tuple[float, float]]]:
    """The side and the value of every square, by row and column, panel by panel."""
    found = []
    for ax in figure.axes[:3]:
        collection: Any
        (collection,) = (drawn for drawn in ax.collections if isinstance(drawn, PatchCollection))
        panel = {}
        for path, value in zip(collection.get_paths(), collection.get_array(), strict=True):
            box = path.get_extents()
            centre = round((box.y0 + box.y1) / 2), round((box.x0 + box.x1) / 2)
            panel[centre] = (box.width, float(value))
        found.append(panel)
    return found


@pytest.mark.parametrize(("n_runs", "n_layers"), [(1, 1), (3, 6), (3, 24)])
def test_texts_stand_inside_the_figure_and_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_runs: int, n_layers: int
) -> None:
    figure = figure_of(plot_correlation, correlations(n_runs, n_layers), tmp_path / "figure.svg", monkeypatch)
    figure.draw_without_rendering()
    texts = [text for text in drawn_texts(figure) if text.get_visible() and text.get_text()]
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts]
    width, height = figure.bbox.size
    assert not [name for name, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    assert not [
        (name, other)
        for (name, a), (other, b) in combinations(boxes, 2)
        if min(a.x1, b.x1) - max(a.x0, b.x0) > 1 and min(a.y1, b.y1) - max(a.y0, b.y0) > 1
    ]


def test_a_full_square_is_a_pair_that_is_significant_in_most_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = correlations(3, 2)
    ds["q"][:] = 0.5
    ds["q"][:2, 1, 0, 2] = 0.01  # in two of three runs
    ds["q"][:1, 1, 0, 3] = 0.01  # in one of three
    ds["q"][1:, 2, 0, 3] = np.nan
    ds["q"][:1, 2, 0, 3] = 0.01  # in the only run that has it
    drawn = squares(figure_of(plot_correlation, ds, tmp_path / "figure.svg", monkeypatch))
    full = [{at for at, (side, _) in panel.items() if side > 0.9} for panel in drawn]
    assert full == [set(), {(0, 2)}, {(0, 3)}]
    for panel, matrix in zip(drawn, ds["mean"].to_numpy(), strict=True):
        assert len(panel) == 6 * 5  # all but the diagonal
        assert all(value == matrix[at] for at, (_, value) in panel.items())


def test_scalars_and_metrics_are_named_and_what_all_layers_share_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = words(plot_correlation, correlations(3, 2), monkeypatch)
    for text in ("loss", "stable_rank blocks[0]", "two_nn blocks[1]", "levels", "changes between checkpoints"):
        assert f">{text}<" in found
    assert "layers: *:output:mean" in found
    assert "Spearman correlation over training steps" in found
    assert "correlation, mean of 3 runs" in found
    assert "grey: unavailable" not in found
    assert "of 3 runs" not in words(plot_correlation, correlations(1, 2), monkeypatch)


def test_what_is_undefined_is_grey_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ds = correlations(1, 1)
    ds["mean"][0, 0, 1] = ds["mean"][0, 1, 0] = np.nan
    figure = figure_of(plot_correlation, ds, tmp_path / "figure.svg", monkeypatch)
    assert [len(ax.patches) for ax in figure.axes[:3]] == [2, 0, 0]
    assert len(squares(figure)[0]) == 4 * 3 - 2
    assert "grey: unavailable" in words(plot_correlation, ds, monkeypatch)
    nothing = ds.map(lambda a: a * np.nan)
    plot_correlation(nothing, tmp_path / "nothing.svg")


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_equal_results_give_equal_files_of_the_right_type(tmp_path: Path, suffix: str) -> None:
    files = [tmp_path / f"{name}{suffix}" for name in ("one", "other")]
    for file in files:
        plot_correlation(correlations(2, 1), file)
    assert files[0].read_bytes().startswith(SIGNATURES[suffix])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_cannot_be_drawn_is_refused_in_one_line(tmp_path: Path) -> None:
    ds = correlations(1, 1)
    with pytest.raises(InvalidInput, match=r"not '\.jpg'"):
        plot_correlation(ds, tmp_path / "figure.jpg")
    with pytest.raises(InvalidInput, match="lacks q"):
        plot_correlation(ds.drop_vars("q"), tmp_path / "figure.png")
    with pytest.raises(InvalidInput, match="holds 80 series, and there are 82: choose fewer"):
        plot_correlation(correlations(1, 40), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
