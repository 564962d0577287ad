"""The layers of a model with the shapes they give and the parameters they hold, from one forward without weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from replay.anatomy import find_anatomy
from replay.hooks import returned_tensor
from replay.layers import expand_layers
from replay.models import layer_model
from replay.revisions import select
from replay.sources.files import CONFIG
from replay.state_dicts import fit_weights, one_line, read_plain
from store.errors import CheckpointError, InvalidSelection, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch
    from torch import nn

    from replay.factories import ModelFactory
    from replay.sources import Source

__all__ = ["LayerOutline", "Outline", "example_input", "outline_layers", "read_skeleton"]

N_TOKENS = 8
"""Tokens of the example that a text model is shown."""


@dataclass(frozen=True)
class LayerOutline:
    """One module that can be captured."""

    layer: str
    """Its name: ``blocks[0].mlp``, or the path of the module where the family has no other word."""
    module: str
    """Path of the module in the model."""
    kind: str
    """Name of its class."""
    shape: tuple[int, ...] | None
    """What its first call returns for one probe, the probe's own dimension included; None where that is not known."""
    n_parameters: int
    """Numbers in its parameters, those of its parts included."""


@dataclass(frozen=True)
class Outline:
    """The layers of one model."""

    model: str
    """Name of the model's class."""
    layers: tuple[LayerOutline, ...]
    """In the order of the model."""
    n_parameters: int
    """Numbers in all parameters of the model, shared ones once; without a head where transformers knows the model."""
    input_shape: tuple[int, ...] | None
    """Shape of the one probe that the model was shown."""
    reason: str | None
    """Why there are no shapes."""


def outline_layers(
    model: nn.Module,
    example: torch.Tensor | None,
    *,
    specs: Sequence[str] = (),
    build: Callable[[], nn.Module] | None = None,
) -> Outline:
    """List the layers of a model.

    Parameters
    ----------
    model
        A skeleton, from `replay.models.layer_model`.
    example
        One probe, of which only shape and type matter; without it there are no shapes.
    specs
        Layer expressions; all modules that a replay calls by default.
    build
        Builds the same model with values, for one that looks at them and cannot run without.

    Raises
    ------
    InvalidLayer, UnknownLayer
        As `replay.layers.expand_layers`.
    """
    from torch import nn

    anatomy = find_anatomy(model)
    lists = (nn.ModuleList, nn.ModuleDict)
    every = [path for module, path in anatomy.paths.items() if path and not isinstance(module, lists)]
    modules = dict.fromkeys((layer.spec.path, layer.module) for layer in expand_layers(model, specs or every))
    shapes: dict[str, tuple[int, ...]] = {}
    reason = None if example is not None else "no example of an input is known"
    if example is not None:
        try:
            shapes = _run(model, example, build)
        except Unavailable as error:
            reason = str(error)
    layers = []
    for name, path in modules:
        module = anatomy.base.get_submodule(path)
        layers.append(LayerOutline(name, path, type(module).__name__, shapes.get(path), _count(module)))
    return Outline(
        model=type(model).__name__,
        layers=tuple(layers),
        n_parameters=_count(model),
        input_shape=None if example is None else tuple(example.shape),
        reason=reason,
    )


def example_input(model: nn.Module) -> torch.Tensor | None:
    """Return one probe such as a model of transformers takes: 8 tokens, or an image of the size in its configuration.

    None for any other model.
    """
    import torch

    config = getattr(model, "config", None)
    main = getattr(model, "main_input_name", None)
    if config is None or main not in ("input_ids", "pixel_values"):
        return None
    if main == "input_ids":
        return torch.zeros((1, N_TOKENS), dtype=torch.long)
    size = getattr(config, "image_size", None) or 224
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return torch.zeros((1, getattr(config, "num_channels", 3), height, width))


def read_skeleton(
    source: Source, scratch: Path, *, factory: ModelFactory | None = None, revision: str | None = None
) -> nn.Module:
    """Return the model of a run without weights; of a hub only ``config.json`` is fetched.

    Parameters
    ----------
    source
        From `replay.sources.open_sources`.
    scratch
        Where the source may download to.
    factory
        What builds the model, where the source holds plain weights; those of the revision have to fit.
    revision
        Whose model; by default that of ``main``, or else of the last revision.

    Raises
    ------
    UnknownRevision, InvalidSelection
        No such revision, or an expression that names several.
    CheckpointError
        A revision without a model that could be built, or whose weights do not fit.
    """
    listed = source.list_revisions()
    names = [record.name for record in listed]
    chosen = select(listed, revision or ("main" if "main" in names else names[-1]))
    if len(chosen) > 1:
        raise InvalidSelection(f"{revision!r} names {len(chosen)} revisions where one is needed")
    record = source.describe(chosen[0])
    if record.error is not None:
        raise CheckpointError(f"{source.run} {record.name}: {record.error}")
    with source.fetch(record, [CONFIG] if factory is None else list(record.files), scratch) as folder:
        skeleton: nn.Module = layer_model(folder) if factory is None else factory.skeleton()
        if factory is None:
            return skeleton
        for file in record.files:
            try:
                fit_weights(read_plain(folder / file).weights, skeleton, prefix=factory.prefix)
            except CheckpointError as error:
                error.add_note(f"in {source.run} {record.name}")
                raise
        return skeleton


def _run(model: nn.Module, example: torch.Tensor, build: Callable[[], nn.Module] | None) -> dict[str, tuple[int, ...]]:
    try:
        return _shapes(model, example)
    except Exception as error:  # whatever a model says of an input that does not fit, or of tensors without values
        if build is None:
            raise Unavailable(_misfit(model, example, error)) from error
    actual = build().eval()
    try:
        return _shapes(actual, example)
    except Exception as error:
        raise Unavailable(_misfit(actual, example, error)) from error


def _misfit(model: nn.Module, example: torch.Tensor, error: Exception) -> str:
    return f"{type(model).__name__} cannot take {example.dtype} of shape {tuple(example.shape)}: {one_line(error)}"


def _shapes(model: nn.Module, example: torch.Tensor) -> dict[str, tuple[int, ...]]:
    import torch

    anatomy = find_anatomy(model)
    seen: dict[str, tuple[int, ...]] = {}

    def note(module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        tensor = returned_tensor(output)
        if tensor is not None:
            seen.setdefault(anatomy.paths[module], tuple(tensor.shape))

    handles = [module.register_forward_hook(note) for module in anatomy.paths]
    weight = next(anatomy.stack.parameters(), None)
    device = "cpu" if weight is None else weight.device
    try:
        with torch.inference_mode():
            anatomy.stack(example.to(device))
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
