"""The gauges beside what a user would write instead: one process, interleaved, medians of CPU time, one thread.

Run with ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/gauge.py [dense|memory|gradient|knn ...]``.
"""

import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import euclidean_distances

from replay.geometry.gauge import DiffusionGauge
from replay.geometry.knn_gauge import KnnGauge

FEATURES, KNN, REPEATS = 768, 15, 7

Matrix = npt.NDArray[np.floating[Any]]


def recipe(X: Matrix, alpha: float) -> Matrix:
    """Write the definition down: pdist, a full sort, float64."""
    D = squareform(pdist(X))
    sigma = np.maximum(np.sort(D, axis=1)[:, KNN], 1e-10)
    return normalise(np.exp(-(D**2) / (sigma[:, None] * sigma[None, :])), alpha)


def careful(X: Matrix, alpha: float) -> Matrix:
    """Do as a careful scikit-learn user would: distances from a product, a partition, float32."""
    D2 = euclidean_distances(X, squared=True)
    np.fill_diagonal(D2, 0)
    sigma = np.maximum(np.sqrt(np.partition(D2, KNN, axis=1)[:, KNN]), 1e-10)
    return normalise(np.exp(-D2 / (sigma[:, None] * sigma[None, :])), alpha)


def normalise(K: Matrix, alpha: float) -> Matrix:
    np.fill_diagonal(K, 0)
    if alpha:
        q = K.sum(axis=1)
        K = K / np.outer(q, q) ** alpha
    P: Matrix = K / K.sum(axis=1, keepdims=True)
    return P


def ours(X: Matrix, alpha: float) -> Matrix:
    return DiffusionGauge(knn=KNN, alpha=alpha)(X).matrix


def torch_recipe(X: torch.Tensor, alpha: float) -> torch.Tensor:
    """Write the definition down in torch, with distances whose gradient is right."""
    D = torch.cdist(X, X, compute_mode="donot_use_mm_for_euclid_dist")
    sigma = D.kthvalue(KNN + 1, dim=1).values
    K = torch.exp(-(D**2) / torch.outer(sigma, sigma)) * (1 - torch.eye(len(X)))
    if alpha:
        q = K.sum(dim=1)
        K = K / torch.outer(q, q) ** alpha
    return K / K.sum(dim=1, keepdim=True)


def torch_ours(X: torch.Tensor, alpha: float) -> torch.Tensor:
    return DiffusionGauge(knn=KNN, alpha=alpha)(X).matrix


def gradient(operator: Callable[[torch.Tensor, float], torch.Tensor], X: torch.Tensor, alpha: float) -> torch.Tensor:
    """Forward and backward through a random linear function of the operator."""
    leaf = X.clone().requires_grad_()
    direction = torch.randn(len(X), len(X), generator=torch.Generator().manual_seed(0)).to(X.dtype)
    (slope,) = torch.autograd.grad((operator(leaf, alpha) * direction).sum(), leaf)
    return slope


def graphtools_operator(X: Matrix) -> Any:
    import graphtools

    with warnings.catch_warnings():  # it advises a PCA first, which would be another operator
        warnings.simplefilter("ignore")
        return graphtools.Graph(X, n_pca=None, knn=5, decay=40, thresh=1e-4, verbose=0, random_state=0).P


def activations(n: int, features: int = FEATURES) -> npt.NDArray[np.float32]:
    """Make activations like a transformer's: a power-law spectrum, a common mean, two massive dimensions."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, features)) * 3.0 * np.arange(1, features + 1) ** -0.6
    X += rng.standard_normal(features)
    X[:, 3] += 60 * (1 + 0.02 * rng.standard_normal(n))
    X[:, features // 2] -= 40 * (1 + 0.02 * rng.standard_normal(n))
    return X.astype(np.float32)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Time one call, averaged over as many as take a tenth of a second."""
    calls, start, elapsed = 0, time.process_time(), 0.0
    while elapsed < 0.1:
        call()
        calls += 1
        elapsed = time.process_time() - start
    return elapsed / calls


def interleaved(calls: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[float]:
    """Median CPU seconds of each call, taken in turns after one that does not count."""
    for call in calls:
        call()
    return [float(s) for s in np.median([[cpu_seconds(call) for call in calls] for _ in range(repeats)], axis=0)]


def peak_bytes(call: Callable[[], object]) -> int:
    """Most memory that Python and numpy held at once during a call, beyond what was there."""
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def relative_error(A: npt.ArrayLike, exact: npt.ArrayLike) -> float:
    exact = np.asarray(exact, np.float64)
    return float(np.linalg.norm(np.asarray(A, np.float64) - exact) / np.linalg.norm(exact))


def dense() -> None:
    print("n     alpha  recipe ms  careful ms  ours ms  x recipe  x careful  error")
    for n in (500, 1000, 2000, 4000):
        X = activations(n)
        for alpha in (0.0, 1.0):
            error = relative_error(ours(X, alpha), recipe(X.astype(np.float64), alpha))
            seconds = interleaved([partial(f, X, alpha) for f in (recipe, careful, ours)], 3 if n > 2000 else REPEATS)
            a, b, c = (1e3 * s for s in seconds)
            print(f"{n:<5} {alpha:<5} {a:>10.1f} {b:>11.1f} {c:>8.1f} {a / c:>9.1f} {b / c:>10.1f}  {error:.1e}")


def one_pass(gauge: DiffusionGauge, X: Matrix) -> Matrix:
    """Prepare the streamed operator and multiply it with one vector."""
    return gauge.stream(X) @ np.ones(len(X), np.float32)


def memory() -> None:
    print("peak MiB beyond X; n x n float32, recipe, careful, ours, streamed; ms of ours, streamed, and with one pass")
    for n in (2000, 4000):
        X = activations(n)
        gauge = DiffusionGauge(knn=KNN)
        calls: list[Callable[[], object]] = [partial(f, X, 1.0) for f in (recipe, careful)]
        calls += [partial(gauge, X), partial(one_pass, gauge, X)]
        peaks = [peak_bytes(call) / 2**20 for call in calls]
        seconds = interleaved([partial(gauge, X), partial(gauge.stream, X), partial(one_pass, gauge, X)], 3)
        print(n, *(f"{value:8.1f}" for value in (4 * n * n / 2**20, *peaks)), *(f"{1e3 * s:8.1f}" for s in seconds))


def gradients() -> None:
    torch.set_num_threads(1)
    print("n     alpha  recipe ms  ours ms  x recipe  error of the gradient: recipe, ours")
    for n in (128, 512, 1024):
        X = torch.from_numpy(activations(n))
        for alpha in (0.0, 1.0):
            exact = gradient(torch_recipe, X.double(), alpha)
            errors = [relative_error(gradient(f, X, alpha), exact) for f in (torch_recipe, torch_ours)]
            seconds = interleaved([partial(gradient, f, X, alpha) for f in (torch_recipe, torch_ours)], 3)
            a, b = (1e3 * s for s in seconds)
            print(f"{n:<5} {alpha:<5} {a:>10.1f} {b:>8.1f} {a / b:>9.1f}  {errors[0]:.1e} {errors[1]:.1e}")


def knn() -> None:
    print("n     graphtools ms  ours ms  x graphtools  largest difference  peak MiB of both, n x n float32")
    for n in (1000, 4000, 8000):
        X = activations(n)
        calls = [partial(graphtools_operator, X), partial(KnnGauge(), X)]
        difference = abs(KnnGauge()(X).matrix - graphtools_operator(X)).max()
        a, b = (1e3 * s for s in interleaved(calls, 3))
        peaks = [peak_bytes(call) / 2**20 for call in calls]
        sizes = " ".join(f"{value:7.1f}" for value in (*peaks, 4 * n * n / 2**20))
        print(f"{n:<5} {a:>13.1f} {b:>8.1f} {a / b:>13.1f}  {difference:18.1e}  {sizes}")


TABLES = {"dense": dense, "memory": memory, "gradient": gradients, "knn": knn}


def main() -> None:
    for name in sys.argv[1:] or TABLES:
        TABLES[name]()


if __name__ == "__main__":
    main()
