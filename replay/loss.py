"""The language-model loss of a model on a probe set."""

from __future__ import annotations

from inspect import signature
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from replay.batches import pad_batch, plan_batches
from store.errors import InvalidProbes, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

__all__ = ["LOGITS_BYTES", "LOSS", "RECIPE", "TokenLosses", "token_losses"]

RECIPE = {"what": "probe loss", "version": 1}
"""What losses are kept under; the version is raised when the numbers change."""

LOSS = "loss"
"""Stands for a layer where they are kept: the numbers are `TokenLosses`, one field after the other."""

LOGITS_BYTES = 128 * 2**20
"""Size of the float32 logits that may exist at once; the cross-entropy takes about twice that on top."""


class TokenLosses(NamedTuple):
    """What a model loses on each probe."""

    nll: NDArray[np.float64]
    """(probe,) negative log likelihood of its tokens behind the first, added up, in nats; 0 where there is only one."""
    n_tokens: NDArray[np.int64]
    """(probe,) tokens behind the first: what was predicted."""


def token_losses(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    *,
    batch_tokens: int = 512,
    logits_bytes: int = LOGITS_BYTES,
    device: str = "cpu",
    progress: Callable[[int], None] | None = None,
) -> TokenLosses:
    """Return -sum log p(token | tokens before it) of each probe, each text alone; padding never counts.

    The head is applied by the model's own forward, soft caps and scales included, and only to the positions that
    ``logits_to_keep`` names; where one text has more of them than fit, its forward is run again for the next.

    Parameters
    ----------
    model
        From `replay.models.load_language_model`, on ``device``.
    token_ids
        The tokens of each probe.
    batch_tokens
        The most tokens in a batch, padding included.
    logits_bytes
        The most memory that logits take; those of one position are the least there can be.
    device
        Where the model is.
    progress
        Called after each batch with the number of probes in it.

    Raises
    ------
    InvalidProbes
        No probes at all.
    Unavailable
        A model whose predictions see what they predict, or without ``logits_to_keep``; no probe of two tokens; a loss
        that is not finite.
    """
    import torch

    if not token_ids:
        raise InvalidProbes("no probes to replay")
    if "logits_to_keep" not in signature(model.forward).parameters:
        raise Unavailable(f"the forward of {type(model).__name__} takes no logits_to_keep, so logits may fill memory")
    n_tokens = np.array([len(tokens) - 1 for tokens in token_ids], np.int64)
    if not n_tokens.any():
        raise Unavailable("every probe is one token, so there is no next token to predict")
    at_once = max(1, logits_bytes // (4 * model.config.get_text_config().vocab_size))
    nll = np.zeros(len(token_ids))
    with torch.inference_mode():
        _check_causal(model, next(list(tokens[:2]) for tokens in token_ids if len(tokens) > 1), device)
        for indices in plan_batches([len(tokens) for tokens in token_ids], min(batch_tokens, at_once)):
            nll[indices] = _batch_losses(model, [token_ids[i] for i in indices], at_once, device)
            if progress is not None:
                progress(len(indices))
    if not np.isfinite(nll).all():
        where = int(np.flatnonzero(~np.isfinite(nll))[0])
        raise Unavailable(f"the loss is not finite, first on probe {where}")
    return TokenLosses(nll, n_tokens)


def _batch_losses(
    model: PreTrainedModel, token_ids: Sequence[Sequence[int]], at_once: int, device: str
) -> NDArray[np.float64]:
    """Return the negative log likelihood of each text of one batch, of which `at_once` positions fit."""
    import torch
    from torch.nn.functional import cross_entropy

    batch = pad_batch(token_ids, pad_token_id=0, padding_side="right")
    targets = batch.input_ids[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, -100)
    total = np.zeros(len(token_ids))
    for positions in torch.split(torch.arange(targets.shape[1]), max(1, at_once // len(token_ids))):
        logits = _logits(model, batch.input_ids, positions, device)
        some = targets[:, positions].to(device)
        losses = cross_entropy(logits.flatten(0, 1).float(), some.flatten(), ignore_index=-100, reduction="none")
        total += losses.view_as(some).double().sum(dim=1).cpu().numpy()
    return total


def _logits(model: PreTrainedModel, input_ids: torch.Tensor, positions: torch.Tensor, device: str) -> torch.Tensor:
    """Return (text, position, token); texts are padded on the right, where no causal model looks."""
    inputs = {"use_cache": False} if "use_cache" in signature(model.forward).parameters else {}
    logits: torch.Tensor = model(input_ids.to(device), logits_to_keep=positions.to(device), **inputs).logits
    return logits


def _check_causal(model: PreTrainedModel, tokens: list[int], device: str) -> None:
    """Refuse a model that looks at a token before predicting it."""
    import torch

    other = 0 if tokens[1] else 1
    given = torch.tensor([tokens, [tokens[0], other]])
    one, two = _logits(model, given, torch.tensor([0]), device).float()
    if float((one - two).abs().max()) > 1e-3 * float(one.abs().max()):  # never of NaN, which has a reason of its own
        raise Unavailable(f"{type(model).__name__} sees the tokens that it predicts: it is no causal language model")
