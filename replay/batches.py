"""Probes into batches whose composition depends on nothing but their lengths, or the shape of arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from store.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

__all__ = ["Batch", "pad_batch", "plan_array_batches", "plan_batches"]

NUMBERS_PER_TOKEN = 1024
"""Numbers of an array that count for one token: about what a block holds of one."""


class Batch(NamedTuple):
    """One padded batch."""

    input_ids: torch.Tensor
    """(probe, token), int64."""
    attention_mask: torch.Tensor
    """(probe, token), int64: 1 for a token, 0 for padding."""


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group probes of similar length.

    Equal lengths give equal batches whatever the model, so that revisions can be compared bit by bit.

    Parameters
    ----------
    lengths
        Tokens of each probe.
    batch_tokens
        The most tokens in a batch, padding included; a longer probe stands alone.

    Returns
    -------
    list of list of int
        Indices of probes, shortest first; equals keep their order.

    Raises
    ------
    InvalidInput
        Fewer than one token a batch, or a probe without tokens.
    """
    if batch_tokens < 1:
        raise InvalidInput(f"batch_tokens must be at least 1, not {batch_tokens}")
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if lengths[index] < 1:
            raise InvalidInput(f"probe {index} has no tokens")
        if not batches or (len(batches[-1]) + 1) * lengths[index] > batch_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def plan_array_batches(values: np.ndarray, batch_tokens: int) -> list[list[int]]:
    """Group arrays in their order, at most ``batch_tokens`` in a batch and at least one.

    Fewer are taken where that would be more than `NUMBERS_PER_TOKEN` times as many numbers or, of integers, which may
    be ids that each take the room of a token, more than ``batch_tokens`` numbers.

    Parameters
    ----------
    values
        (probe, …).
    batch_tokens
        The size of a batch, in what text would have as tokens.

    Returns
    -------
    list of list of int
        Indices of probes; all batches but the last are of one size.

    Raises
    ------
    InvalidInput
        Fewer than one token a batch.
    """
    if batch_tokens < 1:
        raise InvalidInput(f"batch_tokens must be at least 1, not {batch_tokens}")
    room = batch_tokens * (NUMBERS_PER_TOKEN if values.dtype.kind == "f" else 1)
    size = max(1, min(batch_tokens, room // values[0].size))
    return [list(range(first, min(first + size, len(values)))) for first in range(0, len(values), size)]


def pad_batch(token_ids: Sequence[Sequence[int]], *, pad_token_id: int, padding_side: str) -> Batch:
    """Pad probes to the longest of them.

    Parameters
    ----------
    token_ids
        The tokens of each probe.
    pad_token_id
        What to pad with; any token of the vocabulary will do, for no reduction sees it.
    padding_side
        ``right`` or ``left``.

    Raises
    ------
    InvalidInput
        Another side.
    """
    import torch

    if padding_side not in ("right", "left"):
        raise InvalidInput(f"unknown padding side {padding_side!r}: choose right, left")
    longest = max(map(len, token_ids))
    input_ids = torch.full((len(token_ids), longest), pad_token_id, dtype=torch.int64)
    attention_mask = torch.zeros_like(input_ids)
    for row, tokens in enumerate(token_ids):
        where = slice(0, len(tokens)) if padding_side == "right" else slice(longest - len(tokens), longest)
        input_ids[row, where] = torch.tensor(tokens, dtype=torch.int64)
        attention_mask[row, where] = 1
    return Batch(input_ids, attention_mask)
