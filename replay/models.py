"""The weights of one revision, from a local folder into a live model: without its head, with it, or of a factory."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any, overload

from replay.anatomy import find_anatomy
from replay.layers import find_sites
from replay.rounding import move_within_rounding
from replay.state_dicts import fit_weights, listing, one_line, open_file, read_plain
from store.errors import (
    CheckpointError,
    DamagedWeights,
    InvalidInput,
    MismatchedWeights,
    MissingWeights,
    Unavailable,
    UnknownSource,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from replay.factories import ModelFactory
    from replay.layers import ResolvedLayer

__all__ = [
    "DTYPES",
    "NeededWeights",
    "layer_model",
    "load_language_model",
    "load_model",
    "needed_weights",
    "read_weights",
]

DTYPES = ("float32", "bfloat16", "float16")

_SINGLE_FILES = ("model.safetensors", "pytorch_model.bin")
# buffers that older versions of transformers saved and newer ones compute, and counters
_BUFFERS = re.compile(
    r"(^|\.)((attn|attention|self|self_attn|self_attention)\.bias|masked_bias|inv_freq|position_ids|token_type_ids"
    r"|cos_cached|sin_cached|relative_position_index|embed_positions\.weights|version|num_batches_tracked)$"
)
# what stands beside the base model in models with a head, under names that no base model has
_HEADS = re.compile(
    r"(lm_head|embed_out|cls|classifier|score|qa_outputs|predictions|lm_predictions|generator_predictions"
    r"|generator_lm_head|discriminator_predictions|final_logits_bias|v_head|pooler)(\.|$)"
)


@dataclass(frozen=True)
class NeededWeights:
    """Tells the tensors of a checkpoint that a replay reads from those that it does not come to, by name."""

    prefix: str
    """Under which head models hold the base model, with its dot (``gpt_neox.``)."""
    known: frozenset[str]
    """The names of all weights of the base model."""
    beyond: tuple[str, ...]
    """The paths of the modules that are never called."""
    left_out: Mapping[str, torch.Tensor]
    """The weights of those modules that nothing else shares, by name, on the meta device."""

    def __call__(self, name: str) -> bool:
        """Return whether the tensor ``name`` of a checkpoint is needed; one of an unknown name is."""
        own = name.removeprefix(self.prefix)
        if own in self.known:
            return own not in self.left_out
        if own.startswith(tuple(f"{path}." for path in self.beyond)) or _BUFFERS.search(own):
            return False
        first = own.partition(".")[0]
        return not _HEADS.match(own) or any(known.partition(".")[0] == first for known in self.known)


def needed_weights(skeleton: PreTrainedModel, layers: Sequence[ResolvedLayer]) -> NeededWeights:
    """Find what a replay of ``layers`` needs: neither heads nor old buffers, nor what `Anatomy.beyond` lists.

    Parameters
    ----------
    skeleton
        From `layer_model`.
    layers
        From `expand_layers`.

    Raises
    ------
    InvalidLayer, UnknownLayer
        As `replay.layers.find_sites`.
    """
    anatomy = find_anatomy(skeleton)
    sites = find_sites(skeleton, [layer.spec for layer in layers])
    beyond = anatomy.beyond(site.module for site in sites.values())
    weights = skeleton.state_dict(keep_vars=True)  # the very tensors, so that those of two names are known as one
    below = tuple(f"{path}." for path in beyond)
    kept = {id(weight) for name, weight in weights.items() if not name.startswith(below)}
    left_out = {name: weight for name, weight in weights.items() if id(weight) not in kept}
    return NeededWeights(f"{skeleton.base_model_prefix}.", frozenset(weights), beyond, left_out)


@overload
def load_model(
    folder: Path,
    *,
    dtype: str = ...,
    device: str = ...,
    layers: Sequence[ResolvedLayer] | None = ...,
    partial: bool = ...,
    factory: None = ...,
    file: None = ...,
    rounding: int | None = ...,
) -> PreTrainedModel: ...
@overload
def load_model(
    folder: Path,
    *,
    dtype: str = ...,
    device: str = ...,
    layers: Sequence[ResolvedLayer] | None = ...,
    partial: bool = ...,
    factory: ModelFactory | None = ...,
    file: str | None = ...,
    rounding: int | None = ...,
) -> nn.Module: ...
def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    layers: Sequence[ResolvedLayer] | None = None,
    partial: bool = False,
    factory: ModelFactory | None = None,
    file: str | None = None,
    rounding: int | None = None,
) -> nn.Module:
    """Load the base model from ``folder``: no head, no pooler, nothing left to chance, nothing from the network.

    With a factory the whole model that it builds, with the weights of ``file``.

    Parameters
    ----------
    folder
        Holds ``config.json`` and one of ``model.safetensors``, its index and shards, ``pytorch_model.bin``, its index
        and shards, looked for in this order. Code in the folder is never run.
    dtype
        What weights are converted to: ``float32``, ``bfloat16`` or ``float16``.
    device
        Where the model goes.
    layers
        What will be replayed, from `expand_layers`. Of weights that this does not need only names and shapes are read,
        and they take no memory; a module that lacks them refuses to be called. Without it, all are loaded.
    partial
        Whether the weights that ``layers`` do not need may be absent from the files.
    factory
        What builds the model, where there is no ``config.json`` for it. All its weights have to be in ``file``, in
        whatever is named in ``layers``.
    file
        The file of plain weights in ``folder``, for a model with a factory.
    rounding
        Seed of `replay.rounding.move_within_rounding`, by which the weights are moved; by default they are not.

    Returns
    -------
    transformers.PreTrainedModel or torch.nn.Module
        In eval mode, without gradients.

    Raises
    ------
    InvalidInput
        Another dtype, a device that is not there, or a factory without a file.
    UnknownSource
        No such folder.
    CheckpointError
        A configuration that cannot be read, or of a kind that transformers does not know.
    MissingWeights
        No weight file, or not all shards.
    DamagedWeights
        A truncated file, or a pickle of more than tensors.
    MismatchedWeights
        Weights that the base model needs and the files lack, that the files hold and the base model has no place for,
        or of another shape.
    """
    import torch

    if dtype not in DTYPES:
        raise InvalidInput(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
    where = _device(device)
    if factory is not None:
        if file is None:
            raise InvalidInput(f"a model of {factory.text} needs the name of the file in {folder} with its weights")
        built: nn.Module = _fill(factory, folder / file, rounding).to(where, getattr(torch, dtype))
        return built
    model_class, config, options = _architecture(folder)
    needed = None if layers is None else needed_weights(layer_model(folder), layers)
    weights = read_weights(folder, needed if partial else None)
    if rounding is not None:
        weights |= move_within_rounding({n: w for n, w in weights.items() if needed is None or needed(n)}, rounding)
    if needed is not None:
        # transformers must find every weight in the table, or it would make one up at full size; of a whole checkpoint
        # it sees the file's own names and so misses what it would have missed in the weights
        unneeded = needed.left_out if partial else {name: weights[name] for name in weights if not needed(name)}
        weights |= {
            name: _absent(weight, dtype=getattr(torch, dtype) if weight.is_floating_point() else weight.dtype)
            for name, weight in unneeded.items()
        }
    model, report = _take_weights(model_class, config, weights, dtype=dtype, options=options)
    _check_report(model, report)
    if needed is not None:
        _leave_out(model, needed, where)
    model.requires_grad_(requires_grad=False)
    model.eval()
    loaded: nn.Module = model.to(where)
    return loaded


def load_language_model(folder: Path, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """Load the causal language model from ``folder``: the base model and the head that predicts the next token.

    Parameters
    ----------
    folder, dtype, device
        As for `load_model`.

    Returns
    -------
    transformers.PreTrainedModel
        In eval mode, without gradients.

    Raises
    ------
    Unavailable
        A kind of model that has no such head in transformers, an encoder-decoder, or files without the head.
    InvalidInput, CheckpointError, MissingWeights, DamagedWeights, MismatchedWeights
        As `load_model`.
    """
    import transformers

    if dtype not in DTYPES:
        raise InvalidInput(f"unknown dtype {dtype!r}: choose {', '.join(DTYPES)}")
    where = _device(device)
    _, config, _ = _architecture(folder)
    kind = config.model_type
    if config.is_encoder_decoder or type(config) not in transformers.MODEL_FOR_CAUSAL_LM_MAPPING:
        raise Unavailable(f"a model of type {kind!r} is no causal language model")
    model_class = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    model, report = _take_weights(model_class, config, read_weights(folder), dtype=dtype, options={})
    head = sorted(name for name in report["missing_keys"] if not name.startswith(f"{model.base_model_prefix}."))
    if head:
        raise Unavailable(f"the files hold no language-model head: {listing(head)} not there")
    _check_report(model, report)
    model.requires_grad_(requires_grad=False)
    loaded: PreTrainedModel = model.eval().to(where)
    return loaded


def _take_weights(
    model_class: Any, config: Any, weights: dict[str, torch.Tensor], *, dtype: str, options: dict[str, bool]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return a model with these weights, and transformers' report of what did not fit."""
    import torch

    with _quiet_transformers():
        try:
            model, report = model_class.from_pretrained(
                None,  # weights are given: transformers has nothing left to look for, here or on the hub
                config=config,
                state_dict=weights,
                dtype=getattr(torch, dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                local_files_only=True,
                **options,
            )
        except (RuntimeError, ValueError, TypeError, KeyError) as error:
            raise MismatchedWeights(f"{model_class.__name__} cannot take the weights: {one_line(error)}") from error
    return model, report


def _fill(factory: ModelFactory, file: Path, rounding: int | None) -> nn.Module:
    model = factory.build()
    weights = fit_weights(read_plain(file).weights, model, prefix=factory.prefix)
    model.load_state_dict(weights if rounding is None else move_within_rounding(weights, rounding))
    model.requires_grad_(requires_grad=False)
    return model.eval()


@overload
def layer_model(folder: Path, factory: None = ...) -> PreTrainedModel: ...
@overload
def layer_model(folder: Path | None, factory: ModelFactory) -> nn.Module: ...
def layer_model(folder: Path | None, factory: ModelFactory | None = None) -> nn.Module:
    """Build the model that `load_model` would, without weights, on the meta device: enough to resolve layers.

    Parameters
    ----------
    folder
        Holds ``config.json``; None where a factory builds the model.
    factory
        As for `load_model`; one that cannot build on the meta device builds on the CPU.

    Raises
    ------
    UnknownSource
        No such folder.
    CheckpointError
        A configuration that cannot be read, or that describes no model.
    """
    import torch

    if factory is not None:
        return factory.skeleton()
    if folder is None:
        raise InvalidInput("a model is read from a folder with config.json, or built by a factory: give either")
    model_class, config, options = _architecture(folder)
    with _quiet_transformers(), torch.device("meta"):
        try:
            model: nn.Module = model_class(config, **options)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"config.json describes no {model_class.__name__}: {one_line(error)}") from error
    return model.eval()


def _architecture(folder: Path) -> tuple[Any, Any, dict[str, bool]]:
    """Return the class of the base model, its configuration and its options."""
    import transformers

    if not folder.is_dir():
        raise UnknownSource(f"there is no folder {folder}")
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder.name} has no config.json: it is no checkpoint that transformers could load")
    with _quiet_transformers():
        try:
            config = transformers.AutoConfig.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False
            )
        # from_pretrained lets through whatever validation of a configuration happens to raise
        except Exception as error:
            raise CheckpointError(f"cannot read config.json: {one_line(error)}") from error
        try:
            model_class = transformers.MODEL_MAPPING[type(config)]
        except KeyError as error:
            kind = config.model_type
            raise CheckpointError(f"transformers has no base model for the model type {kind!r}") from error
    if isinstance(model_class, tuple | list):
        model_class = model_class[0]
    options = {"add_pooling_layer": False} if "add_pooling_layer" in signature(model_class).parameters else {}
    return model_class, config, options


def _device(device: str) -> torch.device:
    import torch

    try:
        where = torch.device(device)
        torch.empty(0, device=where)
    except (RuntimeError, AssertionError) as error:  # torch says "not compiled with CUDA" by an assertion
        raise InvalidInput(f"cannot use the device {device!r}: {one_line(error)}") from error
    return where


def _absent(weight: torch.Tensor, *, dtype: torch.dtype, device: torch.device | None = None) -> torch.Tensor:
    """Return a tensor of the shape of ``weight`` that is one NaN in memory: no use of it could pass for a value."""
    import torch

    value = torch.nan if dtype.is_floating_point else 0
    return torch.full((), value, dtype=dtype, device=device).expand(weight.shape)


def _leave_out(model: PreTrainedModel, needed: NeededWeights, where: torch.device) -> None:
    from torch import nn

    def refuse(module: nn.Module, _args: Any) -> None:
        raise InvalidInput(
            f"a {type(module).__name__} of {type(model).__name__} was left out when the model was loaded: "
            "give load_model the layers that are replayed"
        )

    for name in needed.left_out:
        path, _, last = name.rpartition(".")
        owner = model.get_submodule(path)
        held = getattr(owner, last)
        # on the device already, or moving there would give it its full size
        absent = _absent(held, dtype=held.dtype, device=where)
        setattr(owner, last, nn.Parameter(absent, requires_grad=False) if isinstance(held, nn.Parameter) else absent)
    for path in needed.beyond:
        model.get_submodule(path).register_forward_pre_hook(refuse)


def read_weights(
    folder: Path, needed: Callable[[str], bool] | None = None, *, file: str | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, mapped from its files where their format allows it.

    Parameters
    ----------
    folder
        As for `load_model`.
    needed
        Tells the tensors to read; all by default.
    file
        The one file of plain weights to read, as `replay.state_dicts.read_plain` does.

    Raises
    ------
    MissingWeights, DamagedWeights
        As `load_model`.
    """
    if file is not None:
        return {name: value for name, value in read_plain(folder / file).weights.items() if not needed or needed(name)}
    for name in _SINGLE_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name, needed)
        if index.is_file():
            shards = _shards(index, needed)
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent:
                raise MissingWeights(f"{len(absent)} of {len(shards)} weight files are not there: {listing(absent)}")
            weights: dict[str, torch.Tensor] = {}
            for shard in shards:
                weights.update(_read_file(folder / shard, needed))
            return weights
    raise MissingWeights(f"{folder.name} holds no weights: looked for {', '.join(_SINGLE_FILES)} and their shards")


def _shards(index: Path, needed: Callable[[str], bool] | None) -> list[str]:
    try:
        shard_of = dict(json.loads(index.read_bytes())["weight_map"])
        shards = sorted(set(shard_of.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedWeights(f"{index.name} is no index of weight files: {one_line(error)}") from error
    outside = [shard for shard in shards if not isinstance(shard, str) or "/" in shard or "\\" in shard]
    if outside or not shards:
        raise DamagedWeights(f"{index.name} names no files of its own folder: {listing(map(str, outside))}")
    return shards if needed is None else sorted({shard for name, shard in shard_of.items() if needed(name)})


def _read_file(file: Path, needed: Callable[[str], bool] | None) -> dict[str, torch.Tensor]:
    import torch

    weights = open_file(file)
    plain = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )
    if not plain or not (weights or needed):
        raise DamagedWeights(f"{file.name} is no table of tensors by name")
    return {name: value for name, value in weights.items() if needed is None or needed(name)}


def _check_report(model: PreTrainedModel, report: dict[str, Any]) -> None:
    faults = []
    missing = sorted(report["missing_keys"])
    if missing:
        faults.append(f"missing weights ({len(missing)}): {listing(missing)}")
    children = {name for name, _ in model.named_children()} | {
        name for name, _ in model.named_parameters(recurse=False)
    }
    prefix = f"{model.base_model_prefix}."
    unexpected = sorted(key for key in report["unexpected_keys"] if _is_ours(key, prefix, children))
    if unexpected:
        faults.append(f"weights without a place in the model ({len(unexpected)}): {listing(unexpected)}")
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        told = (f"{key} {list(in_file)} instead of {list(in_model)}" for key, in_file, in_model in shapes)
        faults.append(f"weights of another shape than config.json says ({len(shapes)}): {listing(told)}")
    if faults:
        raise MismatchedWeights(f"{type(model).__name__}: {'; '.join(faults)}")


def _is_ours(key: str, prefix: str, children: set[str]) -> bool:
    """Tell whether a weight without a place belongs to the base model, rather than to a head or to an old buffer."""
    name = key.removeprefix(prefix)
    first = name.partition(".")[0]
    return (key != name or first in children) and not first.startswith("pooler") and not _BUFFERS.search(name)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' load report, warnings and progress bar off stderr; what is wrong is raised instead."""
    from transformers.utils import logging

    def no_bar(_factory: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return logging.EmptyTqdm(*args, **kwargs)

    verbosity = logging.get_verbosity()
    # not disable_progress_bar(): that would silence the downloads of other threads too
    hook = logging.set_tqdm_hook(no_bar)
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.set_tqdm_hook(hook)
