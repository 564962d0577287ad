"""Units: their statistics, when they are dead, how they change between two checkpoints, and all that in a store."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats
from scipy.special import expit, ndtr
from synthetic import Histories, write_store
from test_analysis import run

from replay import jobs
from replay.analyses.compared import compared_steps
from replay.analyses.neurons import analyze_neurons, rank_movers
from replay.analyses.selection import Choice, select_layers
from replay.geometry.neuron_changes import label_selectivity, unit_changes
from replay.geometry.neurons import (
    NONLINEARITIES,
    Nonlinearity,
    ValueRange,
    tell_nonlinearity,
    unit_statistics,
    value_range,
)
from replay.opening import open_store
from store.catalog import Store
from store.commits import RevisionRecord, put_run
from store.errors import InvalidInput, ReplayError, Unavailable, UnknownRevision

Floats = npt.NDArray[np.float64]
LAYER = "blocks[0]:output:mean"


def gaussian(n: int, width: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal((n, width))


def relu(z: Floats) -> Floats:
    return np.maximum(z, 0)


def gelu(z: Floats) -> Floats:
    gated: Floats = z * ndtr(z)
    return gated


def silu(z: Floats) -> Floats:
    gated: Floats = z * expit(z)
    return gated


def elu(z: Floats) -> Floats:
    return np.where(z > 0, z, np.expm1(z))


# What a unit does over the probes


@pytest.mark.parametrize("offset", [0, 1e4])
def test_moments_are_those_of_float64_however_large_the_common_mean(offset: float) -> None:
    X = (gaussian(200, 8) + offset).astype(np.float32)
    found = unit_statistics(X, "linear")
    exact = stats.describe(X.astype(np.longdouble), axis=0)
    np.testing.assert_allclose(found.mean, exact.mean.astype(float), rtol=1e-14)
    np.testing.assert_allclose(found.std, np.sqrt(exact.variance).astype(float), rtol=1e-12)
    assert not found.dead.any()


@pytest.mark.parametrize("nonlinearity", NONLINEARITIES)
def test_no_order_and_no_scale_matters(nonlinearity: Nonlinearity) -> None:
    values: dict[str, Callable[[Floats], Floats]] = {
        "rectified": relu, "gated": gelu, "tanh": np.tanh, "sigmoid": expit, "linear": np.negative,
    }  # fmt: skip
    X = values[nonlinearity](gaussian(50, 20) * np.geomspace(0.001, 3, 20))
    probes, units = np.random.default_rng(1).permutation(50), np.random.default_rng(2).permutation(20)
    found = unit_statistics(X, nonlinearity)
    for ours, other in zip(found, unit_statistics(X[probes][:, units], nonlinearity), strict=True):
        np.testing.assert_allclose(np.float64(ours[units]), np.float64(other), rtol=1e-12)
    if nonlinearity not in ("tanh", "sigmoid"):
        scaled = unit_statistics(1000 * X, nonlinearity)
        np.testing.assert_allclose(scaled.std, 1000 * found.std)
        for name in ("sparsity", "duty_cycle", "dead"):
            np.testing.assert_allclose(getattr(scaled, name), getattr(found, name), rtol=1e-12)


def test_a_rectified_unit_is_dead_where_it_is_zero_for_every_probe_and_only_there() -> None:
    z = gaussian(60, 12)
    z[:, [2, 7]] = -np.abs(z[:, [2, 7]])  # planted
    z[:, 5] = -np.abs(z[:, 5])
    z[31, 5] = 1e-6  # answers one probe, faintly
    X = relu(z).astype(np.float32)
    found = unit_statistics(X, "rectified")
    assert np.flatnonzero(found.dead).tolist() == [2, 7]
    np.testing.assert_array_equal(found.duty_cycle, [np.count_nonzero(column) / 60 for column in X.T])
    assert found.duty_cycle[5] == 1 / 60
    assert found.sparsity[5] == pytest.approx(1)
    assert np.isnan(found.sparsity[[2, 7]]).all()


def test_sparsity_has_its_closed_forms() -> None:
    n = 20_000
    rng = np.random.default_rng(0)
    half = np.repeat([0.0, 3.0], n // 2)
    X = np.stack([np.full(n, 0.7), half, rng.exponential(size=n), np.eye(n, 1)[:, 0]], axis=1)
    expected = [0, 0.5 / (1 - 1 / n), 0.5, 1]  # of an exponential, mean(r)² / mean(r²) is 1/2
    np.testing.assert_allclose(unit_statistics(X, "rectified").sparsity, expected, atol=0.01)
    normal = unit_statistics(5 + rng.standard_normal((n, 3)), "linear")
    np.testing.assert_allclose(normal.sparsity, 1 - 2 / np.pi, atol=0.01)


def test_a_linear_unit_is_active_beyond_one_scale_of_its_layer() -> None:
    X = gaussian(20_000, 1) * np.ones(10)  # of equal units any quantile is the std
    found = unit_statistics(X - 3, "linear")
    np.testing.assert_allclose(found.duty_cycle, 2 * stats.norm.sf(1), atol=0.01)


def test_a_linear_unit_is_dead_where_it_tells_no_probe_from_another() -> None:
    X = gaussian(80, 10)
    X[:, 1] = 0
    X[:, 2] = -7.3
    X[:, 3] *= 0.003
    X[:, 4] *= 0.05
    X[0, 5] = 0  # a zero is nothing to a linear unit
    assert np.flatnonzero(unit_statistics(X, "linear").dead).tolist() == [1, 2, 3]
    assert not unit_statistics(X[:, [0, 4, 5]], "linear").dead.any()


def test_a_std_of_stored_rounding_is_no_life() -> None:
    rng = np.random.default_rng(0)
    X = np.full((100, 6), 1234.5, np.float32)
    X += rng.integers(-1, 2, X.shape).astype(np.float32) * np.spacing(np.float32(1234.5))
    found = unit_statistics(X, "linear")
    assert (found.std > 0).all()
    assert found.dead.all()  # even where the whole layer is so


def test_neither_many_dead_units_nor_a_huge_one_move_the_threshold() -> None:
    X = gaussian(80, 40)
    X[:, :30] *= 1e-4
    assert np.flatnonzero(unit_statistics(X, "linear").dead).tolist() == list(range(30))
    X = gaussian(80, 40)
    X[:, 0] *= 1e5
    assert not unit_statistics(X, "linear").dead.any()


@pytest.mark.parametrize("gate", [gelu, silu])
def test_a_gated_unit_is_dead_where_it_never_leaves_zero_not_where_it_is_negative(
    gate: Callable[[Floats], Floats],
) -> None:
    z = gaussian(100, 6)
    z[:, 1] = -14 + 0.2 * z[:, 1]  # far below its gate: next to nothing
    z[:, 2] = -1 + 0.1 * z[:, 2]  # never positive, and alive
    X = gate(z)
    assert (X != 0).all()
    found = unit_statistics(X, "gated")
    assert np.flatnonzero(found.dead).tolist() == [1]
    assert found.duty_cycle[[1, 2]].tolist() == [0, 0]
    assert np.isnan(found.sparsity[[1, 2]]).all()
    assert (found.duty_cycle[[0, 3, 4, 5]] > 0.3).all()


def test_a_bounded_unit_is_dead_at_one_end_but_not_between_two() -> None:
    z = gaussian(100, 5)
    z[:, 0] = 9
    z[:, 1] = 50 * np.sign(z[:, 1])  # saturated, and tells two kinds of probes apart
    z[:, 2] = 0.3
    z[:, 3] = 4 + 0.1 * z[:, 3]
    for X, name in ((np.tanh(z), "tanh"), (expit(2 * z), "sigmoid")):
        found = unit_statistics(X, name)  # type: ignore[arg-type]
        assert np.flatnonzero(found.dead).tolist() == [0, 2, 3]
        assert found.duty_cycle[:3].tolist() == [0, 0, 1]
    assert unit_statistics(np.tanh(4 + 0.3 * gaussian(100, 5)), "tanh").dead.all()  # a whole layer, varying a little


@pytest.mark.parametrize(
    ("made", "expected"),
    [(relu, "rectified"), (gelu, "gated"), (silu, "gated"), (np.tanh, "tanh"), (expit, "sigmoid"), (elu, "linear")],
)
def test_values_over_a_run_tell_the_nonlinearity(made: Callable[[Floats], Floats], expected: str) -> None:
    early, late = (value_range(made(scale * gaussian(400, 30))) for scale in (0.01, 3.0))
    assert tell_nonlinearity([early, late], "net.3:output:flatten") == expected
    assert tell_nonlinearity([late], "net.3:output:flatten") == expected


@pytest.mark.parametrize(
    ("layer", "low", "high", "expected"),
    [
        ("blocks[0].mlp.act:output:mean", -0.05, 0.2, "gated"),
        ("blocks[0].mlp.act:input:mean", -0.05, 0.2, "linear"),  # what goes in
        ("blocks[0].mlp.act:output:mean", 0.002, 0.2, "rectified"),  # a mean over tokens need not reach 0
        ("blocks[0].mlp.act:output:mean", -1.7, 3.0, "linear"),  # SELU
        ("pooler.tanh:output:mean", -0.05, 0.2, "tanh"),
        ("sigmoid[1]:output", 0.4, 0.6, "sigmoid"),
        ("blocks[0]:output:mean", -0.05, 0.2, "linear"),
        ("blocks[0]:output:mean", -0.25, 0.3, "linear"),
        ("blocks[0]:output:mean", 9990.0, 10010.0, "linear"),  # far from 0, and never 0
        ("embed:output:mean", -0.13, 0.13, "linear"),
    ],
)
def test_the_name_of_a_layer_tells_where_it_can(layer: str, low: float, high: float, expected: str) -> None:
    assert tell_nonlinearity([ValueRange(low, high, 0.0)], layer) == expected


def test_what_is_no_matrix_of_finite_numbers_is_refused() -> None:
    X = gaussian(5, 3)
    for wrong, text in (
        (np.where(np.eye(5, 3, -1), np.nan, X), "those of 3 of 5 probes are not"),
        (X[0], "matrix of numbers"),
        (X.astype(object), "matrix of numbers, not object"),
        (X[:, :0], "matrix of numbers"),
    ):
        with pytest.raises(InvalidInput, match=text):
            unit_statistics(wrong, "linear")
    with pytest.raises(InvalidInput, match="are not rectified, which is 0 or more"):
        unit_statistics(X, "rectified")
    with pytest.raises(InvalidInput, match="one of rectified, gated"):
        unit_statistics(X, "relu")  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="3 probes or more, and there are 2"):
        unit_statistics(X[:2], "linear")


# How units change


def test_changes_equal_their_definitions_and_those_of_scipy() -> None:
    X = gaussian(70, 9) * 3 + 100
    Y = 0.5 * X + gaussian(70, 9, seed=1) + np.arange(9) / 5
    found = unit_changes(X, Y)
    pooled = np.sqrt((X.var(axis=0) + Y.var(axis=0)) / 2)
    np.testing.assert_allclose(found.movement, np.sqrt(((Y - X) ** 2).mean(axis=0)) / pooled)
    np.testing.assert_allclose(found.shift, (Y - X).mean(axis=0) / pooled)
    np.testing.assert_allclose(found.correlation, [np.corrcoef(x, y)[0, 1] for x, y in zip(X.T, Y.T, strict=True)])
    np.testing.assert_allclose(found.p, stats.ttest_rel(X, Y).pvalue)
    stds = X.std(axis=0) * Y.std(axis=0)
    np.testing.assert_allclose(found.movement**2, found.shift**2 + 2 - 2 * found.correlation * stds / pooled**2)
    assert ((found.movement_low < found.movement) & (found.movement < found.movement_high)).all()


def test_movement_has_its_closed_forms() -> None:
    X = gaussian(100, 4)
    X -= X.mean(axis=0)
    still, moved, turned = unit_changes(X, X), unit_changes(X, X - 3), unit_changes(X, -X)
    assert still.movement.tolist() == still.movement_high.tolist() == still.shift.tolist() == [0] * 4
    assert still.p.tolist() == [1] * 4
    np.testing.assert_allclose(moved.movement, 3 / X.std(axis=0))
    np.testing.assert_allclose(moved.shift, -3 / X.std(axis=0))
    np.testing.assert_allclose(moved.correlation, 1)
    np.testing.assert_allclose(turned.movement, 2)
    np.testing.assert_allclose([turned.shift, turned.correlation], [np.zeros(4), -np.ones(4)], atol=1e-12)
    others = unit_changes(gaussian(20_000, 3), gaussian(20_000, 3, seed=1))
    np.testing.assert_allclose(others.movement, np.sqrt(2), rtol=0.02)


@pytest.mark.parametrize(("shift", "correlation"), [(0.0, 0.0), (0.5, 0.9), (3.0, 0.5)])
def test_the_interval_of_a_movement_holds_the_true_one_as_often_as_it_says(shift: float, correlation: float) -> None:
    draws = 3000  # a unit each
    X = gaussian(90, draws)
    Y = shift + correlation * X + np.sqrt(1 - correlation**2) * gaussian(90, draws, seed=1)
    found = unit_changes(X, Y)
    true = np.sqrt(shift**2 + 2 - 2 * correlation)
    assert np.mean((found.movement_low <= true) & (true <= found.movement_high)) == pytest.approx(0.95, abs=0.02)


def test_changes_within_rounding_are_none_and_a_constant_has_no_scale() -> None:
    X = np.full((40, 3), 1000, np.float32)
    X[:, 0] += gaussian(40, 1)[:, 0].astype(np.float32)
    Y = X.copy()
    Y[:, :2] = np.nextafter(Y[:, :2], np.float32(2000))
    Y[:, 2] = 5
    found = unit_changes(X, Y)
    assert (found.movement[0], found.p[0]) == (0, 1)
    for name in ("movement", "movement_low", "shift", "p", "correlation"):
        assert np.isnan(getattr(found, name)[1:]).all(), name


def test_a_movement_that_one_probe_makes_has_no_interval() -> None:
    X, Y = np.zeros((60, 2)), np.zeros((60, 2))
    X[4], Y[4] = 1, 2
    Y[:, 1] += np.arange(60)
    found = unit_changes(X, Y)
    assert found.movement[0] == pytest.approx(np.sqrt(1 / 60) / np.sqrt(5 / 2 * 59 / 3600))
    assert np.isnan([found.movement_low[0], found.movement_high[0]]).all()
    assert np.isfinite([found.movement_low[1], found.movement_high[1]]).all()


def test_selectivity_is_that_of_a_one_way_analysis_of_variance() -> None:
    labels = ["a", "b", "c", None] * 30
    X = gaussian(120, 300) + 500
    X[::4, 0] += 4
    X[:, 1] = 3
    found = label_selectivity(X, labels)
    kept = [X[i::4] for i in range(3)]
    F = stats.f_oneway(*(group[:, [0, *range(2, 300)]] for group in kept)).statistic
    np.testing.assert_allclose(found[[0, *range(2, 300)]], (F - 1) * 2 / (F * 2 + 90 - 3))
    assert found[0] > 0.7
    assert np.isnan(found[1])
    assert abs(found[2:].mean()) < 0.01  # corrected for chance
    for wrong in (["a"] * 120, [None] * 120, list(map(str, range(120)))):
        with pytest.raises(Unavailable, match="two labels or more"):
            label_selectivity(X, wrong)


# In a store

STEPS = [0, 100, 200, 300]


def made_of(seed: int = 0) -> Histories:
    """Two runs of a ReLU and a wider linear layer: in the first unit 3 dies, 4 wakes, 5 is dead, in the other 13."""
    rng = np.random.default_rng(seed)
    histories: Histories = {}
    for name in ("run0", "run1"):
        W, inputs = rng.standard_normal((8, 10)), rng.standard_normal((40, 8))
        histories[name] = {}
        for step in STEPS:
            z = inputs @ W * (1 + step / 100) + 1
            z[:, 5] = -1
            if step >= 200:
                z[:, 3] = -100
            if step < 100:
                z[:, 4] = -100
            stream = np.tile(inputs, 2)[:, :14] + 0.01 * step * (np.arange(14) == 6)
            stream[:, 13] = 0.001 * stream[:, 13] + step  # never says anything, and has far to go for that
            histories[name][step] = {
                "blocks[0]": relu(z).astype(np.float32),
                "blocks[1]": stream.astype(np.float32),
            }
    return histories


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("neurons") / "store"
    write_store(root, made_of())
    return root


@pytest.fixture
def store(made: Path, root: Path) -> Store:
    shutil.copytree(made, root)
    return open_store(root, write=True)


def test_every_number_of_the_store_is_that_of_its_activations(store: Store) -> None:
    result = analyze_neurons(store)
    assert result["nonlinearity"].to_numpy().tolist() == [["rectified", "linear"]] * 2
    assert result["n_units"].to_numpy().tolist() == [[10, 14]] * 2
    for run_, steps in made_of().items():
        for layer, width, kind in ((0, 10, "rectified"), (1, 14, "linear")):
            at = result.isel(layer=layer).sel(run=run_)
            for step, arrays in steps.items():
                expected = unit_statistics(arrays[f"blocks[{layer}]"], kind)  # type: ignore[arg-type]
                for name, values in expected._asdict().items():
                    found = at[name].sel(step=step).to_numpy()
                    np.testing.assert_allclose(found[:width], values.astype(np.float32), rtol=1e-6)
                    assert np.isnan(found[width:]).all()
            X, Y = (steps[step][f"blocks[{layer}]"] for step in (0, 300))
            gone = np.isnan(at["movement"].to_numpy()[:width])
            assert np.flatnonzero(gone).tolist() == ([5] if layer == 0 else [13])
            for name, values in unit_changes(X, Y)._asdict().items():
                np.testing.assert_allclose(at[name].to_numpy()[:width][~gone], values[~gone])
            for name, A in (("before", X), ("after", Y)):
                expected_ = label_selectivity(A, ["even", "odd"] * 20)
                np.testing.assert_allclose(at[f"selectivity_{name}"].to_numpy()[:width], expected_)
            best = at["top_probe"].isel(rank=0).to_numpy()[:width]
            alive = at["dead"].sel(step=300).to_numpy()[:width] == 0
            assert (best[alive] == Y.argmax(axis=0)[alive]).all()


def test_units_that_die_and_wake_are_found_between_the_two_checkpoints_only(store: Store) -> None:
    def units(result: object, name: str) -> list[int]:
        values = result[name].sel(run="run0", layer=LAYER).to_numpy()  # type: ignore[index]
        return np.flatnonzero(values == 1).tolist()

    result = analyze_neurons(store)
    assert units(result, "became_dead") == [3]
    assert units(result, "became_alive") == [4]
    best = result["top_probe"].sel(run="run0", layer=LAYER).to_numpy()[:, 0]
    assert best[3] == made_of()["run0"][0]["blocks[0]"][:, 3].argmax()  # it has none any more after
    assert np.isnan(best[5])
    late = analyze_neurons(store, before="step200", after="step300")
    assert (units(late, "became_dead"), units(late, "became_alive")) == ([], [])
    assert np.flatnonzero(late["dead"].sel(run="run0", layer=LAYER, step=300) == 1).tolist() == [3, 5]


def test_q_values_are_of_all_units_together(store: Store) -> None:
    result = analyze_neurons(store)
    p, q = (result[name].to_numpy().ravel() for name in ("p", "q"))
    known = np.isfinite(p)
    assert known.sum() == 2 * (9 + 13)
    np.testing.assert_allclose(q[known], stats.false_discovery_control(p[known]))


def test_movers_by_chance_are_not_significant(root: Path) -> None:
    X = 5 * gaussian(60, 500)
    history = {step: {"blocks[0]": (X + gaussian(60, 500, seed=step)).astype(np.float32)} for step in (1, 2)}
    result = analyze_neurons(write_store(root, {"run0": history}))
    assert (result["p"] < 0.05).sum() > 10
    assert (result["q"] < 0.05).sum() == 0


def test_the_largest_mover_stands_first_with_its_probes_and_a_lone_spike_never(root: Path) -> None:
    rng = np.random.default_rng(0)
    before = rng.standard_normal((60, 9))
    after = before + 0.2 * rng.standard_normal((60, 9))
    after[:, 4] = 3 + rng.standard_normal(60)
    before[:, 7] = after[:, 7] = 0
    before[11, 7], after[50, 7] = 1, 1000  # moves far, for two probes
    store = write_store(root, {"run0": {0: {"blocks[0]": before}, 9: {"blocks[0]": after}}})  # type: ignore[dict-item]
    result = analyze_neurons(store)
    movers = rank_movers(result, limit=20)
    first = movers[0]
    assert (first["run"], first["layer"], first["unit"]) == ("run0", LAYER, 4)
    best = np.argsort(-after[:, 4])[:5]
    assert [probe["text"] for probe in first["top_probes"]] == [f"probe {i}" for i in best]
    assert [probe["label"] for probe in first["top_probes"]] == ["odd" if i % 2 else "even" for i in best]
    assert [mover["movement_low"] for mover in movers] == sorted((m["movement_low"] for m in movers), reverse=True)
    assert rank_movers(result, limit=0) == []


def test_the_nonlinearity_is_that_of_the_whole_run_and_can_be_given(root: Path) -> None:
    positive = relu(gaussian(30, 6)) + 0.1  # no zero yet
    store = write_store(
        root,
        {
            "run0": {
                0: {"blocks[0]": positive.astype(np.float32)},
                1: {"blocks[0]": (positive - 0.1).astype(np.float32)},
            }
        },
    )
    result = analyze_neurons(store)
    assert result["nonlinearity"].item() == "rectified"
    assert (result["duty_cycle"].sel(step=0) == 1).all()
    given = analyze_neurons(store, nonlinearity="linear")
    assert given["nonlinearity"].item() == "linear"
    assert (given["duty_cycle"].sel(step=0) < 1).all()
    with pytest.raises(InvalidInput, match="are not tanh") as raised:
        analyze_neurons(store, nonlinearity="tanh")
    assert raised.value.__notes__ == [f"in {LAYER} of run0"]


def test_a_new_checkpoint_costs_itself_only(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    original = jobs.execute

    def listing(tasks: dict[str, object], **options: object) -> None:
        asked.extend(tasks)
        original(tasks, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("replay.analyses.measuring.execute", listing)
    analyze_neurons(store)
    assert len(asked) == 2 * 4 * 3  # a checkpoint once for its ranges, and once for each of two kinds of layers
    asked.clear()
    write_store(store.root, {"run0": {400: made_of(seed=1)["run0"][300]}})
    result = analyze_neurons(store)
    assert len(asked) == 3
    assert result.attrs["compared"] == {"run0": [0, 400], "run1": [0, 300]}
    assert np.isnan(result["mean"].sel(run="run1", step=400)).all()


def test_two_checkpoints_are_named_by_revision_step_alias_or_what_lies_between(store: Store) -> None:
    records = [RevisionRecord("main", step=None, weights="run0-200", tokenizer="t")]
    put_run(store, "run0", source="folder", location="run0", records=records)
    one = select_layers(store, Choice(runs=["run0"]))
    unnamed: dict[str, Any] = {"before": None, "after": None, "around": None}
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (0, 300)),
        ({"before": "step100"}, (100, 300)),
        ({"before": "0", "after": "main"}, (0, 200)),
        ({"around": 150}, (100, 200)),
        ({"around": 100}, (0, 200)),
    ]
    for given, expected in cases:
        assert compared_steps(store, one, **(unnamed | given)) == {"run0": expected}, given


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"before": "step7"}, UnknownRevision, "no checkpoint 'step7' of run0 to compare; there is step"),
        ({"after": 250}, UnknownRevision, "no checkpoint '250' of run0 to compare; nearest are steps 200, 300"),
        ({"before": 100, "after": "step100"}, InvalidInput, "not from step 100 to step 100 of run0"),
        ({"before": 300}, InvalidInput, "not from step 300 to step 300"),
        ({"before": 200, "after": 100}, InvalidInput, "not from step 200 to step 100"),
        ({"around": 300}, InvalidInput, "--around 300 needs a checkpoint of run0 before that step and one after"),
        ({"around": 100, "after": 300}, InvalidInput, "either --around or --before and --after"),
    ],
)
def test_two_checkpoints_that_cannot_be_compared_are_refused(
    store: Store, given: dict[str, str], error: type[ReplayError], text: str
) -> None:
    with pytest.raises(error, match=text):
        analyze_neurons(store, **given)  # type: ignore[arg-type]


def test_a_single_checkpoint_has_statistics_and_says_why_no_changes(root: Path) -> None:
    X = gaussian(30, 5).astype(np.float32)
    store = write_store(root, {"run0": {0: {"blocks[0]": X}}})
    result = analyze_neurons(store)
    np.testing.assert_allclose(result["std"].to_numpy().ravel(), X.std(axis=0, ddof=1), rtol=1e-5)
    assert np.isnan(result["movement"]).all()
    assert "two checkpoints" in result.attrs["unavailable"][0][-1]
    with pytest.raises(InvalidInput, match="from step 0 to step 0"):
        analyze_neurons(store, before=0, after=0)


def test_a_checkpoint_without_finite_numbers_is_unavailable_and_the_others_are_not(root: Path) -> None:
    X = gaussian(30, 5).astype(np.float32)
    broken = X.copy()
    broken[7, 2] = np.inf
    store = write_store(root, {"run0": {step: {"blocks[0]": A} for step, A in enumerate((X, broken, X + 1))}})
    result = analyze_neurons(store)
    assert result.attrs["unavailable"] == [
        ["run0", 1, LAYER, "activations of units must be finite: those of 1 of 30 probes are not"]
    ]
    assert np.isfinite(result["std"].sel(step=[0, 2])).all()
    assert np.isnan(result["std"].sel(step=1)).all()
    assert np.isfinite(result["movement"]).all()


# At the command line


def test_the_command_prints_counts_and_movers_and_writes_every_unit(store: Store, tmp_path: Path) -> None:
    table = tmp_path / "units.csv"
    printed = run("--store", store.root, "analyze", "neurons", "--csv", table, "--top", "3", "--around", "150")
    row = next(line.split() for line in printed.stdout.splitlines() if line.startswith(f"run0  {LAYER}"))
    assert " ".join(row[2:12]) == "rectified 100 to 200 10 1 to 2 1 0"
    assert printed.stdout.count("(odd)") + printed.stdout.count("(even)") == 6
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (10 + 14)
    died = [
        (r["run"], r["layer"], r["unit"], r["step_before"], r["step_after"]) for r in rows if r["became_dead"] == "1"
    ]
    assert died == [(name, LAYER, "3", "100", "200") for name in ("run0", "run1")]
    X = made_of()["run1"][200]["blocks[1]"]
    row_of = next(r for r in rows if (r["run"], r["layer"], r["unit"]) == ("run1", "blocks[1]:output:mean", "6"))
    assert float(row_of["mean_after"]) == pytest.approx(X[:, 6].mean(), rel=1e-5)
    assert int(row_of["top_probe_1"]) == X[:, 6].argmax()


def test_as_json_there_are_all_units_and_the_movers(store: Store) -> None:
    printed = run("--store", store.root, "analyze", "neurons", "--json", "--runs", "run0", "--top", "2")
    document = json.loads(printed.stdout)
    assert len(document["rows"]) == 24
    assert document["movers"][0]["unit"] == 6
    assert document["rows"][5]["movement"] is None
    assert "dead at both" in document["undefined"]["movement, shift, p, q"]


def test_the_command_lists_one_checkpoint_of_a_run_that_has_no_other(root: Path, tmp_path: Path) -> None:
    write_store(root, {"run0": {0: {"blocks[0]": gaussian(30, 5).astype(np.float32)}}})
    printed = run("--store", root, "analyze", "neurons", "--csv", tmp_path / "u.csv", "--plot", tmp_path / "u.png")
    assert "unavailable: run0, blocks[0]:output:mean: a change needs two checkpoints" in printed.stderr
    assert "largest movers" not in printed.stdout
    with (tmp_path / "u.csv").open() as file:
        assert [row["step_after"] for row in csv.DictReader(file)] == ["0"] * 5


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("--before", "step7"), 1, "no checkpoint 'step7' of run0 to compare"),
        (("--before", "300", "--after", "300"), 1, "not from step 300 to step 300"),
        (("--layers", "blocks[7]"), 1, "no stored layer 'blocks[7]'"),
        (("--nonlinearity", "rectified"), 1, "in blocks[1]:output:mean of run0"),
        (("--nonlinearity", "relu"), 2, "Invalid value"),
        (("--top", "-1"), 1, "--top is the number of movers to list"),
        (("--around", "soon"), 2, "Invalid value"),
    ],
)
def test_a_wrong_argument_is_one_line(store: Store, arguments: tuple[str, ...], code: int, text: str) -> None:
    refused = run("--store", store.root, "analyze", "neurons", *arguments, code=code)
    assert text in refused.stderr
    assert refused.stdout == ""
    if code == 1:
        assert len(refused.stderr.splitlines()) == 1
