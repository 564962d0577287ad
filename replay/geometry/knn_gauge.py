"""The sparse operator of a k-nearest-neighbour graph: `KnnGauge` and the `SparseOperator` it returns."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import Kind, Metric, Quality, checked_activations, checked_knn, checked_metric, unit_rows
from replay.geometry.pairwise import MANY_PAIRS
from replay.geometry.streaming import DistanceRows, Indices
from store.errors import InvalidInput

if TYPE_CHECKING:
    from scipy.sparse import csr_array

__all__ = ["VERSION", "KnnGauge", "SparseOperator"]

VERSION = 1
"""Version of the computation, part of every cache key: raised whenever an operator's values may change."""

SLACK = 1e-4
"""How much farther than the radius candidates are looked for, as a share of d²: far above the error of the search."""

PRODUCT_TRUST = 1e-5
"""Ratio of d² to |x|²+|y|² down to which the float64 product is as good as differences, once raised to a power."""


@dataclass(frozen=True, eq=False)
class SparseOperator:
    """A diffusion operator over probes of which most entries are zero."""

    matrix: "csr_array[np.float64]"
    """(n, n) rows that sum to one; ``indptr``, ``indices`` (ascending in each row) and ``data`` are all there is."""
    kind: Kind
    """``markov``."""
    degrees: npt.NDArray[np.float64]
    """(n,) row sums D of the kernel, so that K_ij = D_i P_ij and P is reversible with respect to them."""
    quality: Quality
    """Duplicates, isolated probes and disconnected parts."""
    reversible: bool = True
    """Whether D_i P_ij = D_j P_ji, as every gauge makes it."""

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.degrees)


@dataclass(frozen=True)
class KnnGauge:
    """The recipe from activations of n probes to the operator of their nearest neighbours.

    With ε_i the distance from probe i to its k-th neighbour (itself not counted, k = min(knn, n-2))::

        W_ij = exp(-(d_ij / ε_i)^decay), 0 where below thresh, 1 where i = j
        K    = (W + Wᵀ) / 2
        P    = D^-1 K,  D = diag(K 1)

    This is the kernel of PHATE (Moon et al., 2019), as graphtools computes it with ``n_pca=None``. It is no
    approximation of `DiffusionGauge`, whose Gaussian reaches far beyond these neighbours and whose diagonal and density
    correction differ: the two are never to be compared.

    More than ``knn`` duplicates have ε = 0: they are linked to one another and to nothing else, and counted in
    ``quality.floored``. A probe that ``thresh`` leaves no neighbour is isolated, P_ii = 1.
    """

    knn: int = 5
    """Which neighbour sets the bandwidth of a probe; at least 1."""
    decay: float = 40.0
    """Power at which the kernel falls off; above 0, and 2 for a Gaussian."""
    thresh: float = 1e-4
    """Weights below this one are dropped; between 0 and 1."""
    metric: Metric = "euclidean"
    """``euclidean``, or ``cosine``: Euclidean between activations scaled to unit length."""

    def __post_init__(self) -> None:
        """Refuse impossible values and bring possible ones to one form, so that equal gauges have equal keys."""
        object.__setattr__(self, "knn", checked_knn(self.knn))
        object.__setattr__(self, "decay", _checked_number("decay", self.decay, below=np.inf))
        object.__setattr__(self, "thresh", _checked_number("thresh", self.thresh, below=1))
        checked_metric(self.metric)

    def parameters(self) -> dict[str, float | int | str]:
        """Name the gauge and its fields, in plain JSON types, for cache keys and records."""
        return {"gauge": "knn", **asdict(self)}

    def __call__(self, X: npt.ArrayLike) -> SparseOperator:
        """Compute the operator of one set of activations.

        Parameters
        ----------
        X
            (n, d) finite real numbers, a row a probe; a torch tensor must live on the CPU and carry no gradient.

        Returns
        -------
        SparseOperator
            Neighbours are exact, weights good to float64 rounding; unchanged by translating, rotating or scaling ``X``.
            Memory beyond ``X`` is 4nd bytes (12nd for the cosine), the links and a few MB.

        Raises
        ------
        InvalidInput
            If ``X`` is not a finite real matrix.
        Unavailable
            If there are fewer than 3 probes, or the cosine of a zero vector is asked for.
        """
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        A = checked_activations(X)
        distances = DistanceRows(unit_rows(A) if self.metric == "cosine" else A)
        n = len(distances)
        found = [self._weights(distances, np.arange(rows.start, rows.stop)) for rows in distances.slices()]
        i, j, weights = (np.concatenate(parts) for parts in zip(*(f[:3] for f in found), strict=True))
        W = coo_array((weights, (i, j)), shape=(n, n)).tocsr()
        K = ((W + W.T) / 2).tocsr()
        K.sort_indices()
        n_links = np.diff(K.indptr)
        degrees = K.sum(axis=1)
        quality = Quality(
            n_components=connected_components(K, directed=False)[0],
            isolated=tuple(np.nonzero(n_links == 1)[0].tolist()),
            duplicates=sum(f.duplicates for f in found),
            floored=sum(f.floored for f in found),
        )
        K.data /= np.repeat(degrees, n_links)
        return SparseOperator(K, "markov", degrees, quality)

    def _weights(self, distances: DistanceRows, index: Indices) -> "_Weights":
        """W of a few probes: candidates from fast distances, bandwidths and weights from precise ones."""
        k = min(self.knn, len(distances) - 2)
        block = distances.rows(index)
        duplicates = int(np.count_nonzero(block.argmin(axis=1) < index))  # the first zero is itself, unless one equals
        block[np.arange(len(index)), index] = np.inf
        radius = max(1.0, -np.log(self.thresh)) ** (2 / self.decay) * (1 + SLACK)
        reach = np.partition(block, k - 1, axis=1)[:, k - 1] * radius
        i, j = np.nonzero(block <= reach[:, None])
        if len(i) > MANY_PAIRS * block.size:
            squares = distances.precise_rows(index, trust=PRODUCT_TRUST)[i, j]
        else:
            squares = distances.differences(index[i], j)
        order = np.lexsort((squares, i))
        epsilon = squares[order[np.searchsorted(i, np.arange(len(index))) + k - 1]]
        ratios = np.divide(squares, epsilon[i], out=np.zeros_like(squares), where=epsilon[i] > 0)
        weights = np.exp(-(ratios ** (self.decay / 2)))
        kept = weights >= self.thresh
        i, j, weights = index[i[kept]], j[kept], weights[kept]
        floored = int(np.count_nonzero(epsilon == 0))
        itself = np.ones(len(index))
        return _Weights(
            np.concatenate([index, i]),
            np.concatenate([index, j]),
            np.concatenate([itself, weights]),
            duplicates,
            floored,
        )


class _Weights(NamedTuple):
    i: Indices
    j: Indices
    weights: npt.NDArray[np.float64]
    duplicates: int
    floored: int


def _checked_number(name: str, value: object, *, below: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 < value < below:
        reach = "above 0" if np.isinf(below) else f"between 0 and {below}"
        raise InvalidInput(f"{name} must be a number {reach}, not {value!r}")
    return float(value)
