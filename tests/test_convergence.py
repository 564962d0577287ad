"""Convergence rate and phases: closed forms, sampling grids, false alarms."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import t as student

from replay.geometry.convergence import Phase, _largest_by_chance, convergence_rate, phases_of_convergence
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]
LOG_GRID = [0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 3000]
EVEN_GRID = list(range(0, 3001, 100))
FINE_GRID = sorted({0, *(int(step) for step in np.geomspace(1, 3000, 60))})


def test_rate_of_an_exponential_is_the_same_on_any_grid() -> None:
    # Older: minus the slope per list index, .05, .10 or .50 for one curve on three grids.
    for grid in LOG_GRID, EVEN_GRID, [7, 1500, 2999]:
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
    # Older: ln(0 + 1e-10), by which one exact zero takes a rate from .50 to 1.32.
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


def phases(steps: list[int], curve: Floats) -> list[Phase]:
    """Phases of a curve without any doubt."""
    return phases_of_convergence(steps, curve, np.outer(curve, np.ones(15)))


def noisy(rng: np.random.Generator, curve: Floats, *, noise: float = 0.2) -> tuple[Floats, Floats]:
    """A curve whose logarithm is a mean of 60 probes at each step, and its replicates without each of 15 groups."""
    groups = noise * rng.standard_normal((len(curve), 15, 4)).mean(axis=2) + np.log(curve)[:, None]
    return np.exp(groups.mean(axis=1)), np.exp((groups.sum(axis=1, keepdims=True) - groups) / 14)


@pytest.mark.parametrize("grid", [LOG_GRID, EVEN_GRID, FINE_GRID, [0, 7, 1500, 2999, 3000]])
def test_an_exponential_falls_in_one_phase_on_any_grid(grid: list[int]) -> None:
    (phase,) = phases(grid, 0.7 * np.exp(-np.array(grid) / 400))
    assert phase[:3] == (0, 3000, "falls")
    assert phase.confidence == 1


@pytest.mark.parametrize("grid", [LOG_GRID, EVEN_GRID, FINE_GRID])
def test_a_curve_that_turns_has_two_phases_that_meet_where_it_turns(grid: list[int]) -> None:
    down, up = phases(grid, np.exp(np.abs(np.log1p(grid) - np.log(201)) - 3))
    assert (down.start, down.direction, up.direction, up.end) == (0, "falls", "rises", 3000)
    assert down.end == up.start
    assert abs(grid.index(down.end) - np.interp(200, grid, range(len(grid)))) <= 1
    assert np.isclose(up.change, np.log(3001 / (1 + up.start)), rtol=0.05)


@pytest.mark.parametrize("grid", [LOG_GRID, EVEN_GRID, FINE_GRID])
def test_a_curve_that_stops_falling_is_flat_from_there(grid: list[int]) -> None:
    falling, flat = phases(grid, np.exp(-np.minimum(np.log1p(grid), np.log(201))))
    assert (falling.direction, flat.direction) == ("falls", "flat")
    assert abs(grid.index(falling.end) - np.interp(200, grid, range(len(grid)))) <= 1
    assert np.isclose(falling.change, -np.log(201), rtol=0.05)


@pytest.mark.parametrize("n_steps", [5, 40])
def test_a_constant_with_noise_is_flat_as_often_as_the_confidence_says(n_steps: int) -> None:
    rng, steps = np.random.default_rng(0), list(range(0, 100 * n_steps, 100))
    found = [phases_of_convergence(steps, *noisy(rng, np.ones(n_steps), noise=0.8)) for _ in range(200)]
    assert np.mean([len(part) == 1 and part[0].direction == "flat" for part in found]) >= 0.91  # 0.95 less 2.6 errors
    doubtful = [
        phases_of_convergence(steps, *noisy(rng, np.ones(n_steps), noise=1.0), confidence=0.5) for _ in range(60)
    ]
    assert 0.1 < np.mean([len(part) > 1 or part[0].direction != "flat" for part in doubtful]) < 0.65


def test_the_largest_of_several_estimates_has_the_quantile_of_one_and_sidaks_of_independent_ones() -> None:
    one = np.random.default_rng(0).standard_normal((1, 15))
    assert np.isclose(_largest_by_chance(one, 0.95), student.ppf(0.975, 14), rtol=0.04)
    assert np.isclose(_largest_by_chance(np.repeat(one, 9, axis=0), 0.95), student.ppf(0.975, 14), rtol=0.04)
    independent = np.linalg.qr(np.random.default_rng(1).standard_normal((400, 20)))[0].T
    sidak = student.ppf((1 + 0.95 ** (1 / 20)) / 2, 399)
    assert np.isclose(_largest_by_chance(independent - independent.mean(axis=1, keepdims=True), 0.95), sidak, rtol=0.03)


def test_a_fall_shows_through_noise_and_its_interval_holds_the_change() -> None:
    rng, curve = np.random.default_rng(1), np.exp(-np.log1p(EVEN_GRID) / 4)
    found = [phases_of_convergence(EVEN_GRID, *noisy(rng, curve)) for _ in range(50)]
    assert np.mean([[phase.direction for phase in part] == ["falls"] for part in found]) > 0.9
    true = -np.log(3001) / 4
    assert np.mean([part[0].low <= true <= part[-1].high for part in found if len(part) == 1]) > 0.9


def test_a_change_of_less_than_five_percent_is_flat_however_certain() -> None:
    (flat,) = phases([0, 10, 100, 1000], np.array([1.0, 0.99, 0.98, 0.97]))
    assert flat.direction == "flat"
    assert flat.confidence == 1
    (falls,) = phases([0, 10, 100, 1000], np.array([1.0, 0.98, 0.96, 0.94]))
    assert falls.direction == "falls"


def test_phases_ignore_the_order_of_the_steps_and_leave_out_zeros_and_unknown_values() -> None:
    spread = np.exp(-np.array(EVEN_GRID) / 400)
    replicates = np.outer(spread, np.linspace(0.9, 1.1, 15))
    expected = phases_of_convergence(EVEN_GRID[2:], spread[2:], replicates[2:])
    spread[:2] = 0
    order = np.random.default_rng(0).permutation(len(EVEN_GRID))
    steps = [EVEN_GRID[k] for k in order]
    assert phases_of_convergence(steps, spread[order], replicates[order]) == expected
    spread[:2] = np.nan
    assert phases_of_convergence(EVEN_GRID, spread, replicates) == expected


def test_a_replicate_of_zero_leaves_its_step_in_and_counts_as_one_less_in_the_logarithm() -> None:
    spread = np.exp(-np.array(EVEN_GRID) / 400)
    replicates = np.outer(spread, np.ones(15))
    replicates[1, 3] = spread[1] / np.e
    expected = convergence_rate(EVEN_GRID, spread, replicates)
    replicates[1, 3] = 0
    rate = convergence_rate(EVEN_GRID, spread, replicates)
    assert rate == expected
    assert rate.n_excluded == 0
    assert rate.low < rate.slope < rate.high


def test_phases_of_too_few_or_unusable_steps_are_refused() -> None:
    with pytest.raises(Unavailable, match="a phase of convergence needs 3 steps with a positive spread: 2 of 3 have"):
        phases([0, 1, 2], np.array([0.0, 1.0, 1.0]))
    with pytest.raises(InvalidInput, match="at least 0, and one is -5"):
        phases([-5, 1, 2], np.ones(3))
    with pytest.raises(InvalidInput, match="finite"):
        phases([0, 1, 2], np.array([np.inf, 1.0, 1.0]))
    with pytest.raises(InvalidInput, match="expected"):
        phases_of_convergence([0, 1], np.ones(3), np.ones((3, 2)))
