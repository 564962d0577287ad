"""Reductions to one row a probe: over tokens by the attention mask, or over the places of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from store.errors import InvalidInput, InvalidLayer

if TYPE_CHECKING:
    import torch

__all__ = ["check_mask", "pool"]


def check_mask(mask: torch.Tensor) -> torch.Tensor:
    """Return ``mask`` as (text, token) booleans, true where a token counts.

    Raises
    ------
    InvalidInput
        A mask of other than two dimensions, or a text without a single token that counts.
    """
    if mask.dim() != 2:
        raise InvalidInput(
            f"pooling needs an attention mask of shape (text, token), not {tuple(mask.shape)}: "
            "give one to capture(model, attention_mask=...)"
        )
    kept = mask != 0
    empty = (~kept.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise InvalidInput(f"the attention mask leaves no token in row {', '.join(map(str, empty[:5]))} of the batch")
    return kept


def pool(values: torch.Tensor, mask: torch.Tensor | None, *, reduce: str) -> torch.Tensor:
    """Reduce activations over their tokens or places, in at least float32.

    Parameters
    ----------
    values
        (text, token, feature), further dimensions being joined to the features where there is a mask;
        (text × token, feature); (probe, channel, place, ...), the channels in the second dimension; or
        (probe, feature), which is copied as it is. One text stands for all (a table of positions).
    mask
        (text, token) booleans from `check_mask`, or None if every token counts.
    reduce
        ``mean``, ``last_token``, ``first_token``: (text, feature); ``all``: (token, feature), texts one after another,
        without the tokens that do not count; ``spatial_mean``: (probe, channel), ``flatten``: (probe, channel × place).

    Returns
    -------
    torch.Tensor
        A copy that shares no memory with ``values``.

    Raises
    ------
    InvalidLayer
        Values that are no activations (integers, one dimension) or do not fit the mask; a reduction over tokens of
        more than three dimensions without a mask, or one over places with a mask.
    """
    import torch

    if reduce in ("flatten", "spatial_mean"):
        return _over_places(values, mask, reduce)
    if mask is None and values.dim() > 3:
        raise InvalidLayer(
            f"gives activations of shape {tuple(values.shape)}, and {reduce} is over tokens: choose spatial_mean (one "
            "value a channel) or flatten (every place), behind the layer or with --reduce"
        )
    values = _by_text(values, mask)
    if values.dim() == 2:
        return values.clone()
    if mask is None:
        mask = torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
    mask = mask.to(values.device)
    if values.shape[0] == 1:
        values = values.expand(len(mask), -1, -1)
    if values.shape[:2] != mask.shape:
        raise InvalidLayer(
            f"gives activations of shape {tuple(values.shape)}, which do not fit the attention mask of shape "
            f"{tuple(mask.shape)} (text, token)"
        )
    if reduce == "all":
        return values[mask]
    if reduce == "mean":
        # not a product with the mask: a pad may hold NaN or inf
        kept = torch.where(mask.unsqueeze(2), values, torch.zeros((), dtype=values.dtype, device=values.device))
        return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)
    position = torch.arange(mask.shape[1], device=mask.device)
    if reduce == "last_token":
        index = torch.where(mask, position, -1).amax(dim=1)
    else:
        index = torch.where(mask, position, mask.shape[1]).amin(dim=1)
    return values[torch.arange(len(mask), device=mask.device), index]


def _over_places(values: torch.Tensor, mask: torch.Tensor | None, reduce: str) -> torch.Tensor:
    values = _in_full_precision(values)
    if values.dim() > 2 and mask is not None:
        raise InvalidLayer(
            f"gives {tuple(values.shape)}, one row a token, and {reduce} is for images: choose mean, last_token, "
            "first_token or all"
        )
    if reduce == "spatial_mean" and values.dim() > 2:
        return values.flatten(2).mean(dim=2)
    return values.flatten(1).clone()


def _by_text(values: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return (text, token, feature), or (text, feature) of values that have no tokens."""
    values = _in_full_precision(values)
    if values.dim() == 2 and mask is not None and values.shape[0] == mask.numel() != mask.shape[0]:
        return values.reshape(*mask.shape, -1)
    return values if values.dim() == 2 else values.flatten(2)


def _in_full_precision(values: torch.Tensor) -> torch.Tensor:
    import torch

    if not values.is_floating_point() or values.dim() < 2:
        raise InvalidLayer(f"gives {values.dtype} of shape {tuple(values.shape)}, which are no activations of tokens")
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
