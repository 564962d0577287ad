"""The path of a run: closed forms on lines and circles, what the grid must not change, intervals."""

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import pdist, squareform

from replay.geometry.paths import (
    curvature,
    distance_to_final,
    path_length,
    roughness,
    straightness,
    turning_angle,
    velocity,
)
from replay.geometry.statistics import jackknife_interval
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]
EVERY = (velocity, path_length, distance_to_final, straightness, roughness, turning_angle, curvature)
STEPS = np.array([0, 1, 2, 4, 8, 16, 512, 1000, 2000, 4000])


def between(X: npt.ArrayLike) -> Floats:
    return squareform(pdist(np.asarray(X, float)))


def line(positions: npt.ArrayLike) -> Floats:
    return between(np.outer(np.asarray(positions, float), np.array([2.0, -1.0, 2.0]) / 3))


def circle(angles: npt.ArrayLike, *, radius: float) -> Floats:
    angles = np.asarray(angles)
    return between(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1))


def replicated(D: Floats, n_groups: int = 6) -> Floats:
    noise = np.random.default_rng(3).uniform(0.97, 1.03, (*D.shape, n_groups))
    return D[..., None] * (noise + noise.transpose(1, 0, 2)) / 2


def test_motion_at_constant_speed_has_that_velocity_on_its_clock_and_any_grid() -> None:
    by_step, by_log = line(3.0 * STEPS / 1000), line(0.7 * np.log1p(STEPS))
    assert np.allclose(velocity(by_step, STEPS).values, 3.0, rtol=1e-9)
    assert np.allclose(velocity(by_log, STEPS, clock="log").values, 0.7, rtol=1e-9)
    assert np.ptp(velocity(by_log, STEPS).values) > 1
    assert np.array_equal(velocity(by_step, STEPS).steps, STEPS[1:])


def test_the_link_from_step_0_to_step_1_spans_ln_2_on_the_log_clock() -> None:
    assert velocity(line([0, 5]), [0, 1], clock="log").values[0] == pytest.approx(5 / np.log(2))


def test_a_straight_path_is_as_long_as_its_ends_are_apart_on_any_grid() -> None:
    D = line(STEPS / 100)
    assert np.allclose(path_length(D, STEPS).values, STEPS / 100)
    assert np.allclose(distance_to_final(D, STEPS).values, (STEPS[-1] - STEPS) / 100)
    assert straightness(D, STEPS).value == pytest.approx(1)
    assert roughness(D, STEPS).value == pytest.approx(1)
    few = [0, 3, 7, 9]
    assert path_length(D[np.ix_(few, few)], STEPS[few]).values[-1] == pytest.approx(path_length(D, STEPS).values[-1])


def test_a_straight_path_has_neither_turn_nor_curvature() -> None:
    positions = np.array([0.0, 1, 3, 4, 9, 10, 100])
    D = np.abs(positions[:, None] - positions)
    assert turning_angle(D, range(7)).values.tolist() == [0] * 5
    assert curvature(D, range(7)).values.tolist() == [0] * 5


def test_a_circle_has_curvature_one_over_its_radius_on_any_grid() -> None:
    angles = np.cumsum([0, 0.1, 0.4, 0.05, 1.2, 0.3, 0.9])
    bent = curvature(circle(angles, radius=2.5), range(7))
    assert np.allclose(bent.values, 1 / 2.5, rtol=1e-9)
    assert np.array_equal(bent.steps, range(1, 6))
    assert bent.unavailable == {}


def test_a_regular_polygon_turns_by_its_exterior_angle() -> None:
    D = circle(2 * np.pi * np.arange(8) / 8, radius=1)
    assert np.allclose(turning_angle(D, range(8)).values, 2 * np.pi / 8, rtol=1e-12)


@pytest.mark.parametrize("share", [-0.9, -0.3, 0.123, 0.77])
def test_the_angle_of_a_needle_is_not_lost_to_cancellation(share: float) -> None:
    short, first, direct = 1e-10, 0.7, 0.7 + 1e-10 * share
    D = np.array([[0, first, direct], [first, 0, short], [direct, short, 0]])
    cosine = ((direct - first) * (direct + first) - short**2) / (2 * first * short)  # the first difference is exact
    assert turning_angle(D, range(3)).values[0] == pytest.approx(np.arccos(cosine), abs=1e-9)


def test_a_path_straight_back_turns_by_pi_and_its_curvature_is_unavailable() -> None:
    D = line([0, 1, 0])
    assert turning_angle(D, [0, 5, 9]).values.tolist() == [np.pi]
    assert curvature(D, [0, 5, 9]).unavailable == {5: "checkpoints coincide"}


def test_coincident_checkpoints_are_named_and_the_others_measured() -> None:
    steps = [0, 10, 20, 30, 40, 50]
    D = circle([0, 0.5, 0.5, 1, 1.5, 2], radius=1)
    bent = curvature(D, steps)
    assert bent.unavailable == {10: "checkpoints coincide", 20: "checkpoints coincide"}
    assert bent.steps.tolist() == [30, 40]
    assert np.allclose(bent.values, 1)
    assert turning_angle(D, steps).steps.tolist() == [30, 40]


def test_distances_that_are_no_metric_are_named_and_rounding_is_not() -> None:
    D = line([0, 1, 2])
    D[0, 2] = D[2, 0] = 2 * (1 + 1e-7)
    assert turning_angle(D, [0, 1, 2]).values.tolist() == [0]
    D[0, 2] = D[2, 0] = 2.1
    assert "triangle inequality" in turning_angle(D, [0, 1, 2]).unavailable[1]
    assert "triangle inequality" in curvature(D, [0, 1, 2]).unavailable[1]


def test_scaling_distances_scales_what_has_their_unit_and_nothing_else() -> None:
    D = between(np.random.default_rng(0).standard_normal((10, 4)))
    for measure, power in (
        (velocity, 1),
        (path_length, 1),
        (distance_to_final, 1),
        (turning_angle, 0),
        (curvature, -1),
    ):
        assert np.allclose(measure(3 * D, STEPS).values, 3.0**power * measure(D, STEPS).values, rtol=1e-9)
    assert straightness(3 * D, STEPS).value == pytest.approx(straightness(D, STEPS).value)
    assert roughness(3 * D, STEPS).value == pytest.approx(roughness(D, STEPS).value)


def test_shape_does_not_know_the_clock() -> None:
    D = between(np.random.default_rng(0).standard_normal((10, 4)))
    for measure in (path_length, distance_to_final, turning_angle, curvature):
        assert np.array_equal(measure(D, STEPS).values, measure(D, np.arange(10)).values)


def test_a_random_walk_in_many_dimensions_meets_its_references() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.5, 2, (60, 1))
    D = between(np.cumsum(sizes * rng.standard_normal((60, 20_000)), axis=0))
    steps = np.arange(60)
    straight, rough = straightness(D, steps), roughness(D, steps)
    assert straight.value == pytest.approx(straight.random_walk, rel=0.03)
    assert rough.value == pytest.approx(rough.random_walk, rel=0.03)
    assert np.allclose(turning_angle(D, steps).values, np.pi / 2, atol=0.05)


def test_a_run_that_stands_still_in_noise_meets_its_references() -> None:
    D = between(np.random.default_rng(0).standard_normal((60, 20_000)))
    steps = np.arange(60)
    straight, rough = straightness(D, steps), roughness(D, steps)
    assert straight.value == pytest.approx(straight.noise, rel=0.03)
    assert rough.value == pytest.approx(rough.noise, rel=0.03)
    assert np.allclose(turning_angle(D, steps).values, 2 * np.pi / 3, atol=0.05)
    assert np.allclose(curvature(D, steps).values, np.sqrt(3) / D[0, 1], rtol=0.05)
    assert path_length(D, steps).values[-1] == pytest.approx(59 * D[0, 1], rel=0.03)


def test_intervals_are_the_jackknife_of_the_number_itself() -> None:
    D = between(np.random.default_rng(0).standard_normal((10, 4)))
    R = replicated(D)
    for measure in (velocity, path_length, distance_to_final, turning_angle, curvature):
        curve = measure(D, STEPS, replicates=R)
        assert np.array_equal(curve.values, measure(D, STEPS).values)
        parts = [measure(R[..., g], STEPS).values for g in range(6)]
        ends = np.array([jackknife_interval(v, p) for v, p in zip(curve.values, np.transpose(parts), strict=True)])
        assert curve.low is not None
        assert curve.high is not None
        assert np.allclose(curve.low, np.maximum(ends[:, 0], 0), rtol=1e-9)
        inside = ends[:, 1] < np.pi
        assert np.allclose(curve.high[inside], ends[inside, 1], rtol=1e-9)
    for whole in (straightness, roughness):
        ratio = whole(D, STEPS, replicates=R)
        low, high = jackknife_interval(ratio.value, np.array([whole(R[..., g], STEPS).value for g in range(6)]))
        assert (ratio.low, ratio.high) == pytest.approx((low, high))


def test_a_path_of_length_zero_has_no_straightness() -> None:
    D = np.zeros((3, 3))
    with pytest.raises(Unavailable, match="length zero"):
        straightness(D, [0, 1, 2])
    with pytest.raises(Unavailable, match="length zero"):
        roughness(line([0, 1, 0]), [0, 1, 2])
    assert path_length(D, [0, 1, 2]).values.tolist() == [0, 0, 0]


@pytest.mark.parametrize("measure", EVERY)
def test_too_few_checkpoints_are_unavailable(measure: object) -> None:
    assert callable(measure)
    with pytest.raises(Unavailable, match="checkpoints or more, and the run has 1"):
        measure(np.zeros((1, 1)), [0])


@pytest.mark.parametrize(
    ("D", "steps", "message"),
    [
        (np.zeros((2, 3)), [0, 1], "shape"),
        (np.full((2, 2), np.nan), [0, 1], "finite"),
        (-line([0, 1]), [0, 1], "not negative"),
        (np.array([[0.0, 1], [2, 0]]), [0, 1], "symmetric"),
        (np.ones((2, 2)), [0, 1], "diagonal"),
        (line([0, 1]), [0, 1, 2], "2 whole numbers"),
        (line([0, 1]), [0.5, 1], "2 whole numbers"),
        (line([0, 1]), [1, 1], "ascend"),
        (line([0, 1]), [-1, 1], "ascend"),
    ],
)
def test_what_is_no_path_is_refused(D: Floats, steps: list[int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        path_length(D, steps)


def test_unknown_clocks_and_malformed_replicates_are_refused() -> None:
    D = line([0, 1])
    with pytest.raises(InvalidInput, match="step, log"):
        velocity(D, [0, 1], clock="tokens")  # type: ignore[arg-type]
    for R in (np.zeros((2, 2)), np.zeros((2, 2, 1)), np.zeros((3, 3, 4))):
        with pytest.raises(InvalidInput, match="2 groups or more"):
            velocity(D, [0, 1], replicates=R)
    with pytest.raises(InvalidInput, match="finite"):
        velocity(D, [0, 1], replicates=np.full((2, 2, 3), np.inf))


def test_a_replicate_that_is_no_triangle_costs_the_interval_and_not_the_value() -> None:
    D = np.array([[0, 3, 5], [3, 0, 4], [5, 4, 0]], float)
    replicates = np.repeat(D[..., None], 4, axis=2)
    replicates[0, 2, 1] = replicates[2, 0, 1] = 8  # longer than the other two sides
    bent = curvature(D, [0, 1, 2], replicates=replicates)
    assert bent.values == pytest.approx([2 * np.sin(np.pi / 2) / 5])
    assert bent.low is not None
    assert bent.low[0] < bent.values[0]
    assert bent.unavailable == {}
    replicates[0, 2, 1] = replicates[2, 0, 1] = 0
    lost = curvature(D, [0, 1, 2], replicates=replicates)
    assert lost.values == pytest.approx(bent.values)
    assert lost.low is not None
    assert np.isnan(lost.low[0])
