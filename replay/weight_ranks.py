"""The stable rank of the weight matrices of a checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from store.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch

__all__ = ["RECIPE", "WEIGHTS", "WeightRank", "stable_rank", "weight_ranks"]

RECIPE = {"what": "weight ranks", "version": 1}
"""What the ranks are kept under; the version is raised when the numbers change."""

WEIGHTS = "weights"
"""Stands for a layer where they are kept: its number is how many matrices there are; ``weights:NAME`` is one of them,
with stable rank, rows and columns."""

_BLOCK_ENTRIES = 2**20
"""Entries of a block of rows."""


class WeightRank(NamedTuple):
    """The stable rank of one weight matrix, and its shape."""

    stable_rank: float
    """1 to the smaller side."""
    rows: int
    """Outputs of a linear layer or a convolution; tokens of an embedding."""
    columns: int
    """All its other axes, one after another."""


def weight_ranks(weights: Mapping[str, torch.Tensor]) -> dict[str, WeightRank | str]:
    """Return the stable rank of every weight matrix of a checkpoint.

    Parameters
    ----------
    weights
        The tensors of a checkpoint by name. A kernel of more axes is the matrix (first axis, all others), as a
        convolution applies it; what has one axis or none and what holds integers is left out. A tensor that stands
        under several names of one memory is measured once, under the first.

    Returns
    -------
    dict of str to WeightRank or str
        By the name of the tensor, in the order of the names; the reason where it is undefined.
    """
    ranks: dict[str, WeightRank | str] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name in sorted(weights):
        tensor = weights[name]
        if tensor.dim() < 2 or not tensor.is_floating_point():
            continue
        place = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in seen:
            continue
        seen.add(place)
        W = tensor.detach().reshape(len(tensor), -1) if tensor.numel() else tensor
        try:
            ranks[name] = WeightRank(stable_rank(W), len(W), W.shape[1])
        except Unavailable as error:
            ranks[name] = str(error)
    return ranks


def stable_rank(W: torch.Tensor) -> float:
    """Return ||W||_F^2 / s_1^2 of a matrix (Rudelson & Vershynin 2007), to 1e-6.

    Nothing is centred: the rows of a matrix of weights are no sample, and what acts on an input is W itself.

    s_1 comes from the Gram matrix of the smaller side, added up block by block: the products within a block in single
    precision (double for double), the sum over blocks in double. Its leading eigenvector v (Lanczos) then gives
    s_1^2 = ||W v||^2 in double precision, where an error of v counts only by its square.

    Parameters
    ----------
    W
        (row, column), any floating-point type.

    Raises
    ------
    InvalidInput
        If it is no matrix.
    Unavailable
        If it has no entries, only zeros, or entries that are not finite.
    """
    from scipy.linalg import eigh
    from scipy.sparse.linalg import eigsh

    if W.dim() != 2:
        raise InvalidInput(f"a stable rank is that of a matrix, and a tensor of shape {list(W.shape)} was given")
    if not W.numel():
        raise Unavailable(f"a matrix of shape {list(W.shape)} has no entries")
    largest = float(W.abs().max())
    if not np.isfinite(largest):
        raise Unavailable("the matrix holds entries that are not finite")
    if largest == 0:
        raise Unavailable("the matrix is all zeros, so its stable rank is undefined")
    tall = W if len(W) >= W.shape[1] else W.T
    scale = 2.0 ** -int(np.frexp(largest)[1])  # exact, and squares neither overflow nor vanish
    d = tall.shape[1]
    G = np.zeros((d, d))
    for block in _blocks(tall, scale):
        G += block.T @ block
    if d <= 32:
        v = eigh(G)[1][:, -1]
    else:
        start = np.random.default_rng(0).standard_normal(d)
        v = eigsh(G, k=1, which="LA", v0=start, tol=1e-8)[1][:, 0]
    total = along = 0.0
    for block in _blocks(tall, scale):
        double = block.astype(np.float64)
        total += float(np.vdot(double, double))
        along += float(np.sum((double @ v) ** 2))
    return max(1.0, total * float(v @ v) / along)


def _blocks(W: torch.Tensor, scale: float) -> Iterator[np.ndarray]:
    """Give W in blocks of rows, in single precision unless it is double."""
    import torch

    kind = torch.float64 if W.dtype == torch.float64 else torch.float32
    height = max(1, _BLOCK_ENTRIES // W.shape[1])
    for top in range(0, len(W), height):
        yield W[top : top + height].cpu().to(kind).numpy() * scale
