"""The stages of a model that keeps no list of blocks: ResNet's layers, residual blocks in a row, layers of an MLP."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["find_stages"]


def find_stages(model: nn.Module) -> tuple[tuple[nn.Module, ...], nn.Module | None]:
    """Find what serves as blocks in ``model``, and the list that holds them if there is one.

    The first of these that it has, the one nearest the root where there are several:

    1. two or more parts with numbers for names and parts of their own (``layer1`` to ``layer4`` of a ResNet);
    2. a ``Sequential`` of nothing but parts with parts of their own (residual or transformer blocks): a list of blocks;
    3. its linear, convolution and other layers with a weight matrix, those of a ``Sequential`` one by one unless it has
       only one: all the layers of an MLP, the last one too, for nothing tells a hidden layer from the output.

    Parameters
    ----------
    model
        A model or part of one.

    Returns
    -------
    tuple of torch.nn.Module
        In the order of registration, which need not be that of the forward.
    torch.nn.Module or None
        The ``Sequential`` of rule 2, unless it is ``model`` itself.
    """
    from torch import nn

    levels = list(_by_depth(model))
    for module in levels:
        numbered: dict[str, list[nn.Module]] = {}
        for name, child in module.named_children():
            match = re.fullmatch(r"(.*[^\d])\d+", name)
            if match is not None and _is_composite(child):
                numbered.setdefault(match[1], []).append(child)
        longest = max(numbered.values(), key=len, default=[])
        if len(longest) > 1:
            return tuple(longest), None
        if isinstance(module, nn.Sequential) and len(module) > 1 and all(map(_is_composite, module)):
            return tuple(module), None if module is model else module
    return tuple(_layers(model)), None


def _by_depth(model: nn.Module) -> Iterator[nn.Module]:
    level = [model]
    while level:
        yield from level
        level = [child for module in level for child in module.children()]


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    from torch import nn

    parts = _parts(module)
    if len(parts) == 1 and _is_composite(parts[0]):
        yield from _layers(parts[0])  # a wrapper around the whole
        return
    for part in parts:
        # a stage of one layer with its norm and nonlinearity is a layer
        row = isinstance(part, nn.Sequential) and len(_parts(part)) > 1
        yield from _layers(part) if row else [part]


def _parts(module: nn.Module) -> list[nn.Module]:
    """Return the parts with weights of a module; one that has a weight of its own is a layer and has none."""
    if any(weight.dim() > 1 for weight in module.parameters(recurse=False)):
        return []
    named = module.named_children()
    # torch.nn.utils.parametrize keeps there what a weight is made of
    return [child for name, child in named if name != "parametrizations" and _has_matrix(child)]


def _is_composite(module: nn.Module) -> bool:
    return bool(_parts(module))


def _has_matrix(module: nn.Module) -> bool:
    """Tell whether there is a weight matrix or kernel in ``module`` beside tables of embeddings."""
    from torch import nn

    return any(
        weight.dim() > 1
        for inner in module.modules()
        if not isinstance(inner, nn.Embedding)
        for weight in inner.parameters(recurse=False)
    )
