"""Where a model keeps its embedding, blocks and final norm, read from its structure so that any architecture works."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.stages import find_stages

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

__all__ = ["Anatomy", "find_anatomy"]

ALIASES = ("embed", "blocks", "final_norm")


@dataclass(frozen=True)
class Anatomy:
    """The parts of a model that have a name in every family."""

    base: nn.Module
    """The model without its head; every path is relative to it."""
    prefix: str
    """The name under which head models hold the base model, empty when there is none (``gpt_neox``)."""
    stack: nn.Module
    """What a replay calls: the base model, or the encoder of an encoder-decoder model."""
    paths: dict[nn.Module, str]
    """The path of every module of the stack, relative to the base model, in the order of registration."""
    aliases: dict[str, str]
    """``embed``, ``blocks`` and ``final_norm`` to their paths; one that the model has not is absent."""
    blocks: tuple[nn.Module, ...]
    """The blocks, first to last; without the alias ``blocks`` they stand in no list of their own."""
    shares_blocks: bool
    """Whether one block serves several layers (ALBERT), so that a block is no layer."""

    def name(self, path: str) -> str:
        """Return the name of ``path`` that is the same in every family, or ``path`` itself where there is none.

        Parameters
        ----------
        path
            The path of a module relative to the base model.
        """
        for alias in ("final_norm", "embed"):
            target = self.aliases.get(alias)
            if target is not None and (path == target or path.startswith(f"{target}.")):
                return alias + path.removeprefix(target)
        blocks = self.aliases.get("blocks")
        if blocks is None or not path.startswith(f"{blocks}."):
            return "blocks" if path == blocks else path
        index, dot, rest = path.removeprefix(f"{blocks}.").partition(".")
        return f"blocks[{index}]{dot}{rest}"

    def beyond(self, modules: Iterable[nn.Module]) -> tuple[str, ...]:
        """Return the paths of what a replay that ends with the last of ``modules`` does not come to.

        That is all outside the stack and, as blocks run in their order, the blocks behind and the final norm; without
        blocks, with shared ones, or with a module of which it is not known where it runs, only what is outside.

        Parameters
        ----------
        modules
            Modules of the stack.
        """
        paths = []
        owner, above = self.base, ""
        for name in filter(None, self.paths[self.stack].split(".")):
            beside = [_join(above, other) for other, child in owner.named_children() if child not in self.paths]
            above = _join(above, name)
            paths += [path for path in beside if path != above]
            owner = self.base.get_submodule(above)
        deepest = max(map(self._depth, modules), default=len(self.blocks))
        if self.shares_blocks or "blocks" not in self.aliases or deepest >= len(self.blocks):
            return tuple(paths)
        blocks, norm = self.aliases["blocks"], self.aliases.get("final_norm")
        paths += [self.paths[block] for block in self.blocks[deepest + 1 :] if block not in self.blocks[: deepest + 1]]
        if norm is not None and not norm.startswith(f"{blocks}."):
            paths.append(norm)
        return tuple(paths)

    def _depth(self, module: nn.Module) -> int:
        """Return the block that ``module`` is in: -1 for the embedding, behind the last for what may run at the end."""
        part = re.match(r"(embed|blocks\[(\d+)\])(?:\.|$)", self.name(self.paths[module]))
        if part is None:
            return len(self.blocks)
        return int(part[2]) if part[2] else -1

    def ties_last_state(self) -> bool:
        """Return whether transformers reports the last hidden state after the final norm; CLIP and its kin do not."""
        told = getattr(getattr(self.stack, "config", None), "tie_last_hidden_states", None)
        function: Any = type(self.stack).forward
        while told is None and function is not None:
            # transformers keeps the choice as an argument of the decorator ``capture_outputs`` and nowhere else
            told = inspect.getclosurevars(function).nonlocals.get("tie_last_hidden_states")
            function = getattr(function, "__wrapped__", None)
        return told is None or bool(told)


def find_anatomy(model: nn.Module) -> Anatomy:
    """Find the parts of ``model``.

    The blocks are the ``ModuleList`` as long as the configuration says or else the longest, never one inside another
    (those hold experts or sublayers); of equals the shallowest, then the first. A model without one has the blocks that
    `replay.stages.find_stages` finds: the stages of a ResNet, the layers of an MLP.

    The embedding is what holds the input embedding and not the blocks; in a model that is no transformers model and has
    no table of tokens, a part of it with ``embed`` in its name (``patch_embed``). The final norm is the norm beside the
    blocks or, in models that normalise after each sublayer (BERT), the last norm of the last block.

    Parameters
    ----------
    model
        A base model, a model with a head, or any other module; a skeleton on the meta device will do.
    """
    from torch import nn

    found = getattr(model, "base_model", model)
    base = found if isinstance(found, nn.Module) else model
    stack = _stack(base)
    top = next(path for path, module in base.named_modules() if module is stack)
    paths = {module: _join(top, path) for path, module in stack.named_modules()}
    aliases: dict[str, str] = {}
    blocks, listed = _find_blocks(stack, paths)
    wanted = _n_layers(stack)
    shares_blocks = bool(blocks) and wanted is not None and wanted != len(blocks)
    if listed is not None:
        aliases["blocks"] = listed
    embed = _find_embedding(stack, paths, listed, blocks)
    if embed is not None:
        aliases["embed"] = embed
    norm = None if listed is None or shares_blocks else _find_final_norm(base, paths, listed, blocks[-1])
    if norm is not None:
        aliases["final_norm"] = norm
    return Anatomy(
        base=base,
        prefix=str(getattr(model, "base_model_prefix", "")),
        stack=stack,
        paths=paths,
        aliases=aliases,
        blocks=blocks,
        shares_blocks=shares_blocks,
    )


def _join(parent: str, child: str) -> str:
    return f"{parent}.{child}" if parent and child else parent or child


def _stack(base: nn.Module) -> nn.Module:
    from torch import nn

    if not getattr(getattr(base, "config", None), "is_encoder_decoder", False):
        return base
    get_encoder = getattr(base, "get_encoder", None)
    encoder = get_encoder() if get_encoder is not None else None
    return encoder if isinstance(encoder, nn.Module) else base


def _n_layers(stack: nn.Module) -> int | None:
    n_layers = getattr(getattr(stack, "config", None), "num_hidden_layers", None)
    return n_layers if isinstance(n_layers, int) else None


def _find_blocks(stack: nn.Module, paths: dict[nn.Module, str]) -> tuple[tuple[nn.Module, ...], str | None]:
    from torch import nn
    from torch.nn.utils.parametrize import ParametrizationList

    own = dict(stack.named_children()).get("blocks")
    if isinstance(own, nn.ModuleList | nn.Sequential) and len(own):
        return tuple(own), paths[own]
    lists = {
        path: module
        for module, path in paths.items()
        if isinstance(module, nn.ModuleList) and len(module) and not isinstance(module, ParametrizationList)
    }
    outer = {path: found for path, found in lists.items() if not any(path.startswith(f"{other}.") for other in lists)}
    if not outer:
        stages, listed = find_stages(stack)
        return stages, None if listed is None else paths[listed]
    wanted = _n_layers(stack)
    path, best = max(outer.items(), key=lambda item: (len(item[1]) == wanted, len(item[1]), -item[0].count(".")))
    return tuple(best), path


def _find_embedding(
    stack: nn.Module, paths: dict[nn.Module, str], listed: str | None, blocks: tuple[nn.Module, ...]
) -> str | None:
    from torch import nn

    own = dict(stack.named_children()).get("embed")
    if own is not None:
        return paths[own]
    get_embedding = getattr(stack, "get_input_embeddings", None)
    try:
        embedding = get_embedding() if get_embedding is not None else None
    except (NotImplementedError, AttributeError):  # transformers' own answer where it cannot tell
        embedding = None
    if embedding not in paths:
        embedding = next((module for module in paths if isinstance(module, nn.Embedding)), None)
    if embedding is None and get_embedding is None:
        # convolutions that cut an image into patches, and the like
        named = [child for name, child in stack.named_children() if "embed" in name and child not in blocks]
        embedding = next((child for child in named if next(child.parameters(), None) is not None), None)
    if embedding is None:
        return None
    path = paths[embedding]
    parent = path.rpartition(".")[0]
    top = paths[stack]
    # BERT adds positions and normalises in a module around the table: that module is the embedding
    while parent not in ("", top) and not f"{listed}.".startswith(f"{parent}."):
        path, parent = parent, parent.rpartition(".")[0]
    return path


def _find_final_norm(base: nn.Module, paths: dict[nn.Module, str], blocks: str, last_block: nn.Module) -> str | None:
    from torch import nn

    owner = blocks
    while owner:
        owner = owner.rpartition(".")[0]
        children = dict(base.get_submodule(owner).named_children())
        if isinstance(children.get("final_norm"), nn.Module):
            return _join(owner, "final_norm")
        # ``LayerNorm`` in capitals is BERT's word for the norm of the embedding or of relative positions
        norms = [
            name
            for name, child in children.items()
            if child in paths and _is_norm(child) and "emb" not in name and name != "LayerNorm"
        ]
        if norms:
            return _join(owner, norms[-1])
    inside = [
        module
        for path, module in last_block.named_modules()
        if _is_norm(module) and not re.search(r"(^|\.)(self_)?att(entio)?n\.", path)
    ]
    return paths[inside[-1]] if inside else None


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower()
