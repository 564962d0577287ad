"""Subspaces of the largest variance, and the angles between two of them."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "SubspaceComparison", "compare_subspaces", "random_overlap", "top_subspace"]

VERSION = 1
"""Raised when numbers change."""

Floats = npt.NDArray[np.float64]


class SubspaceComparison(NamedTuple):
    """How two subspaces of k dimensions lie to one another."""

    overlap: float
    """Mean squared cosine of the principal angles, ‖UᵀV‖_F² / k: 0 where they are orthogonal, 1 where equal."""
    mean_cosine: float
    """Mean cosine of the principal angles: never below the overlap, and high by chance."""
    angles: Floats
    """(k,) principal angles in degrees, ascending, 0 to 90."""


def top_subspace(X: npt.NDArray[np.floating[Any]], k: int) -> Floats:
    """Return an orthonormal basis (d, k) of the first k principal components of centred activations.

    Parameters
    ----------
    X
        (n, d) activations.
    k
        How many.

    Raises
    ------
    InvalidInput
        If X is not finite or k is not positive.
    Unavailable
        If the centred activations have a rank below k: a singular value counts if it is more than max(n, d) times the
        rounding of X's own precision of the largest.
    """
    given = np.asarray(X)
    if given.ndim != 2 or k < 1 or not np.isfinite(given).all():
        raise InvalidInput(f"a subspace needs finite (probe, feature) activations and k of 1 or more, not k={k}")
    A = given.astype(np.float64)
    A -= A.mean(axis=0)
    n, d = A.shape
    values, vectors = np.linalg.eigh(A.T @ A if d <= n else A @ A.T)
    values, vectors = values[::-1], vectors[:, ::-1]
    precision = float(np.finfo(given.dtype if given.dtype.kind == "f" else np.float64).eps)
    # The squares of singular values, as eigenvalues, are no better than their own rounding.
    floor = max((max(n, d) * precision) ** 2, max(n, d) * float(np.finfo(np.float64).eps)) * max(float(values[0]), 0.0)
    rank = int((values > floor).sum()) if values[0] > 0 else 0
    if rank < k:
        raise Unavailable(
            f"a subspace of {k} dimensions needs activations of at least that rank, and these {n} x {d} have {rank}"
        )
    # Columns of AᵀU are orthogonal only up to the rounding of small singular values.
    basis: Floats = vectors[:, :k] if d <= n else np.linalg.qr(A.T @ vectors[:, :k])[0]
    return basis


def compare_subspaces(U: Floats, V: Floats) -> SubspaceComparison:
    """Return the principal angles between the spans of two orthonormal bases (Björck and Golub, 1973).

    Small angles come from sines, so that equal spans have angles of about 1e-6 degrees and not 1e-6 radians' root.
    Unchanged by any rotation of the features that both share.

    Parameters
    ----------
    U, V
        (d, k) orthonormal columns.

    Raises
    ------
    InvalidInput
        If the shapes differ.
    """
    if U.shape != V.shape:
        raise InvalidInput(f"subspaces to compare must have one shape (feature, k), not {U.shape} and {V.shape}")
    cross = U.T @ V
    cosines = np.clip(np.linalg.svd(cross, compute_uv=False), 0, 1)
    sines = np.clip(np.linalg.svd(V - U @ cross, compute_uv=False)[::-1], 0, 1)
    angles = np.degrees(np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines)))
    return SubspaceComparison(float(np.mean(cosines**2)), float(cosines.mean()), angles)


def random_overlap(k: int, width: int) -> float:
    """Return the expected overlap of two random subspaces of k out of d dimensions: k / d."""
    return k / width
