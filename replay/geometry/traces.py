"""Traces and the largest eigenvalue of a Gram matrix from a product in float32, put right in float64."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

__all__ = ["Traces", "quick_traces"]

TOLERANCE = 1e-4
"""Residual of the Lanczos iteration; the eigenvalue is off by about the square of it."""

BASIS = 8
"""Vectors that the Lanczos iteration holds."""

MOST_ROUNDING = 2e-7
"""Largest relative error of the leading eigenvalue in float32 with which the float32 product is believed."""

Floats = npt.NDArray[np.float64]


class Traces(NamedTuple):
    """What stable rank and participation ratio need of the eigenvalues λ of a Gram matrix."""

    total: float
    """Σλ."""
    squares: float
    """Σλ²."""
    largest: float
    """λ₁."""


def quick_traces(X: npt.NDArray[np.float32]) -> Traces | None:
    """Give the traces of centred activations (n, d), or None where float32 does not do.

    The product takes nearly all the time. It is made in float32 of activations that were centred in float64. Its
    diagonal, which is all of Σλ, is then replaced by squared lengths in float64, and λ₁ is the squared length of the
    activations along its leading eigenvector, wrong by the square of the vector's error. How far the float32 value of
    λ₁ is off corrects Σλ² for the part of the rounding that adds up, and tells whether the product is to be believed:
    rounding does not cancel where few numbers outweigh all others. What remains averages out over the entries: below
    2e-8 in all cases tried.
    """
    Y = X - X.mean(axis=0, dtype=np.float64)
    single = Y.astype(np.float32)
    wide = len(Y) <= Y.shape[1]
    G = single @ single.T if wide else single.T @ single
    lengths: Floats = np.vecdot(Y, Y) if wide else np.einsum("ij,ij->j", Y, Y)
    try:
        vector = _leading_vector(G)
    except ArpackError:
        return None
    along = Y.T @ vector if wide else Y @ vector
    largest = float(along @ along)
    exact = G.astype(np.float64)  # so that sums over it do not round
    np.fill_diagonal(exact, lengths)
    rounded = vector @ (exact @ vector)
    if abs(largest - rounded) > MOST_ROUNDING * largest:
        return None
    squares = np.vdot(exact, exact)
    return Traces(float(lengths.sum()), float(squares + 2 * largest * (largest - rounded)), largest)


def _leading_vector(G: npt.NDArray[np.float32]) -> Floats:
    def product(v: npt.NDArray[np.floating[Any]]) -> Floats:
        return (G @ v.astype(np.float32)).astype(np.float64)

    start = np.random.default_rng(0).standard_normal(len(G))
    operator = LinearOperator(G.shape, matvec=product, dtype=np.float64)
    vector: Floats = eigsh(operator, 1, which="LA", v0=start, tol=TOLERANCE, ncv=BASIS)[1][:, 0]
    return vector
