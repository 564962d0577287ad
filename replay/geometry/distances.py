"""Distances between two operators over the same probes."""

from typing import Any

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import Operator
from replay.geometry.pairwise import row_blocks
from store.errors import InvalidInput

__all__ = ["frobenius_distance", "normalized_frobenius_distance"]

Matrix = npt.NDArray[np.floating[Any]]


def frobenius_distance(P: Operator | Matrix, Q: Operator | Matrix) -> float:
    """Frobenius distance ‖P - Q‖_F = √Σ_ij (P_ij - Q_ij)².

    It grows with the number of probes: compare it only between operators over equally many.

    Parameters
    ----------
    P, Q
        (n, n) operators of one kind over the same probes in the same order; the kind of a plain array is not known and
        not checked.

    Returns
    -------
    float
        Exactly 0 for equal operators; relative error below 1e-6 otherwise.

    Raises
    ------
    InvalidInput
        If the kinds or sizes differ, or either is not a finite square matrix.
    """
    P, Q = _comparable(P, Q)
    return float(np.sqrt(_sum_of_squares(P, Q)))


def normalized_frobenius_distance(P: Operator | Matrix, Q: Operator | Matrix) -> float:
    """Frobenius distance over the norms, ‖P - Q‖_F / √(‖P‖_F² + ‖Q‖_F²).

    Parameters
    ----------
    P, Q
        (n, n) operators of one kind over the same probes in the same order.

    Returns
    -------
    float
        0 for equal operators, 1 for operators without a common entry (or orthogonal ones), at most √2.

    Raises
    ------
    InvalidInput
        If the kinds or sizes differ, or either is not a finite square matrix.
    """
    P, Q = _comparable(P, Q)
    squared = _sum_of_squares(P, Q)
    return float(np.sqrt(squared / (_sum_of_squares(P) + _sum_of_squares(Q)))) if squared else 0.0


def _comparable(P: Operator | Matrix, Q: Operator | Matrix) -> tuple[Matrix, Matrix]:
    if isinstance(P, Operator) and isinstance(Q, Operator) and P.kind != Q.kind:
        raise InvalidInput(f"operators of different kinds cannot be compared: {P.kind} and {Q.kind}")
    A, B = np.asarray(P), np.asarray(Q)
    if A.ndim != 2 or A.shape[0] != A.shape[1] or A.shape != B.shape:
        raise InvalidInput(f"operators must be square and over the same probes, not {A.shape} and {B.shape}")
    return A, B


def _sum_of_squares(P: Matrix, Q: Matrix | None = None) -> float:
    """Σ (P - Q)², or Σ P², in float64 one row block at a time."""
    total = 0.0
    for rows in row_blocks(len(P)):
        block = P[rows].astype(np.float64)
        if Q is not None:
            block -= Q[rows]
        total += float(np.vdot(block, block))
    if not np.isfinite(total):
        raise InvalidInput("operators must be finite to be compared")
    return total
