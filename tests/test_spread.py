"""Spread and convergence rate: closed forms, invariances, coverage of the intervals."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t as student

from replay.geometry.distances import frobenius_distance, normalized_frobenius_distance
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.spread import convergence_rate, join_on_step, spread_at_step, spread_from_activations
from replay.geometry.statistics import probe_groups
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


def operators(n: int = 100, *, n_runs: int = 3) -> list[npt.NDArray[np.float32]]:
    return [GAUGE(X).matrix for X in draw(np.random.default_rng(0), n, n_runs=n_runs)]


def test_spread_is_the_mean_of_the_pairwise_distances() -> None:
    P, Q, R = operators()
    spread = spread_at_step([P, Q, R])
    pairs = [(P, Q), (P, R), (Q, R)]
    assert np.isclose(spread.raw.value, np.mean([frobenius_distance(*pair) for pair in pairs]), rtol=1e-6)
    normalized = np.mean([normalized_frobenius_distance(*pair) for pair in pairs])
    assert np.isclose(spread.normalized.value, normalized, rtol=1e-6)
    assert (spread.n_runs, spread.n_probes) == (3, 100)


def test_replicates_are_the_spread_of_the_operators_without_a_group() -> None:
    matrices = operators()
    groups = probe_groups(100, n_groups=6, seed=3)
    spread = spread_at_step(matrices, n_groups=6, seed=3)
    for group in range(6):
        kept = np.nonzero(groups != group)[0]
        left = spread_at_step([P[np.ix_(kept, kept)] for P in matrices])
        scale = np.sqrt(100 * 99 / (len(kept) * (len(kept) - 1)))
        assert np.isclose(spread.raw.replicates[group], left.raw.value * scale, rtol=1e-6)
        assert np.isclose(spread.normalized.replicates[group], left.normalized.value, rtol=1e-6)


def test_spread_of_operators_with_independent_noise_is_its_size_times_root_two() -> None:
    rng = np.random.default_rng(0)
    N, sigma = 300, 1e-3
    P = rng.random((N, N))
    spread = spread_at_step([P + sigma * rng.standard_normal((N, N)) for _ in range(4)])
    assert np.isclose(spread.raw.value, sigma * N * np.sqrt(2), rtol=5e-3)


def test_identical_operators_have_spread_exactly_zero() -> None:
    for spread in (
        spread_at_step(operators()[:1] * 3),
        spread_from_activations(draw(np.random.default_rng(0), 60)[:1] * 3, GAUGE),
    ):
        for part in (spread.raw, spread.normalized):
            assert (part.value, part.low, part.high) == (0, 0, 0)
            assert part.ceiling > 0


def test_spread_ignores_a_joint_relabelling_and_movements_of_each_run() -> None:
    runs = draw(np.random.default_rng(0), 100)
    Q = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))[0]
    order = np.random.default_rng(2).permutation(100)
    before = spread_at_step([GAUGE(X) for X in runs])
    relabelled = spread_at_step([GAUGE(X[order]) for X in runs])
    moved = spread_at_step([GAUGE(X) for X in (runs[0] @ Q, runs[1] + 5, runs[2] * 3)])
    for after in (relabelled, moved):
        assert np.isclose(after.raw.value, before.raw.value, rtol=1e-5)
        assert np.isclose(after.raw.ceiling, before.raw.ceiling, rtol=1e-5)


def test_spread_reaches_its_ceiling_when_probes_are_relabelled_in_one_run() -> None:
    P, Q, _ = operators(400)
    order = np.random.default_rng(0).permutation(400)
    apart = spread_at_step([P, Q[np.ix_(order, order)]])
    assert np.isclose(apart.normalized.value, apart.normalized.ceiling, rtol=0.01)
    assert spread_at_step([P, Q]).normalized.value < 0.9 * apart.normalized.ceiling


def test_normalized_spread_moves_less_with_the_number_of_probes_and_not_at_all_at_equal_bandwidth() -> None:
    few, many, wide = (
        spread_at_step([DiffusionGauge(knn=knn)(X) for X in draw(np.random.default_rng(0), n)])
        for n, knn in ((100, 15), (800, 15), (800, 120))
    )
    assert many.raw.value > 2.2 * few.raw.value
    assert many.normalized.value < 1.6 * few.normalized.value
    assert np.isclose(wide.normalized.value, few.normalized.value, rtol=0.1)


def test_recomputed_spread_has_the_same_value_and_other_replicates() -> None:
    runs = draw(np.random.default_rng(0), 100)
    cheap, recomputed = spread_at_step([GAUGE(X) for X in runs]), spread_from_activations(runs, GAUGE)
    assert np.isclose(cheap.raw.value, recomputed.raw.value, rtol=1e-6)
    left = list(zip(*(GAUGE.leave_group_out(X, np.arange(100) % 15) for X in runs), strict=True))
    assert recomputed.raw.replicates.shape == (len(left),)
    assert np.isclose(
        recomputed.raw.replicates.mean(), np.mean([spread_at_step(part).raw.value for part in left]), rtol=0.02
    )


def test_intervals_hold_the_expected_spread_of_fresh_probes_as_often_as_they_say() -> None:
    n, rng = 100, np.random.default_rng(11)
    population = [spread_at_step([GAUGE(X) for X in draw(rng, n)]) for _ in range(400)]
    samples = [spread_from_activations(draw(rng, n), GAUGE, seed=seed) for seed in range(80)]
    for name in ("raw", "normalized"):
        values = np.array([getattr(drawn, name).value for drawn in population])
        parts = [getattr(sample, name) for sample in samples]
        covered = np.mean([part.low <= values.mean() <= part.high for part in parts])
        assert 0.9 <= covered < 1
        reach = np.mean([part.high - part.low for part in parts]) / 2 / student.ppf(0.975, 14)
        assert 0.75 < reach / values.std() < 1.5  # half or twice as wide an interval leaves this range


def test_block_sums_hold_the_expected_normalized_spread_too() -> None:
    n, rng = 256, np.random.default_rng(12)
    population = [spread_at_step([GAUGE(X) for X in draw(rng, n)], seed=seed) for seed in range(150)]
    expected = np.mean([drawn.normalized.value for drawn in population])
    covered = np.mean([drawn.normalized.low <= expected <= drawn.normalized.high for drawn in population])
    assert 0.88 <= covered < 0.99


def test_rate_of_an_exponential_is_the_same_on_any_grid() -> None:
    grids = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000], list(range(0, 3001, 100)), [7, 1500, 2999]
    for grid in grids:
        spread = 0.7 * np.exp(-np.array(grid) / 400)
        rate = convergence_rate(grid, spread, np.outer(spread, [1.0, 1.01, 0.99]))
        assert np.allclose(rate[:3], -2.5, rtol=1e-9)
        assert (rate.n_steps, rate.n_excluded) == (len(grid), 0)


def test_rate_of_a_bent_curve_hardly_depends_on_the_grid() -> None:
    def rate(grid: list[int]) -> float:
        spread = 0.2 + np.exp(-np.array(grid) / 1000)
        return convergence_rate(grid, spread, np.outer(spread, [1.0, 1.0])).slope

    even = rate(list(range(0, 4001, 50)))
    dense_start = rate([*range(0, 500, 5), *range(500, 4001, 50)])
    assert np.isclose(dense_start, even, rtol=0.01)


def test_rate_interval_carries_the_replicates_through_the_fit() -> None:
    steps = np.arange(0, 5000, 500)
    slopes = np.array([-1.0, -1.2, -0.8, -1.1])
    rate = convergence_rate(list(steps), np.exp(-steps / 1000), np.exp(np.outer(steps / 1000, slopes)))
    assert np.isclose(rate.slope, -1)
    assert np.isclose(rate.high - rate.low, 2 * 3.182446 * np.sqrt(3 / 4 * np.sum((slopes - slopes.mean()) ** 2)))


def test_zeros_are_left_out_of_a_rate_and_counted() -> None:
    spread = np.array([0.0, 0.5, 0.25, 0.125])
    rate = convergence_rate([0, 1000, 2000, 3000], spread, np.outer(spread, [1.0, 1.0]))
    assert np.allclose(rate, (-np.log(2), -np.log(2), -np.log(2), 3, 1))
    with pytest.raises(Unavailable, match="needs 3 steps with a positive spread: 2 of 3 have one"):
        convergence_rate([0, 1000, 2000], spread[:3], np.outer(spread[:3], [1.0, 1.0]))


def test_rate_ignores_the_order_of_the_steps() -> None:
    spread, order = np.array([0.9, 0.5, 0.35, 0.1]), [2, 0, 3, 1]
    steps = np.array([0, 10, 200, 3000])
    replicates = np.outer(spread, [1.0, 1.1]) + 0.01 * np.arange(4)[:, None]
    shuffled = convergence_rate(list(steps[order]), spread[order], replicates[order])
    assert shuffled == convergence_rate(list(steps), spread, replicates)


@pytest.mark.parametrize(
    ("steps", "spread", "groups", "match"),
    [
        ([0, 1, 2], [1.0, 1.0], 2, "expected"),
        ([0, 1, 1], [1.0, 1.0, 1.0], 2, "occurs twice"),
        ([0, 1, 2], [1.0, -1.0, 1.0], 2, "not negative"),
        ([0, 1, 2], [1.0, np.nan, 1.0], 2, "finite"),
        ([0, 1, 2], [1.0, 1.0, 1.0], 1, "expected"),
    ],
)
def test_unusable_curves_are_refused(steps: list[int], spread: list[float], groups: int, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        convergence_rate(steps, spread, np.outer(spread, np.ones(groups)))


def test_runs_are_joined_on_steps_and_what_is_left_out_is_named() -> None:
    joined = join_on_step({"a": [100, 0, 500], "b": [0, 100, 200], "c": [0, 100]})
    assert joined.steps == [0, 100]
    assert joined.dropped == {"a": [500], "b": [200]}


def test_runs_without_a_common_step_are_refused_in_one_line() -> None:
    with pytest.raises(InvalidInput) as error:
        join_on_step({"a": [0, 100], "b": [500, 9000], "c": []})
    assert str(error.value) == "no step is common to all 3 runs: a has 2 (0 to 100); b has 2 (500 to 9000); c has none"


def test_one_run_has_no_spread() -> None:
    for call in (lambda: spread_at_step(operators()[:1]), lambda: join_on_step({"a": [0]})):
        with pytest.raises(Unavailable, match="spread needs two runs or more, and there are 1"):
            call()


def test_operators_that_cannot_be_compared_are_refused() -> None:
    P, Q, _ = operators()
    with pytest.raises(InvalidInput, match="over the same probes"):
        spread_at_step([P, Q[1:, 1:]])
    with pytest.raises(InvalidInput, match="number 1 is not"):
        spread_at_step([P, np.where(Q > 0.01, np.nan, Q)])
    X = draw(np.random.default_rng(0), 50)[0]
    with pytest.raises(InvalidInput, match="different kinds"):
        spread_at_step([GAUGE(X), DiffusionGauge(symmetric=True)(X)])
    with pytest.raises(Unavailable, match="3 probes"):
        spread_at_step([P[:2, :2], Q[:2, :2]])


def test_spread_takes_little_memory_beyond_the_operators() -> None:
    rng = np.random.default_rng(0)
    matrices = [rng.random((1000, 1000), np.float32) for _ in range(5)]
    tracemalloc.start()
    spread_at_step(matrices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
