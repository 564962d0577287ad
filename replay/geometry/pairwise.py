"""Squared Euclidean distances between rows, in one float32 matrix and exact for near-duplicates."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SquaredDistances", "power_of_two", "row_blocks", "squared_distances"]

FLOAT32_TRUST = 3e-2
"""Below this ratio of d² to |x|²+|y|² the float32 product has lost too many bits: the pair is computed again."""

FLOAT64_TRUST = 1e-8
"""The same ratio for the float64 product."""

MANY_PAIRS = 0.05
"""Above this share of pairs to compute again, one float64 product is cheaper than going pair by pair."""

BLOCK = 1 << 18
"""Elements of a row block: 1 MiB of float32, so that successive passes over a block stay in the cache."""

TILE = 256
"""Side of a tile of the float64 product."""

PAIRS = 256
"""Pairs computed again at a time."""

Rows = npt.NDArray[np.floating[Any]]
Pairs = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class SquaredDistances:
    """Squared distances between the rows of one matrix, in a unit of their own."""

    matrix: npt.NDArray[np.float32]
    """(n, n), zero on the diagonal and between equal rows, divided by the square of ``unit``."""
    unit: float
    """The power of two the rows were divided by, so that neither large nor small activations leave float32."""
    duplicates: int
    """How many rows equal an earlier one."""


def squared_distances(X: Rows, *, out: npt.NDArray[np.float32] | None = None) -> SquaredDistances:
    """Squared Euclidean distances d²_ij = |x_i - x_j|² from one symmetric float32 product.

    The rows are centred first, since a common offset would cost the product its bits. Pairs nearer than a sixth of
    their norms, for which |x|² + |y|² - 2x·y cancels all the same, are computed again from differences of the rows as
    given, or by a float64 product where they are many.

    Parameters
    ----------
    X
        (n, d), finite, float32 or float64.
    out
        (n, n) contiguous room for the distances.

    Returns
    -------
    SquaredDistances
        Each distance to about 1e-6 of itself. Peak memory beyond ``X``: 4n² + 4nd bytes and a few MB.
    """
    centre = (np.full(len(X), 1 / len(X), X.dtype) @ X).astype(np.float64)  # near the mean, which is as good
    unit = power_of_two(X, centre)
    D = _gram(X, centre, unit, out=out)
    duplicate = np.zeros(len(X), np.bool_)
    near = _expand(D)
    if near is None:
        _fill_from_float64(D, X, centre, unit, duplicate)
    else:
        _recompute(D, X, unit, near, duplicate)
    return SquaredDistances(D, unit, int(np.count_nonzero(duplicate)))


def row_blocks(n: int) -> list[slice]:
    """Row slices of an (n, n) matrix, each of about `BLOCK` elements."""
    rows = max(1, BLOCK // n)
    return [slice(start, min(start + rows, n)) for start in range(0, n, rows)]


def power_of_two(X: Rows, centre: npt.NDArray[np.float64]) -> float:
    """Return the power of two next below the largest coordinate of the rows from ``centre``; 1 if all are there."""
    extent = float(np.max(np.maximum(X.max(axis=0) - centre, centre - X.min(axis=0))))
    return 1.0 if extent == 0 else float(2.0 ** np.floor(np.log2(extent)))


def _gram(
    X: Rows, centre: npt.NDArray[np.float64], unit: float, *, out: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.float32]:
    Y = np.empty(X.shape, np.float32)
    offset, scale = centre.astype(X.dtype), X.dtype.type(1 / unit)
    for rows in row_blocks(max(X.shape)):
        Y[rows] = (X[rows] - offset) * scale
    D: npt.NDArray[np.float32] = np.dot(
        Y, Y.T, out=out
    )  # a matrix times its own transpose: numpy calls syrk, half the work
    return D


def _expand(D: npt.NDArray[np.float32]) -> Pairs | None:
    """Turn the Gram matrix into squared distances in place; name the untrusted pairs (i < j), None when too many."""
    n = len(D)
    norms = np.diagonal(D).copy()
    allowed = MANY_PAIRS * n * n
    found: list[Pairs] = []
    for rows in row_blocks(n):
        block = D[rows]
        block *= -2
        block += norms
        block += norms[rows, None]
        diagonal = np.arange(len(block)), np.arange(rows.start, rows.stop)
        block[diagonal] = np.inf
        doubtful = np.nonzero(block.min(axis=1) < FLOAT32_TRUST * (norms[rows] + norms.max()))[0]
        block[diagonal] = 0
        if len(doubtful):
            i, j = np.nonzero(block[doubtful] < FLOAT32_TRUST * (norms[rows][doubtful, None] + norms))
            i = doubtful[i] + rows.start
            upper = i < j
            found.append((i[upper], j[upper]))
            allowed -= 2 * len(found[-1][0])
            if allowed < 0:
                return None
        np.maximum(block, 0, out=block)
    first, second = zip(*found, strict=True) if found else ((), ())
    empty = np.empty(0, np.intp)
    return np.concatenate([empty, *first]), np.concatenate([empty, *second])


def _recompute(
    D: npt.NDArray[np.float32], X: Rows, unit: float, pairs: Pairs, duplicate: npt.NDArray[np.bool_]
) -> None:
    """Overwrite the pairs (i < j) with sums of squared differences; mark j where the rows are equal."""
    scale = X.dtype.type(1 / unit)
    for start in range(0, len(pairs[0]), PAIRS):
        i, j = (side[start : start + PAIRS] for side in pairs)
        difference = X[i]
        difference -= X[j]  # rounded once, so that no float64 is needed here
        difference *= scale
        squares = np.einsum("ij,ij->i", difference, difference)
        D[i, j] = D[j, i] = squares
        duplicate[j[squares == 0]] = True


def _fill_from_float64(
    D: npt.NDArray[np.float32], X: Rows, centre: npt.NDArray[np.float64], unit: float, duplicate: npt.NDArray[np.bool_]
) -> None:
    n = len(X)
    tiles = [slice(start, min(start + TILE, n)) for start in range(0, n, TILE)]
    for a, left in enumerate(tiles):
        Y = (X[left] - centre) / unit
        for right in tiles[a:]:
            Z = Y if left == right else (X[right] - centre) / unit
            norms = np.einsum("ij,ij->i", Y, Y)[:, None] + np.einsum("ij,ij->i", Z, Z)
            squares = norms - 2 * (Y @ Z.T)
            np.maximum(squares, 0, out=squares)
            if left == right:
                np.fill_diagonal(squares, 0)
            D[left, right] = squares
            D[right, left] = squares.T
            i, j = np.nonzero(squares < FLOAT64_TRUST * norms)
            i, j = i + left.start, j + right.start
            _recompute(D, X, unit, (i[i < j], j[i < j]), duplicate)
