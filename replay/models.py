"""The weights of one revision, from a local folder into a live model without its head."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

from replay.anatomy import find_anatomy
from replay.layers import find_sites
from store.errors import CheckpointError, DamagedWeights, InvalidInput, MismatchedWeights, MissingWeights, UnknownSource

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from transformers import PreTrainedModel

    from replay.layers import ResolvedLayer

__all__ = ["DTYPES", "NeededWeights", "layer_model", "load_model", "needed_weights"]

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
_LISTED = 5


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


def load_model(
    folder: Path,
    *,
    dtype: str = "float32",
    device: str = "cpu",
    layers: Sequence[ResolvedLayer] | None = None,
    partial: bool = False,
) -> PreTrainedModel:
    """Load the base model from ``folder``: no head, no pooler, nothing left to chance, nothing from the network.

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

    Returns
    -------
    transformers.PreTrainedModel
        In eval mode, without gradients.

    Raises
    ------
    InvalidInput
        Another dtype, or a device that is not there.
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
    model_class, config, options = _architecture(folder)
    needed = None if layers is None else needed_weights(layer_model(folder), layers)
    weights = read_weights(folder, needed if partial else None)
    if needed is not None:
        # transformers must find every weight in the table, or it would make one up at full size; of a whole checkpoint
        # it sees the file's own names and so misses what it would have missed in the weights
        unneeded = needed.left_out if partial else {name: weights[name] for name in weights if not needed(name)}
        weights |= {
            name: _absent(weight, dtype=getattr(torch, dtype) if weight.is_floating_point() else weight.dtype)
            for name, weight in unneeded.items()
        }
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
            raise MismatchedWeights(f"{model_class.__name__} cannot take the weights: {_one_line(error)}") from error
    _check_report(model, report)
    if needed is not None:
        _leave_out(model, needed, where)
    model.requires_grad_(requires_grad=False)
    model.eval()
    loaded: PreTrainedModel = model.to(where)
    return loaded


def layer_model(folder: Path) -> PreTrainedModel:
    """Build the model that `load_model` would, without weights, on the meta device: enough to resolve layers.

    Parameters
    ----------
    folder
        Holds ``config.json``.

    Raises
    ------
    UnknownSource
        No such folder.
    CheckpointError
        A configuration that cannot be read, or that describes no model.
    """
    import torch

    model_class, config, options = _architecture(folder)
    with _quiet_transformers(), torch.device("meta"):
        try:
            model: PreTrainedModel = model_class(config, **options)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"config.json describes no {model_class.__name__}: {_one_line(error)}") from error
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
            raise CheckpointError(f"cannot read config.json: {_one_line(error)}") from error
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
        raise InvalidInput(f"cannot use the device {device!r}: {_one_line(error)}") from error
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


def read_weights(folder: Path, needed: Callable[[str], bool] | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by name, mapped from its files where their format allows it.

    Parameters
    ----------
    folder
        As for `load_model`.
    needed
        Tells the tensors to read; all by default.

    Raises
    ------
    MissingWeights, DamagedWeights
        As `load_model`.
    """
    for name in _SINGLE_FILES:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return _read_file(folder / name, needed)
        if index.is_file():
            shards = _shards(index, needed)
            absent = [shard for shard in shards if not (folder / shard).is_file()]
            if absent:
                raise MissingWeights(f"{len(absent)} of {len(shards)} weight files are not there: {_listing(absent)}")
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
        raise DamagedWeights(f"{index.name} is no index of weight files: {_one_line(error)}") from error
    outside = [shard for shard in shards if not isinstance(shard, str) or "/" in shard or "\\" in shard]
    if outside or not shards:
        raise DamagedWeights(f"{index.name} names no files of its own folder: {_listing(map(str, outside))}")
    return shards if needed is None else sorted({shard for name, shard in shard_of.items() if needed(name)})


def _read_file(file: Path, needed: Callable[[str], bool] | None) -> dict[str, torch.Tensor]:
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                # views of the mapped file: of those that are not used, no byte is read
                weights = {name: opened.get_tensor(name) for name in opened.offset_keys()}
        else:
            with warnings.catch_warnings():
                # A pickle of another protocol either loads or is refused below; the warning adds nothing to that.
                warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
                # only zip archives can be mapped; what torch wrote before 1.6 is read whole
                weights = torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise DamagedWeights(
            f"{file.name} is no pickle of plain tensors{what}: refused, nothing in it was run"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedWeights(f"{file.name} cannot be read, it may be truncated: {_one_line(error)}") from error
    plain = isinstance(weights, dict) and all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    )
    if not plain or not (weights or needed):
        raise DamagedWeights(f"{file.name} is no table of tensors by name")
    return {name: value for name, value in weights.items() if needed is None or needed(name)}


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _check_report(model: PreTrainedModel, report: dict[str, Any]) -> None:
    faults = []
    missing = sorted(report["missing_keys"])
    if missing:
        faults.append(f"missing weights ({len(missing)}): {_listing(missing)}")
    children = {name for name, _ in model.named_children()} | {
        name for name, _ in model.named_parameters(recurse=False)
    }
    prefix = f"{model.base_model_prefix}."
    unexpected = sorted(key for key in report["unexpected_keys"] if _is_ours(key, prefix, children))
    if unexpected:
        faults.append(f"weights without a place in the model ({len(unexpected)}): {_listing(unexpected)}")
    shapes = sorted(report["mismatched_keys"])
    if shapes:
        told = (f"{key} {list(in_file)} instead of {list(in_model)}" for key, in_file, in_model in shapes)
        faults.append(f"weights of another shape than config.json says ({len(shapes)}): {_listing(told)}")
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


def _listing(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def _one_line(error: BaseException) -> str:
    first = str(error).strip().partition("\n")[0]
    return first or type(error).__name__
