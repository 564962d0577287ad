"""Weights moved within the rounding of their stored precision: what a checkpoint may as well have been."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["SEED", "move_within_rounding", "moved_dtype"]

SEED = 1
"""Of the moved weights that are replayed; another one where the recipe changes, so that old and new never mix."""


def moved_dtype(dtype: str) -> str:
    """Return what stands for the precision of a replay of moved weights, so that no listing takes it for a plain one.

    Parameters
    ----------
    dtype
        Precision of the plain replay.
    """
    return f"{dtype}+rounding{SEED}"


def move_within_rounding(weights: Mapping[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
    """Return the weights with every stored value moved within what its own rounding has lost.

    Parameters
    ----------
    weights
        Tensors by name, on the CPU, as they are stored.
    seed
        Where chance comes from. The move of a tensor hangs on seed, name and values alone: what else is moved, and in
        which order, changes no bit of it.

    Returns
    -------
    dict of str to torch.Tensor
        float16 and bfloat16 tensors as float32 in which each value is anywhere among the numbers that round to it, with
        equal probability: half a unit in the last place to either side, and half of that towards zero from a power of
        two. For float32 and wider tensors nothing wider is replayed: each value is the next one up or down, with a
        probability of 1/24 each, which has the variance of the same move, a twelfth of a squared unit. Integers,
        infinities and NaN stay.
    """
    return {name: _moved(tensor, f"{seed}|{name}") for name, tensor in weights.items()}


def _moved(tensor: torch.Tensor, stream: str) -> torch.Tensor:
    import torch

    if not tensor.is_floating_point():
        return tensor
    number = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:8], "little", signed=True)
    generator = torch.Generator().manual_seed(number)
    if tensor.element_size() > 2:
        draw = torch.rand(tensor.shape, generator=generator)
        away = torch.where(draw < 1 / 24, -torch.inf, torch.inf).to(tensor.dtype)
        moved = torch.where((draw < 1 / 24) | (draw >= 23 / 24), torch.nextafter(tensor, away), tensor)
        return torch.where(moved.isfinite() & tensor.isfinite(), moved, tensor)
    kind = torch.finfo(tensor.dtype)
    wide = tensor.float()
    fraction, exponent = torch.frexp(wide)
    smallest = kind.tiny * kind.eps  # distance between subnormals
    unit = torch.ldexp(torch.full_like(wide, kind.eps), exponent - 1).clamp(min=smallest)
    unit = torch.where(wide == 0, smallest, unit)
    move = (torch.rand(tensor.shape, generator=generator) - 0.5) * unit
    closer = (fraction.abs() == 0.5) & (unit > smallest) & (move.sign() == -wide.sign())
    moved = wide + torch.where(closer, move / 2, move)
    return torch.where(wide.isfinite(), moved, wide)
