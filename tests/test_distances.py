"""Distances between operators: closed forms, independent libraries, what they must not see, and what they must."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.linalg import subspace_angles
from scipy.spatial.distance import jensenshannon, pdist, squareform

from replay.geometry.contract import Measure, Point
from replay.geometry.distances import (
    Frobenius,
    FrobeniusNormalized,
    Hellinger,
    JensenShannon,
    Spectral,
    Subspace,
    frobenius_distance,
    normalized_frobenius_distance,
)
from replay.geometry.eigen import symmetric_conjugate, top_eigenpairs
from replay.geometry.gauge import DiffusionGauge, Operator, Quality
from store.errors import InvalidInput, Unavailable

ALL: list[Measure[Any]] = [Frobenius(), FrobeniusNormalized(), Hellinger(), JensenShannon(), Spectral(), Subspace(3)]
IDS = [measure.name for measure in ALL]


def trajectory(n: int = 60, *, steps: int = 5, symmetric: bool = False, knn: int = 8) -> list[Operator]:
    """Operators that leave a start ever further."""
    rng = np.random.default_rng(0)
    X, E = rng.standard_normal((n, 10)) * np.arange(1, 11) ** -0.5, rng.standard_normal((n, 10))
    return [DiffusionGauge(knn=knn, symmetric=symmetric)(X + a * E) for a in np.logspace(-2, 0, steps)]


def relabelled(P: Operator, order: np.ndarray) -> Operator:
    return Operator(P.matrix[np.ix_(order, order)], P.kind, P.degrees[order], P.quality, P.reversible)


def compare(measure: Measure[Any], left: Sequence[Point], right: Sequence[Point] | None = None) -> np.ndarray:
    views = [measure.view(P) for P in left]
    return measure.compare(views, None if right is None else [measure.view(P) for P in right])


def exact(P: Operator) -> np.ndarray:
    return P.matrix.astype(np.float64)


def test_frobenius_distances_equal_flattening_and_pdist() -> None:
    points = trajectory(steps=9)
    expected = squareform(pdist([exact(P).ravel() for P in points]))
    assert np.allclose(compare(Frobenius(), points), expected, rtol=1e-9, atol=0)
    assert np.allclose(compare(Frobenius(), points[:2], points), expected[:2], rtol=1e-9, atol=0)
    norms = np.array([np.linalg.norm(exact(P)) for P in points])
    scale = np.sqrt(norms[:, None] ** 2 + norms**2)
    assert np.allclose(compare(FrobeniusNormalized(), points), expected / scale, rtol=1e-9, atol=0)


def test_nearly_equal_operators_among_distant_ones_keep_six_digits() -> None:
    # products of uncentred or float32 operators lose these pairs altogether
    P, Q = (exact(A) for A in (trajectory()[0], trajectory()[-1]))
    points = [P, P * (1 + 1e-7), P * (1 + 3e-5), Q, Q * (1 + 1e-6)]
    expected = squareform(pdist([A.ravel() for A in points]))
    assert np.allclose(compare(Frobenius(), points), expected, rtol=1e-6, atol=0)


def test_equal_operators_of_a_trajectory_are_at_distance_zero_and_share_their_row() -> None:
    P, Q, R = trajectory(steps=3)
    for measure in (Frobenius(), Hellinger(), JensenShannon()):
        D = compare(measure, [P, Q, P, R, P, Q])
        which = np.array([0, 1, 0, 2, 0, 1])
        assert np.array_equal(D == 0, which[:, None] == which)
        assert np.array_equal(D, D.T)
        assert np.array_equal(D[[0, 0, 1]], D[[2, 4, 5]])


@pytest.mark.parametrize("measure", ALL, ids=IDS)
def test_a_matrix_is_symmetric_with_a_zero_diagonal_and_its_rows_can_be_computed_alone(measure: Measure[Any]) -> None:
    # older systems recompute all pairs of a trajectory for each new checkpoint
    points = trajectory()
    D = compare(measure, points)
    assert np.array_equal(D, D.T)
    assert not np.diagonal(D).any()
    assert (D[~np.eye(len(D), dtype=bool)] > 0).all()
    assert np.allclose(compare(measure, points[3:], points[:3]), D[3:, :3], rtol=1e-7)


@pytest.mark.parametrize("measure", ALL, ids=IDS)
def test_relabelling_the_probes_of_all_operators_changes_nothing(measure: Measure[Any]) -> None:
    points = trajectory()
    order = np.random.default_rng(1).permutation(60)
    assert np.allclose(compare(measure, points), compare(measure, [relabelled(P, order) for P in points]), atol=1e-6)


@pytest.mark.parametrize(
    "measure", [m for m in ALL if m.no_null is None], ids=[m.name for m in ALL if m.no_null is None]
)
def test_relabelling_the_probes_of_one_operator_takes_it_to_the_null_value(measure: Measure[Any]) -> None:
    P, Q = trajectory()[1:3]
    rng = np.random.default_rng(2)
    left = [measure.view(P)]
    drawn = measure.compare(left, [measure.view(relabelled(Q, rng.permutation(60))) for _ in range(400)])
    null = measure.null(left, [measure.view(Q)])[0, 0]
    assert np.isclose(np.sqrt(np.mean(drawn**2)), null, rtol=2e-2 if measure.name == "jensen_shannon" else 3e-3)
    assert compare(measure, [P], [Q])[0, 0] < 0.8 * null
    own = measure.null([*left, measure.view(Q)])
    assert own[0, 1] == own[1, 0] == null
    assert own[0, 0] > 0.8 * null


def test_the_null_value_of_a_subspace_is_exact_for_few_probes_as_well() -> None:
    rng = np.random.default_rng(0)
    P, Q = (DiffusionGauge(knn=3)(rng.standard_normal((8, 3))) for _ in range(2))
    left = [Subspace(3).view(P)]
    moved = [Subspace(3).view(relabelled(Q, rng.permutation(8))) for _ in range(2000)]
    null = Subspace(3).null(left, moved[:1])[0, 0]
    assert np.isclose(np.mean(Subspace(3).compare(left, moved) ** 2), null**2, rtol=1e-2)


def test_a_spectral_distance_has_no_null_value_and_says_why() -> None:
    measure = Spectral()
    views = [measure.view(P) for P in trajectory(steps=2)]
    assert np.isnan(measure.null(views)).all()
    assert measure.no_null is not None
    assert "eigenvalues" in measure.no_null


def test_operators_without_a_common_entry_are_as_far_apart_as_can_be() -> None:
    P = np.eye(4)
    Q = np.roll(P, 1, axis=0)
    assert normalized_frobenius_distance(P, Q) == 1
    assert compare(Hellinger(), [P], [Q])[0, 0] == pytest.approx(1, abs=1e-12)
    assert compare(JensenShannon(), [P], [Q])[0, 0] == pytest.approx(1, abs=1e-7)
    assert normalized_frobenius_distance(np.zeros((3, 3)), np.zeros((3, 3))) == 0


def test_hellinger_distance_is_that_of_its_definition() -> None:
    P, Q = (exact(A) for A in trajectory(steps=2))
    rows = np.sqrt(1 - np.sqrt(P * Q).sum(axis=1) / np.sqrt(P.sum(axis=1) * Q.sum(axis=1)))
    assert np.isclose(compare(Hellinger(), [P], [Q])[0, 0], np.sqrt(np.mean(rows**2)), rtol=1e-5)


def test_jensen_shannon_distance_is_that_of_scipy_row_by_row() -> None:
    P, Q = (exact(A) for A in trajectory(steps=2))
    rows = jensenshannon(P, Q, base=2, axis=1)
    assert np.isclose(compare(JensenShannon(), [P], [Q])[0, 0], np.sqrt(np.mean(rows**2)), rtol=1e-6)
    near = P * np.exp(1e-6 * np.random.default_rng(0).standard_normal(P.shape))
    near /= near.sum(axis=1, keepdims=True)
    chi = np.sqrt(np.sum((P - near) ** 2 / np.maximum(P, 1e-300)) / (8 * np.log(2) * len(P)))  # its second order
    assert np.isclose(compare(JensenShannon(), [P], [near])[0, 0], chi, rtol=1e-4)


@pytest.mark.parametrize("measure", [Hellinger(), JensenShannon(), Spectral(), Subspace(3)], ids=lambda m: m.name)
def test_a_symmetric_operator_is_compared_as_the_markov_operator_it_stands_for(measure: Measure[Any]) -> None:
    markov, symmetric = trajectory(), trajectory(symmetric=True)
    assert np.allclose(compare(measure, markov), compare(measure, symmetric), atol=2e-6)
    assert np.allclose(
        compare(measure, markov, symmetric), compare(measure, markov), atol=3e-6 if measure.name != "subspace" else 1e-4
    )


def test_rows_that_are_no_distributions_are_refused() -> None:
    for measure in (Hellinger(), JensenShannon()):
        for matrix in (np.full((3, 3), 0.5), np.array([[1.5, -0.5], [0.5, 0.5]])):
            with pytest.raises(InvalidInput, match="rows that sum to one"):
                measure.view(matrix)


@pytest.mark.parametrize("n", [120, 600])
def test_eigenvalues_of_a_circle_are_the_real_fourier_transform_of_its_first_row(n: int) -> None:
    # each but the first is repeated, which an iteration from one start can miss
    angle = 2 * np.pi * np.arange(n) / n
    P = DiffusionGauge()(np.column_stack([np.cos(angle), np.sin(angle)]))
    expected = np.sort(np.fft.fft(exact(P)[0]).real)[::-1][:40]
    assert np.allclose(top_eigenpairs(P, 40).values, expected, atol=1e-5)


@pytest.mark.parametrize("n", [200, 700])
def test_the_top_eigenvalue_is_one_and_relabelling_changes_no_eigenvalue(n: int) -> None:
    # one triangle of a row-stochastic matrix gives a radius of 1.007 to 1.119, another after relabelling
    P = trajectory(n, steps=1)[0]
    values = top_eigenpairs(P, 50).values
    assert abs(values[0] - 1) < 1e-6
    assert (np.diff(values) <= 0).all()
    order = np.random.default_rng(1).permutation(n)
    assert np.allclose(top_eigenpairs(relabelled(P, order), 50).values, values, atol=1e-6)
    S = symmetric_conjugate(P)
    assert S is not None
    assert np.allclose(values, np.linalg.eigvalsh(S.astype(np.float64))[::-1][:50], atol=1e-6)
    assert np.allclose(np.sort(np.linalg.eigvals(exact(P)).real)[::-1][:50], values, atol=1e-6)
    assert np.allclose(top_eigenpairs(P.matrix, 50).values, values, atol=1e-6)  # without its degrees


@pytest.mark.parametrize("n", [100, 700])
def test_eigenvectors_are_those_of_the_symmetric_conjugate_with_their_largest_entry_positive(n: int) -> None:
    P = trajectory(n, steps=1)[0]
    values, U = top_eigenpairs(P, 6, vectors=True)
    S = symmetric_conjugate(P)
    assert U is not None
    assert S is not None
    assert np.allclose(S @ U, U * values, atol=2e-6)
    assert np.allclose(U.T @ U, np.eye(6), atol=1e-9)
    assert (U[np.abs(U).argmax(axis=0), np.arange(6)] > 0).all()
    root = np.sqrt(P.degrees / P.degrees.sum())
    assert np.allclose(U[:, 0], root, atol=1e-5)


@pytest.mark.parametrize("n", [60, 600])
def test_an_irreversible_operator_has_the_real_parts_of_its_eigenvalues_and_no_orthogonal_eigenvectors(n: int) -> None:
    # symmetrising a mean of reversible operators gives eigenvalues that are nobody's
    shift = np.roll(np.eye(n), 1, axis=1)  # eigenvalues exp(2πik/n)
    P = 0.7 * shift + 0.3 * shift.T
    expected = np.sort(np.cos(2 * np.pi * np.arange(n) / n))[::-1][:4]
    assert np.allclose(top_eigenpairs(P, 4).values, expected, atol=1e-8)
    quality = Quality(1, (), 0, 0)
    known = Operator(P.astype(np.float32), "markov", np.ones(n), quality, reversible=False)
    assert np.allclose(top_eigenpairs(known, 4).values, expected, atol=1e-6)
    with pytest.raises(Unavailable, match="not reversible has no orthogonal eigenvectors"):
        top_eigenpairs(known, 2, vectors=True)
    with pytest.raises(Unavailable, match="not reversible"):
        Subspace(2).view(P)


def test_an_operator_in_parts_has_the_eigenvalue_one_once_a_part() -> None:
    rng = np.random.default_rng(0)
    parts = [1e4 * part + rng.standard_normal((200, 3)) for part in range(3)]
    P = DiffusionGauge()(np.concatenate(parts))
    assert P.quality.n_components == 3
    values = top_eigenpairs(P, 4).values
    assert np.allclose(values[:3], 1, atol=1e-6)
    assert values[3] < 1 - 1e-4


def test_spectral_distance_is_that_of_the_largest_eigenvalues() -> None:
    points = trajectory(steps=3)
    spectra = [np.sort(np.linalg.eigvals(exact(P)).real)[::-1][:50] for P in points]
    assert np.allclose(compare(Spectral(), points), squareform(pdist(spectra)), atol=1e-6)
    assert compare(Spectral(k=500), points).shape == (3, 3)


def test_subspace_distance_is_the_root_mean_square_sine_of_scipys_angles() -> None:
    P, Q = trajectory(steps=2)
    U, V = (np.linalg.eigh(symmetric_conjugate(A).astype(np.float64))[1][:, -4:-1] for A in (P, Q))  # type: ignore[union-attr]
    expected = np.sqrt(np.mean(np.sin(subspace_angles(U, V)) ** 2))
    assert np.isclose(compare(Subspace(3), [P], [Q])[0, 0], expected, rtol=1e-4)


def test_subspaces_of_operators_in_parts_leave_out_the_one_trivial_vector() -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([1e4 * part + rng.standard_normal((40, 3)) for part in range(3)])
    P = DiffusionGauge()(X)
    view = Subspace(2).view(P)
    assert np.allclose(np.sqrt(P.degrees) @ view.vectors, 0, atol=1e-5)
    order = rng.permutation(120)
    moved = Subspace(2).view(relabelled(P, order))
    assert np.allclose(
        moved.vectors @ moved.vectors.T, (view.vectors @ view.vectors.T)[np.ix_(order, order)], atol=1e-5
    )


def test_kinds_sizes_and_numbers_are_checked() -> None:
    X = np.random.default_rng(0).standard_normal((20, 3))
    with pytest.raises(InvalidInput, match="different kinds cannot be compared: markov and symmetric"):
        frobenius_distance(DiffusionGauge()(X), DiffusionGauge(symmetric=True)(X))
    with pytest.raises(InvalidInput, match="over 19 and 20"):
        normalized_frobenius_distance(DiffusionGauge()(X), DiffusionGauge()(X[1:]))
    with pytest.raises(InvalidInput, match="finite"):
        frobenius_distance(np.full((3, 3), np.nan), np.zeros((3, 3)))
    with pytest.raises(InvalidInput, match=r"square matrices of real numbers, not float64 of shape \(20, 3\)"):
        Frobenius().view(X)
    with pytest.raises(InvalidInput, match="was given none"):
        Frobenius().compare([])
    with pytest.raises(InvalidInput, match="at least 1, not 0"):
        Spectral(k=0)
    with pytest.raises(InvalidInput, match="from 1 to the 20 probes, not 21"):
        top_eigenpairs(DiffusionGauge()(X), 21)
    with pytest.raises(InvalidInput, match="symmetric or have rows that sum to one"):
        top_eigenpairs(np.arange(9.0).reshape(3, 3), 1)
    with pytest.raises(Unavailable, match="needs 20 probes or more, and there are 10"):
        Subspace(18).view(DiffusionGauge()(X[:10]))
