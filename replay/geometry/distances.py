"""Distances between operators over the same probes: entries, rows, spectra and leading subspaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import numpy as np

from replay.geometry.contract import Floats, Measure, Point, all_pairs
from replay.geometry.eigen import Matrix, top_eigenpairs
from replay.geometry.gauge import Operator
from replay.geometry.pairwise import row_blocks
from replay.geometry.products import inner_products
from replay.geometry.statistics import Moments, permutation_ceiling
from store.errors import InvalidInput, Unavailable

__all__ = [
    "Frobenius",
    "FrobeniusNormalized",
    "Hellinger",
    "JensenShannon",
    "Spectral",
    "Subspace",
    "frobenius_distance",
    "normalized_frobenius_distance",
]

NEAR = 1e-8
"""Below this ratio of d² to the squared norms the products have lost too many bits: the pair is computed again."""

STOCHASTIC = 1e-4
"""How far the rows of a Markov operator may be from summing to one."""

CHUNK = 1 << 16
"""Entries summed at a time: half a MiB of float64, which stays in the cache."""

SAMPLE = 1 << 16
"""Entries of an operator that stand for all of them under a random relabelling."""


class MatrixView(NamedTuple):
    """An operator's matrix and what a relabelling leaves of it."""

    n_probes: int
    matrix: Matrix
    kind: str | None
    moments: Moments


class RowsView(NamedTuple):
    """A Markov operator and a sample of its entries."""

    n_probes: int
    matrix: Matrix
    samples: tuple[Matrix, Matrix]
    """(m,) off-diagonal entries drawn at random, twice."""
    diagonals: tuple[Matrix, Matrix]
    """(n,) the diagonal in its order and shuffled."""


class ValuesView(NamedTuple):
    """The largest eigenvalues of an operator."""

    n_probes: int
    values: Floats


class VectorsView(NamedTuple):
    """The leading eigenvectors of an operator."""

    n_probes: int
    vectors: Floats
    """(n, k) orthonormal."""
    off_diagonal: float
    """Σ_{i≠j} A_ij of the projection A on their span."""


@dataclass(frozen=True)
class _Entrywise(Measure[MatrixView]):
    """A function of Σ_ij (f(P_ij) - f(Q_ij))²."""

    of = "operator"
    sense = "distance"
    _root: ClassVar[bool] = False

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (of operators only the probes count)
        return 4 * n_probes**2

    def _squares(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        """Σ (f(P) - f(Q))² for all pairs, those of nearly equal operators from differences."""
        kinds = {view.kind for view in (*left, *(right or ())) if view.kind is not None}
        if len(kinds) > 1:
            raise InvalidInput(f"operators of different kinds cannot be compared: {' and '.join(sorted(kinds))}")
        others = left if right is None else right
        found = inner_products(
            [view.matrix.reshape(-1) for view in left],
            None if right is None else [view.matrix.reshape(-1) for view in right],
            centred=True,
            root=self._root,
        )
        norms = found.left[:, None] + found.right
        squares = np.maximum(norms - 2 * found.products, 0)
        near = squares <= NEAR * norms
        if right is None:
            near = np.triu(near, 1)
        twins: dict[int, int] = {}  # equal operators are recognised once, and then not compared again
        for i, j in zip(*np.nonzero(near), strict=True):
            if right is None and (i in twins or j in twins):
                continue
            squares[i, j] = _squared_difference(left[i].matrix, others[j].matrix, root=self._root)
            if right is None:
                squares[j, i] = squares[i, j]
                if squares[i, j] == 0:
                    twins[j] = i
        for j, i in twins.items():
            squares[j], squares[:, j] = squares[i], squares[:, i]
            squares[i, j] = squares[j, i] = squares[j, j] = 0
        return squares


@dataclass(frozen=True)
class Frobenius(_Entrywise):
    """Frobenius distance ‖P - Q‖_F = √Σ_ij (P_ij - Q_ij)², of one kind of operators.

    It grows with the number of probes: compare it only between operators over equally many. Relative error below 1e-6.
    """

    name = "frobenius"
    title = "Frobenius distance"

    def view(self, point: Point) -> MatrixView:
        """Check the matrix, and sum what a relabelling leaves; the view keeps the matrix."""
        matrix = _square(point, self.name)
        return _matrix_view(matrix, point.kind if isinstance(point, Operator) else None, root=self._root)

    def _compare(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        return np.sqrt(self._squares(left, right))

    def _null(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        return all_pairs(lambda P, Q: permutation_ceiling(P.moments, Q.moments), left, right, itself=True)


@dataclass(frozen=True)
class FrobeniusNormalized(Frobenius):
    """Frobenius distance over the norms, ‖P - Q‖_F / √(‖P‖_F² + ‖Q‖_F²).

    0 for equal operators, 1 for operators without a common entry (or orthogonal ones), at most √2.
    """

    name = "frobenius_normalized"
    title = "normalised Frobenius distance"

    def _compare(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        squares = self._squares(left, right)
        others = left if right is None else right
        norms = np.add.outer([P.moments.squares for P in left], [Q.moments.squares for Q in others])
        return np.sqrt(np.divide(squares, norms, out=np.zeros_like(squares), where=squares > 0))

    def _null(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        def pair(P: MatrixView, Q: MatrixView) -> float:
            return permutation_ceiling(P.moments, Q.moments, normalized=True)

        return all_pairs(pair, left, right, itself=True)


@dataclass(frozen=True)
class Hellinger(_Entrywise):
    """Root mean square over rows of the Hellinger distance between them, ‖√P - √Q‖_F / √(2n).

    0 to 1, where 1 is for rows without a common entry. The rows are the walks' next steps: a symmetric operator is
    brought back to its Markov form by its degrees.
    """

    name = "hellinger"
    title = "Hellinger distance of rows"
    _root = True

    def view(self, point: Point) -> MatrixView:
        """Check that rows are distributions; the view keeps the matrix."""
        return _matrix_view(_markov(point, self.name), None, root=True)

    def _compare(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        return np.minimum(np.sqrt(self._squares(left, right) / (2 * left[0].n_probes)), 1)

    def _null(self, left: Sequence[MatrixView], right: Sequence[MatrixView] | None) -> Floats:
        scale = np.sqrt(2 * left[0].n_probes)
        return all_pairs(lambda P, Q: permutation_ceiling(P.moments, Q.moments) / scale, left, right, itself=True)


@dataclass(frozen=True)
class JensenShannon(Measure[RowsView]):
    """Root mean square over rows of the Jensen-Shannon distance between them.

    √(mean_i JSD_i) with JSD_i = ½ Σ_j P_ij log₂(P_ij / M_ij) + Q_ij log₂(Q_ij / M_ij), M = ½(P + Q); 0 to 1
    (Endres and Schindelin, 2003). A symmetric operator is brought back to its Markov form by its degrees. The null
    value pairs 131,072 entries of the two operators at random, and is good to about a percent.
    """

    name = "jensen_shannon"
    of = "operator"
    sense = "distance"
    title = "Jensen-Shannon distance of rows"

    def view(self, point: Point) -> RowsView:
        """Check that rows are distributions, and draw a sample of entries; the view keeps the matrix."""
        P = _markov(point, self.name)
        n, rng = len(P), np.random.default_rng(0)
        rows, gaps = rng.integers(n, size=(2, SAMPLE)), rng.integers(1, n, size=(2, SAMPLE))
        entries = P[rows, (rows + gaps) % n]
        diagonal = np.diagonal(P).copy()
        return RowsView(n, P, (entries[0], entries[1]), (diagonal, diagonal[rng.permutation(n)]))

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (of operators only the probes count)
        """4n² for the matrix, and the sample."""
        return 4 * n_probes**2 + 8 * SAMPLE

    def _compare(self, left: Sequence[RowsView], right: Sequence[RowsView] | None) -> Floats:
        def pair(P: RowsView, Q: RowsView) -> float:
            total = sum(_divergence(P.matrix[rows], Q.matrix[rows]) for rows in row_blocks(P.n_probes))
            return min(float(np.sqrt(total / P.n_probes)), 1.0)

        return all_pairs(pair, left, right)

    def _null(self, left: Sequence[RowsView], right: Sequence[RowsView] | None) -> Floats:
        def pair(P: RowsView, Q: RowsView) -> float:
            off = sum(_divergence(P.samples[a], Q.samples[1 - a]) for a in (0, 1)) / (2 * SAMPLE)
            diagonal = sum(_divergence(P.diagonals[a], Q.diagonals[1 - a]) for a in (0, 1)) / (2 * P.n_probes)
            return min(float(np.sqrt((P.n_probes - 1) * off + diagonal)), 1.0)

        return all_pairs(pair, left, right, itself=True)


@dataclass(frozen=True)
class Spectral(Measure[ValuesView]):
    """Euclidean distance between the k largest eigenvalues, in descending order.

    Of the symmetric conjugate, see `top_eigenpairs`; of an irreversible operator, the largest real parts. It says
    whether two operators spread at the same rates, and nothing of where: relabelling probes changes nothing, and so
    there is no null value.
    """

    k: int = 50
    """How many eigenvalues; all where there are fewer."""

    name = "spectral"
    of = "operator"
    sense = "distance"
    title = "spectral distance"
    no_null = "relabelling the probes leaves eigenvalues as they are"

    def __post_init__(self) -> None:
        """Refuse an impossible k."""
        _check_count(self.k)

    def view(self, point: Point) -> ValuesView:
        """Compute the eigenvalues."""
        matrix = _square(point, self.name)
        found = top_eigenpairs(point if isinstance(point, Operator) else matrix, min(self.k, len(matrix)))
        return ValuesView(len(matrix), found.values)

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (of operators only the probes count)
        """Eight bytes an eigenvalue."""
        return 8 * min(self.k, n_probes)

    def _compare(self, left: Sequence[ValuesView], right: Sequence[ValuesView] | None) -> Floats:
        from scipy.spatial.distance import cdist

        A = np.stack([view.values for view in left])
        values: Floats = cdist(A, A if right is None else np.stack([view.values for view in right]))
        return values

    def _null(self, left: Sequence[ValuesView], right: Sequence[ValuesView] | None) -> Floats:
        return np.full((len(left), len(left if right is None else right)), np.nan)


@dataclass(frozen=True)
class Subspace(Measure[VectorsView]):
    """Root mean square sine of the principal angles between the spans of the k leading eigenvectors.

    √(1 - ‖UᵀV‖_F² / k), 0 for equal spans and 1 for orthogonal ones; of the symmetric conjugate, without the trivial
    eigenvector √D. Where eigenvalues k and k + 1 are equal, the span is not defined, and rounding chooses one.
    """

    k: int = 10
    """Dimensions of the span."""

    name = "subspace"
    of = "operator"
    sense = "distance"
    title = "angle between leading subspaces (rms sine)"

    def __post_init__(self) -> None:
        """Refuse an impossible k."""
        _check_count(self.k)

    def view(self, point: Point) -> VectorsView:
        """Compute the eigenvectors; `Unavailable` with fewer than k + 2 probes, or without reversibility."""
        matrix = _square(point, self.name)
        n = len(matrix)
        if n < self.k + 2:
            raise Unavailable(f"a span of {self.k} eigenvectors needs {self.k + 2} probes or more, and there are {n}")
        U = top_eigenpairs(point if isinstance(point, Operator) else matrix, self.k + 1, vectors=True).vectors
        assert U is not None  # noqa: S101 (they were asked for)
        if isinstance(point, Operator) and point.quality.disconnected:
            # The eigenvalue 1 is repeated: √D lies somewhere in the span, and is not its first vector.
            trivial = np.sqrt(point.degrees / point.degrees.sum())
            U = np.linalg.svd(U - np.outer(trivial, trivial @ U), full_matrices=False)[0][:, : self.k].astype(
                np.float64
            )
        else:
            U = U[:, 1:]
        return VectorsView(n, U, float(np.sum(U.sum(axis=0) ** 2)) - self.k)

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (of operators only the probes count)
        """Eight bytes an entry of the eigenvectors."""
        return 8 * n_probes * self.k

    def _compare(self, left: Sequence[VectorsView], right: Sequence[VectorsView] | None) -> Floats:
        others = left if right is None else right
        V = np.concatenate([view.vectors for view in others], axis=1)
        columns = np.stack([((view.vectors.T @ V) ** 2).sum(axis=0) for view in left])
        overlap: Floats = columns.reshape(len(left), len(others), self.k).sum(axis=2)
        if right is None:
            overlap = (overlap + overlap.T) / 2
        return np.sqrt(np.maximum(1 - overlap / self.k, 0))

    def _null(self, left: Sequence[VectorsView], right: Sequence[VectorsView] | None) -> Floats:
        others = left if right is None else right
        n = left[0].n_probes
        off: Floats = np.multiply.outer([view.off_diagonal for view in left], [view.off_diagonal for view in others])
        overlap: Floats = off / (n * (n - 1)) + self.k**2 / n
        return np.sqrt(np.maximum(1 - overlap / self.k, 0))


def frobenius_distance(P: Point, Q: Point) -> float:
    """Frobenius distance of two (n, n) operators of one kind, see `Frobenius`; a plain array's kind is not checked."""
    return _distance(Frobenius(), P, Q)


def normalized_frobenius_distance(P: Point, Q: Point) -> float:
    """Frobenius distance of two operators over their norms, see `FrobeniusNormalized`."""
    return _distance(FrobeniusNormalized(), P, Q)


def _distance(measure: Frobenius, P: Point, Q: Point) -> float:
    return float(measure.compare([measure.view(P)], [measure.view(Q)])[0, 0])


def _check_count(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise InvalidInput(f"k must be a whole number of at least 1, not {k!r}")


def _square(point: Point, name: str) -> Matrix:
    matrix = np.asarray(point)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or matrix.dtype.kind != "f":
        raise InvalidInput(
            f"{name} compares operators, square matrices of real numbers, not {matrix.dtype} of shape {matrix.shape}"
        )
    if not np.isfinite(matrix.sum()) and not np.isfinite(matrix).all():
        raise InvalidInput("operators must be finite to be compared")
    return np.ascontiguousarray(matrix)


def _markov(point: Point, name: str) -> Matrix:
    """Give the row-stochastic matrix of an operator."""
    matrix = _square(point, name)
    if isinstance(point, Operator) and point.kind == "symmetric":
        root = np.sqrt(point.degrees).astype(np.float32)
        matrix = matrix / root[:, None] * root
    if matrix.min() < 0 or np.abs(matrix.sum(axis=1) - 1).max() > STOCHASTIC:
        raise InvalidInput(f"{name} compares rows that sum to one with no entry below 0: pass a Markov operator")
    return matrix


def _matrix_view(matrix: Matrix, kind: Literal["markov", "symmetric"] | None, *, root: bool) -> MatrixView:
    """Sum in float64 what the null value needs of f(P)."""
    entries, diagonal = matrix.reshape(-1), np.diagonal(matrix).astype(np.float64)
    squares = total = 0.0
    for start in range(0, entries.size, CHUNK):
        chunk = entries[start : start + CHUNK].astype(np.float64)
        if root:
            np.sqrt(chunk, out=chunk)
        squares += float(np.vdot(chunk, chunk))
        total += float(chunk.sum())
    trace = float((np.sqrt(diagonal) if root else diagonal).sum())
    return MatrixView(len(matrix), matrix, kind, Moments(len(matrix), squares, total - trace, trace))


def _squared_difference(P: Matrix, Q: Matrix, *, root: bool) -> float:
    total = 0.0
    for rows in row_blocks(len(P)):
        A, B = P[rows].astype(np.float64), Q[rows].astype(np.float64)
        if root:
            np.sqrt(A, out=A)
            np.sqrt(B, out=B)
        A -= B
        total += float(np.vdot(A, A))
    return total


def _divergence(p: Matrix, q: Matrix) -> float:
    """½ Σ p log₂(p/m) + q log₂(q/m), m = ½(p + q), from terms that do not cancel.

    With t = (p - q) / (p + q) a term is ½ m (2t artanh t + ln(1 - t²)) / ln 2.
    """
    double = p + q
    t = (p - q) / np.maximum(double, np.finfo(double.dtype).tiny)
    edge = 1 - np.finfo(t.dtype).epsneg
    np.clip(t, -edge, edge, out=t)
    terms = 2 * t * np.arctanh(t)
    terms += np.log1p(-t * t)
    terms *= double
    return float(np.sum(terms, dtype=np.float64) / np.log(16))
