"""Spread: closed forms, invariances, coverage of the intervals."""

import tracemalloc
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t as student

from replay.analyses.selection import join_on_step
from replay.geometry import influence
from replay.geometry.distances import frobenius_distance, normalized_frobenius_distance
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.influence import pair_influences, respond
from replay.geometry.measures import find_measure
from replay.geometry.spread import (
    PairDistance,
    StepSpread,
    compare_frobenius,
    compare_pairs,
    spread_from_activations,
    summarise,
)
from replay.geometry.statistics import jackknife_error, moments, permutation_ceiling, probe_groups, runs_interval
from store.errors import InvalidInput, Unavailable

GAUGE = DiffusionGauge()
Floats = npt.NDArray[np.float64]


def draw(rng: np.random.Generator, n: int, *, n_runs: int = 3) -> list[Floats]:
    """Probes from one mixture of Gaussians, seen by several runs through maps and noise of their own."""
    fixed = np.random.default_rng(7)
    centres = 2.0 * fixed.standard_normal((12, 8))
    maps = [fixed.standard_normal((8, 16)) / np.sqrt(8) for _ in range(n_runs)]
    Z = centres[rng.integers(12, size=n)] + rng.standard_normal((n, 8))
    return [np.tanh(Z @ W) + 0.3 * rng.standard_normal((n, 16)) for W in maps]


def spread(runs: list[Floats], *, gauge: DiffusionGauge = GAUGE) -> StepSpread:
    return spread_from_activations(runs, gauge)


def weighted_distance(
    kernels: tuple[Floats, Floats], gauge: DiffusionGauge, weights: Floats, bandwidths: tuple[Floats, Floats]
) -> tuple[float, float]:
    """‖P - Q‖² and ‖P‖² + ‖Q‖² where each probe counts as often as its weight says; bandwidths are relative."""
    operators = []
    for K, relative in zip(kernels, bandwidths, strict=True):
        with np.errstate(divide="ignore"):
            U = np.where(K > 0, -np.log(K), np.inf)
        L = np.exp(-U / np.outer(relative, relative))
        u = (L @ weights) ** -gauge.alpha
        r = L @ (weights * u)
        P = L * np.sqrt(np.outer(u / r, u / r)) if gauge.symmetric else L * u / r[:, None]
        operators.append(P)
    P, Q = operators
    twice = np.outer(weights, weights)
    return float(np.sum(twice * (P - Q) ** 2)), float(np.sum(twice * (P**2 + Q**2)))


def test_spread_is_the_mean_of_the_pairwise_distances() -> None:
    runs = draw(np.random.default_rng(0), 100)
    P, Q, R = (GAUGE(X).matrix for X in runs)
    found, pairs = spread(runs), [(P, Q), (P, R), (Q, R)]
    assert np.isclose(found.raw.value, np.mean([frobenius_distance(*pair) for pair in pairs]), rtol=1e-6)
    normalized = np.mean([normalized_frobenius_distance(*pair) for pair in pairs])
    assert np.isclose(found.normalized.value, normalized, rtol=1e-6)
    assert (found.n_runs, found.n_probes) == (3, 100)
    ceilings = [permutation_ceiling(moments(A), moments(B)) for A, B in pairs]
    assert np.isclose(found.raw.ceiling or 0, np.mean(ceilings), rtol=1e-6)


@pytest.mark.parametrize(
    "gauge",
    [
        DiffusionGauge(),
        DiffusionGauge(alpha=0.0),
        DiffusionGauge(alpha=0.5, symmetric=True),
        DiffusionGauge(symmetric=True, diagonal="keep"),
        DiffusionGauge(knn=None),
        DiffusionGauge(knn=3, metric="cosine", diagonal="keep"),
    ],
)
@pytest.mark.parametrize("apart", [0.3, 1e-3])
def test_influences_are_the_derivatives_of_the_weighted_distance(gauge: DiffusionGauge, apart: float) -> None:
    rng, n = np.random.default_rng(0), 40
    X = rng.standard_normal((n, 5))
    groups = probe_groups(n, n_groups=4)
    points = {name: respond(gauge, Y, groups) for name, Y in enumerate((X, X + apart * rng.standard_normal(X.shape)))}
    influence = pair_influences(points, [(0, 1)])[0]
    kernels = tuple((P.matrix / P.left[:, None] / P.right).astype(np.float64) for P in points.values())

    def moved(group: int, by: float) -> npt.NDArray[np.float64]:
        shifts = [
            -P.narrowing * (P.excess[:, group] if gauge.knn else np.mean(P.excess[:, group])) for P in points.values()
        ]
        bandwidths = tuple(np.exp(by * shift) * np.ones(n) for shift in shifts)
        return np.array(weighted_distance(kernels, gauge, 1 + by * (groups == group), bandwidths))  # type: ignore[arg-type]

    step = 1e-4
    expected = np.array([(moved(group, step) - moved(group, -step)) / (2 * step) for group in range(4)])
    assert np.allclose(influence.of_squares, expected[:, 1], rtol=1e-3, atol=1e-4 * np.abs(expected[:, 1]).max())
    assert np.allclose(influence.of_difference, expected[:, 0], rtol=1e-2, atol=1e-2 * np.abs(expected[:, 0]).max())


def test_bandwidths_narrow_as_the_ranks_of_the_neighbours_say() -> None:
    angles = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 200))
    X = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    point = respond(GAUGE, X, np.arange(200))
    d = np.sort(np.linalg.norm(X[:, None] - X, axis=2), axis=1)
    assert np.allclose(point.narrowing, np.log(d[:, 30] / d[:, 8]) / 22, rtol=1e-4)
    assert np.allclose(
        point.excess, (np.linalg.norm(X[:, None] - X, axis=2) <= d[:, [15]] * (1 + 1e-7)) - np.eye(200) - 15 / 200
    )


def test_a_sample_of_the_columns_gives_nearly_the_error_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = draw(np.random.default_rng(0), 600, n_runs=2)
    sampled = spread(runs).raw.replicates
    monkeypatch.setattr(influence, "SAMPLE", 600)
    whole = spread(runs).raw.replicates
    assert 0 < np.std(sampled - whole) < 0.2 * np.std(whole)


def test_neighbours_within_one_bandwidth_for_all_are_those_nearer_than_the_median_distance() -> None:
    X = draw(np.random.default_rng(0), 150)[0]
    d = np.linalg.norm(X[:, None] - X, axis=2)
    near = (d <= np.median(d[np.triu_indices(150, 1)])) - np.eye(150)
    excess = respond(DiffusionGauge(knn=None), X, np.arange(150)).excess
    assert np.allclose(excess, near - near.sum(axis=1, keepdims=True) / 150, atol=1e-4)


def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = draw(np.random.default_rng(0), 150)
    P, Q, R = (GAUGE(X).matrix for X in runs)
    monkeypatch.setattr(influence, "BLOCK", 5000)  # eleven rows at a time, and four at last
    some = spread(runs)
    assert np.isclose(some.raw.value, np.mean([frobenius_distance(*pair) for pair in ((P, Q), (P, R), (Q, R))]), 1e-6)
    monkeypatch.setattr(influence, "BLOCK", 1 << 18)
    assert np.allclose(some.raw.replicates, spread(runs).raw.replicates, rtol=1e-6)


def test_a_response_is_made_in_the_room_it_is_given() -> None:
    X, room = draw(np.random.default_rng(0), 80)[0], np.empty((80, 80), np.float32)
    point = respond(GAUGE, X, probe_groups(80), out=room)
    assert point.matrix is room
    assert np.allclose(room, GAUGE(X).matrix, rtol=1e-5)


def test_identical_operators_have_spread_exactly_zero() -> None:
    equal = spread(draw(np.random.default_rng(0), 60)[:1] * 4)
    for part in (equal.raw, equal.normalized):
        assert (part.value, part.low, part.high, part.low_runs, part.high_runs) == (0, 0, 0, 0, 0)
        assert part.ceiling is not None
        assert part.ceiling > 0


def test_spread_ignores_a_joint_relabelling_and_movements_of_each_run() -> None:
    runs = draw(np.random.default_rng(0), 100)
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    order = np.random.default_rng(2).permutation(100)
    before = spread(runs)
    for after in (spread([X[order] for X in runs]), spread([runs[0] @ Q, runs[1] + 5, runs[2] * 3])):
        assert np.isclose(after.raw.value, before.raw.value, rtol=1e-5)
        assert np.isclose(after.raw.ceiling or 0, before.raw.ceiling or 1, rtol=1e-5)
    moved = spread([runs[0] @ Q, runs[1] + 5, runs[2] * 3])
    assert np.allclose(moved.raw.replicates, before.raw.replicates, rtol=1e-4)


def test_spread_reaches_its_ceiling_when_probes_are_relabelled_in_one_run() -> None:
    X, Y, _ = draw(np.random.default_rng(0), 400)
    apart = spread([X, Y[np.random.default_rng(0).permutation(400)]]).normalized
    assert np.isclose(apart.value, apart.ceiling or 0, rtol=0.01)
    assert spread([X, Y]).normalized.value < 0.9 * (apart.ceiling or 0)


def test_normalized_spread_moves_less_with_the_number_of_probes_and_not_at_all_at_equal_bandwidth() -> None:
    # Older: the raw distance alone, .42, .53 and .63 for 100, 400 and 1,600 probes of one population.
    few, many, wide = (
        spread(draw(np.random.default_rng(0), n), gauge=DiffusionGauge(knn=knn))
        for n, knn in ((100, 15), (800, 15), (800, 120))
    )
    assert many.raw.value > 2.2 * few.raw.value
    assert many.normalized.value < 1.6 * few.normalized.value
    assert np.isclose(wide.normalized.value, few.normalized.value, rtol=0.1)


def test_first_order_replicates_spread_about_as_recomputed_ones() -> None:
    runs = draw(np.random.default_rng(0), 150)
    groups = probe_groups(150)
    left = zip(*(GAUGE.leave_group_out(X, groups) for X in runs), strict=True)
    recomputed = np.array(
        [np.mean([frobenius_distance(P, Q) for P, Q in combinations(operators, 2)]) for operators in left]
    )
    first_order = spread(runs).raw.replicates
    assert np.corrcoef(recomputed, first_order)[0, 1] > 0.8
    assert 0.6 < jackknife_error(first_order) / jackknife_error(recomputed) < 1.4


def test_operators_at_hand_give_the_same_spread() -> None:
    runs = draw(np.random.default_rng(0), 80)
    for gauge in (GAUGE, DiffusionGauge(symmetric=True)):
        given = spread_from_activations(runs, gauge, operators=[gauge(X) for X in runs])
        assert np.isclose(given.raw.value, spread(runs, gauge=gauge).raw.value, rtol=1e-6)
        assert np.allclose(given.raw.replicates, spread(runs, gauge=gauge).raw.replicates, rtol=1e-6)


@pytest.mark.parametrize("name", ["frobenius", "frobenius_normalized", "hellinger", "cka", "mutual_knn", "spectral"])
def test_pairs_of_any_measure_are_compared_as_the_measure_says(name: str) -> None:
    runs, measure = draw(np.random.default_rng(0), 80), find_measure(name)
    found = compare_pairs(runs, GAUGE, measure, [(0, 2), (1, 2)], n_groups=8)
    points = [GAUGE(X) for X in runs] if measure.of == "operator" else runs
    views = [measure.view(point) for point in points]
    expected = measure.to_distance(measure.compare(views))
    assert np.allclose([pair.value for pair in found], [expected[0, 2], expected[1, 2]], rtol=1e-5)
    assert all(pair.replicates.shape == (8,) for pair in found)
    assert all((pair.null is None) == (name == "spectral") for pair in found)
    groups = probe_groups(80, n_groups=8)
    without = [measure.view(GAUGE(X[groups != 5]) if measure.of == "operator" else X[groups != 5]) for X in runs]
    again = measure.to_distance(measure.compare(without))[0, 2]
    assert np.isclose(found[0].replicates[5], again, rtol=0.15)  # Frobenius to first order, k rounded in others
    if measure.of == "activations":
        assert np.isclose(found[0].replicates[5], again, rtol=1e-9)


def test_a_spread_is_the_mean_of_its_pairs_with_a_doubt_of_runs_from_four_runs_up() -> None:
    rng, n_probes, sigma = np.random.default_rng(0), 300, 1e-3
    P = rng.random((n_probes, n_probes))
    noisy = [P + sigma * rng.standard_normal(P.shape) for _ in range(4)]
    pairs = {
        (i, j): PairDistance(frobenius_distance(noisy[i], noisy[j]), None, np.ones(5))
        for i, j in combinations(range(4), 2)
    }
    found = summarise(pairs, 4)
    assert np.isclose(found.value, sigma * n_probes * np.sqrt(2), rtol=5e-3)
    assert found.ceiling is None
    assert found.no_runs is None
    values = {pair: distance.value for pair, distance in pairs.items()}
    assert (found.low_runs, found.high_runs) == runs_interval(values, 4)
    three = summarise({pair: distance for pair, distance in pairs.items() if 3 not in pair}, 3)
    assert (three.low_runs, three.high_runs) == (None, None)
    assert three.no_runs == "an interval over runs needs 4 runs or more, and there are 3"


def test_a_spread_of_the_wrong_pairs_is_refused() -> None:
    pair = PairDistance(1.0, 2.0, np.ones(5))
    with pytest.raises(InvalidInput, match="takes the pairs i < j of 0 to 2, not"):
        summarise({(0, 1): pair, (1, 2): pair}, 3)
    with pytest.raises(InvalidInput, match="compare all with the same groups"):
        summarise({(0, 1): pair, (0, 2): pair, (1, 2): PairDistance(1.0, 2.0, np.ones(6))}, 3)
    with pytest.raises(Unavailable, match="two runs or more, and there are 1"):
        summarise({}, 1)


def test_pairs_over_unequal_probes_are_refused() -> None:
    X, Y, _ = draw(np.random.default_rng(0), 30)
    with pytest.raises(InvalidInput, match="over the same probes, not over 29 and 30"):
        compare_frobenius([X, Y[1:]], GAUGE, [(0, 1)])
    with pytest.raises(Unavailable, match="at least 3 probes, and there are 2"):
        compare_pairs([X[:2], Y[:2]], GAUGE, find_measure("frobenius"), [(0, 1)])


def test_intervals_hold_the_expected_spread_of_fresh_probes_as_often_as_they_say() -> None:
    n, rng = 100, np.random.default_rng(11)
    population = [spread(draw(rng, n)) for _ in range(400)]
    samples = [spread_from_activations(draw(rng, n), GAUGE, seed=seed) for seed in range(80)]
    for name in ("raw", "normalized"):
        values = np.array([getattr(drawn, name).value for drawn in population])
        parts = [getattr(sample, name) for sample in samples]
        covered = np.mean([part.low <= values.mean() <= part.high for part in parts])
        assert 0.9 <= covered < 1
        reach = np.mean([part.high - part.low for part in parts]) / 2 / student.ppf(0.975, 14)
        assert 0.75 < reach / values.std() < 1.5  # half or twice as wide an interval leaves this range


def test_runs_are_joined_on_steps_and_what_is_left_out_is_named() -> None:
    # Older: runs zipped by index, so that steps (0, 100) were compared with (500, 9000) and nobody told.
    joined = join_on_step({"a": [100, 0, 500], "b": [0, 100, 200], "c": [0, 100]})
    assert joined.steps == [0, 100]
    assert joined.dropped == {"a": [500], "b": [200]}


def test_runs_without_a_common_step_are_refused_in_one_line() -> None:
    with pytest.raises(InvalidInput) as error:
        join_on_step({"a": [0, 100], "b": [500, 9000], "c": []})
    assert str(error.value) == "no step is common to all 3 runs: a has 2 (0 to 100); b has 2 (500 to 9000); c has none"


def test_one_run_has_no_spread() -> None:
    for call in (lambda: spread(draw(np.random.default_rng(0), 50)[:1]), lambda: join_on_step({"a": [0]})):
        with pytest.raises(Unavailable, match="spread needs two runs or more, and there are 1"):
            call()


def test_operators_that_cannot_be_compared_are_refused() -> None:
    runs = draw(np.random.default_rng(0), 50)
    P, Q, R = (GAUGE(X).matrix for X in runs)
    with pytest.raises(InvalidInput, match="over the same 50 probes"):
        spread_from_activations(runs, GAUGE, operators=[P, Q[1:, 1:], R])
    with pytest.raises(InvalidInput, match="must be finite"):
        spread_from_activations(runs, GAUGE, operators=[P, np.where(Q > 0.01, np.nan, Q), R])
    with pytest.raises(InvalidInput, match="different kinds"):
        spread_from_activations(runs, GAUGE, operators=[DiffusionGauge(symmetric=True)(X) for X in runs])


def test_replicates_are_exact_where_a_probe_is_isolated_or_the_doubt_is_large() -> None:
    rng = np.random.default_rng(0)
    X = [rng.normal(size=(120, 6)) for _ in range(2)]
    X[1][5] += 1e6
    groups = probe_groups(120)
    (pair,) = compare_frobenius(X, GAUGE, [(0, 1)])
    left_out = zip(*(GAUGE.leave_group_out(x, groups) for x in X), strict=True)
    exact = [np.linalg.norm(P.matrix.astype(float) - Q.matrix) for P, Q in left_out]
    np.testing.assert_allclose(pair.raw.replicates, exact, rtol=1e-6)
    assert np.ptp(exact) > 0.1 * pair.raw.value  # the group of the isolated probe, which first order does not see
    assert (pair.raw.n_parts, pair.raw.n_isolated) == (2, 1)


def test_influences_take_little_memory_beyond_the_operators() -> None:
    runs = draw(np.random.default_rng(0), 800)
    points = {i: respond(GAUGE, X, probe_groups(800)) for i, X in enumerate(runs)}
    tracemalloc.start()
    pair_influences(points, [(0, 1), (0, 2), (1, 2)])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5e6
