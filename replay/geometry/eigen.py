"""The largest eigenvalues of an operator and their eigenvectors, from a symmetric matrix wherever there is one."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import Operator
from replay.geometry.pairwise import row_blocks
from store.errors import InvalidInput, Unavailable

__all__ = ["Eigenpairs", "Matrix", "symmetric_conjugate", "top_eigenpairs"]

DENSE_BELOW = 500
"""Probes below which all eigenpairs are computed, which is then as fast as a few."""

DENSE_SHARE = 0.2
"""Share of all eigenvalues from which on they are computed densely."""

VALUE_TOLERANCE = 1e-4
"""Residual of a Lanczos eigenvalue, which is off by about the square of it."""

VECTOR_TOLERANCE = 1e-6
"""Residual of a Lanczos eigenvector, which is off by about as much over its gap."""

RESTARTS = 100
"""Of a Lanczos iteration, which takes three as a rule; beyond that, all eigenpairs are computed."""

DENORMAL = 1e-30
"""Entries below this one are taken for zero: they cannot be told apart in a sum, and slow a product down."""

REVERSIBLE = 1e-5
"""How far the top eigenvalue of √(P ∘ Pᵀ) may stay below 1 for P to count as reversible."""

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.floating[Any]]


class Eigenpairs(NamedTuple):
    """The largest eigenvalues of an operator, and their eigenvectors if they were asked for."""

    values: Floats
    """(k,) descending."""
    vectors: Floats | None
    """(n, k) orthonormal eigenvectors of the symmetric conjugate, each with its largest entry positive."""


def top_eigenpairs(operator: Operator | Matrix, k: int, *, vectors: bool = False) -> Eigenpairs:
    """Compute the k largest eigenvalues of an operator from its symmetric conjugate S = D^½ P D^-½.

    S has the eigenvalues of P, and D^-½ u is an eigenvector of P for each u of S. From 500 probes on by ARPACK's
    Lanczos iteration, started from a fixed vector, with float32 products and a float64 basis; by LAPACK for fewer, for
    an operator known to fall into parts (one start finds repeated eigenvalues by luck only), and where more than a
    fifth of all eigenvalues is asked for.

    An operator that is not reversible has no symmetric conjugate, and its eigenvalues may be complex: ``values`` are
    then the largest real parts, from all of them by LAPACK; they change little when an operator becomes slightly
    irreversible, as moduli would where some are negative. It has no orthogonal eigenvectors either.

    Parameters
    ----------
    operator
        (n, n), finite. A plain array must be symmetric or have rows that sum to one; in the second case its degrees are
        not known, and √(P ∘ Pᵀ), which equals S if P is reversible, takes their place.
    k
        How many, 1 to n.
    vectors
        Whether to compute eigenvectors.

    Returns
    -------
    Eigenpairs
        Eigenvalues to 1e-6, so that relabelling the probes changes nothing beyond that; the same on every call. Peak
        memory beyond the operator: 8n² bytes by Lanczos, about 16n² by LAPACK.

    Raises
    ------
    InvalidInput
        If ``k`` is not from 1 to n, or a plain array is neither symmetric nor row-stochastic.
    Unavailable
        If eigenvectors of an irreversible operator are asked for.
    """
    n = len(operator)
    if not 1 <= k <= n:
        raise InvalidInput(f"the number of eigenvalues must be from 1 to the {n} probes, not {k}")
    S = symmetric_conjugate(operator)
    if S is None:
        if vectors:
            raise Unavailable("an operator that is not reversible has no orthogonal eigenvectors")
        parts: Floats = np.real(np.linalg.eigvals(np.asarray(operator, np.float64)))
        return Eigenpairs(np.sort(parts)[::-1][:k].copy(), None)
    in_parts = isinstance(operator, Operator) and operator.quality.disconnected
    return _dense(S, k, vectors=vectors) if in_parts or _small(n, k) else _lanczos(S, k, vectors=vectors)


def symmetric_conjugate(operator: Operator | Matrix) -> Matrix | None:
    """Give the symmetric matrix similar to an operator, S = D^½ P D^-½, or None where P is not reversible.

    Parameters
    ----------
    operator
        As for `top_eigenpairs`.

    Returns
    -------
    ndarray or None
        (n, n), symmetric to rounding, in the precision given; a symmetric operator's own matrix.

    Raises
    ------
    InvalidInput
        If a plain array is not a finite square matrix, or neither symmetric nor row-stochastic.
    """
    if not isinstance(operator, Operator):
        return _recovered(np.asarray(operator))
    if operator.kind == "symmetric":
        return operator.matrix
    if not operator.reversible:
        return None
    root = np.sqrt(operator.degrees)
    S = operator.matrix * root.astype(np.float32)[:, None]
    S *= (1 / root).astype(np.float32)
    return S


def _recovered(P: Matrix) -> Matrix | None:
    if P.ndim != 2 or P.shape[0] != P.shape[1] or not np.isfinite(P).all():
        raise InvalidInput(f"an operator must be a finite square matrix, not {P.shape}")
    tolerance = 1e-5 * np.abs(P).max()
    if np.allclose(P, P.T, rtol=0, atol=tolerance):
        return P
    if P.min() < 0 or not np.allclose(P.sum(axis=1), 1, rtol=0, atol=1e-4):
        raise InvalidInput("an operator must be symmetric or have rows that sum to one; wrap other matrices first")
    S: Matrix = np.sqrt(P * P.T)
    # Its spectral radius is at most 1, and 1 only where P and Pᵀ are diagonally similar: where P is reversible.
    top = _dense(S, 1, vectors=False) if _small(len(S), 1) else _lanczos(S, 1, vectors=False)
    return S if top.values[0] > 1 - REVERSIBLE else None


def _small(n: int, k: int) -> bool:
    return n < DENSE_BELOW or k > DENSE_SHARE * n


def _dense(S: Matrix, k: int, *, vectors: bool) -> Eigenpairs:
    A: Floats = S.astype(np.float64)
    if not vectors:
        return Eigenpairs(np.linalg.eigvalsh(A)[::-1][:k].astype(np.float64), None)
    values, U = np.linalg.eigh(A)
    return Eigenpairs(values[::-1][:k].copy(), _signed(U[:, ::-1][:, :k]))


def _lanczos(S: Matrix, k: int, *, vectors: bool) -> Eigenpairs:
    from scipy.linalg.blas import ssymv
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    A = S.astype(np.float32)
    for rows in row_blocks(len(A)):
        block = A[rows]
        block[np.abs(block) < DENORMAL] = 0
    product: LinearOperator[np.float64] = LinearOperator(
        A.shape,
        matvec=lambda x: ssymv(1.0, A.T, x.astype(np.float32)).astype(np.float64),  # reads half of the matrix
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(len(A))
    try:
        if not vectors:
            found = eigsh(
                product, k, which="LA", v0=start, tol=VALUE_TOLERANCE, maxiter=RESTARTS, return_eigenvectors=False
            )
            return Eigenpairs(np.sort(found)[::-1], None)
        values, U = eigsh(product, k, which="LA", v0=start, tol=VECTOR_TOLERANCE, maxiter=RESTARTS)
    except ArpackNoConvergence:
        return _dense(S, k, vectors=vectors)
    order = np.argsort(values)[::-1]
    return Eigenpairs(values[order], _signed(U[:, order]))


def _signed(U: Floats) -> Floats:
    largest = np.abs(U).argmax(axis=0)
    signed: Floats = U * np.where(U[largest, np.arange(U.shape[1])] < 0, -1.0, 1.0)
    return signed
