"""The operator of a gauge in torch: on the device of the activations, and differentiable with respect to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from replay.geometry.gauge import SIGMA_FLOOR, WEAKEST_LINK, Kind, Operator, Quality, count_components
from replay.geometry.pairwise import BLOCK, FLOAT32_TRUST, FLOAT64_TRUST
from store.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from replay.geometry.gauge import DiffusionGauge

__all__ = ["TorchOperator", "torch_operator"]

MANY_PAIRS = 0.02
"""Share of pairs to compute again above which float32 activations are better served by one float64 product."""


@dataclass(frozen=True, eq=False)
class TorchOperator:
    """A diffusion operator over probes as torch tensors, connected to the activations it was made from."""

    matrix: Tensor
    """(n, n) float32 or float64, as the activations are: P with rows that sum to one, or S, symmetric to the bit."""
    kind: Kind
    """``markov`` for P, ``symmetric`` for S."""
    degrees: Tensor
    """(n,) row sums D of the kernel after density correction, of the same type."""
    quality: Quality
    """Duplicates, isolated probes and disconnected parts."""
    reversible: bool = True
    """Whether D_i P_ij = D_j P_ji, as every gauge makes it."""

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.matrix)

    def numpy(self) -> Operator:
        """Copy to an `Operator` in memory, cut off from the gradient."""
        matrix, degrees = (tensor.detach().cpu().numpy() for tensor in (self.matrix, self.degrees))
        return Operator(matrix.astype(np.float32), self.kind, degrees.astype(np.float64), self.quality)


def torch_operator(gauge: "DiffusionGauge", X: Tensor) -> TorchOperator:
    """Compute the operator of one set of activations where they are, by the definition and rules of `DiffusionGauge`.

    First and second derivatives with respect to ``X`` exist wherever the definition is smooth. Where two neighbours are
    equally far, duplicates meet, or a rule sets in, they are those of one side; they are always finite. Isolated links,
    and which probes are isolated, are constants.

    Parameters
    ----------
    gauge
        The recipe.
    X
        (n, d) finite real numbers on any device that has float64. float32 and float64 stay what they are, half
        precision is computed as float32, integers as float32 or better. Autocast has no effect here.

    Returns
    -------
    TorchOperator
        Relative Frobenius error against float64 at most 5e-6 in float32, 1e-12 in float64; gradients to 1e-5 in
        float32. The same on every call on a CPU; on a GPU, gradients of near-duplicates are summed in any order.

    Raises
    ------
    InvalidInput
        If ``X`` is not a finite real matrix.
    Unavailable
        If there are fewer than 3 probes, all activations are equal, or the cosine of a zero vector is asked for.
    """
    X = _checked_tensor(X)
    with torch.autocast(X.device.type, enabled=False):
        squares, duplicates = _squared_distances(_unit_rows(X) if gauge.metric == "cosine" else X, X.dtype)
        if gauge.knn is None:
            sigma, floored = (2**0.5 * _median_distance(squares)).expand(len(X)), 0
        else:
            sigma, floored = _bandwidths(squares, min(gauge.knn, len(X) - 1))
        links, isolated = _log_kernel(squares, sigma, keep_diagonal=gauge.diagonal == "keep")
        correction = gauge.alpha * links.logsumexp(dim=1)
        corrected = links - correction
        log_degrees = corrected.logsumexp(dim=1) - correction
        if gauge.symmetric:
            half = correction + log_degrees / 2
            S = (links - half - half[:, None]).exp()
            matrix = (S + S.mT) / 2  # rounding alone leaves the triangles apart
        else:
            matrix = corrected.softmax(dim=1)
        degrees = _degrees(log_degrees, isolated)
        quality = Quality(
            n_components=_count_parts(matrix.detach(), degrees.detach(), symmetric=gauge.symmetric),
            isolated=tuple(isolated.nonzero()[:, 0].tolist()),
            duplicates=duplicates,
            floored=floored,
        )
    return TorchOperator(matrix, "symmetric" if gauge.symmetric else "markov", degrees, quality)


class _Gram(torch.autograd.Function):
    """Y Yᵀ, whose gradient is one product instead of two."""

    @staticmethod
    def forward(ctx: Any, Y: Tensor) -> Tensor:
        ctx.save_for_backward(Y)
        return Y @ Y.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (Y,) = ctx.saved_tensors
        with torch.autocast(Y.device.type, enabled=False):
            product: Tensor = (gradient + gradient.mT) @ Y
        return product


class _PairSquares(torch.autograd.Function):
    """|x_i - x_j|² of single pairs, a few at a time: kept for the gradient, their differences would take n²d."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, i: Tensor, j: Tensor) -> Tensor:
        ctx.save_for_backward(X, i, j)
        return torch.cat([(X[a] - X[b]).square().sum(dim=1) for a, b in _pieces(X, i, j)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _PairPull.apply(*ctx.saved_tensors, gradient), None, None  # type: ignore[no-untyped-call]


class _PairPull(torch.autograd.Function):
    """The gradient of `_PairSquares`: Σ 2 g (x_i - x_j) at i and its opposite at j; linear in X and in g."""

    @staticmethod
    def forward(ctx: Any, X: Tensor, i: Tensor, j: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(X, i, j, gradient)
        pull = torch.zeros_like(X)
        for a, b, g in _pieces(X, i, j, 2 * gradient):
            pairs = g[:, None] * (X[a] - X[b])
            pull.index_add_(0, a, pairs).index_add_(0, b, pairs, alpha=-1)
        return pull

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None, Tensor]:
        X, i, j, gradient = ctx.saved_tensors
        along = [2 * ((X[a] - X[b]) * (outer[a] - outer[b])).sum(dim=1) for a, b in _pieces(X, i, j)]
        pull: Tensor = _PairPull.apply(outer, i, j, gradient)  # type: ignore[no-untyped-call]
        return pull, None, None, torch.cat(along)


def _pieces(X: Tensor, *of_pairs: Tensor) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(torch.split(tensor, max(1, BLOCK // X.shape[1])) for tensor in of_pairs), strict=True)


def _checked_tensor(X: Tensor) -> Tensor:
    if X.ndim != 2 or X.shape[1] == 0:
        raise InvalidInput(f"activations must have shape (probe, feature), not {tuple(X.shape)}")
    if X.dtype == torch.bool or X.is_complex():
        raise InvalidInput(f"activations must be real numbers, not {X.dtype}")
    if X.dtype not in (torch.float32, torch.float64):
        X = X.to(torch.float32 if X.dtype.itemsize < 4 else torch.float64)
    finite = X.detach().isfinite().all(dim=1)
    if not finite.all():
        rows = (~finite).nonzero()[:, 0]
        raise InvalidInput(f"activations must be finite: {len(rows)} of {len(X)} probes are not, first probe {rows[0]}")
    if len(X) < 3:
        raise Unavailable(f"a diffusion operator needs at least 3 probes, and there are {len(X)}")
    return X


def _unit_rows(X: Tensor) -> Tensor:
    largest = X.detach().abs().amax(dim=1, keepdim=True)
    if not largest.all():
        rows = (largest[:, 0] == 0).nonzero()[:, 0]
        raise Unavailable(f"the cosine metric is undefined for zero activations: {len(rows)} probes, first {rows[0]}")
    Y = X.double() / largest  # first by the largest, so that no square overflows
    return Y / Y.square().sum(dim=1, keepdim=True).sqrt()


def _squared_distances(rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Squared distances in a unit of their own, zero between equal rows, and how many rows equal an earlier one.

    Centre and unit are constants to the gradient, since no distance depends on the one and no operator on the other.
    Pairs that the product leaves too few bits are put in from differences: so are then their gradients.
    """
    centre = rows.detach().mean(dim=0, dtype=torch.float64)
    extent = (rows.detach() - centre).abs().max()
    unit = float(2.0 ** extent.log2().floor()) if extent > 0 else 1.0
    rows, centre = rows / unit, centre / unit
    squares, i, j = _from_product((rows - centre.to(rows.dtype)).to(dtype), FLOAT32_TRUST)
    if dtype == torch.float32 and (len(i) > MANY_PAIRS * squares.numel() or _products_are_rounded()):
        squares, i, j = _from_product(rows.double() - centre, FLOAT64_TRUST)
    squares = squares.to(dtype).fill_diagonal_(0)
    if not len(i):
        return squares, 0
    near = _PairSquares.apply(rows, i, j).to(dtype)  # type: ignore[no-untyped-call]
    squares = squares.index_put((torch.cat([i, j]), torch.cat([j, i])), torch.cat([near, near]))
    return squares, len(torch.unique(j[near == 0]))


def _products_are_rounded() -> bool:
    """Whether torch was told to multiply float32 in TF32 or bfloat16."""
    return torch.get_float32_matmul_precision() != "highest"


def _from_product(Y: Tensor, trust: float) -> tuple[Tensor, Tensor, Tensor]:
    """Squared distances from one product, and the pairs i < j nearer than ``trust`` of their squared norms."""
    norms = Y.square().sum(dim=1)
    sums = norms[:, None] + norms
    gram: Tensor = _Gram.apply(Y)  # type: ignore[no-untyped-call]
    squares = sums - 2 * gram
    i, j = (squares.detach() < trust * sums.detach()).nonzero(as_tuple=True)
    upper = i < j
    return squares, i[upper], j[upper]


def _bandwidths(squares: Tensor, k: int) -> tuple[Tensor, int]:
    fixed = squares.detach()
    if fixed.device.type == "cpu":  # numpy finds them in a third of the time
        neighbour = torch.from_numpy(np.argpartition(fixed.numpy(), k, axis=1)[:, k])
    else:
        neighbour = fixed.kthvalue(k + 1, dim=1).indices
    kth = squares.gather(1, neighbour[:, None])[:, 0]
    positive = kth > 0
    sigma = torch.where(positive, kth, 1.0).sqrt() * positive  # the root has no derivative at 0
    if positive.any():
        scale = _median(sigma[positive])
    elif fixed.any():
        scale = squares.mean().sqrt()
    else:
        raise Unavailable(f"all {len(squares)} probes have the same activations: there is no geometry to measure")
    floor = SIGMA_FLOOR * scale
    return torch.maximum(sigma, floor), int((sigma < floor).sum())


def _median_distance(squares: Tensor) -> Tensor:
    """Median of the positive distances; each pair is there twice, which moves no median."""
    fixed = squares.detach().flatten()
    n_positive = int((fixed > 0).sum())
    if n_positive == 0:
        raise Unavailable(f"all {len(squares)} probes have the same activations: there is no geometry to measure")
    ordered = torch.where(fixed > 0, fixed, torch.inf)
    ranks = sorted({(n_positive + 1) // 2, n_positive // 2 + 1})
    middle = torch.stack([ordered.kthvalue(rank).indices for rank in ranks])
    return squares.flatten()[middle].sqrt().mean()


def _log_kernel(squares: Tensor, sigma: Tensor, *, keep_diagonal: bool) -> tuple[Tensor, Tensor]:
    """Logarithm of the kernel, -inf where a link is cut, and which probes are isolated.

    In logarithms no derivative overflows, however faint a probe's links.
    """
    inverse = 1 / sigma
    links = -(squares * inverse * inverse[:, None])
    itself = torch.eye(len(links), dtype=torch.bool, device=links.device)
    links = links.masked_fill(itself, -torch.inf)
    isolated = links.detach().amax(dim=1) < np.log(WEAKEST_LINK)
    if isolated.any():
        links = links.masked_fill(isolated | isolated[:, None], -torch.inf)
    if keep_diagonal or isolated.any():
        links = links.masked_fill(itself & (isolated | keep_diagonal), 0.0)
    return links, isolated


def _degrees(log_degrees: Tensor, isolated: Tensor) -> Tensor:
    degrees = log_degrees.exp()
    if isolated.any() and not isolated.all():
        degrees = torch.where(isolated, _median(degrees[~isolated]), degrees)
    return degrees


def _median(values: Tensor) -> Tensor:
    ordered = values.sort().values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _count_parts(matrix: Tensor, degrees: Tensor, *, symmetric: bool) -> int:
    """Count the parts of the graph of links S_ij above float32 rounding / n, bringing over only the rows asked for."""
    threshold = float(np.finfo(np.float32).eps) / len(matrix)
    root = torch.ones_like(degrees) if symmetric else degrees.sqrt()
    return count_components(len(matrix), lambda i: (matrix[i] * root[i, None] > threshold * root).cpu().numpy())
