"""Similarity of activations: pinned values of independent libraries, closed forms, invariances and null values."""

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist
from scipy.stats import kendalltau, spearmanr
from sklearn.neighbors import NearestNeighbors

from replay.geometry.gauge import DiffusionGauge
from replay.geometry.similarity import (
    CKA,
    SVCCA,
    BiasedCKA,
    KendallRSA,
    MutualKNN,
    PearsonRSA,
    Procrustes,
    SpearmanRSA,
    linear_cka,
    procrustes_distance,
)
from store.errors import InvalidInput, Unavailable

ALL = [CKA(), BiasedCKA(), Procrustes(), PearsonRSA(), SpearmanRSA(), KendallRSA(), SVCCA(), MutualKNN()]
every_measure = pytest.mark.parametrize("measure", ALL, ids=lambda measure: measure.name)


def pinned() -> tuple[np.ndarray, np.ndarray]:
    """The data that the values of other libraries below belong to."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 10))
    Q = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    return X, X @ Q + 0.5 * rng.normal(size=(100, 10))


def value(measure, X: np.ndarray, Y: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    return float(measure.compare([measure.view(X)], [measure.view(Y)])[0, 0])


def unbiased_hsic(X: np.ndarray, Y: np.ndarray) -> float:
    """Song et al. (2012), equation 5, with plain sums."""
    n = len(X)
    K, L = X @ X.T, Y @ Y.T
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    sums = K.sum() * L.sum() / (n - 1) / (n - 2) - 2 / (n - 2) * np.sum(K @ L)
    return float((np.trace(K @ L) + sums) / (n * (n - 3)))


@pytest.mark.parametrize(
    ("measure", "expected", "digits"),
    [
        (BiasedCKA(), 0.814288832138, 1e-11),  # netrep, ReSi
        (Procrustes(), 0.462523747652, 1e-11),  # netrep, ReSi
        (PearsonRSA(), 0.828613797739, 1e-11),  # rsatoolbox
        (SpearmanRSA(), 0.803668068, 1e-8),  # rsatoolbox
        (KendallRSA(), 0.607851561, 1e-8),  # rsatoolbox
        # ReSi, which holds its share of 0.99 against a sum of squares, and so keeps one component of each
        (SVCCA(share=0.1), 0.895885606845, 1e-9),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_values_are_those_of_other_libraries(measure, expected: float, digits: float) -> None:  # type: ignore[no-untyped-def]
    assert value(measure, *pinned()) == pytest.approx(expected, abs=digits)


def test_debiased_cka_is_a_ratio_of_unbiased_estimates() -> None:
    X, Y = pinned()
    expected = unbiased_hsic(X, Y) / np.sqrt(unbiased_hsic(X, X) * unbiased_hsic(Y, Y))
    assert linear_cka(X, Y) == pytest.approx(expected, rel=1e-10)
    rng = np.random.default_rng(1)
    layers = [rng.standard_normal((64, 200)).astype(np.float32) for _ in range(4)]
    views = [CKA().view(layer) for layer in layers]
    for i, A in enumerate(layers):
        for j, B in enumerate(layers[:i]):
            exact = unbiased_hsic(A.astype(float), B.astype(float)) / np.sqrt(
                unbiased_hsic(A.astype(float), A.astype(float)) * unbiased_hsic(B.astype(float), B.astype(float))
            )
            assert CKA().compare(views)[i, j] == pytest.approx(exact, rel=1e-6)


def test_independent_activations_have_no_debiased_similarity_and_much_of_the_biased_one() -> None:
    # the biased one says 0.600 of activations that have nothing to do with one another
    rng = np.random.default_rng(0)
    n, d = 512, 768
    X, Y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    assert abs(linear_cka(X, Y)) < 0.013
    biased = linear_cka(X, Y, debiased=False)
    assert biased == pytest.approx(np.sqrt(d * d / ((n + d) * (n + d))), abs=0.003)
    view = BiasedCKA().view(X)
    assert BiasedCKA().null([view], [BiasedCKA().view(Y)])[0, 0] == pytest.approx(biased, abs=0.003)


@every_measure
def test_rotation_translation_and_scale_change_nothing(measure) -> None:  # type: ignore[no-untyped-def]
    # without centring, an offset is all that a similarity sees
    X, Y = pinned()
    Q = np.linalg.qr(np.random.default_rng(3).standard_normal((10, 10)))[0]
    assert value(measure, X, 3 * Y @ Q + 50) == pytest.approx(value(measure, X, Y), abs=1e-6)
    same = value(measure, X, 3 * X @ Q + 50)
    assert same == pytest.approx(1 if measure.sense == "similarity" else 0, abs=1e-6)


@every_measure
def test_relabelling_both_changes_nothing_and_relabelling_one_does(measure) -> None:  # type: ignore[no-untyped-def]
    X, Y = pinned()
    order = np.random.default_rng(3).permutation(100)
    assert value(measure, X[order], Y[order]) == pytest.approx(value(measure, X, Y), abs=1e-9)
    assert abs(value(measure, X, Y[order]) - value(measure, X, Y)) > 0.2


@every_measure
def test_noise_takes_similarity_away(measure) -> None:  # type: ignore[no-untyped-def]
    X, Y = pinned()
    steps = [X, 0.7 * X + 0.3 * Y, Y, Y + np.random.default_rng(4).standard_normal(Y.shape)]
    distances = measure.to_distance(measure.compare([measure.view(A) for A in steps]))[0]
    assert (np.diff(distances) > 0).all()
    assert distances[0] == 0


@every_measure
def test_a_matrix_is_symmetric_and_its_rows_can_be_computed_alone(measure) -> None:  # type: ignore[no-untyped-def]
    X, Y = pinned()
    views = [measure.view(A) for A in (X, Y, X + Y, np.column_stack([X, Y]))]  # widths differ
    values = measure.compare(views)
    assert np.array_equal(values, values.T)
    assert (np.diagonal(values) == (measure.sense == "similarity")).all()
    assert np.allclose(measure.compare(views[2:], views), values[2:], atol=1e-7)
    assert np.isfinite(measure.null(views)).all()
    assert np.array_equal(measure.null(views), measure.null(views).T)


@every_measure
def test_the_null_value_is_that_of_relabelled_probes(measure) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(5)
    X, Y = (A[:40] for A in pinned())
    left = [measure.view(X)]
    drawn = measure.compare(left, [measure.view(Y[rng.permutation(40)]) for _ in range(300)])
    expected = np.sqrt(np.mean(drawn**2)) if measure.sense == "distance" else drawn.mean()
    sampled = isinstance(measure, Procrustes | SVCCA)
    error = drawn.std() / np.sqrt(4 if sampled else 300)
    assert abs(measure.null(left, [measure.view(Y)])[0, 0] - expected) < 4 * error


def test_angular_procrustes_is_what_the_best_rotation_leaves() -> None:
    X, Y = (A - A.mean(axis=0) for A in pinned())
    X, Y = X / np.linalg.norm(X), Y / np.linalg.norm(Y)
    R, nuclear = orthogonal_procrustes(X, Y)
    assert procrustes_distance(X, Y) == pytest.approx(2 * np.arcsin(np.linalg.norm(X @ R - Y) / 2), abs=1e-12)
    assert np.cos(procrustes_distance(X, Y)) == pytest.approx(nuclear, abs=1e-12)
    assert np.sin(procrustes_distance(X, Y)) ** 2 == pytest.approx(procrustes(X, Y)[2], abs=1e-12)
    wide = np.random.default_rng(0).standard_normal((30, 100))
    rotated = wide @ np.linalg.qr(np.random.default_rng(1).standard_normal((100, 100)))[0]
    assert procrustes_distance(wide, rotated) < 1e-6
    padded = np.column_stack([X, np.zeros((100, 200))])
    assert procrustes_distance(padded, Y) == pytest.approx(procrustes_distance(X, Y), abs=1e-12)


def test_svcca_is_the_mean_cosine_of_the_angles_between_spans() -> None:
    X, Y = pinned()
    X *= 3.0 ** -np.arange(10)  # then a few components hold nearly everything
    U, V = X - X.mean(axis=0), Y - Y.mean(axis=0)
    A = np.linalg.svd(U, full_matrices=False)[0]
    held = np.cumsum(np.linalg.svd(U)[1] ** 2) / np.sum(U**2)
    r = int(np.argmax(held >= 0.999)) + 1
    assert 1 < r < 10
    expected = np.cos(subspace_angles(A[:, :r], V)).mean()
    assert value(SVCCA(share=0.999), X, Y) == pytest.approx(expected, abs=1e-6)


def test_rank_correlations_are_those_of_scipy() -> None:
    X, Y = (np.round(2 * A[:30], 0) for A in pinned())  # many ties
    C, D = pdist(X, "sqeuclidean"), pdist(Y, "sqeuclidean")
    assert len(np.unique(C)) < len(C) / 2
    assert value(PearsonRSA(), X, Y) == pytest.approx(np.corrcoef(C, D)[0, 1], abs=1e-12)
    assert value(SpearmanRSA(), X, Y) == pytest.approx(spearmanr(C, D).statistic, abs=1e-12)
    assert value(KendallRSA(), X, Y) == pytest.approx(kendalltau(C, D).statistic, abs=1e-12)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_mutual_neighbours_are_those_of_scikit_learn(metric: str) -> None:
    X, Y = pinned()[0] + 1, pinned()[1]
    found = [NearestNeighbors(n_neighbors=5, metric=metric).fit(A).kneighbors(return_distance=False) for A in (X, Y)]
    shared = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(*found, strict=True)])
    assert value(MutualKNN(5, metric), X, Y) == pytest.approx(shared, abs=1e-12)  # type: ignore[arg-type]


def test_half_precision_and_extreme_activations_are_read_as_they_are() -> None:
    X, Y = (A.astype(np.float16) for A in pinned())
    assert linear_cka(X, Y) == pytest.approx(linear_cka(X.astype(np.float64), Y.astype(np.float64)), rel=1e-12)
    for scale in (1e-200, 1e200):
        assert linear_cka(scale * X.astype(np.float64), Y) == pytest.approx(linear_cka(X, Y), rel=1e-9)


@every_measure
def test_activations_that_cannot_be_compared_are_refused_with_the_reason(measure) -> None:  # type: ignore[no-untyped-def]
    X, _ = pinned()
    with pytest.raises(Unavailable, match=f"{measure.name} is undefined: all 100 probes have the same activations"):
        measure.view(np.ones((100, 3)))
    with pytest.raises(InvalidInput, match="finite, and those of probe 7 are not"):
        measure.view(np.where(np.arange(100)[:, None] == 7, np.nan, X))
    with pytest.raises(InvalidInput, match="was given an operator"):
        measure.view(DiffusionGauge()(X))
    with pytest.raises(InvalidInput, match=r"\(probe, feature\), not float64 of shape \(100,\)"):
        measure.view(X[:, 0])
    with pytest.raises(Unavailable, match="probes or more, and there are 1"):
        measure.view(X[:1])
    with pytest.raises(InvalidInput, match="over 50 and 100"):
        measure.compare([measure.view(X)], [measure.view(X[:50])])


def test_what_only_one_measure_needs_is_said_by_that_measure() -> None:
    X, _ = pinned()
    with pytest.raises(Unavailable, match="cka needs 4 probes or more, and there are 3"):
        CKA().view(X[:3])
    with pytest.raises(Unavailable, match="mutual_knn needs 12 probes or more, and there are 11"):
        MutualKNN().view(X[:11])
    with pytest.raises(Unavailable, match="takes 9 components, all that 10 probes can have"):
        SVCCA(share=1).view(np.random.default_rng(0).standard_normal((10, 50)))
    for measure in (CKA(), PearsonRSA(), SpearmanRSA(), KendallRSA()):
        with pytest.raises(Unavailable, match="all probes are equally far from one another"):
            measure.view(np.eye(8))
    with pytest.raises(Unavailable, match="probe 3"):
        MutualKNN(metric="cosine").view(X * (np.arange(100)[:, None] != 3))
    with pytest.raises(InvalidInput, match="above 0 and up to 1, not 0"):
        SVCCA(share=0)
    with pytest.raises(InvalidInput, match="euclidean, cosine, not 'l1'"):
        MutualKNN(metric="l1")  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match="at least 1, not True"):
        MutualKNN(k=True)


@pytest.mark.parametrize("measure", [Procrustes(), SVCCA()], ids=lambda measure: measure.name)
def test_a_sampled_null_does_not_depend_on_which_point_is_relabelled(measure: Procrustes | SVCCA) -> None:
    rng = np.random.default_rng(3)
    a, b = measure.view(rng.normal(size=(60, 5))), measure.view(rng.normal(size=(60, 9)))
    np.testing.assert_allclose(measure.null([a], [b]), measure.null([b], [a]), rtol=1e-9)
