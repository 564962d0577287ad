"""The gauge against closed forms, invariances and an independent implementation."""

import json
import subprocess
import sys
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.spatial.distance import pdist, squareform

from replay.geometry.gauge import DiffusionGauge, Operator, median_distance
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.floating[Any]]


def reference(
    X: Floats, k: int | None, *, alpha: float, symmetric: bool, keep: bool = False
) -> npt.NDArray[np.float64]:
    """The definition, written out in float64."""
    d = squareform(pdist(np.asarray(X, np.float64)))
    if k is None:
        sigma = np.full(len(d), np.sqrt(2) * np.median(pdist(np.asarray(X, np.float64))))
    else:
        sigma = np.sort(d, axis=1)[:, min(k, len(d) - 1)]
    K = np.exp(-(d**2) / np.outer(sigma, sigma))
    np.fill_diagonal(K, float(keep))
    q = K.sum(axis=1)
    K = K / np.outer(q, q) ** alpha
    D = K.sum(axis=1)
    return np.asarray(K / np.sqrt(np.outer(D, D)) if symmetric else K / D[:, None])


def activations(n: int = 300, d: int = 64, *, offset: float = 30.0, seed: int = 0) -> npt.NDArray[np.float32]:
    """Activations like a transformer's: a power-law spectrum, a large common mean, two massive dimensions."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d)) * 3.0 * np.arange(1, d + 1) ** -0.6
    X = X @ np.linalg.qr(rng.standard_normal((d, d)))[0] + offset * rng.standard_normal(d) / np.sqrt(d)
    X[:, 3] += 60 * (1 + 0.02 * rng.standard_normal(n))
    X[:, d // 2] -= 40 * (1 + 0.02 * rng.standard_normal(n))
    return np.asarray(X, np.float32)


def groups(eps: float, per: int, n: int = 400) -> npt.NDArray[np.float32]:
    centres = activations(n // per).astype(np.float64)
    noise = np.random.default_rng(1).standard_normal((n, centres.shape[1]))
    return (np.repeat(centres, per, axis=0) + eps * noise).astype(np.float32)


def relative_error(A: npt.ArrayLike, B: npt.ArrayLike) -> float:
    exact = np.asarray(B, np.float64)
    return float(np.linalg.norm(np.asarray(A, np.float64) - exact) / np.linalg.norm(exact))


FIXTURES = {
    "mean offset 30": activations(),
    "mean offset 1000": activations(offset=1000.0),
    "groups of 20, eps 0.1": groups(0.1, 20),
    "groups of 20, eps 0.01": groups(0.01, 20),
    "groups of 20, eps 0.001": groups(0.001, 20),
    "groups of 100, eps 0.001": groups(0.001, 100),  # a quarter of all pairs: the float64 product
}


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("symmetric", [False, True])
def test_operator_equals_the_definition_in_float64(name: str, alpha: float, symmetric: bool) -> None:
    P = DiffusionGauge(alpha=alpha, symmetric=symmetric)(FIXTURES[name])
    assert P.matrix.dtype == np.float32
    assert relative_error(P, reference(FIXTURES[name], 15, alpha=alpha, symmetric=symmetric)) < 5e-6


def test_operator_equals_the_definition_to_a_millionth_on_plain_data() -> None:
    X = np.random.default_rng(0).standard_normal((200, 12))
    for keep in (False, True):
        P = DiffusionGauge(knn=7, diagonal="keep" if keep else "zero")(X)
        assert relative_error(P, reference(X, 7, alpha=1.0, symmetric=False, keep=keep)) < 1e-6


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize(("alpha", "symmetric", "keep"), [(0.0, False, False), (0.5, True, False), (1.0, False, True)])
def test_without_knn_the_bandwidth_is_the_median_distance(name: str, alpha: float, symmetric: bool, keep: bool) -> None:
    diagonal: Any = "keep" if keep else "zero"
    P = DiffusionGauge(knn=None, alpha=alpha, symmetric=symmetric, diagonal=diagonal)(FIXTURES[name])
    assert relative_error(P, reference(FIXTURES[name], None, alpha=alpha, symmetric=symmetric, keep=keep)) < 5e-6
    assert P.quality.floored == 0


@pytest.mark.parametrize("n", [4, 5, 6, 40, 42])
@pytest.mark.parametrize("scale", [1e-15, 1.0, 1e15])
def test_median_distance_is_the_median_of_the_positive_ones(n: int, scale: float) -> None:
    X = scale * np.random.default_rng(n).standard_normal((n, 3))
    X[1] = X[0]
    squares = (squareform(pdist(X)) ** 2).astype(np.float32)
    distances = np.sqrt(squares[squares > 0].astype(np.float64))
    assert median_distance(lambda: [squares[:3], squares[3:]]) == np.median(distances)


def test_five_decimals_of_near_duplicates_survive_in_float64_activations() -> None:
    rng = np.random.default_rng(2)
    X = np.repeat(rng.standard_normal((4, 16)), 50, axis=0) + 1e-6 * rng.standard_normal((200, 16)) + 100
    assert relative_error(DiffusionGauge()(X), reference(X, 15, alpha=1.0, symmetric=False)) < 5e-6


def test_operator_of_points_on_a_circle_is_circulant_with_the_spectrum_of_its_first_row() -> None:
    angle = 2 * np.pi * np.arange(60) / 60
    P = np.asarray(DiffusionGauge(knn=6)(np.stack([np.cos(angle), np.sin(angle)], axis=1)), np.float64)
    assert np.allclose(P, np.stack([np.roll(P[0], i) for i in range(60)]), atol=1e-6)
    assert np.allclose(np.linalg.eigvalsh((P + P.T) / 2), np.sort(np.fft.fft(P[0]).real), atol=1e-6)


def test_row_stochastic_operator_has_rows_that_sum_to_one_and_top_eigenvalue_one() -> None:
    P = np.asarray(DiffusionGauge()(activations()), np.float64)
    assert np.allclose(P.sum(axis=1), 1, atol=1e-6)
    assert P.min() >= 0
    assert np.isclose(np.abs(np.linalg.eigvals(P)).max(), 1, atol=1e-6)


def test_markov_and_symmetric_operators_are_similar_through_the_degrees() -> None:
    P, S = (DiffusionGauge(symmetric=symmetric)(activations()) for symmetric in (False, True))
    assert (P.kind, S.kind) == ("markov", "symmetric")
    assert np.array_equal(S.matrix, S.matrix.T)
    root = np.sqrt(P.degrees)
    assert relative_error(root[:, None] * P.matrix / root, S.matrix) < 1e-6
    spectra = np.sort(np.linalg.eigvals(P.matrix.astype(np.float64)).real), np.linalg.eigvalsh(S.matrix)
    assert np.allclose(*spectra, atol=1e-6)
    assert np.allclose(P.degrees @ P.matrix / P.degrees.sum(), P.degrees / P.degrees.sum(), atol=1e-7)


@pytest.mark.parametrize("knn", [15, None])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_both_kinds_have_one_spectrum_for_every_alpha(knn: int | None, alpha: float) -> None:
    P, S = (DiffusionGauge(knn=knn, alpha=alpha, symmetric=symmetric)(activations()) for symmetric in (False, True))
    spectrum = np.linalg.eigvalsh(S.matrix.astype(np.float64))
    # elsewhere eigvalsh was applied to P itself: a largest eigenvalue of 1.007 to 1.119, another after relabelling
    assert np.isclose(spectrum[-1], 1, atol=1e-6)
    assert np.allclose(np.sort(np.linalg.eigvals(P.matrix.astype(np.float64)).real), spectrum, atol=1e-6)
    order = np.random.default_rng(3).permutation(300)
    relabelled = DiffusionGauge(knn=knn, alpha=alpha, symmetric=True)(activations()[order]).matrix
    assert np.allclose(np.linalg.eigvalsh(relabelled.astype(np.float64)), spectrum, atol=1e-6)


def test_a_kept_diagonal_leaves_the_kernel_positive_and_a_removed_one_does_not() -> None:
    # elsewhere the diagonal went silently, and with it the kernel's square root
    lowest = {
        diagonal: np.linalg.eigvalsh(DiffusionGauge(knn=None, diagonal=diagonal).kernel(activations()).matrix)[0]
        for diagonal in ("keep", "zero")
    }
    assert lowest["keep"] > -1e-4
    assert lowest["zero"] < -0.5


def test_alpha_has_an_effect_in_both_kinds() -> None:  # elsewhere it had none in the row-stochastic one
    for symmetric in (False, True):
        plain, corrected = (DiffusionGauge(alpha=a, symmetric=symmetric)(activations()).matrix for a in (0.0, 1.0))
        assert relative_error(plain, corrected) > 1e-2


@pytest.mark.parametrize("factor", [1e-20, 1.0, 3.0, 1e17])
def test_translation_rotation_and_scale_change_nothing(factor: float) -> None:
    X = activations().astype(np.float64)
    Q = np.linalg.qr(np.random.default_rng(5).standard_normal((64, 64)))[0]
    moved = ((X @ Q + 7.0) * factor).astype(np.float32)
    assert relative_error(DiffusionGauge()(moved), DiffusionGauge()(X).matrix) < 2e-5  # float32 rounds what is moved


def test_relabelling_probes_relabels_the_operator() -> None:
    X, order = activations(), np.random.default_rng(3).permutation(300)
    P = DiffusionGauge()(X).matrix
    assert relative_error(DiffusionGauge()(X[order]), P[np.ix_(order, order)]) < 1e-6


def test_the_same_activations_give_the_same_bytes() -> None:
    assert DiffusionGauge()(activations()).matrix.tobytes() == DiffusionGauge()(activations()).matrix.tobytes()


def test_activations_are_left_as_they_were() -> None:
    X = activations()
    before = X.copy()
    DiffusionGauge()(X)
    assert np.array_equal(X, before)


def test_cosine_ignores_the_length_of_each_probe() -> None:
    X = activations(offset=0.0)
    lengths = np.random.default_rng(4).uniform(0.5, 2.0, (300, 1)).astype(np.float32)
    assert (
        relative_error(DiffusionGauge(metric="cosine")(X * lengths), DiffusionGauge(metric="cosine")(X).matrix) < 1e-5
    )
    with pytest.raises(Unavailable, match="zero activations: 1 probes, first 7"):
        DiffusionGauge(metric="cosine")(np.where(np.arange(300)[:, None] == 7, 0, X))


def test_more_duplicates_than_neighbours_stay_connected_and_are_counted() -> None:
    X = activations()
    X[:40] = X[0]
    P = DiffusionGauge()(X)
    assert (P.quality.duplicates, P.quality.floored) == (39, 40)
    assert not P.quality.disconnected
    assert np.allclose(P.matrix.sum(axis=1), 1, atol=1e-6)
    assert (P.matrix[:40, 40:].sum(axis=1) > 0).all()
    assert np.array_equal(P.matrix[0, 40:], P.matrix[39, 40:])


def test_duplicates_are_counted_by_the_float64_product_too() -> None:
    X = activations()
    X[:150] = X[0]
    assert DiffusionGauge()(X).quality.duplicates == 149


def test_all_bandwidths_zero_still_gives_an_operator() -> None:
    X = np.repeat(np.eye(3), 30, axis=0)
    P = DiffusionGauge()(X)
    assert P.quality.duplicates == 87
    assert np.allclose(P.matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_an_isolated_probe_stays_where_it_is_and_is_named(symmetric: bool) -> None:
    X = activations()
    X[7] += 1e6
    P = DiffusionGauge(symmetric=symmetric)(X)
    assert P.quality.isolated == (7,)
    assert P.quality.n_components == 2
    assert np.isfinite(P.matrix).all()
    assert np.array_equal(P.matrix[7], np.eye(300)[7])
    assert np.array_equal(P.matrix[:, 7], np.eye(300)[7])
    assert P.degrees[7] == np.median(np.delete(P.degrees, 7))
    others = DiffusionGauge(symmetric=symmetric)(np.delete(X, 7, axis=0)).matrix
    assert relative_error(np.delete(np.delete(P.matrix, 7, 0), 7, 1), others) < 1e-6


def test_an_isolated_probe_is_cut_from_a_median_bandwidth_too() -> None:
    X = activations()
    X[7] += 1e6
    P = DiffusionGauge(knn=None)(X)
    assert P.quality.isolated == (7,)
    assert np.allclose(P.matrix.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("factor", [10, 30, 80])
def test_a_far_probe_short_of_isolation_equals_the_definition(factor: float) -> None:
    X = activations().astype(np.float64)
    X[7] = X.mean(axis=0) + factor * (X[7] - X.mean(axis=0))
    P = DiffusionGauge()(X)
    assert P.quality.isolated == ()
    assert relative_error(P, reference(X, 15, alpha=1.0, symmetric=False)) < 5e-6


def test_parts_of_a_graph_are_counted() -> None:
    assert DiffusionGauge()(groups(0.001, 20)).quality.n_components == 20
    assert DiffusionGauge(symmetric=True)(groups(0.001, 100)).quality.n_components == 4
    assert DiffusionGauge()(activations()).quality.n_components == 1


def test_leaving_groups_out_equals_the_gauge_on_the_probes_left() -> None:
    X, labels = activations(150), np.arange(150) % 15
    for group, left in enumerate(DiffusionGauge(knn=15).leave_group_out(X, labels)):
        assert relative_error(left, DiffusionGauge(knn=14)(X[labels != group]).matrix) < 1e-5


def test_leaving_groups_out_takes_the_median_of_the_probes_left() -> None:
    X, labels = activations(150), np.arange(150) % 15
    gauge = DiffusionGauge(knn=None, symmetric=True, alpha=0.5)
    for group, left in enumerate(gauge.leave_group_out(X, labels)):
        assert relative_error(left, gauge(X[labels != group]).matrix) < 1e-5


def test_what_is_left_of_groups_knows_its_degrees_and_quality() -> None:
    X, labels = activations(150), np.arange(150) % 15
    X[:40] = X[0]
    X[45] += 1e6
    for group, left in enumerate(DiffusionGauge(knn=15).leave_group_out(X, labels)):
        right = DiffusionGauge(knn=14)(X[labels != group])
        assert isinstance(left, Operator)
        assert (left.kind, left.quality) == (right.kind, right.quality)
        assert relative_error(left.degrees, right.degrees) < 1e-5


@pytest.mark.parametrize("gauge", [DiffusionGauge(), DiffusionGauge(knn=None, alpha=0.5, diagonal="keep")])
def test_the_kernel_is_what_the_operator_is_made_from(gauge: DiffusionGauge) -> None:
    X = activations()
    X[7] += 1e6
    kernel, P = gauge.kernel(X), gauge(X)
    assert kernel.isolated.tolist() == [7]
    assert relative_error(kernel.matrix.sum(axis=1), kernel.density) < 1e-6
    d = squareform(pdist(X.astype(np.float64)))
    K = np.exp(-(d**2) / np.outer(kernel.sigma, kernel.sigma))
    np.fill_diagonal(K, gauge.diagonal == "keep")
    K[7, 7] = 1
    assert relative_error(kernel.matrix, K) < 5e-6
    corrected = kernel.matrix / np.outer(kernel.density, kernel.density) ** gauge.alpha
    assert relative_error(corrected / corrected.sum(axis=1, keepdims=True), P.matrix) < 1e-6
    assert relative_error(np.delete(corrected.sum(axis=1), 7), np.delete(P.degrees, 7)) < 1e-6


def test_few_probes_use_the_farthest_neighbour_and_fewer_than_three_none() -> None:
    X = activations(5)
    assert relative_error(DiffusionGauge()(X), reference(X, 4, alpha=1.0, symmetric=False)) < 1e-6
    with pytest.raises(Unavailable, match="at least 3 probes, and there are 2"):
        DiffusionGauge()(X[:2])


def test_equal_activations_have_no_geometry() -> None:
    with pytest.raises(Unavailable, match="all 20 probes have the same activations"):
        DiffusionGauge()(np.ones((20, 4)))
    with pytest.raises(Unavailable, match="all probes have the same activations"):
        DiffusionGauge(knn=None)(np.ones((20, 4)))


@pytest.mark.parametrize(
    ("X", "match"),
    [
        (np.ones(5), "shape"),
        (np.ones((5, 0)), "shape"),
        (np.ones((5, 3), complex), "real"),
        (np.full((5, 3), "a"), "real"),
        (np.where(np.arange(15).reshape(5, 3) == 7, np.nan, 1.0), "1 of 5 probes are not, first probe 2"),
        (np.where(np.arange(15).reshape(5, 3) == 7, np.inf, 1.0), "finite"),
        ([[1.0, 2.0], [3.0]], "real matrix"),
    ],
)
def test_unusable_activations_are_refused(X: Any, match: str) -> None:
    with pytest.raises(InvalidInput, match=match):
        DiffusionGauge()(X)


def test_where_no_gradient_can_be_kept_tensors_are_read_or_refused() -> None:
    torch = pytest.importorskip("torch")
    X = activations(50)
    assert np.array_equal(DiffusionGauge().kernel(torch.from_numpy(X)).matrix, DiffusionGauge().kernel(X).matrix)
    for tensor in (torch.ones(5, 3, requires_grad=True), torch.ones(5, 3, dtype=torch.bfloat16)):
        with pytest.raises(InvalidInput, match=r"X\.detach\(\)\.cpu\(\)\.float\(\)"):
            DiffusionGauge().kernel(tensor)


@pytest.mark.parametrize(
    "fields",
    [
        {"knn": 0},
        {"knn": 2.5},
        {"knn": True},
        {"alpha": -0.1},
        {"alpha": 1.1},
        {"alpha": float("nan")},
        {"alpha": "1"},
        {"symmetric": 1},
        {"metric": "manhattan"},
        {"diagonal": "one"},
    ],
)
def test_impossible_parameters_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput, match=next(iter(fields))):
        DiffusionGauge(**fields)


def test_equal_gauges_have_equal_json_parameters() -> None:
    gauge = DiffusionGauge(knn=np.int64(15), alpha=1)  # type: ignore[arg-type]
    assert gauge == DiffusionGauge()
    assert json.dumps(gauge.parameters()) == (
        '{"gauge": "diffusion", "knn": 15, "alpha": 1.0, "symmetric": false, "metric": "euclidean", "diagonal": "zero"}'
    )


def test_a_median_bandwidth_has_a_key_of_its_own() -> None:
    default = json.dumps(DiffusionGauge().parameters())
    assert json.dumps(DiffusionGauge(knn=None).parameters()) == default.replace("15", "null")


def test_an_operator_is_an_array_to_numpy() -> None:
    P = DiffusionGauge()(activations(50))
    assert isinstance(P, Operator)
    assert len(P) == 50
    assert np.asarray(P) is not None
    assert np.asarray(P, np.float64).dtype == np.float64
    assert np.shares_memory(np.asarray(P), P.matrix)


@pytest.mark.parametrize("knn", [15, None])
def test_memory_stays_below_six_bytes_a_pair(knn: int | None) -> None:
    X = activations(1500, 256)
    DiffusionGauge(knn=knn)(X[:100])
    tracemalloc.start()
    DiffusionGauge(knn=knn)(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 * 1500**2


def test_importing_the_analyses_does_not_import_torch() -> None:
    plots = ("spread", "spectrum", "path", "similarity", "embedding", "multislice", "merge")
    modules = ", ".join(["replay.geometry.measures", "replay.analyses.merging", *(f"replay.plots.{n}" for n in plots)])
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
