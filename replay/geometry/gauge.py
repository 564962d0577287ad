"""From activations to diffusion operators: `DiffusionGauge` and the `Operator` it returns."""

import operator
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from replay.geometry.pairwise import SquaredDistances, row_blocks, squared_distances
from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "DiffusionGauge", "Kind", "Operator", "Quality"]

VERSION = 1
"""Version of the computation, part of every cache key: raised whenever an operator's values may change."""

SIGMA_FLOOR = 0.1
"""Smallest bandwidth, as a share of the median positive one."""

WEAKEST_LINK = 1e-30
"""A probe whose kernel values all lie below this one is isolated: float32 holds nothing smaller in full precision."""

Kind = Literal["markov", "symmetric"]
Metric = Literal["euclidean", "cosine"]
Diagonal = Literal["zero", "keep"]


@dataclass(frozen=True)
class Quality:
    """What was unusual about the activations, and changed how their operator may be read."""

    n_components: int
    """Connected parts of the graph; a link counts if float32 can tell the row with it from the row without it."""
    isolated: tuple[int, ...]
    """Probes too far from all others to be linked to any; each stays where it is, P_ii = 1."""
    duplicates: int
    """Probes whose activations equal those of an earlier probe."""
    floored: int
    """Probes whose bandwidth was raised to the floor, because more than ``knn`` others all but coincide with them."""

    @property
    def disconnected(self) -> bool:
        """Whether the graph falls into parts, so that the eigenvalue 1 is repeated."""
        return self.n_components > 1


@dataclass(frozen=True, eq=False)
class Operator:
    """A diffusion operator over probes that knows its kind, its degrees and its quality."""

    matrix: npt.NDArray[np.float32]
    """(n, n): P with rows that sum to one, or its symmetric conjugate S = D^½ P D^-½."""
    kind: Kind
    """``markov`` for P, ``symmetric`` for S."""
    degrees: npt.NDArray[np.float64]
    """(n,): row sums D of the kernel after density correction; P is reversible with respect to them."""
    quality: Quality
    """Duplicates, isolated probes and disconnected parts."""
    reversible: bool = True
    """Whether D_i P_ij = D_j P_ji, as a gauge makes it; what a merge makes need not be, and its ``degrees`` are then
    the stationary distribution times n."""

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.matrix)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Give the matrix to numpy."""
        return np.array(self.matrix, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class DiffusionGauge:
    """The recipe from activations of n probes to their diffusion operator.

    With σ_i the distance from probe i to its k-th neighbour (itself is rank 0, k = min(knn, n-1))::

        K_ij = exp(-d_ij² / (σ_i σ_j))      adaptive Gaussian kernel (Zelnik-Manor and Perona, 2004)
        K_a  = Q^-α K Q^-α,  Q = diag(K 1)  density correction (Coifman and Lafon, 2006)
        P    = D^-1 K_a,     D = diag(K_a 1)
        S    = D^-½ K_a D^-½                similar to P: same eigenvalues

    Three rules keep the result defined, and `Quality` records where they applied:

    - bandwidths are at least a tenth of the median positive one (of the root mean square distance, where all are zero),
      so that more than ``knn`` duplicates stay connected to the rest;
    - a probe with no kernel value of 1e-30 or more is isolated: its links are cut, P_ii = S_ii = 1, and its degree is
      the median of the others;
    - a graph in several parts is kept as it is, and its parts are counted.
    """

    knn: int = 15
    """Which neighbour sets the bandwidth of a probe; at least 1."""
    alpha: float = 1.0
    """Density correction, 0 to 1: 0 graph Laplacian, ½ Fokker-Planck, 1 Laplace-Beltrami."""
    symmetric: bool = False
    """Whether to return the symmetric conjugate S instead of the row-stochastic P."""
    metric: Metric = "euclidean"
    """``euclidean``, or ``cosine``: Euclidean between activations scaled to unit length."""
    diagonal: Diagonal = "zero"
    """``zero`` removes each probe's link to itself, after which the kernel is indefinite; ``keep`` leaves it at 1."""

    def __post_init__(self) -> None:
        """Refuse impossible values and bring possible ones to one form, so that equal gauges have equal keys."""
        object.__setattr__(self, "knn", _checked_knn(self.knn))
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))
        if not isinstance(self.symmetric, bool):
            raise InvalidInput(f"symmetric must be True or False, not {self.symmetric!r}")
        if self.metric not in get_args(Metric):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}, not {self.metric!r}")
        if self.diagonal not in get_args(Diagonal):
            raise InvalidInput(f"diagonal must be one of {', '.join(get_args(Diagonal))}, not {self.diagonal!r}")

    def parameters(self) -> dict[str, bool | float | int | str]:
        """Name the gauge and its fields, in plain JSON types, for cache keys and records."""
        return {"gauge": "diffusion", **asdict(self)}

    def __call__(self, X: npt.ArrayLike) -> Operator:
        """Compute the operator of one set of activations.

        Parameters
        ----------
        X
            (n, d) finite real numbers, a row a probe; integers and half precision are computed as float32 or better.
            torch tensors must live on the CPU and carry no gradient.

        Returns
        -------
        Operator
            Relative Frobenius error against float64 at most 5e-6; unchanged by translating, rotating or scaling ``X``;
            the same on every call. Peak memory beyond ``X`` is about 4n² + 4nd bytes.

        Raises
        ------
        InvalidInput
            If ``X`` is not a finite real matrix.
        Unavailable
            If there are fewer than 3 probes, all activations are equal, or the cosine of a zero vector is asked for.
        """
        distances = self._squared_distances(X)
        matrix = distances.matrix
        parts = self._transform(matrix, min(self.knn, len(matrix) - 1))
        quality = Quality(
            n_components=_count_components(matrix, parts.degrees, symmetric=self.symmetric),
            isolated=tuple(parts.isolated.tolist()),
            duplicates=distances.duplicates,
            floored=parts.floored,
        )
        return Operator(matrix, "symmetric" if self.symmetric else "markov", parts.degrees, quality)

    def leave_group_out(
        self, X: npt.ArrayLike, groups: npt.NDArray[np.integer[Any]]
    ) -> Iterator[npt.NDArray[np.float32]]:
        """Compute the operator again without each group of probes in turn.

        Distances are computed once. The rank of the neighbour that sets the bandwidth shrinks with the number of probes
        left, k · m / n rounded, so that bandwidths stay what they are for n probes.

        Parameters
        ----------
        X
            (n, d) as for a call of the gauge.
        groups
            (n,) group of each probe, 0 to G-1.

        Yields
        ------
        ndarray
            (m, m) operator over the m probes outside the group.

        Raises
        ------
        InvalidInput, Unavailable
            As for a call of the gauge.
        """
        squares = self._squared_distances(X).matrix
        n = len(squares)
        for group in range(int(groups.max()) + 1):
            kept = np.nonzero(groups != group)[0]
            matrix = squares[np.ix_(kept, kept)]
            self._transform(matrix, max(1, round(min(self.knn, n - 1) * len(kept) / n)))
            yield matrix

    def _squared_distances(self, X: npt.ArrayLike) -> SquaredDistances:
        X = _checked_activations(X)
        if len(X) < 3:
            raise Unavailable(f"a diffusion operator needs at least 3 probes, and there are {len(X)}")
        return squared_distances(_unit_rows(X) if self.metric == "cosine" else X)

    def _transform(self, matrix: npt.NDArray[np.float32], k: int) -> "_Parts":
        """Turn squared distances into the operator in place."""
        sigma, floored = _bandwidths(matrix, k)
        density, isolated = _kernel(matrix, sigma, keep_diagonal=self.diagonal == "keep")
        degrees = _normalise(matrix, density, self.alpha, symmetric=self.symmetric, isolated=isolated)
        return _Parts(degrees, isolated, floored)


class _Parts(NamedTuple):
    degrees: npt.NDArray[np.float64]
    isolated: npt.NDArray[np.intp]
    floored: int


def _checked_knn(knn: object) -> int:
    try:
        k = operator.index(knn)  # type: ignore[arg-type]  # the point is to refuse what is no integer
    except TypeError:
        k = 0
    if isinstance(knn, bool) or k < 1:
        raise InvalidInput(f"knn must be a whole number of at least 1, not {knn!r}")
    return k


def _checked_alpha(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 0 <= alpha <= 1:
        raise InvalidInput(f"alpha must be a number from 0 to 1, not {alpha!r}")
    return float(alpha)


def _checked_activations(X: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
    try:
        A = np.asarray(X)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInput(
            f"activations must be a real matrix that numpy can read, not {type(X).__name__} ({error}); "
            "for a torch tensor pass X.detach().cpu().float()"
        ) from error
    if A.ndim != 2 or A.shape[1] == 0:
        raise InvalidInput(f"activations must have shape (probe, feature), not {A.shape}")
    if A.dtype.kind not in "fiu":
        raise InvalidInput(f"activations must be real numbers, not {A.dtype}")
    A = A.astype(np.float32 if A.dtype.itemsize < 4 or A.dtype == np.float32 else np.float64, copy=False)
    if not np.isfinite(A).all():
        rows = np.nonzero(~np.isfinite(A).all(axis=1))[0]
        raise InvalidInput(f"activations must be finite: {len(rows)} of {len(A)} probes are not, first probe {rows[0]}")
    return A


def _unit_rows(X: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    largest = np.abs(X).max(axis=1, keepdims=True)
    if not largest.all():
        rows = np.nonzero(largest == 0)[0]
        raise Unavailable(f"the cosine metric is undefined for zero activations: {len(rows)} probes, first {rows[0]}")
    Y: npt.NDArray[np.float64] = X / largest.astype(np.float64)  # first by the largest, so that no square overflows
    Y /= np.sqrt(np.einsum("ij,ij->i", Y, Y))[:, None]
    return Y


def _bandwidths(squares: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], int]:
    sigma = np.empty(len(squares), np.float32)
    for rows in row_blocks(len(squares)):
        sigma[rows] = np.partition(squares[rows], k, axis=1)[:, k]
    np.sqrt(sigma, out=sigma)
    positive = sigma[sigma > 0]
    scale = np.median(positive) if len(positive) else np.sqrt(squares.mean(dtype=np.float64))
    if scale == 0:
        raise Unavailable(f"all {len(sigma)} probes have the same activations: there is no geometry to measure")
    floor = np.float32(SIGMA_FLOOR * scale)
    floored = int(np.count_nonzero(sigma < floor))
    return np.maximum(sigma, floor, out=sigma), floored


def _kernel(
    squares: npt.NDArray[np.float32], sigma: npt.NDArray[np.float32], *, keep_diagonal: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Turn squared distances into the kernel in place; return its row sums and the isolated probes, links cut."""
    n = len(squares)
    K, inverse = squares, 1 / sigma
    density = np.empty(n)
    for rows in row_blocks(n):
        block = K[rows]
        block *= inverse
        block *= -inverse[rows, None]
        np.exp(block, out=block)
        block[np.arange(len(block)), np.arange(rows.start, rows.stop)] = 0
        density[rows] = block.sum(axis=1)
    faint = np.nonzero(density < n * WEAKEST_LINK)[0]
    isolated = faint[K[faint].max(axis=1) < WEAKEST_LINK] if len(faint) else faint
    if len(isolated):
        density -= K[:, isolated].sum(axis=1)
        K[isolated] = 0
        K[:, isolated] = 0
        density[isolated] = 0
    diagonal = np.einsum("ii->i", K)
    if keep_diagonal:
        diagonal[:] = 1
    else:
        diagonal[isolated] = 1
    density += diagonal
    return density, isolated


def _normalise(
    kernel: npt.NDArray[np.float32],
    density: npt.NDArray[np.float64],
    alpha: float,
    *,
    symmetric: bool,
    isolated: npt.NDArray[np.intp],
) -> npt.NDArray[np.float64]:
    """Turn the kernel into the operator in place; return the degrees."""
    weights = density**-alpha
    right = weights.astype(np.float32)
    reach = density if alpha == 0 else (kernel @ right).astype(np.float64)
    degrees = weights * reach
    left = (1 / reach).astype(np.float32)
    if symmetric:
        left = right = np.sqrt(weights / reach).astype(np.float32)
    for rows in row_blocks(len(kernel)):
        block = kernel[rows]
        block *= left[rows, None]
        if symmetric or alpha != 0:
            block *= right
    if symmetric:
        _mirror(kernel)
    linked = np.setdiff1d(np.arange(len(kernel)), isolated)
    if len(isolated) and len(linked):
        degrees[isolated] = np.median(degrees[linked])
    return degrees


def _mirror(matrix: npt.NDArray[np.float32]) -> None:
    """Copy the upper triangle to the lower, since rounding alone leaves them apart."""
    for rows in row_blocks(len(matrix)):
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        corner = matrix[rows, rows]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T


def _count_components(matrix: npt.NDArray[np.float32], degrees: npt.NDArray[np.float64], *, symmetric: bool) -> int:
    """Count the parts of the graph of links S_ij above float32 rounding / n; breadth first, one row a probe at most."""
    n = len(matrix)
    threshold = np.finfo(np.float32).eps / n
    root = np.ones(n) if symmetric else np.sqrt(degrees)
    unseen = np.ones(n, np.bool_)
    n_components = 0
    while unseen.any():
        n_components += 1
        frontier = [int(np.argmax(unseen))]
        unseen[frontier] = False
        while frontier and unseen.any():
            i = frontier.pop()
            fresh = np.nonzero(unseen & (matrix[i] * root[i] > threshold * root))[0]
            unseen[fresh] = False
            frontier.extend(fresh.tolist())
    return n_components
