"""The figure of units: what stands in it, where, and that it is legible."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from test_plots_geometry import PYTHIA, UNEVEN, drawn_texts, figure_of, layers, runs, words

from replay.plots.neurons import plot_neurons
from store.errors import InvalidInput


def units(n_runs: int, steps: list[int], n_layers: int, *, n_units: int = 20, seed: int = 0) -> xr.Dataset:
    """Units of which one more dies at each step in the last layer; of the first layer, half are padding."""
    rng = np.random.default_rng(seed)
    shape = n_runs, len(steps), n_layers, n_units
    duty = rng.random(shape)
    dead = np.zeros(shape)
    for step in range(len(steps)):
        dead[:, step, -1, : min(step, n_units)] = 1
    shift, correlation = (
        3 * rng.normal(size=(n_runs, n_layers, n_units)),
        rng.uniform(-0.5, 1, (n_runs, n_layers, n_units)),
    )
    if n_layers > 1:
        duty[:, :, 0, n_units // 2 :] = dead[:, :, 0, n_units // 2 :] = np.nan
        shift[:, 0, n_units // 2 :] = correlation[:, 0, n_units // 2 :] = np.nan
    over, changes = ("run", "step", "layer", "unit"), ("run", "layer", "unit")
    variables = {"dead": (over, dead), "duty_cycle": (over, duty), "shift": (changes, shift)}
    attrs = {"runs": runs(n_runs), "n_probes": 512, "compared": {run: [steps[0], steps[-1]] for run in runs(n_runs)}}
    coords = {"run": runs(n_runs), "step": steps, "layer": layers(n_layers)}
    return xr.Dataset({**variables, "correlation": (changes, correlation)}, coords, attrs)


def panels(ds: xr.Dataset, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    axes: list[Any] = figure_of(plot_neurons, ds, Path("figure.svg"), monkeypatch).axes
    return axes


@pytest.mark.parametrize(
    ("n_runs", "steps", "n_layers"), [(1, [0], 1), (3, UNEVEN, 3), (9, PYTHIA, 1), (2, UNEVEN, 40)]
)
def test_texts_stand_inside_the_figure_and_apart(
    monkeypatch: pytest.MonkeyPatch, n_runs: int, steps: list[int], n_layers: int
) -> None:
    figure = figure_of(plot_neurons, units(n_runs, steps, n_layers), Path("figure.svg"), monkeypatch)
    figure.draw_without_rendering()
    boxes = [t.get_window_extent() for t in drawn_texts(figure) if t.get_visible() and t.get_text()]
    width, height = figure.bbox.size
    assert len(boxes) > 10
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= width + 1 and b.y1 <= height + 1 for b in boxes)
    assert not any(a.shrunk(0.9, 0.9).overlaps(b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    for suffix, signature in ((".png", b"\x89PNG"), (".svg", b"<?xml")):
        for name in ("one", "two"):
            plot_neurons(units(1, [0, 10, 20], 2), tmp_path / f"{name}{suffix}")
        one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
        assert one == two
        assert one.startswith(signature)
    with pytest.raises(InvalidInput, match="plot is written as"):
        plot_neurons(units(1, [0, 10, 20], 2), tmp_path / "one.gif")


def test_the_share_of_dead_units_is_of_the_units_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = units(1, [0, 10, 20], 2)
    ds["dead"][0, :, 0, :5] = 1
    first, last = (line.get_ydata().tolist() for line in panels(ds, monkeypatch)[0].lines)
    assert first == [0.5] * 3  # 5 of 10, the others are padding
    assert last == [0, 1 / 20, 2 / 20]


def test_no_dead_unit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ">none<" not in words(plot_neurons, units(2, [0, 10, 20], 2), monkeypatch)
    assert ">none<" in words(plot_neurons, units(2, [0], 2), monkeypatch)


def test_the_map_has_the_deepest_layer_of_the_first_run_sorted_by_the_last_duty_cycle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ds = units(2, [0, 10, 20], 2)
    ax = panels(ds, monkeypatch)[1]
    expected = ds["duty_cycle"].to_numpy()[0, :, 1].T
    np.testing.assert_array_equal(ax.images[0].get_array(), expected[np.argsort(expected[:, -1])])
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "10", "20"]
    assert ax.get_title() == f"{runs(2)[0]}\n{layers(2)[1]}"
    mixed = panels(ds.isel(step=[2, 0, 1]), monkeypatch)[1]
    np.testing.assert_array_equal(mixed.images[0].get_array(), ax.images[0].get_array())


def test_every_unit_that_changed_is_a_point(monkeypatch: pytest.MonkeyPatch) -> None:
    ds = units(2, [0, 10], 2)
    ax = panels(ds, monkeypatch)[2]
    points = np.concatenate([np.ma.compressed(np.ma.masked_invalid(c.get_offsets()[:, 0])) for c in ax.collections])
    expected = ds["shift"].to_numpy().ravel()
    np.testing.assert_allclose(np.sort(points), np.sort(expected[np.isfinite(expected)]))
    assert "step 0 to 10" in ax.get_xlabel()
    assert ax.get_xscale() == "linear"
    ds["shift"][0, 1, 0] = 500
    assert panels(ds, monkeypatch)[2].get_xscale() == "symlog"
    ds.attrs["compared"] = {"a": [0, 10], "b": [0, 20]}
    assert "step" not in panels(ds, monkeypatch)[2].get_xlabel()


def test_a_result_without_changes_is_drawn_and_one_without_a_variable_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ds = units(1, [0, 10], 1)
    empty = ds.assign(shift=ds["shift"] * np.nan, correlation=ds["correlation"] * np.nan)
    empty.attrs["compared"] = {"a": "a change needs two checkpoints"}
    assert len(panels(empty, monkeypatch)) == 4  # three and a colour bar
    ragged = units(2, [0, 10, 20], 2)
    ragged["dead"][0, 1] = ragged["duty_cycle"][0, 1] = np.nan  # a step that the first run lacks
    assert [tick.get_text() for tick in panels(ragged, monkeypatch)[1].get_xticklabels()] == ["0", "20"]
    assert ">unavailable<" in words(plot_neurons, ds.assign(duty_cycle=ds["duty_cycle"] * np.nan), monkeypatch)
    with pytest.raises(InvalidInput, match="lacks duty_cycle"):
        plot_neurons(ds.drop_vars("duty_cycle"), tmp_path / "figure.png")
    with pytest.raises(InvalidInput, match=r"dead to plot lies over \(run, step, layer, unit\)"):
        plot_neurons(ds.isel(run=0), tmp_path / "figure.png")
