"""The figures of dimensions and of the stable rank of weights: written, legible, equal for equal results."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from replay.plots.dimension import plot_dimension, plot_weight_ranks
from store.errors import InvalidInput

AXES = ("run", "step", "layer")
STEPS = [0, *(2**i for i in range(10)), *range(1000, 9000, 1000)]
METRICS = ["stable_rank", "cumulative_energy_90", "alpha_req", "two_nn", "participation_ratio_uncentred"]


def dataset(n_runs: int = 2, n_layers: int = 3, *, nulls: bool = True) -> xr.Dataset:
    rng = np.random.default_rng(0)
    shape = (n_runs, len(STEPS), n_layers)
    variables: dict[str, Any] = {}
    for number, name in enumerate(METRICS):
        values = 2.0 + number + 10 * np.exp(-np.log1p(STEPS) / 2)[:, None] + 0.1 * rng.random(shape)
        variables |= {
            f"{name}{end}": (AXES, values * factor) for end, factor in (("", 1), ("_low", 0.9), ("_high", 1.1))
        }
        if nulls:
            variables[f"{name}_null"] = (AXES, np.full(shape, [13.0, 300.0, 0.5, np.nan, 30.0][number]))
    coords = {
        "run": [f"seed{i}" for i in range(n_runs)],
        "step": STEPS,
        "layer": [f"blocks[{i}]:output:mean" for i in range(n_layers)],
    }
    return xr.Dataset(variables, coords, {"metrics": METRICS, "runs": list(coords["run"]), "n_probes": 512})


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


def panels(figure: Figure) -> list[Any]:
    return [ax for ax in figure.axes if ax.axison and ax.get_label() != "<colorbar>"]


def texts(ax: Any) -> str:
    return " ".join(text.get_text() for text in ax.texts)


def test_there_is_a_panel_a_metric_and_a_heat_map_of_the_first(drawn: list[Figure], tmp_path: Path) -> None:
    ds = dataset()
    plot_dimension(ds, tmp_path / "a.png")
    *curves, heat = panels(drawn[0])
    assert [ax.get_ylabel() for ax in curves] == [
        "stable rank",
        "eigenvalues for 90 %\nof the energy",
        "α of a power law of eigenvalues",
        "intrinsic dimension (two-NN)",
        "participation ratio (uncentred)",
    ]
    bars = [ax.get_xlabel() for ax in drawn[0].axes if ax.get_label() == "<colorbar>"]
    assert bars == ["stable rank, mean of 2 runs"]
    shown = heat.images[0].get_array()
    assert np.allclose(shown[::-1], ds["stable_rank"].mean("run").values.T)  # the input layer at the bottom
    assert [label.get_text() for label in heat.get_yticklabels()] == ["blocks[2]", "blocks[1]", "blocks[0]"]
    assert drawn[0].get_suptitle() == "Dimension of the activations  ·  2 runs, 512 probes"


def test_a_null_is_a_line_where_it_is_near_and_a_number_where_it_is_far_off(
    drawn: list[Figure], tmp_path: Path
) -> None:
    plot_dimension(dataset(), tmp_path / "a.png")
    near, far, _, undefined, *_ = panels(drawn[0])
    assert texts(near) == "independent features"
    assert [line.get_ydata()[0] for line in near.lines if line.get_linestyle() == ":"] == [13]
    assert near.get_ylim()[1] > 13
    assert texts(far) == "independent features: 300 ↑"
    assert far.get_ylim()[1] < 50
    assert texts(undefined) == ""


def test_one_layer_has_a_row_a_run(drawn: list[Figure], tmp_path: Path) -> None:
    ds = dataset(n_layers=1, nulls=False)
    plot_dimension(ds, tmp_path / "a.svg")
    heat = panels(drawn[0])[-1]
    assert [label.get_text() for label in heat.get_yticklabels()] == ["seed0", "seed1"]
    assert np.allclose(heat.images[0].get_array(), ds["stable_rank"].isel(layer=0).values)


def test_gaps_many_layers_and_one_step_are_drawn_and_equal_results_give_equal_files(tmp_path: Path) -> None:
    many = dataset(n_layers=12).assign_attrs(metrics=["stable_rank"])
    many["stable_rank"][0, 3] = np.nan
    for name, ds in (("one", dataset(1, 1).isel(step=[0])), ("none", dataset(1, 2) * np.nan), ("many", many)):
        plot_dimension(ds.assign_attrs(many.attrs), tmp_path / f"{name}.png")
    plot_dimension(many.isel(step=slice(None, None, -1)), tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "many.png").read_bytes()


def test_the_weights_have_their_own_figure(drawn: list[Figure], tmp_path: Path) -> None:
    ds = dataset()[["stable_rank"]].rename(layer="tensor").drop_attrs()
    plot_weight_ranks(ds, tmp_path / "a.pdf")
    curves, heat = panels(drawn[0])
    assert curves.get_ylabel() == "stable rank"
    assert heat.images[0].get_array().shape == (3, len(STEPS))
    assert drawn[0].get_suptitle() == "Stable rank of the weights  ·  2 runs"


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    ds = dataset()
    with pytest.raises(InvalidInput, match=r"lacks two_nn"):
        plot_dimension(ds.drop_vars("two_nn"), tmp_path / "a.png")
    with pytest.raises(InvalidInput, match="names none"):
        plot_dimension(ds.assign_attrs(metrics=[]), tmp_path / "a.png")
    with pytest.raises(InvalidInput, match=r"\.gif"):
        plot_dimension(ds, tmp_path / "a.gif")
    with pytest.raises(InvalidInput, match="lacks stable_rank"):
        plot_weight_ranks(ds.drop_vars("stable_rank"), tmp_path / "a.png")
