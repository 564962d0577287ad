"""The streamed operator: the dense one's numbers, in memory that does not grow with the pairs, fit for a solver."""

import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy.sparse.linalg import LinearOperator, eigsh
from scipy.spatial.distance import cdist
from test_gauge import FIXTURES, activations, groups, relative_error

from replay.geometry.gauge import DiffusionGauge
from replay.geometry.pairwise import squared_distances
from replay.geometry.streaming import DistanceRows
from store.errors import InvalidInput, Unavailable

GAUGES = {
    "default": DiffusionGauge(),
    "alpha 0": DiffusionGauge(alpha=0),
    "symmetric": DiffusionGauge(symmetric=True, alpha=0.5),
    "median": DiffusionGauge(knn=None),
    "cosine": DiffusionGauge(metric="cosine", diagonal="keep"),
}


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
@pytest.mark.parametrize("name", FIXTURES)
def test_rows_degrees_and_quality_are_those_of_the_dense_operator(name: str, gauge: DiffusionGauge) -> None:
    P, streamed = gauge(FIXTURES[name]), gauge.stream(FIXTURES[name])
    assert relative_error(streamed.rows(slice(None)), P.matrix) < 5e-6
    assert relative_error(streamed.degrees, P.degrees) < 5e-6
    assert relative_error(streamed.density, gauge.kernel(FIXTURES[name]).density) < 5e-6
    assert (streamed.kind, streamed.quality, streamed.reversible) == (P.kind, P.quality, P.reversible)


@pytest.mark.parametrize("name", FIXTURES)
def test_distances_by_rows_are_right_to_a_few_millionths_each(name: str) -> None:
    X = FIXTURES[name].astype(np.float64)
    distances = DistanceRows(FIXTURES[name])
    exact = cdist(X, X, "sqeuclidean") / distances.unit**2
    off = ~np.eye(len(X), dtype=bool)
    assert np.abs(distances.rows(np.arange(len(X))) / np.where(off, exact, 1) - 1)[off].max() < 2e-5
    precise = distances.precise_rows(np.arange(len(X)), trust=1e-5)
    assert np.abs(precise / np.where(off, exact, 1) - 1)[off].max() < 1e-10
    assert distances.unit == squared_distances(FIXTURES[name]).unit


def test_some_rows_are_those_of_all_in_whatever_order() -> None:
    streamed = DiffusionGauge().stream(activations())
    P = streamed.rows(slice(None))
    assert relative_error(streamed.rows(slice(10, 50)), P[10:50]) < 1e-6
    assert relative_error(streamed.rows(np.array([7, 3, 299])), P[[7, 3, 299]]) < 1e-6
    blocks = list(streamed.blocks())
    assert [rows.start for rows, _ in blocks] == [0, 128, 256]
    assert relative_error(np.concatenate([block for _, block in blocks]), P) < 1e-6


def test_isolated_probes_and_duplicates_are_treated_as_in_the_dense_operator() -> None:
    X = activations()
    X[:40] = X[0]
    X[50] = X[49]
    X[200] += 1e6
    for gauge in GAUGES.values():
        P, streamed = gauge(X), gauge.stream(X)
        assert streamed.quality == P.quality
        assert relative_error(streamed.rows(slice(None)), P.matrix) < 5e-6
        assert relative_error(streamed.degrees, P.degrees) < 5e-6
    assert DiffusionGauge().stream(X).quality.isolated == (200,)
    assert DiffusionGauge().stream(X).quality.duplicates == 40


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_faintest_links_of_an_isolated_probe_are_cut(symmetric: bool) -> None:
    X = activations()
    X[7] = X.mean(axis=0) + 125 * (X[7] - X.mean(axis=0))  # below 1e-30, and above the smallest float32
    P = DiffusionGauge(symmetric=symmetric).stream(X)
    assert P.quality.isolated == (7,)
    assert np.array_equal(P.rows(slice(None))[:, 7], np.eye(300)[7])
    assert np.array_equal(P.rows(slice(7, 8))[0], np.eye(300)[7])


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
def test_products_are_those_of_the_dense_operator(gauge: DiffusionGauge) -> None:
    V = np.random.default_rng(0).standard_normal((300, 4))
    P, streamed = gauge(activations()), gauge.stream(activations())
    assert streamed.shape == P.matrix.shape
    assert relative_error(streamed @ V, P.matrix @ V) < 1e-5
    assert relative_error(streamed @ V[:, 0], P.matrix @ V[:, 0]) < 1e-5
    assert (streamed @ V).dtype == np.float64
    assert (streamed @ V.astype(np.float32)).dtype == np.float32


def test_lanczos_finds_the_leading_eigenvalues_without_the_matrix() -> None:
    gauge = DiffusionGauge(symmetric=True)
    streamed = gauge.stream(activations())
    found = eigsh(
        LinearOperator(streamed.shape, matvec=streamed.__matmul__, dtype=np.float64),
        k=5,
        which="LA",
        v0=np.ones(300),
        return_eigenvectors=False,
    )
    exact = np.linalg.eigvalsh(gauge(activations()).matrix.astype(np.float64))
    assert np.allclose(np.sort(found), exact[-5:], atol=1e-5)


@pytest.mark.parametrize(
    ("gauge", "X"),
    [
        (DiffusionGauge(), activations(3000, 32)),
        (DiffusionGauge(knn=None, symmetric=True), activations(3000, 32)),
        (DiffusionGauge(), groups(0.001, 300, 3000)),  # near-duplicates without number
    ],
)
def test_memory_is_a_small_part_of_the_matrix(gauge: DiffusionGauge, X: Any) -> None:
    gauge.stream(X[:100])
    tracemalloc.start()
    streamed = gauge.stream(X)
    product = streamed @ np.ones(3000, np.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000**2 * 4 / 2.5
    if not gauge.symmetric:
        assert np.allclose(product, 1, atol=1e-5)


def test_what_the_gauge_refuses_is_refused() -> None:
    for knn in (15, None):
        with pytest.raises(Unavailable, match="same activations"):
            DiffusionGauge(knn=knn).stream(np.ones((20, 4)))
    with pytest.raises(Unavailable, match="at least 3 probes"):
        DiffusionGauge().stream(np.ones((2, 4)))
    with pytest.raises(InvalidInput, match="finite"):
        DiffusionGauge().stream(np.full((5, 3), np.nan))
