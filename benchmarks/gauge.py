"""The dense gauge beside what a user would write instead: one process, interleaved, medians of CPU time, one thread.

Run with ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/gauge.py``.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import pdist, squareform
from sklearn.metrics import euclidean_distances

from replay.geometry.gauge import DiffusionGauge

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


def activations(n: int) -> npt.NDArray[np.float32]:
    """Make activations like a transformer's: a power-law spectrum, a common mean, two massive dimensions."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, FEATURES)) * 3.0 * np.arange(1, FEATURES + 1) ** -0.6
    X += rng.standard_normal(FEATURES)
    X[:, 3] += 60 * (1 + 0.02 * rng.standard_normal(n))
    X[:, FEATURES // 2] -= 40 * (1 + 0.02 * rng.standard_normal(n))
    return X.astype(np.float32)


def cpu_seconds(call: Callable[[], object]) -> float:
    """Time one call, averaged over as many as take a tenth of a second."""
    calls, start, elapsed = 0, time.process_time(), 0.0
    while elapsed < 0.1:
        call()
        calls += 1
        elapsed = time.process_time() - start
    return elapsed / calls


def main() -> None:
    print("n     alpha  recipe ms  careful ms  ours ms  x recipe  x careful  error")
    for n in (500, 1000, 2000):
        X = activations(n)
        for alpha in (0.0, 1.0):
            exact = recipe(X.astype(np.float64), alpha)
            error = np.linalg.norm(ours(X, alpha) - exact) / np.linalg.norm(exact)
            calls = [partial(f, X, alpha) for f in (recipe, careful, ours)]
            seconds = np.array([[cpu_seconds(call) for call in calls] for _ in range(REPEATS)])
            a, b, c = 1e3 * np.median(seconds, axis=0)
            print(f"{n:<5} {alpha:<5} {a:>10.1f} {b:>11.1f} {c:>8.1f} {a / c:>9.1f} {b / c:>10.1f}  {error:.1e}")


if __name__ == "__main__":
    main()
