"""The kNN gauge against graphtools, a closed form and invariances."""

import json
import tracemalloc
import warnings
from typing import Any

import graphtools
import numpy as np
import pytest
from test_gauge import FIXTURES, activations, groups, relative_error

from replay.geometry.knn_gauge import KnnGauge, SparseOperator
from store.errors import InvalidInput, Unavailable


def graph(X: Any, gauge: KnnGauge, **options: Any) -> Any:
    with warnings.catch_warnings():  # it warns of duplicates and of features beyond 500
        warnings.simplefilter("ignore")
        return graphtools.Graph(
            X, n_pca=None, knn=gauge.knn, decay=gauge.decay, thresh=gauge.thresh, verbose=0, random_state=0, **options
        )


def kernel(P: SparseOperator) -> Any:
    return P.matrix.toarray() * P.degrees[:, None]


def assert_equal_to_graphtools(X: Any, gauge: KnnGauge) -> None:
    P, G = gauge(X), graph(X, gauge)
    assert relative_error(kernel(P), G.K.toarray()) < 1e-10
    assert relative_error(P.matrix.toarray(), G.P.toarray()) < 1e-10
    assert P.matrix.nnz == G.K.nnz


@pytest.mark.parametrize(("n", "d"), [(50, 3), (300, 10), (300, 64), (700, 20)])
@pytest.mark.parametrize("gauge", [KnnGauge(), KnnGauge(15, 10), KnnGauge(5, 2), KnnGauge(4, 40, 0.1)])
def test_kernel_and_operator_equal_graphtools(n: int, d: int, gauge: KnnGauge) -> None:
    assert_equal_to_graphtools(np.random.default_rng(n).standard_normal((n, d)), gauge)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("gauge", [KnnGauge(), KnnGauge(15, 2)])
def test_the_kernel_of_activations_like_a_transformers_equals_the_definition(name: str, gauge: KnnGauge) -> None:
    # the definition written out: graphtools itself loses near-duplicates beside a large mean to a product
    X = FIXTURES[name].astype(np.float64)
    D = np.sqrt(np.maximum(((X[:, None] - X) ** 2).sum(axis=2), 0))
    epsilon = np.sort(D, axis=1)[:, gauge.knn]
    W = np.exp(-((D / epsilon[:, None]) ** gauge.decay))
    W[gauge.thresh > W] = 0
    assert relative_error(kernel(gauge(FIXTURES[name])), (W + W.T) / 2) < 1e-7


def test_few_duplicates_equal_graphtools() -> None:
    X = np.random.default_rng(0).standard_normal((200, 4))
    X[3] = X[2]
    X[50:53] = X[49]
    assert_equal_to_graphtools(X, KnnGauge())
    assert KnnGauge()(X).quality.duplicates == 4
    assert KnnGauge()(X).quality.floored == 0


def test_more_duplicates_than_neighbours_equal_graphtools_and_are_counted() -> None:
    X = np.random.default_rng(0).standard_normal((200, 4))
    X[:20] = X[0]
    assert_equal_to_graphtools(X, KnnGauge())
    quality = KnnGauge()(X).quality
    assert (quality.duplicates, quality.floored) == (19, 20)
    assert quality.disconnected or kernel(KnnGauge()(X))[:20, 20:].any()
    P = KnnGauge()(np.ones((10, 3)))
    assert np.array_equal(P.matrix.toarray(), np.full((10, 10), 0.1))


def test_more_neighbours_than_probes_equal_graphtools() -> None:
    assert_equal_to_graphtools(np.random.default_rng(0).standard_normal((8, 3)), KnnGauge(knn=20))


def test_the_cosine_is_that_of_graphtools_at_half_the_decay() -> None:
    X = np.random.default_rng(0).standard_normal((300, 10))
    P = KnnGauge(metric="cosine", decay=40)(X)  # |x - y|² of unit vectors is twice what graphtools calls cosine
    G = graph(X, KnnGauge(decay=20), distance="cosine")
    assert relative_error(P.matrix.toarray(), G.P.toarray()) < 1e-8
    with pytest.raises(Unavailable, match="zero activations: 1 probes, first 7"):
        KnnGauge(metric="cosine")(np.where(np.arange(300)[:, None] == 7, 0, X))


def test_points_on_a_circle_make_a_lazy_walk_round_it() -> None:
    angle = 2 * np.pi * np.arange(60) / 60
    P = KnnGauge(knn=2)(np.stack([np.cos(angle), np.sin(angle)], axis=1))
    step = 2 * np.exp(-1) / (1 + 2 * np.exp(-1))  # a neighbour at the bandwidth weighs 1/e, the probe itself 1
    expected = np.sort(1 - step + step * np.cos(angle))
    assert P.matrix.nnz == 180
    assert np.allclose(np.linalg.eigvalsh(P.matrix.toarray()), expected, atol=1e-10)


def test_rows_sum_to_one_and_the_operator_is_reversible_through_its_degrees() -> None:
    P = KnnGauge()(activations())
    assert P.kind == "markov"
    assert len(P) == 300
    assert np.allclose(P.matrix.sum(axis=1), 1, atol=1e-14)
    assert np.allclose(kernel(P), kernel(P).T, atol=1e-14)
    assert P.matrix.data.dtype == np.float64
    assert P.matrix.has_sorted_indices


@pytest.mark.parametrize("factor", [1e-15, 3.0, 1e15])
def test_translation_rotation_and_scale_change_nothing(factor: float) -> None:
    X = activations().astype(np.float64)
    Q = np.linalg.qr(np.random.default_rng(5).standard_normal((64, 64)))[0]
    assert relative_error(KnnGauge()((X @ Q + 7) * factor).matrix.toarray(), KnnGauge()(X).matrix.toarray()) < 1e-10


def test_relabelling_probes_relabels_the_operator() -> None:
    X, order = activations(), np.random.default_rng(3).permutation(300)
    P = KnnGauge()(X).matrix.toarray()
    assert relative_error(KnnGauge()(X[order]).matrix.toarray(), P[np.ix_(order, order)]) < 1e-12


def test_parts_and_isolated_probes_are_counted() -> None:
    assert KnnGauge()(groups(0.001, 20)).quality.n_components == 20
    assert KnnGauge()(activations()).quality.isolated == ()
    X = np.concatenate([np.repeat(np.arange(3.0), 2), [10.0]])[:, None]
    P = KnnGauge(knn=1, thresh=0.5)(X)  # a neighbour at the bandwidth weighs 1/e, and goes
    assert P.quality.isolated == (6,)
    assert P.quality.n_components == 4
    assert P.matrix[6, 6] == 1


def test_memory_is_a_small_part_of_the_matrix() -> None:
    X = activations(3000, 32)
    KnnGauge()(X[:100])
    tracemalloc.start()
    KnnGauge()(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3000**2 * 4 / 2.5


def test_equal_gauges_have_equal_json_parameters() -> None:
    gauge = KnnGauge(knn=np.int64(5), decay=40, thresh=np.float64(1e-4))  # type: ignore[arg-type]
    assert gauge == KnnGauge()
    assert json.dumps(gauge.parameters()) == (
        '{"gauge": "knn", "knn": 5, "decay": 40.0, "thresh": 0.0001, "metric": "euclidean"}'
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"knn": 0},
        {"knn": None},
        {"decay": 0},
        {"decay": float("inf")},
        {"decay": True},
        {"thresh": 0},
        {"thresh": 1},
        {"thresh": "1"},
        {"metric": "manhattan"},
    ],
)
def test_impossible_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(fields))):
        KnnGauge(**fields)


def test_unusable_activations_are_refused() -> None:
    with pytest.raises(InvalidInput, match="finite"):
        KnnGauge()(np.full((5, 3), np.nan))
    with pytest.raises(Unavailable, match="at least 3 probes"):
        KnnGauge()(np.ones((2, 3)))
