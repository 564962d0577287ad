"""Layers by name: ``LayerSpec``, the paths it takes, and their expansion against a model."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from replay.anatomy import Anatomy, find_anatomy
from store.errors import InvalidLayer, UnknownLayer

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

__all__ = ["VERSION", "LayerSpec", "ResolvedLayer", "Site", "expand_layers", "find_sites", "n_blocks", "resolve_layer"]

POINTS = ("output", "input", "hidden_states")
REDUCTIONS = ("mean", "last_token", "first_token", "all", "flatten", "spatial_mean")
DEFAULT_LAYERS = ("blocks[*]",)
VERSION = 1
"""Part of the key under which resolved layers are remembered: raised whenever an expression may come to mean others."""
_REDUCTION_ALIASES = {"cls": "first_token", "none": "all"}
_PART = re.compile(r"([^\s.:\[\]]+)((?:\[[^\s.\[\]]+\])*)")
_INDEX = re.compile(r"\*|-?\d+|(-?\d+)?:(-?\d+)?(:-?[1-9]\d*)?")

_Step = str | int | slice
_Node = tuple[str, "nn.Module"]


@dataclass(frozen=True)
class LayerSpec:
    """What is captured: a module, a point of it, and the reduction to one row a probe; written ``path:point:reduce``.

    Raises
    ------
    InvalidLayer
        A path that cannot be read, an unknown point or reduction.
    """

    path: str
    """The module: ``gpt_neox.layers[-1]``, ``encoder.layer.0``, one of ``embed``, ``blocks[i]``, ``final_norm``.

    In a model without a list of blocks ``blocks[i]`` is another way to write the path of the i-th, such as ``fc1``."""
    extraction_point: str = "output"
    """``output`` (what it returns), ``input`` (its first tensor), ``hidden_states`` (what transformers reports)."""
    reduce: str = "mean"
    """Over tokens: ``mean``, ``last_token``, ``first_token`` (or ``cls``), ``all`` (or ``none``; one row a token).

    Of images and signals, (probe, channel, ...): ``spatial_mean`` over the places of each channel, ``flatten`` keeps
    all of them. What has one row a probe already stays as it is."""

    def __post_init__(self) -> None:
        """Refuse what cannot be read; replace the aliases of reductions."""
        _steps(self.path)
        object.__setattr__(self, "reduce", _REDUCTION_ALIASES.get(self.reduce, self.reduce))
        _check_word("extraction point", self.extraction_point, POINTS, self)
        _check_word("reduction", self.reduce, REDUCTIONS, self)

    @classmethod
    def parse(cls, text: str, *, reduce: str = "mean") -> LayerSpec:
        """Read ``path``, ``path:point`` or ``path:point:reduce``.

        Parameters
        ----------
        text
            The expression; a colon within brackets belongs to a slice of the path.
        reduce
            The reduction where the expression names none.

        Raises
        ------
        InvalidLayer
            More than three parts, an empty part, or a part that cannot be read.
        """
        parts = re.split(r":(?![^\[\]]*\])", text.strip())
        if len(parts) > 3 or not all(parts):
            raise InvalidLayer(
                f"cannot read the layer {text!r}: write path:point:reduce, such as blocks[-1]:output:mean"
            )
        point = parts[1] if len(parts) > 1 else "output"
        return cls(parts[0], point, parts[2] if len(parts) > 2 else reduce)

    def __str__(self) -> str:
        """Return ``path:point:reduce``."""
        return f"{self.path}:{self.extraction_point}:{self.reduce}"


@dataclass(frozen=True)
class ResolvedLayer:
    """A layer that a model has, under the name that every revision and family shares."""

    spec: LayerSpec
    """The canonical name: aliases wherever there is one, indices from the front."""
    module: str
    """The path of the module in the base model."""


@dataclass(frozen=True)
class Site:
    """Where a hook stands and which tensor it takes."""

    module: nn.Module
    """The module that is hooked."""
    tensor: Literal["input", "output", "last_state", "states"]
    """Its first argument, its first returned tensor, its ``last_hidden_state``, the last of its ``hidden_states``."""


def n_blocks(model: nn.Module) -> int:
    """Return the number of blocks, those of the encoder for an encoder-decoder model; 0 where there are none."""
    return len(find_anatomy(model).blocks)


def resolve_layer(model: nn.Module, path: str) -> nn.Module:
    """Return the one module that ``path`` names.

    Parameters
    ----------
    model
        A base model or one with a head; a path written for the one resolves on the other.
    path
        ``a.b[-1].c``, ``a.0.b``, ``a[0][1]``, or an alias and what is below it (``blocks[-1].mlp``).

    Raises
    ------
    InvalidLayer
        A path that cannot be read, or one with wildcards or slices.
    UnknownLayer
        The model has no such module; the text lists the nearest paths.
    """
    if _is_pattern(_steps(path)):
        raise InvalidLayer(
            f"the layer path {path!r} names several modules where one is needed: write it without * or slices"
        )
    return _walk(model, find_anatomy(model), path)[0][1]


def expand_layers(
    model: nn.Module, specs: Sequence[str | LayerSpec] = DEFAULT_LAYERS, *, reduce: str = "mean"
) -> list[ResolvedLayer]:
    """List the layers that ``specs`` select, each once, in the order of the model.

    Wildcards (``blocks[*].mlp``, ``layers.*.attention``, ``encoder.*``) stand for one step of a path and pass over
    modules that lack the rest of it; slices are Python's (``blocks[2:5]``).

    Parameters
    ----------
    model
        The model, or its skeleton on the meta device.
    specs
        Expressions or specs, all blocks if there are none.
    reduce
        The reduction of expressions that name none.

    Raises
    ------
    InvalidLayer
        An expression that cannot be read; a list of modules, which is never called; a module of a head or of a decoder,
        which is never run; ``hidden_states`` of anything but ``embed`` and ``blocks[i]``.
    UnknownLayer
        An expression that selects nothing; the text lists the nearest paths.
    """
    from torch import nn

    anatomy = find_anatomy(model)
    found: dict[ResolvedLayer, float] = {}
    order = _order(anatomy)
    for given in specs or DEFAULT_LAYERS:
        spec = LayerSpec.parse(given, reduce=reduce) if isinstance(given, str) else given
        nodes = _walk(model, anatomy, spec.path)
        if _is_pattern(_steps(spec.path)):
            called = [node for node in nodes if not isinstance(node[1], nn.ModuleList | nn.ModuleDict)]
            nodes = called or nodes
        for path, module in nodes:
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                raise InvalidLayer(
                    f"{path!r} is a list of {len(module)} modules and never called: write {spec.path}[*]"
                )
            if module not in anatomy.paths:
                run = "the base model" if anatomy.stack is anatomy.base else "the encoder"
                raise InvalidLayer(f"{path!r} is outside {run} of {type(model).__name__}, and only that is replayed")
            real = anatomy.paths[module]
            canonical = LayerSpec(anatomy.name(real), spec.extraction_point, spec.reduce)
            if spec.extraction_point == "hidden_states" and _hidden_state(anatomy, module, canonical) is None:
                raise InvalidLayer(
                    f"{canonical.path!r} has no hidden_states in transformers, only embed and blocks[i] have: "
                    f"write {canonical.path}:output:{canonical.reduce}"
                )
            found[ResolvedLayer(canonical, real)] = order[module]
    return sorted(found, key=found.__getitem__)


def find_sites(model: nn.Module, specs: Iterable[LayerSpec]) -> dict[LayerSpec, Site]:
    """Return where each of ``specs`` is captured in ``model``.

    ``hidden_states`` is what transformers lists under ``output_hidden_states=True``: before the first block for
    ``embed``, after block i for ``blocks[i]``, which for the last block of most decoders means after the final norm.
    For any other module it is the last of the ``hidden_states`` in what the module returns.

    Raises
    ------
    InvalidLayer
        A path of several modules or of a list of modules; hidden states of a model whose layers share their blocks.
    UnknownLayer
        The model has no such module.
    """
    anatomy = find_anatomy(model)
    return {spec: _find_site(model, anatomy, spec) for spec in specs}


def _find_site(model: nn.Module, anatomy: Anatomy, spec: LayerSpec) -> Site:
    from torch import nn

    module = _resolve(model, anatomy, spec.path)
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        raise InvalidLayer(f"{spec.path!r} is a list of {len(module)} modules and never called: name one of them")
    if spec.extraction_point == "hidden_states":
        return _hidden_state(anatomy, module, spec) or Site(module, "states")
    return Site(module, "input" if spec.extraction_point == "input" else "output")


def _resolve(model: nn.Module, anatomy: Anatomy, path: str) -> nn.Module:
    if _is_pattern(_steps(path)):
        raise InvalidLayer(
            f"the layer path {path!r} may name several modules and one is needed: write it without * or :"
        )
    return _walk(model, anatomy, path)[0][1]


def _hidden_state(anatomy: Anatomy, module: nn.Module, spec: LayerSpec) -> Site | None:
    blocks = anatomy.blocks
    embeds = bool(blocks) and anatomy.paths.get(module) == anatomy.aliases.get("embed")
    if not hasattr(anatomy.stack, "config") or not (embeds or module in blocks):
        return None
    if anatomy.shares_blocks and not embeds:
        raise InvalidLayer(
            f"{spec}: the layers of {type(anatomy.base).__name__} share {len(blocks)} block(s), so no hidden state is "
            f"a block's own: write {spec.path}:output:{spec.reduce} for the first call"
        )
    if embeds:
        return Site(blocks[0], "input")
    if module is blocks[-1] and anatomy.ties_last_state():
        return Site(anatomy.stack, "last_state")
    return Site(module, "output")


def _order(anatomy: Anatomy) -> dict[nn.Module, float]:
    """Rank modules by registration, but a final norm after the blocks (OPT registers it before them)."""
    order: dict[nn.Module, float] = {module: rank for rank, module in enumerate(anatomy.paths)}
    after = max((order[inner] for block in anatomy.blocks for inner in block.modules()), default=0)
    for module, path in anatomy.paths.items():
        if anatomy.name(path) == "final_norm":
            order[module] = max(order[module], after + 0.5)
    return order


def _check_word(what: str, word: str, allowed: Sequence[str], spec: LayerSpec) -> None:
    if word not in allowed:
        nearest = sorted(allowed, key=lambda other: -difflib.SequenceMatcher(None, word, other).ratio())
        raise InvalidLayer(f"unknown {what} {word!r} in the layer {str(spec)!r}: choose {', '.join(nearest)}")


def _steps(path: str) -> list[_Step]:
    """Split a path into names (which may be patterns), indices and slices; ``[*]`` is the slice of everything."""
    steps: list[_Step] = []
    for part in path.split("."):
        match = _PART.fullmatch(part)
        indices = [] if match is None else re.findall(r"\[([^\]]*)\]", match[2])
        if match is None or not all(_INDEX.fullmatch(index) for index in indices):
            raise InvalidLayer(
                f"cannot read {part!r} in the layer path {path!r}: "
                "write names, dots and indices, such as blocks[-1], blocks[*].mlp or encoder.layer.0"
            )
        steps.append(match[1])
        for index in indices:
            if index == "*":
                steps.append(slice(None))
            elif ":" in index:
                steps.append(slice(*(int(bound) if bound else None for bound in index.split(":"))))
            else:
                steps.append(int(index))
    return steps


def _is_wild(step: _Step) -> bool:
    return isinstance(step, slice) or (isinstance(step, str) and any(sign in step for sign in "*?"))


def _is_pattern(steps: Iterable[_Step]) -> bool:
    return any(_is_wild(step) for step in steps)


def _walk(model: nn.Module, anatomy: Anatomy, path: str) -> list[_Node]:
    """Return every (path, module) that ``path`` selects: by alias, from the model, or from its base model."""
    steps = _steps(path)
    reasons = []
    for nodes, rest in _starts(model, anatomy, steps):
        reached = nodes
        reason = None
        for step in rest:
            further = [child for node in reached for child in _children(node, step)]
            if not further:
                reason = _reason(reached[0], step)
                break
            reached = further
        if reason is None:
            return reached
        reasons.append(reason)
    reason = max(reasons, key=len)
    near = _nearest(anatomy, path)
    raise UnknownLayer(f"{type(model).__name__} has no layer {path!r}{reason}; the nearest are {near}")


def _starts(model: nn.Module, anatomy: Anatomy, steps: list[_Step]) -> Iterable[tuple[list[_Node], list[_Step]]]:
    alias = anatomy.aliases.get(str(steps[0]))
    if alias is not None:
        yield [(alias, anatomy.base.get_submodule(alias))], steps[1:]
    elif steps[0] == "blocks" and anatomy.blocks:
        yield _unlisted_blocks(anatomy, steps[1:]), steps[2:]
    yield [("", model)], steps
    if anatomy.base is not model:
        yield [("", anatomy.base)], steps
    if steps[0] == anatomy.prefix and len(steps) > 1:
        yield [("", anatomy.base)], steps[1:]


def _unlisted_blocks(anatomy: Anatomy, index: list[_Step]) -> list[_Node]:
    """Return the blocks that ``blocks[i]`` means in a model that keeps no list of them."""
    paths = [anatomy.paths[block] for block in anatomy.blocks]
    step = index[0] if index else ""
    if step == "*":
        step = slice(None)
    elif isinstance(step, str) and step.isdecimal():
        step = int(step)
    every = range(len(paths))
    if isinstance(step, slice):
        chosen = list(every[step])
    elif isinstance(step, int) and -len(every) <= step < len(every):
        chosen = [every[step]]
    else:
        named = ", ".join(f"blocks[{i}] is {path}" for i, path in enumerate(paths))
        raise UnknownLayer(f"{type(anatomy.base).__name__} has no such block: {named}")
    return [(paths[i], anatomy.blocks[i]) for i in chosen]


def _children(node: _Node, step: _Step) -> list[_Node]:
    from torch import nn

    path, module = node
    found: list[tuple[str, object]]
    if isinstance(step, str):
        named = [name for name, _ in module.named_children() if fnmatchcase(name, step)]
        found = [(name, getattr(module, name, None)) for name in (named if _is_wild(step) else [step])]
    elif isinstance(module, nn.ModuleList | nn.Sequential):
        every = range(len(module))
        some = every[step] if isinstance(step, slice) else [every[step]] if -len(every) <= step < len(every) else []
        found = [(str(i), module[i]) for i in some]
    else:
        found = []
    return [(f"{path}.{name}" if path else name, child) for name, child in found if isinstance(child, nn.Module)]


def _reason(node: _Node, step: _Step) -> str:
    from torch import nn

    path, module = node
    if isinstance(step, int) and isinstance(module, nn.ModuleList | nn.Sequential):
        return f" ({path!r} has {len(module)} entries, 0 to {len(module) - 1})"
    return ""


def _nearest(anatomy: Anatomy, path: str) -> str:
    real = [found for found in anatomy.paths.values() if found]
    names = list(dict.fromkeys([*anatomy.aliases, *map(anatomy.name, real), *real]))
    names = [name for name in names if name != "blocks"]
    # A path may be written for the model with its head; names are spelt as they are for the one without.
    bare = re.sub(r"\[(\d+)\]", r".\1", path.removeprefix(f"{anatomy.prefix}."))
    close = difflib.get_close_matches(path, names, n=3, cutoff=0.5) or difflib.get_close_matches(bare, names, n=3)
    general = [*(name for name in ("embed", "blocks[0]", "final_norm") if name in names), *names]
    return ", ".join(close or general[:3])
