"""Embeddings against closed forms, the phate package itself and scikit-learn's trustworthiness."""

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import phate
import pytest
from scipy.spatial import procrustes
from scipy.spatial.distance import pdist, squareform
from sklearn.manifold import trustworthiness

from replay.geometry.embedding import (
    _kernel,
    _phate,
    diffusion_map,
    embed,
    neighbourhood_agreement,
    phate_of_operator,
    random_agreement,
)
from replay.geometry.gauge import DiffusionGauge, Operator, Quality
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]
METHODS = ("phate", "mds", "diffusion")
WHOLE = Quality(1, (), 0, 0)


def between(X: Floats) -> Floats:
    return squareform(pdist(X))


def cloud(n: int = 40, d: int = 5) -> Floats:
    return np.random.default_rng(0).standard_normal((n, d))


def arc(n: int = 40) -> Floats:
    """A quarter of a turn of a helix, at an uneven pace."""
    u = np.linspace(0, 1, n) ** 1.5
    return np.stack([10 * np.cos(np.pi * u / 2), 10 * np.sin(np.pi * u / 2), 3 * u], axis=1)


def operator(*, symmetric: bool = False, diagonal: Any = "keep") -> Operator:
    X = cloud()
    X[:10] += 3
    return DiffusionGauge(knn=5, symmetric=symmetric, diagonal=diagonal)(X)


def test_classical_scaling_recovers_points_of_a_plane() -> None:
    X = cloud(30, 2) * [3, 1]
    found = embed(between(X), method="mds")
    assert procrustes(X, found.points)[2] < 1e-20
    assert np.allclose(between(found.points), between(X), atol=1e-9)
    assert found.facts["negative_share"] < 1e-12
    assert found.stress < 1e-6
    assert (found.trustworthiness, found.continuity) == (1, 1)


def test_the_negative_share_of_a_square_of_paths_is_a_fifth() -> None:
    D = np.array([[0.0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]])  # -½ J D² J has the eigenvalues 2, 2, -1
    found = embed(D, method="mds")
    assert found.facts["negative_share"] == pytest.approx(1 / 5)
    assert np.allclose(between(found.points)[0], np.sqrt([0, 2, 4, 2]))


def test_phate_is_the_phate_package() -> None:
    D = between(cloud())
    theirs = phate.PHATE(
        knn=4, decay=20, t=6, knn_dist="precomputed_distance", mds_solver="smacof", random_state=3, verbose=0
    ).fit_transform(D)
    found = embed(D, knn=4, decay=20, t=6, seed=3)
    assert procrustes(theirs, found.points)[2] < 1e-10
    assert found.parameters == {"knn": 4, "decay": 20, "t": 6, "seed": 3}
    assert np.allclose(found.points.mean(axis=0), 0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_an_embedding_is_the_same_to_the_bit_on_every_call(method: Any) -> None:
    D = between(cloud())
    assert np.array_equal(embed(D, method=method).points, embed(D, method=method).points)


def test_phate_is_silent_even_where_checkpoints_coincide() -> None:
    program = (
        "import numpy as np, scipy.spatial.distance as distance\n"
        "from replay.geometry.embedding import embed\n"
        "X = np.random.default_rng(0).standard_normal((40, 5))\n"
        "for duplicates in (0, 12):\n"
        "    X[:duplicates] = X[0]\n"
        "    assert np.isfinite(embed(distance.squareform(distance.pdist(X)), knn=2).points).all()\n"
    )
    done = subprocess.run([sys.executable, "-W", "always", "-c", program], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_phate_counts_the_parts_of_its_graph() -> None:
    X = np.concatenate([cloud(20), cloud(20) + 1000])
    assert embed(between(X), knn=5).facts["n_parts"] == 2
    assert embed(between(cloud()), knn=10).facts["n_parts"] == 1


@pytest.mark.parametrize("n", [4, 5, 7])
def test_few_points_are_embedded_with_fewer_neighbours(n: int) -> None:
    found = embed(between(cloud(n)))
    assert found.points.shape == (n, 2)
    assert found.parameters["knn"] == min(5, n - 2)
    assert found.n_neighbours == {4: 1, 5: 2, 7: 3}[n]


@pytest.mark.parametrize("method", METHODS)
def test_too_few_points_and_points_that_coincide_are_unavailable(method: Any) -> None:
    with pytest.raises(Unavailable, match="needs 4 points, and there are 3"):
        embed(between(cloud(3)), method=method)
    with pytest.raises(Unavailable, match="needs 7 points, and there are 6"):
        embed(between(cloud(6)), method=method, n_components=5)
    with pytest.raises(Unavailable, match="all 9 points coincide"):
        embed(np.zeros((9, 9)), method=method)


@pytest.mark.parametrize("method", ["mds", "diffusion"])
def test_relabelling_points_relabels_their_embedding(method: Any) -> None:
    D, order = between(cloud()), np.random.default_rng(1).permutation(40)
    before, after = embed(D, method=method), embed(D[np.ix_(order, order)], method=method)
    assert np.allclose(after.points, before.points[order], atol=1e-9)
    assert after.trustworthiness == pytest.approx(before.trustworthiness, abs=1e-12)
    assert np.array_equal(before.points.max(axis=0), np.abs(before.points).max(axis=0))


@pytest.mark.parametrize("method", METHODS)
def test_a_curve_stays_a_curve(method: Any) -> None:
    found = embed(between(arc()), method=method)
    axis = np.linalg.svd(found.points - found.points.mean(axis=0), full_matrices=False)[0][:, 0]
    assert (np.abs(np.diff(np.argsort(axis))) == 1).all()
    assert found.trustworthiness > 0.99
    assert found.continuity > 0.99


@pytest.mark.parametrize("method", METHODS)
def test_scaling_distances_changes_no_picture(method: Any) -> None:
    D = between(cloud())
    before, after = embed(D, method=method), embed(64 * D, method=method)
    assert procrustes(before.points, after.points)[2] < 1e-8
    assert after.stress == pytest.approx(before.stress, abs=1e-6)


def test_diffusion_coordinates_of_distances_are_eigenvectors_of_the_walk() -> None:
    D = between(cloud())
    found = embed(D, method="diffusion", bandwidth=1.7, t=3, n_components=3)
    K = np.exp(-(D**2) / 1.7**2)
    K = K / np.outer(K.sum(axis=1), K.sum(axis=1))
    P = K / K.sum(axis=1, keepdims=True)
    stationary = K.sum(axis=1) / K.sum()
    eigenvalues = np.sort(np.linalg.eigvals(P).real)[::-1]
    for axis in range(3):
        value, x = eigenvalues[axis + 1], found.points[:, axis]
        assert found.facts[f"lambda_{axis + 1}"] == pytest.approx(value)
        assert np.allclose(P @ x, value * x, atol=1e-10)
        assert stationary @ x**2 == pytest.approx(value**6)
        assert x[np.abs(x).argmax()] > 0


def test_a_diffusion_kernel_in_parts_is_unavailable() -> None:
    X = np.concatenate([cloud(20), cloud(20) + 1000])
    with pytest.raises(Unavailable, match="larger bandwidth"):
        embed(between(X), method="diffusion", bandwidth=2)


def test_agreement_is_scikit_learns_trustworthiness_and_the_other_way_round_continuity() -> None:
    X = cloud(50, 6)
    found = embed(between(X), method="mds")
    assert found.n_neighbours == 5
    assert found.trustworthiness == pytest.approx(trustworthiness(between(X), found.points, metric="precomputed"))
    assert found.trustworthiness == pytest.approx(trustworthiness(X, found.points))
    assert found.continuity == pytest.approx(trustworthiness(found.points, X))
    assert 0.7 < found.trustworthiness < 1


@pytest.mark.parametrize(("n", "k"), [(12, 5), (50, 5), (50, 20)])
def test_random_agreement_is_the_mean_over_shuffled_points(n: int, k: int) -> None:
    rng = np.random.default_rng(0)
    D, shown = between(cloud(n)), between(cloud(n)[:, :2])
    orders = [rng.permutation(n) for _ in range(400)]
    found = [neighbourhood_agreement(D, shown[np.ix_(order, order)], n_neighbours=k) for order in orders]
    assert np.mean(found) == pytest.approx(random_agreement(n, n_neighbours=k), abs=4 * float(np.std(found)) / 20)
    for bad in (0, n / 2):
        with pytest.raises(InvalidInput, match="neighbours"):
            neighbourhood_agreement(D, shown, n_neighbours=int(bad))


def test_stress_is_the_residual_of_the_best_common_scale() -> None:
    D = between(cloud(30, 6))
    found = embed(D, method="mds")
    shown = between(found.points)
    scale = np.linalg.lstsq(shown.reshape(-1, 1), D.ravel())[0]
    assert found.stress == pytest.approx(np.linalg.norm(D - scale * shown) / np.linalg.norm(D))


@pytest.mark.parametrize("t", [1, 4])
@pytest.mark.parametrize("symmetric", [False, True])
def test_all_diffusion_coordinates_together_give_the_diffusion_distance(t: int, *, symmetric: bool) -> None:
    found = diffusion_map(operator(symmetric=symmetric), k=39, t=t)
    P = operator()
    stationary = P.degrees / P.degrees.sum()
    rows = np.linalg.matrix_power(P.matrix.astype(np.float64), t) / np.sqrt(stationary)
    assert np.allclose(between(found.points), between(rows), atol=1e-5)


def test_a_diffusion_map_has_the_eigenvectors_of_its_operator() -> None:
    P = operator()
    found = diffusion_map(P, k=3, t=2)
    for value, x in zip(found.eigenvalues, found.points.T, strict=True):
        assert np.allclose(P.matrix @ x, value * x, atol=1e-6)
        assert (P.degrees / P.degrees.sum()) @ x**2 == pytest.approx(value**4, rel=1e-4)
        assert abs(P.degrees @ x) < 1e-5 * P.degrees.sum()


def test_a_diffusion_map_without_meaning_is_refused_with_its_reason() -> None:
    apart = DiffusionGauge(knn=3)(np.concatenate([cloud(20), cloud(20) + 1e6]))
    with pytest.raises(Unavailable, match="2 parts"):
        diffusion_map(apart)
    lost = Operator(operator().matrix, "markov", np.arange(40.0), WHOLE, reversible=False)
    with pytest.raises(Unavailable, match="never come back to 1 of 40 probes"):
        diffusion_map(lost)
    for k, t in ((0, 1), (40, 1), (2, 0)):
        with pytest.raises(InvalidInput, match=f"k={k} and t={t}"):
            diffusion_map(operator(), k=k, t=t)


@pytest.mark.parametrize("diagonal", ["keep", "zero"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_phate_of_an_operator_diffuses_with_that_operator(diagonal: str, *, symmetric: bool) -> None:
    K = _kernel(operator(symmetric=symmetric, diagonal=diagonal))
    assert K[K > 0].min() < 1e-4 * K.max()  # what phate alone would drop
    P = _phate(K, "affinity", 2, {"t": 3, "seed": 0})[2]
    assert np.allclose(P, operator(diagonal=diagonal).matrix, rtol=1e-5, atol=1e-7)


def test_phate_of_an_irreversible_operator_diffuses_with_the_mean_of_both_directions() -> None:
    rng = np.random.default_rng(0)
    M = rng.random((12, 12))
    M /= M.sum(axis=1, keepdims=True)
    stationary = np.linalg.matrix_power(M, 200)[0]
    backwards = M.T * stationary / stationary[:, None]
    merged = Operator(M.astype(np.float32), "markov", 12 * stationary, WHOLE, reversible=False)
    K = _kernel(merged)
    assert np.array_equal(K, K.T)
    P = _phate(K, "affinity", 2, {"t": 3, "seed": 0})[2]
    assert np.allclose(P, (M + backwards) / 2, atol=1e-6)
    assert np.isfinite(phate_of_operator(merged).points).all()
    found = diffusion_map(merged)
    for value, x in zip(found.eigenvalues, found.points.T, strict=True):
        assert np.allclose((M + backwards) / 2 @ x, value * x, atol=1e-6)


def test_phate_of_the_operator_that_phate_makes_of_distances_is_phate_of_the_distances() -> None:
    D = between(cloud())
    graph = phate.PHATE(knn=5, decay=40, knn_dist="precomputed_distance", verbose=0).fit(D).graph
    made = Operator(np.asarray(graph.P, np.float32), "markov", np.asarray(graph.K.sum(axis=1)).ravel(), WHOLE)
    ours, theirs = phate_of_operator(made, t=8), embed(D, t=8)
    assert procrustes(theirs.points, ours.points)[2] < 1e-6
    assert ours.parameters == {"t": 8, "seed": 0}
    assert ours.trustworthiness > 0.9 > ours.random_agreement


def test_phate_of_an_operator_needs_probes() -> None:
    with pytest.raises(Unavailable, match="needs 4 probes, and there are 3"):
        phate_of_operator(DiffusionGauge()(cloud(3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "umap"}, "phate, mds, diffusion"),
        ({"method": "mds", "knn": 3}, "mds takes no option, not knn"),
        ({"method": "diffusion", "decay": 2.0}, "diffusion takes bandwidth, t, not decay"),
        ({"bandwidth": 2.0}, "phate takes knn, decay, t, not bandwidth"),
        ({"method": "diffusion", "t": "auto"}, "only phate"),
        ({"method": "diffusion", "bandwidth": 0.0}, "bandwidth must be positive"),
        ({"decay": -1.0}, "decay must be positive"),
        ({"t": 0}, "whole numbers"),
        ({"knn": 0}, "whole numbers"),
        ({"n_components": 0}, "1 component"),
    ],
)
def test_impossible_options_and_those_of_another_method_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        embed(between(cloud()), **options)


def test_what_are_no_distances_is_refused() -> None:
    with pytest.raises(InvalidInput, match="symmetric"):
        embed(np.triu(np.ones((5, 5)), 1))


def test_methods_of_our_own_need_no_phate() -> None:
    program = (
        "import sys, numpy as np\n"
        "from replay.geometry.embedding import embed\n"
        "D = np.abs(np.subtract.outer(np.arange(9.0), np.arange(9.0)))\n"
        "embed(D, method='mds', n_components=1), embed(D, method='diffusion')\n"
        "print(sorted({'phate', 'graphtools', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
