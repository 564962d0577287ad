"""What a user would write instead of `replay.geometry.measures`: one pair at a time, float64, whole spectra.

Needs nothing of replay. Run as a program, ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python
benchmarks/baselines_similarity.py``, it times each beside the measure that replaces it: one process, interleaved,
medians of CPU time.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.spatial.distance import jensenshannon, pdist, squareform

__all__ = ["cka_loop", "flatten_and_pdist", "full_spectrum", "jensen_shannon_loop"]

REPEATS = 3

Matrix = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]


def cka_loop(layers: Sequence[Matrix], *, debiased: bool = True) -> Floats:
    """Compute CKA of each pair of layers from their two Gram matrices, as the papers write it down."""
    hsic = _unbiased_hsic if debiased else _biased_hsic
    values = np.empty((len(layers), len(layers)))
    for i, X in enumerate(layers):
        for j, Y in enumerate(layers):
            K, L = X.astype(np.float64) @ X.T.astype(np.float64), Y.astype(np.float64) @ Y.T.astype(np.float64)
            values[i, j] = hsic(K, L) / np.sqrt(hsic(K, K) * hsic(L, L))
    return values


def flatten_and_pdist(operators: Sequence[Matrix]) -> Floats:
    """Compute Frobenius distances as scipy offers them."""
    distances: Floats = squareform(pdist([P.flatten() for P in operators]))
    return distances


def full_spectrum(S: Matrix, k: int) -> Floats:
    """Compute all eigenvalues of a symmetric matrix, and keep the k largest."""
    return np.linalg.eigvalsh(S.astype(np.float64))[::-1][:k].astype(np.float64)


def jensen_shannon_loop(operators: Sequence[Matrix]) -> Floats:
    """Compute the root mean square Jensen-Shannon distance of rows, one pair of operators at a time."""
    values = np.zeros((len(operators), len(operators)))
    for i, P in enumerate(operators):
        for j in range(i):
            rows = jensenshannon(P, operators[j], base=2, axis=1)
            values[i, j] = values[j, i] = np.sqrt(np.mean(rows**2))
    return values


def _unbiased_hsic(K: Floats, L: Floats) -> float:
    """Song et al. (2012), equation 5."""
    n = len(K)
    A, B = K - np.diag(np.diag(K)), L - np.diag(np.diag(L))
    first = np.sum(A * B)
    second = A.sum() * B.sum() / ((n - 1) * (n - 2))
    third = 2 * (A.sum(axis=0) @ B.sum(axis=0)) / (n - 2)
    return float((first + second - third) / (n * (n - 3)))


def _biased_hsic(K: Floats, L: Floats) -> float:
    n = len(K)
    H = np.eye(n) - 1 / n
    return float(np.sum((K @ H).T * (L @ H)) / (n - 1) ** 2)


def main() -> None:
    """Time all of them beside the measures."""
    from gauge import activations

    from replay.geometry.contract import Measure
    from replay.geometry.distances import Frobenius, JensenShannon
    from replay.geometry.eigen import symmetric_conjugate, top_eigenpairs
    from replay.geometry.gauge import DiffusionGauge
    from replay.geometry.similarity import CKA, BiasedCKA

    def ours(measure: Measure[Any], points: Sequence[Any]) -> Floats:
        return measure.compare([measure.view(point) for point in points])

    def report(what: str, theirs: Callable[[], Floats], mine: Callable[[], Floats]) -> None:
        expected, found = theirs(), mine()
        different = np.abs(expected) > 1e-12
        error = np.max(np.abs(found - expected)[different] / np.abs(expected)[different])
        seconds = np.array([[_cpu_seconds(theirs), _cpu_seconds(mine)] for _ in range(REPEATS)])
        a, b = np.median(seconds, axis=0)
        print(f"{what:<44} {1e3 * a:>10.1f} {1e3 * b:>9.1f} {a / b:>7.1f}  {error:.1e}", flush=True)

    print("                                           baseline ms   ours ms       x  largest relative error")
    rng = np.random.default_rng(0)
    base = activations(512)
    noise = rng.standard_normal((13, *base.shape)).astype(np.float32)
    layers = [base + a * E for a, E in zip(np.logspace(-1, 1, 13), noise, strict=True)]
    report("debiased CKA, 13 layers, 512 x 768", lambda: cka_loop(layers), lambda: ours(CKA(), layers))
    report(
        "biased CKA, 13 layers, 512 x 768",
        lambda: cka_loop(layers, debiased=False),
        lambda: ours(BiasedCKA(), layers),
    )
    gauge, operators = DiffusionGauge(), []
    base, noise = activations(1000), rng.standard_normal((1000, 768)).astype(np.float32)
    operators = [gauge(base + a * noise) for a in np.logspace(-3, 1, 154)]
    report(
        "Frobenius, 154 operators of 1000 probes",
        lambda: flatten_and_pdist([P.matrix for P in operators]),
        lambda: ours(Frobenius(), operators),
    )
    few = operators[::20]
    report(
        "Jensen-Shannon, 8 operators of 1000 probes",
        lambda: jensen_shannon_loop([P.matrix.astype(np.float64) for P in few]),
        lambda: ours(JensenShannon(), few),
    )
    for n in (1000, 2000):
        P = gauge(activations(n))
        S = symmetric_conjugate(P)
        assert S is not None  # noqa: S101 (a gauge's operator is reversible)
        report(
            f"50 largest eigenvalues of {n} probes",
            lambda S=S: full_spectrum(S, 50),  # type: ignore[misc]
            lambda P=P: top_eigenpairs(P, 50).values,  # type: ignore[misc]
        )


def _cpu_seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    main()
