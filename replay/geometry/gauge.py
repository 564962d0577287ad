"""From activations to diffusion operators: `DiffusionGauge` and the `Operator` it returns."""

import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeGuard, get_args, overload

import numpy as np
import numpy.typing as npt

from replay.geometry.pairwise import SquaredDistances, row_blocks, squared_distances
from store.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    import torch

    from replay.geometry.streaming import StreamedOperator
    from replay.geometry.torch_gauge import TorchOperator

__all__ = ["VERSION", "DiffusionGauge", "Kernel", "Kind", "Metric", "Operator", "Quality"]

VERSION = 2
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


@dataclass(frozen=True, eq=False)
class Kernel:
    """The kernel that a gauge normalises into its operator."""

    matrix: npt.NDArray[np.float32]
    """(n, n) from 0 to 1, symmetric to rounding; the diagonal as the gauge has it, links of isolated probes cut."""
    sigma: npt.NDArray[np.float64]
    """(n,) bandwidths σ_i in the unit of the activations, such that K_ij = exp(-d_ij² / (σ_i σ_j))."""
    density: npt.NDArray[np.float64]
    """(n,) row sums Q of the kernel, from which the density correction is made."""
    isolated: npt.NDArray[np.intp]
    """Probes without a link, ascending; K_ii = 1 and Q_i = 1."""
    within: npt.NDArray[np.bool_]
    """(n, n) whether j lies within the distance that sets the bandwidth of i, as i itself does."""


@dataclass(frozen=True)
class DiffusionGauge:
    """The recipe from activations of n probes to their diffusion operator.

    With σ_i the distance from probe i to its k-th neighbour (itself is rank 0, k = min(knn, n-1))::

        K_ij = exp(-d_ij² / (σ_i σ_j))      adaptive Gaussian kernel (Zelnik-Manor and Perona, 2004)
        K_a  = Q^-α K Q^-α,  Q = diag(K 1)  density correction (Coifman and Lafon, 2006)
        P    = D^-1 K_a,     D = diag(K_a 1)
        S    = D^-½ K_a D^-½                similar to P: same eigenvalues

    Without ``knn`` one bandwidth serves all probes: K_ij = exp(-d_ij² / 2m²), m the median of the positive distances.

    Three rules keep the result defined, and `Quality` records where they applied:

    - bandwidths are at least a tenth of the median positive one (of the root mean square distance, where all are zero),
      so that more than ``knn`` duplicates stay connected to the rest; a median bandwidth needs no floor;
    - a probe with no kernel value of 1e-30 or more is isolated: its links are cut, P_ii = S_ii = 1, and its degree is
      the median of the others;
    - a graph in several parts is kept as it is, and its parts are counted.
    """

    knn: int | None = 15
    """Which neighbour sets the bandwidth of a probe, at least 1; None for one median bandwidth."""
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
        if self.knn is not None:
            object.__setattr__(self, "knn", checked_knn(self.knn))
        object.__setattr__(self, "alpha", _checked_alpha(self.alpha))
        if not isinstance(self.symmetric, bool):
            raise InvalidInput(f"symmetric must be True or False, not {self.symmetric!r}")
        checked_metric(self.metric)
        if self.diagonal not in get_args(Diagonal):
            raise InvalidInput(f"diagonal must be one of {', '.join(get_args(Diagonal))}, not {self.diagonal!r}")

    def parameters(self) -> dict[str, bool | float | int | str | None]:
        """Name the gauge and its fields, in plain JSON types, for cache keys and records."""
        return {"gauge": "diffusion", **asdict(self)}

    @overload
    def __call__(self, X: "torch.Tensor") -> "TorchOperator": ...
    @overload
    def __call__(self, X: npt.ArrayLike) -> Operator: ...
    def __call__(self, X: "npt.ArrayLike | torch.Tensor") -> "Operator | TorchOperator":
        """Compute the operator of one set of activations.

        Parameters
        ----------
        X
            (n, d) finite real numbers, a row a probe; integers and half precision are computed as float32 or better.

        Returns
        -------
        Operator
            Relative Frobenius error against float64 at most 5e-6; unchanged by translating, rotating or scaling ``X``;
            the same on every call. Peak memory beyond ``X`` is about 4n² + 4nd bytes.
        TorchOperator
            For a torch tensor: the same numbers on its device, differentiable with respect to ``X``.

        Raises
        ------
        InvalidInput
            If ``X`` is not a finite real matrix.
        Unavailable
            If there are fewer than 3 probes, all activations are equal, or the cosine of a zero vector is asked for.
        """
        if _is_tensor(X):
            from replay.geometry.torch_gauge import torch_operator

            return torch_operator(self, X)
        distances = self._squared_distances(X)
        return self._operator(distances.matrix, self.knn, distances.duplicates)

    def kernel(self, X: npt.ArrayLike, *, out: npt.NDArray[np.float32] | None = None) -> Kernel:
        """Compute the kernel K and its row sums only, from which operators over fewer probes can be made.

        Parameters
        ----------
        X
            (n, d) as for a call of the gauge; a torch tensor must live on the CPU and carry no gradient.
        out
            (n, n) contiguous room for the kernel.

        Raises
        ------
        InvalidInput, Unavailable
            As for a call of the gauge.
        """
        distances = self._squared_distances(X, out=out)
        within = np.empty(distances.matrix.shape, np.bool_)
        parts = self._kernel(distances.matrix, self.knn, within)
        sigma = parts.sigma.astype(np.float64) * distances.unit
        return Kernel(distances.matrix, sigma, parts.density, parts.isolated, within)

    def stream(self, X: npt.ArrayLike) -> "StreamedOperator":
        """Prepare the same operator without ever holding it: its rows are computed again whenever they are asked for.

        For more probes than an (n, n) matrix has memory for. Distances are computed three times here (two with alpha 0,
        one more each for a median bandwidth and for a graph in many parts), and once for each later pass over the rows.

        Parameters
        ----------
        X
            (n, d) as for `kernel`; kept, not copied, while the result lives.

        Returns
        -------
        StreamedOperator
            Memory beyond ``X``: 4nd bytes (12nd for the cosine) and a few MB.

        Raises
        ------
        InvalidInput, Unavailable
            As for a call of the gauge.
        """
        from replay.geometry.streaming import stream

        return stream(self, X)

    def leave_group_out(self, X: npt.ArrayLike, groups: npt.NDArray[np.integer[Any]]) -> Iterator[Operator]:
        """Compute the operator again without each group of probes in turn.

        Distances are computed once. The rank of the neighbour that sets the bandwidth shrinks with the number of probes
        left, k · m / n rounded, so that bandwidths stay what they are for n probes; a median bandwidth is that of the
        probes left.

        Parameters
        ----------
        X
            (n, d) as for `kernel`.
        groups
            (n,) group of each probe, 0 to G-1.

        Yields
        ------
        Operator
            Over the m probes outside the group; positions in its quality count these m.

        Raises
        ------
        InvalidInput, Unavailable
            As for a call of the gauge.
        """
        distances = self._squared_distances(X)
        n = len(distances.matrix)
        for group in range(int(groups.max()) + 1):
            kept = np.nonzero(groups != group)[0]
            squares = distances.matrix[np.ix_(kept, kept)]
            duplicates = int(np.tril(squares == 0, -1).any(axis=1).sum()) if distances.duplicates else 0
            k = None if self.knn is None else max(1, round(min(self.knn, n - 1) * len(kept) / n))
            yield self._operator(squares, k, duplicates)

    def _squared_distances(self, X: npt.ArrayLike, *, out: npt.NDArray[np.float32] | None = None) -> SquaredDistances:
        X = checked_activations(X)
        return squared_distances(unit_rows(X) if self.metric == "cosine" else X, out=out)

    def _kernel(
        self, squares: npt.NDArray[np.float32], k: int | None, within: npt.NDArray[np.bool_] | None = None
    ) -> "_Parts":
        """Turn squared distances into the kernel in place; say in ``within`` who lies in reach of whose bandwidth."""
        if k is None:
            sigma, floored = _median_bandwidths(squares), 0
        else:
            sigma, floored = _bandwidths(squares, min(k, len(squares) - 1))
        if within is not None:
            reach = sigma**2 * np.float32(0.5 if k is None else 1 + 1e-5)  # the neighbour that sets it is in reach
            for rows in row_blocks(len(squares)):
                np.less_equal(squares[rows], reach[rows, None], out=within[rows])
        density, isolated = _kernel(squares, sigma, keep_diagonal=self.diagonal == "keep")
        return _Parts(sigma, density, isolated, floored)

    def _operator(self, matrix: npt.NDArray[np.float32], k: int | None, duplicates: int) -> Operator:
        """Turn squared distances into the operator in place."""
        parts = self._kernel(matrix, k)
        degrees = _normalise(matrix, parts.density, self.alpha, symmetric=self.symmetric, isolated=parts.isolated)
        quality = Quality(
            n_components=count_parts(matrix, degrees, symmetric=self.symmetric),
            isolated=tuple(parts.isolated.tolist()),
            duplicates=duplicates,
            floored=parts.floored,
        )
        return Operator(matrix, "symmetric" if self.symmetric else "markov", degrees, quality)


def checked_knn(knn: object) -> int:
    """Refuse what is no whole number of at least 1."""
    try:
        k = operator.index(knn)  # type: ignore[arg-type]  # the point is to refuse what is no integer
    except TypeError:
        k = 0
    if isinstance(knn, bool) or k < 1:
        raise InvalidInput(f"knn must be a whole number of at least 1, not {knn!r}")
    return k


def checked_metric(metric: object) -> None:
    """Refuse what is no metric of a gauge."""
    if metric not in get_args(Metric):
        raise InvalidInput(f"metric must be one of {', '.join(get_args(Metric))}, not {metric!r}")


def _checked_alpha(alpha: object) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float | np.number) or not 0 <= alpha <= 1:
        raise InvalidInput(f"alpha must be a number from 0 to 1, not {alpha!r}")
    return float(alpha)


def checked_activations(X: npt.ArrayLike) -> npt.NDArray[np.floating[Any]]:
    """Bring activations to a finite float32 or float64 matrix of at least 3 probes, or say why that cannot be."""
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
    if len(A) < 3:
        raise Unavailable(f"a diffusion operator needs at least 3 probes, and there are {len(A)}")
    return A


def unit_rows(X: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Scale each row to unit length, or say which have none."""
    largest = np.abs(X).max(axis=1, keepdims=True)
    if not largest.all():
        rows = np.nonzero(largest == 0)[0]
        raise Unavailable(f"the cosine metric is undefined for zero activations: {len(rows)} probes, first {rows[0]}")
    Y: npt.NDArray[np.float64] = X / largest.astype(np.float64)  # first by the largest, so that no square overflows
    Y /= np.sqrt(np.einsum("ij,ij->i", Y, Y))[:, None]
    return Y


def median_distance(blocks: Callable[[], Iterable[npt.NDArray[np.float32]]]) -> float:
    """Median of the distances whose squares are given, zeros left out; exact, in memory that does not grow with them.

    Positive floats are ordered as their bits are: one pass counts the upper halves of the bits and so finds the two
    halves that the two middle values begin with, another counts the lower halves that follow these.

    Parameters
    ----------
    blocks
        Called twice; yields the squared distances in pieces, none negative.

    Raises
    ------
    Unavailable
        If no distance is positive.
    """
    upper, n_zeros = np.zeros(1 << 16, np.int64), 0
    for block in blocks():
        upper += np.bincount(np.ascontiguousarray(block).view(np.uint32).ravel() >> 16, minlength=1 << 16)
        n_zeros += block.size - int(np.count_nonzero(block))
    n_positive = int(upper.sum()) - n_zeros
    if n_positive == 0:
        raise Unavailable("all probes have the same activations: there is no geometry to measure")
    ranks = [n_zeros + (n_positive - 1) // 2, n_zeros + n_positive // 2]
    heads = np.searchsorted(np.cumsum(upper), ranks, side="right")
    lower = {int(head): np.zeros(1 << 16, np.int64) for head in heads}
    for block in blocks():
        bits = np.ascontiguousarray(block).view(np.uint32).ravel()
        for head, counts in lower.items():
            np.add(counts, np.bincount(bits[bits >> 16 == head] & 0xFFFF, minlength=1 << 16), out=counts)
    middle = []
    for head, rank in zip(heads.tolist(), ranks, strict=True):
        tail = np.searchsorted(np.cumsum(lower[head]), rank - int(upper[:head].sum()), side="right")
        middle.append(np.uint32(head << 16 | int(tail)).view(np.float32))
    return float(np.sqrt(np.array(middle, np.float64)).mean())


def bandwidth_floor(sigma: npt.NDArray[np.float32], mean_square: Callable[[], float]) -> np.float32:
    """Smallest bandwidth allowed: a share of the median positive one, or of the root of ``mean_square`` without any."""
    positive = sigma[sigma > 0]
    scale = np.median(positive) if len(positive) else np.sqrt(mean_square())
    if scale == 0:
        raise Unavailable(f"all {len(sigma)} probes have the same activations: there is no geometry to measure")
    return np.float32(SIGMA_FLOOR * scale)


def degrees_of_isolated(degrees: npt.NDArray[np.float64], isolated: npt.NDArray[np.intp]) -> None:
    """Give isolated probes the median degree of the others, where there are others."""
    linked = np.setdiff1d(np.arange(len(degrees)), isolated)
    if len(isolated) and len(linked):
        degrees[isolated] = np.median(degrees[linked])


def count_components(n: int, links: Callable[[list[int]], npt.NDArray[np.bool_]], *, at_once: int = 1) -> int:
    """Count the connected parts of a graph, breadth first; each probe's links are asked for once at most.

    Parameters
    ----------
    n
        Number of probes.
    links
        From b probes to (b, n) whom each is linked to.
    at_once
        How many probes to ask for together.
    """
    unseen = np.ones(n, np.bool_)
    n_components = 0
    while unseen.any():
        n_components += 1
        frontier = [int(np.argmax(unseen))]
        unseen[frontier] = False
        while frontier and unseen.any():
            some = frontier[-at_once:]
            del frontier[-at_once:]
            fresh = np.nonzero(unseen & links(some).any(axis=0))[0]
            unseen[fresh] = False
            frontier.extend(fresh.tolist())
    return n_components


class _Parts(NamedTuple):
    sigma: npt.NDArray[np.float32]
    density: npt.NDArray[np.float64]
    isolated: npt.NDArray[np.intp]
    floored: int


def _is_tensor(X: object) -> "TypeGuard[torch.Tensor]":
    """Tell a torch tensor without importing torch: nobody has one who has not."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(X, torch.Tensor)


def _bandwidths(squares: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.float32], int]:
    sigma = np.empty(len(squares), np.float32)
    for rows in row_blocks(len(squares)):
        sigma[rows] = np.partition(squares[rows], k, axis=1)[:, k]
    np.sqrt(sigma, out=sigma)
    floor = bandwidth_floor(sigma, lambda: float(squares.mean(dtype=np.float64)))
    floored = int(np.count_nonzero(sigma < floor))
    return np.maximum(sigma, floor, out=sigma), floored


def _median_bandwidths(squares: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    n = len(squares)
    median = median_distance(lambda: (squares[rows] for rows in row_blocks(n)))
    return np.full(n, np.sqrt(2) * median, np.float32)


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
    degrees_of_isolated(degrees, isolated)
    return degrees


def _mirror(matrix: npt.NDArray[np.float32]) -> None:
    """Copy the upper triangle to the lower, since rounding alone leaves them apart."""
    for rows in row_blocks(len(matrix)):
        matrix[rows.stop :, rows] = matrix[rows, rows.stop :].T
        corner = matrix[rows, rows]
        corner[...] = np.triu(corner) + np.triu(corner, 1).T


def count_parts(matrix: npt.NDArray[np.float32], degrees: npt.NDArray[np.float64], *, symmetric: bool) -> int:
    """Count the parts of the graph of links S_ij above float32 rounding / n."""
    n = len(matrix)
    threshold = np.finfo(np.float32).eps / n
    root = np.ones(n) if symmetric else np.sqrt(degrees)
    return count_components(n, lambda i: matrix[i] * root[i, None] > threshold * root, at_once=16)
