"""The operator of a gauge without its matrix: rows computed again whenever they are asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import (
    WEAKEST_LINK,
    DiffusionGauge,
    Kind,
    Quality,
    bandwidth_floor,
    checked_activations,
    count_components,
    degrees_of_isolated,
    median_distance,
    unit_rows,
)
from replay.geometry.pairwise import FLOAT32_TRUST, FLOAT64_TRUST, MANY_PAIRS, power_of_two

__all__ = ["DistanceRows", "StreamedOperator", "stream"]

ROWS = 128
"""Rows computed together: enough for the product to run at full speed, few enough to stay small beside the rest."""

PAIRS = 1 << 16
"""Elements of the differences computed at a time, so that they stay in the cache."""

Indices = npt.NDArray[np.intp]
Rows = npt.NDArray[np.floating[Any]]


class DistanceRows:
    """Squared distances from some rows of a matrix to all of them, each to 2e-5 of itself or far better.

    What `squared_distances` does for all pairs at once, for as many rows as asked for: centred, one float32 product,
    pairs that this leaves too few bits computed again from differences, or by a float64 product where they are many.
    """

    def __init__(self, X: Rows) -> None:
        """Centre and scale the (n, d) finite float32 or float64 rows, in 4nd bytes beside them."""
        self.X = X
        self.centre = X.mean(axis=0, dtype=np.float64)
        self.unit = power_of_two(X, self.centre)
        """The power of two that rows are divided by: squared distances are in units of its square."""
        self.Y = np.empty(X.shape, np.float32)
        self.norms = np.empty(len(X), np.float32)
        for rows in self.slices():
            centred = self._centred(rows)
            self.Y[rows] = centred
            self.norms[rows] = np.einsum("ij,ij->i", centred, centred)

    def __len__(self) -> int:
        """Count the rows."""
        return len(self.X)

    def slices(self) -> list[slice]:
        """All rows, a few at a time."""
        return [slice(start, min(start + ROWS, len(self))) for start in range(0, len(self), ROWS)]

    def rows(self, index: Indices) -> npt.NDArray[np.float32]:
        """Squared distances from b rows to all: (b, n), zero to itself and to equal rows."""
        block: npt.NDArray[np.float32] = self.Y[index] @ self.Y.T
        block *= -2
        block += self.norms
        block += self.norms[index, None]
        itself = np.arange(len(index)), index
        block[itself] = np.inf
        allowed = MANY_PAIRS * block.size
        doubtful = np.nonzero(block.min(axis=1) < FLOAT32_TRUST * (self.norms[index] + self.norms.max()))[0]
        if len(doubtful):
            norms = self.norms[index[doubtful], None] + self.norms
            i, j = np.nonzero(block[doubtful] < FLOAT32_TRUST * norms)
            if len(i) > allowed:
                return self.precise_rows(index, trust=FLOAT64_TRUST).astype(np.float32)
            i = doubtful[i]
            block[i, j] = self.differences(index[i], j)
        np.maximum(block, 0, out=block)
        block[itself] = 0
        return block

    def precise_rows(self, index: Indices, *, trust: float) -> npt.NDArray[np.float64]:
        """Compute them by a float64 product, pairs nearer than ``trust`` of their squared norms from differences."""
        Y = self._centred(index)
        block = np.empty((len(index), len(self)))
        squares = np.einsum("ij,ij->i", Y, Y)[:, None]
        for columns in self.slices():
            Z = self._centred(columns)
            norms = squares + np.einsum("ij,ij->i", Z, Z)
            block[:, columns] = norms - 2 * (Y @ Z.T)
            i, j = np.nonzero(block[:, columns] < trust * norms)
            block[i, j + columns.start] = self.differences(index[i], j + columns.start)
        return block

    def differences(self, i: Indices, j: Indices) -> npt.NDArray[np.float64]:
        """Squared distances of single pairs from differences of the rows as given, in float64."""
        squares = np.empty(len(i))
        at_once = max(1, PAIRS // self.X.shape[1])
        for start in range(0, len(i), at_once):
            pairs = slice(start, start + at_once)
            difference = self.X[i[pairs]].astype(np.float64)
            difference -= self.X[j[pairs]].astype(np.float64)
            difference *= 1 / self.unit
            squares[pairs] = np.einsum("ij,ij->i", difference, difference)
        return squares

    def _centred(self, rows: slice | Indices) -> npt.NDArray[np.float64]:
        centred: npt.NDArray[np.float64] = self.X[rows] - self.centre
        centred *= 1 / self.unit
        return centred


@dataclass(frozen=True, eq=False)
class StreamedOperator:
    """A diffusion operator that holds vectors only; equal to the one its gauge would make, to 5e-6."""

    kind: Kind
    """``markov`` for P, ``symmetric`` for S (symmetric to float32 rounding)."""
    degrees: npt.NDArray[np.float64]
    """(n,) row sums D of the kernel after density correction."""
    density: npt.NDArray[np.float64]
    """(n,) row sums of the kernel before it."""
    quality: Quality
    """Duplicates, isolated probes and disconnected parts."""
    kernel: "KernelRows"
    """Where rows come from."""
    left: npt.NDArray[np.float32]
    """(n,) factor of each row of the kernel."""
    right: npt.NDArray[np.float32]
    """(n,) factor of each column of the kernel."""
    reversible: bool = True
    """Whether D_i P_ij = D_j P_ji, as every gauge makes it."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n), as solvers ask for it."""
        return len(self), len(self)

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """Type of the rows."""
        return np.dtype(np.float32)

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.degrees)

    def rows(self, rows: slice | Indices) -> npt.NDArray[np.float32]:
        """Compute some rows, (b, n)."""
        index = np.arange(len(self))[rows]
        block = self.kernel.rows(index)
        block *= self.left[index, None]
        block *= self.right
        return block

    def blocks(self) -> Iterator[tuple[slice, npt.NDArray[np.float32]]]:
        """Yield all rows in order, as slices with their (b, n) rows, b = 128 at most."""
        for rows in self.kernel.distances.slices():
            yield rows, self.rows(rows)

    def __matmul__(self, V: npt.ArrayLike) -> Rows:
        """Multiply a vector (n,) or several (n, m) in one pass over the rows, in the precision of ``V``."""
        V = np.asarray(V)
        product = np.empty(V.shape, np.result_type(np.float32, V.dtype))
        for rows, block in self.blocks():
            product[rows] = block @ V
        return product


@dataclass(frozen=True, eq=False)
class KernelRows:
    """Rows of the kernel, from the distances and the bandwidths."""

    distances: DistanceRows
    inverse: npt.NDArray[np.float32]
    """(n,) 1/σ in the unit of the distances."""
    keep_diagonal: bool
    isolated: Indices

    def rows(self, index: Indices) -> npt.NDArray[np.float32]:
        """K_ij for b probes i and all j: (b, n)."""
        block = self.links(self.distances.rows(index), index)
        block[:, self.isolated] = 0
        block[np.isin(index, self.isolated)] = 0
        itself = np.arange(len(index)), index
        block[itself] = 1 if self.keep_diagonal else np.isin(index, self.isolated)
        return block

    def links(self, squares: npt.NDArray[np.float32], index: Indices) -> npt.NDArray[np.float32]:
        """Turn squared distances into the kernel in place, zero on the diagonal."""
        squares *= self.inverse
        squares *= -self.inverse[index, None]
        np.exp(squares, out=squares)
        squares[np.arange(len(index)), index] = 0
        return squares


def stream(gauge: DiffusionGauge, X: npt.ArrayLike) -> StreamedOperator:
    """Compute what the rows of the gauge's operator need; see `DiffusionGauge.stream`."""
    A = checked_activations(X)
    distances = DistanceRows(unit_rows(A) if gauge.metric == "cosine" else A)
    n = len(distances)
    sigma, floored = _bandwidths(distances, gauge.knn)
    linked = KernelRows(
        distances, np.reciprocal(sigma), keep_diagonal=gauge.diagonal == "keep", isolated=np.empty(0, np.intp)
    )
    density, isolated, duplicates = _density(linked)
    kernel = KernelRows(distances, linked.inverse, linked.keep_diagonal, isolated)
    weights = density**-gauge.alpha
    right = weights.astype(np.float32)
    reach = density if gauge.alpha == 0 else _reach(kernel, right)
    degrees = weights * reach
    half = np.sqrt(weights / reach).astype(np.float32)
    threshold = np.finfo(np.float32).eps / n
    n_components = count_components(
        n, lambda i: kernel.rows(np.array(i)) * half[i, None] * half > threshold, at_once=ROWS
    )
    degrees_of_isolated(degrees, isolated)
    quality = Quality(n_components, tuple(isolated.tolist()), duplicates, floored)
    if gauge.symmetric:
        return StreamedOperator("symmetric", degrees, density, quality, kernel, half, half)
    return StreamedOperator("markov", degrees, density, quality, kernel, (1 / reach).astype(np.float32), right)


def _squares(distances: DistanceRows) -> Iterator[npt.NDArray[np.float32]]:
    for rows in distances.slices():
        yield distances.rows(np.arange(rows.start, rows.stop))


def _bandwidths(distances: DistanceRows, knn: int | None) -> tuple[npt.NDArray[np.float32], int]:
    n = len(distances)
    if knn is None:
        return np.full(n, np.sqrt(2) * median_distance(lambda: _squares(distances)), np.float32), 0
    k = min(knn, n - 1)
    sigma = np.empty(n, np.float32)
    for rows, block in zip(distances.slices(), _squares(distances), strict=True):
        sigma[rows] = np.sqrt(np.partition(block, k, axis=1)[:, k])
    floor = bandwidth_floor(sigma, lambda: sum(float(b.sum(dtype=np.float64)) for b in _squares(distances)) / n**2)
    return np.maximum(sigma, floor), int(np.count_nonzero(sigma < floor))


def _density(kernel: KernelRows) -> tuple[npt.NDArray[np.float64], Indices, int]:
    """Row sums of the kernel once isolated probes are cut off, which these are, and how many probes are duplicates."""
    n = len(kernel.distances)
    density, strongest, duplicates = np.empty(n), np.empty(n, np.float32), 0
    for rows in kernel.distances.slices():
        index = np.arange(rows.start, rows.stop)
        block = kernel.distances.rows(index)
        duplicates += int(np.count_nonzero(block.argmin(axis=1) < index))  # the first zero is itself, unless one equals
        kernel.links(block, index)
        density[rows] = block.sum(axis=1)
        strongest[rows] = block.max(axis=1)
    isolated = np.nonzero(strongest < WEAKEST_LINK)[0]
    for start in range(0, len(isolated), ROWS):
        index = isolated[start : start + ROWS]
        density -= kernel.links(kernel.distances.rows(index), index).sum(axis=0)
    density[isolated] = 0 if kernel.keep_diagonal else 1
    return density + kernel.keep_diagonal, isolated, duplicates


def _reach(kernel: KernelRows, weights: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    blocks = (kernel.rows(np.arange(rows.start, rows.stop)) @ weights for rows in kernel.distances.slices())
    return np.concatenate(list(blocks)).astype(np.float64)
