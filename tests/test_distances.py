"""Distances between operators: what they must not see, and what they must."""

import numpy as np
import pytest

from replay.geometry.distances import frobenius_distance, normalized_frobenius_distance
from replay.geometry.gauge import DiffusionGauge
from store.errors import InvalidInput


def two_operators(n: int = 120, *, symmetric: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 10))
    gauge = DiffusionGauge(symmetric=symmetric)
    return gauge(X).matrix, gauge(X + 0.3 * rng.standard_normal(X.shape)).matrix


def test_raw_distance_is_the_frobenius_norm_of_the_difference() -> None:
    P, Q = two_operators()
    assert np.isclose(frobenius_distance(P, Q), np.linalg.norm(P.astype(np.float64) - Q), rtol=1e-9)


def test_normalized_distance_divides_by_the_norms() -> None:
    P, Q = (A.astype(np.float64) for A in two_operators())
    expected = np.linalg.norm(P - Q) / np.sqrt(np.linalg.norm(P) ** 2 + np.linalg.norm(Q) ** 2)
    assert np.isclose(normalized_frobenius_distance(P, Q), expected, rtol=1e-9)


@pytest.mark.parametrize("distance", [frobenius_distance, normalized_frobenius_distance])
def test_equal_operators_are_at_distance_zero_and_relabelling_both_changes_nothing(distance) -> None:  # type: ignore[no-untyped-def]
    P, Q = two_operators()
    order = np.random.default_rng(1).permutation(len(P))
    assert distance(P, P) == 0
    assert distance(np.zeros((3, 3)), np.zeros((3, 3))) == 0
    assert np.isclose(distance(P, Q), distance(P[np.ix_(order, order)], Q[np.ix_(order, order)]), rtol=1e-12)
    assert distance(P, Q) == distance(Q, P)
    assert distance(P, Q) < distance(P, Q[np.ix_(order, order)])


def test_distance_of_nearly_equal_operators_keeps_six_digits() -> None:
    P = two_operators()[0]
    Q = P * np.float32(1 + 1e-5)
    assert np.isclose(frobenius_distance(P, Q), np.linalg.norm(P.astype(np.float64) - Q), rtol=1e-6)


def test_operators_without_a_common_entry_are_at_normalized_distance_one() -> None:
    P = np.eye(4)
    assert normalized_frobenius_distance(P, np.roll(P, 1, axis=0)) == 1


def test_kinds_and_sizes_must_agree() -> None:
    X = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(InvalidInput, match="different kinds cannot be compared: markov and symmetric"):
        frobenius_distance(DiffusionGauge()(X), DiffusionGauge(symmetric=True)(X))
    with pytest.raises(InvalidInput, match=r"\(20, 20\) and \(19, 19\)"):
        normalized_frobenius_distance(DiffusionGauge()(X), DiffusionGauge()(X[1:]))
    with pytest.raises(InvalidInput, match="finite"):
        frobenius_distance(np.full((3, 3), np.nan), np.zeros((3, 3)))
