"""The multislice kernel against a dense one built entry by entry, and its embeddings against dense algebra."""

import tracemalloc

import numpy as np
import numpy.typing as npt
import phate
import pytest
from scipy.spatial import procrustes

from replay.geometry.multislice import (
    MultisliceKernel,
    _extended,
    _landmark_kernel,
    multislice_diffusion_map,
    multislice_kernel,
    multislice_phate,
)
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]


def run(T: int = 7, n: int = 11, d: int = 4) -> Floats:
    """Probes that drift, each on a way of its own, from a common start."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((n, d)) + 0.4 * np.cumsum(rng.standard_normal((T, n, d)), axis=0) + 10


def dense(X: Floats, *, knn: int, decay: float, across_knn: int) -> Floats:
    """The kernel as it is defined, entry by entry in float64."""
    T, n, _ = X.shape
    Z = (X - X.mean(axis=1, keepdims=True)) / X.std(axis=1, keepdims=True)
    near = [
        [sorted(np.linalg.norm(Z[s, i] - Z[s, j]) for j in range(n) if j != i)[knn - 1] for i in range(n)]
        for s in range(T)
    ]
    ways = [
        sorted(np.linalg.norm(Z[s, i] - Z[u, i]) for u in range(T) if u != s)[across_knn - 1]
        for i in range(n)
        for s in range(T)
    ]
    epsilon = np.mean(ways)
    K = np.zeros((T, n, T, n))
    for s in range(T):
        for i in range(n):
            for j in range(n):
                distance = np.linalg.norm(Z[s, i] - Z[s, j])
                both = [np.exp(-((distance / near[s][p]) ** decay)) for p in (i, j)]
                K[s, i, s, j] = np.mean(both)
            for u in range(T):
                if u != s:
                    K[s, i, u, i] = np.exp(-(np.linalg.norm(Z[s, i] - Z[u, i]) ** 2) / epsilon**2)
    return K.reshape(T * n, T * n)


def opened(kernel: MultisliceKernel) -> Floats:
    """The kernel's blocks written into one matrix."""
    T, n = kernel.degrees.shape
    K = np.zeros((T, n, T, n))
    for step in range(T):
        K[step, :, step, :] += kernel.within[step]
    for probe in range(n):
        K[:, probe, :, probe] += kernel.across[probe]
    return K.reshape(T * n, T * n)


@pytest.mark.parametrize(("knn", "decay", "across_knn"), [(2, 5.0, 3), (5, 2.0, 1), (3, 40.0, 6)])
def test_the_blocks_are_the_kernel_built_entry_by_entry(knn: int, decay: float, across_knn: int) -> None:
    kernel = multislice_kernel(run(), knn=knn, decay=decay, across_knn=across_knn)
    K = dense(run(), knn=knn, decay=decay, across_knn=across_knn)
    assert np.allclose(opened(kernel), K, atol=max(1e-6, 5e-8 * decay))
    assert np.allclose(kernel.degrees.ravel(), K.sum(axis=1), rtol=max(1e-6, 5e-8 * decay))


def test_applying_and_diffusing_equal_the_dense_kernel() -> None:
    kernel = multislice_kernel(run(), knn=2, across_knn=3)
    K = dense(run(), knn=2, decay=5.0, across_knn=3)
    V = np.random.default_rng(1).standard_normal((7, 11, 3))
    assert np.allclose(kernel.apply(V).reshape(77, 3), K @ V.reshape(77, 3), atol=1e-5)
    P = K / K.sum(axis=1, keepdims=True)
    assert np.allclose(kernel.diffuse(V).reshape(77, 3), P @ V.reshape(77, 3), atol=3e-6)
    assert np.allclose(kernel.diffuse(np.ones((7, 11, 1))), 1, rtol=1e-6)


def test_the_kernel_within_a_step_is_that_of_graphtools() -> None:
    X = run()
    kernel = multislice_kernel(X, knn=3, decay=5, standardize=False)
    for step in range(7):
        graph = phate.PHATE(knn=3, decay=5, n_pca=None, verbose=0, thresh=0).fit(X[step]).graph
        assert np.allclose(kernel.within[step], np.asarray(graph.K), atol=5e-6)


def test_a_probe_that_never_moves_is_fully_linked_to_itself_and_one_that_jumps_is_not() -> None:
    X = run()
    X[:, 0] = X[0, 0]
    X[3:, 1] += 100
    kernel = multislice_kernel(X, across_knn=2, standardize=False)
    assert np.allclose(kernel.across[0] + np.eye(7), 1)
    assert kernel.across[1][:3, 3:].max() == 0
    assert kernel.across[1][0, 1] > 0


def test_standardising_forgets_shift_and_scale_of_units_and_drops_those_that_never_vary() -> None:
    X = run()
    moved = X * [0.01, 3, 70, 1] + np.random.default_rng(2).normal(size=(7, 1, 4))
    dead = np.repeat(np.random.default_rng(3).random((7, 1, 8)), 11, axis=1)
    with_dead = np.concatenate([X, dead], axis=2)
    before = multislice_kernel(X)
    for after in (multislice_kernel(moved), multislice_kernel(with_dead)):
        assert np.allclose(after.within, before.within, atol=1e-5)
        assert np.allclose(after.across, before.across, atol=1e-5)
    assert not np.allclose(multislice_kernel(X, standardize=False).within, before.within, atol=1e-2)


def test_relabelling_probes_relabels_the_kernel_and_the_map() -> None:
    X, order = run(), np.random.default_rng(1).permutation(11)
    before, after = multislice_kernel(X), multislice_kernel(X[:, order])
    assert np.allclose(after.across, before.across[order], atol=1e-6)
    assert np.allclose(after.within, before.within[:, order][:, :, order], atol=1e-6)
    maps = multislice_diffusion_map(before).points, multislice_diffusion_map(after).points
    assert np.allclose(maps[1], maps[0][:, order], atol=1e-4)


def test_slices_may_come_one_by_one_and_in_half_precision() -> None:
    X = run().astype(np.float16)
    assert np.array_equal(multislice_kernel(list(X)).within, multislice_kernel(X.astype(np.float64)).within)


@pytest.mark.parametrize("t", [1, 3])
def test_the_diffusion_map_is_that_of_the_dense_walk(t: int) -> None:
    kernel = multislice_kernel(run(), knn=2, across_knn=3)
    K = dense(run(), knn=2, decay=5.0, across_knn=3)
    P, stationary = K / K.sum(axis=1, keepdims=True), K.sum(axis=1) / K.sum()
    found = multislice_diffusion_map(kernel, n_components=4, t=t)
    assert np.allclose(found.eigenvalues, np.sort(np.linalg.eigvals(P).real)[::-1][1:5], atol=1e-6)
    for value, x in zip(found.eigenvalues, found.points.reshape(77, 4).T, strict=True):
        assert np.allclose(P @ x, value * x, atol=1e-4)
        assert stationary @ x**2 == pytest.approx(value ** (2 * t), rel=1e-4)
        assert x[np.abs(x).argmax()] > 0


def test_a_graph_in_two_parts_is_told_by_a_second_eigenvalue_of_one_and_an_axis_that_parts_them() -> None:
    X = run()
    X[:, :6, 0] += 1000
    found = multislice_diffusion_map(multislice_kernel(X, knn=2, standardize=False), n_components=1)
    assert found.eigenvalues[0] == pytest.approx(1, abs=1e-6)
    left, right = found.points[:, :6], found.points[:, 6:]
    assert np.ptp(left) < 1e-3
    assert np.ptp(right) < 1e-3
    assert left.mean() * right.mean() < 0


def test_kernel_map_and_embedding_never_hold_a_matrix_between_all_nodes() -> None:
    T, n = 60, 120
    X = run(T, n, 8)
    multislice_phate(multislice_kernel(run()), n_landmarks=10, t=2)  # imports what is imported once
    tracemalloc.start()
    kernel = multislice_kernel(X)
    made = tracemalloc.get_traced_memory()[1]
    multislice_diffusion_map(kernel)
    multislice_phate(kernel, n_landmarks=60, t=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    blocks = 4 * (T * n**2 + n * T**2)
    assert kernel.within.nbytes + kernel.across.nbytes == blocks
    assert made < blocks + 4 * X.size + 1e6
    assert peak < 0.15 * 4 * (T * n) ** 2


def test_landmarks_that_are_all_nodes_diffuse_with_two_steps_of_the_dense_walk() -> None:
    kernel = multislice_kernel(run(), knn=2, across_knn=3)
    K = opened(kernel)
    P = K / K.sum(axis=1, keepdims=True)
    found = multislice_phate(kernel, n_landmarks=77, t=3)
    theirs = phate.PHATE(knn_dist="precomputed_affinity", mds_solver="smacof", t=6, random_state=0, verbose=0, thresh=0)
    assert procrustes(found.landmarks.points, theirs.fit_transform(K))[2] < 1e-6
    assert np.allclose(found.points.reshape(77, 2), P @ found.landmarks.points, atol=1e-6)


def test_landmarks_walk_and_nodes_follow_as_the_dense_kernel_says() -> None:
    kernel = multislice_kernel(run(), knn=2, across_knn=3)
    rng = np.random.default_rng(0)
    labels, Y = rng.integers(9, size=(7, 11)), rng.standard_normal((9, 2))
    K, C = opened(kernel), np.eye(9)[labels.ravel()]
    D = np.diag(1 / K.sum(axis=1))
    assert np.allclose(_landmark_kernel(kernel, labels), C.T @ K @ D @ K @ C, rtol=1e-6)
    assert np.allclose(_extended(kernel, labels, Y).reshape(77, 2), D @ K @ C @ Y, atol=1e-6)


def test_the_embedding_is_repeatable_and_keeps_apart_what_is_apart() -> None:
    X = run(12, 20)
    X[:, :10] += np.linspace(0, 6, 12)[:, None, None]  # one half of the probes leaves the other
    kernel = multislice_kernel(X, across_knn=3, standardize=False)
    found = multislice_phate(kernel, n_landmarks=40, seed=1)
    assert np.array_equal(found.points, multislice_phate(kernel, n_landmarks=40, seed=1).points)
    assert found.nodes_per_landmark.sum() == 240
    apart = np.linalg.norm(found.points[:, :10].mean(axis=1) - found.points[:, 10:].mean(axis=1), axis=1)
    assert apart[-3:].min() > 2 * apart[:3].max()
    assert found.landmarks.trustworthiness > 0.9


def test_what_has_no_geometry_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="2 steps or more, and there are 1"):
        multislice_kernel(run(1))
    with pytest.raises(Unavailable, match="3 probes, and there are 2"):
        multislice_kernel(run(7, 2))
    with pytest.raises(Unavailable, match="step number 2"):
        multislice_kernel(np.where(np.arange(7)[:, None, None] == 2, 1, run()))
    with pytest.raises(Unavailable, match="no bandwidth across steps"):
        multislice_kernel(np.repeat(run(1), 7, axis=0))


def test_more_duplicates_than_neighbours_stay_defined() -> None:
    X = run()
    X[:, 1:6] = X[:, :1]
    kernel = multislice_kernel(X, knn=3)
    assert np.isfinite(kernel.within).all()
    assert np.allclose(kernel.within[:, 0, 1:6], 1)


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        ([np.ones((4, 3)), np.ones((5, 3))], {}, "one shape"),
        (np.full((3, 4, 2), np.nan), {}, "step number 0"),
        (run().astype(complex), {}, "real"),
        (run(), {"knn": 0}, "positive"),
        (run(), {"decay": 0.0}, "positive"),
        (run(), {"across_knn": 0}, "positive"),
    ],
)
def test_malformed_input_is_refused(X: Floats, options: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        multislice_kernel(X, **options)  # type: ignore[arg-type]


def test_impossible_maps_and_landmarks_are_refused() -> None:
    kernel = multislice_kernel(run())
    for n_components, t in ((0, 1), (76, 1), (2, 0)):
        with pytest.raises(InvalidInput, match="77 nodes"):
            multislice_diffusion_map(kernel, n_components=n_components, t=t)
    for n_landmarks in (3, 78):
        with pytest.raises(InvalidInput, match="77 nodes"):
            multislice_phate(kernel, n_landmarks=n_landmarks)
