"""Plain weight files: the table of tensors in what a training script saved, its step, and where it fits in a model."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from store.errors import DamagedWeights, MismatchedWeights

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import torch
    from torch import nn

__all__ = [
    "PlainCheckpoint",
    "check_bytes",
    "digest_tensors",
    "fit_weights",
    "listing",
    "one_line",
    "open_file",
    "read_plain",
]

# a moving average of the weights (``ema``) stands beside them in some files and is another model
TABLES = ("state_dict", "model_state_dict", "model", "module")
STEPS = ("global_step", "step", "iteration", "iter")
_LISTED = 5


@dataclass(frozen=True)
class PlainCheckpoint:
    """What a file of plain weights holds."""

    weights: dict[str, torch.Tensor]
    """The tensors by name, mapped from the file where its format allows it."""
    step: int | None
    """Optimizer steps, where the file counts them."""
    epoch: int | None
    """Epoch, as the file counts it."""


def read_plain(file: Path) -> PlainCheckpoint:
    """Read a file of plain weights; nothing in it is run.

    That is a ``state_dict``, or a dict that holds one under ``state_dict`` (Lightning), ``model_state_dict``, ``model``
    or ``module`` beside ``global_step``, ``step`` or ``iteration`` and ``epoch``.

    Parameters
    ----------
    file
        What ``torch.save`` or safetensors wrote.

    Raises
    ------
    DamagedWeights
        A truncated file, a pickle of more than tensors and plain values, no table of tensors or several.
    """
    found = open_file(file)
    if not isinstance(found, Mapping):
        raise DamagedWeights(f"{file.name} holds a {type(found).__name__}: expected a state_dict")
    if _is_table(found):
        return PlainCheckpoint(dict(found), None, None)
    tables = [key for key in TABLES if _is_table(found.get(key))]
    if len(tables) != 1:
        keys = listing(sorted(map(str, found)))
        what = f"several tables of tensors ({', '.join(tables)})" if tables else f"no table of tensors by name ({keys})"
        raise DamagedWeights(f"{file.name} holds {what}: expected a state_dict, or one under {', '.join(TABLES)}")
    counts = [count for key in STEPS if (count := _count(found.get(key))) is not None]
    return PlainCheckpoint(dict(found[tables[0]]), counts[0] if counts else None, _count(found.get("epoch")))


def open_file(file: Path) -> Any:
    """Return what is saved in ``file``, tensors mapped from it where its format allows it.

    Raises
    ------
    DamagedWeights
        A truncated file, or a pickle of more than tensors and plain values, of which nothing is run.
    """
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        if file.suffix == ".safetensors":
            with safe_open(file, framework="pt") as opened:
                # views of the mapped file: of those that are not used, no byte is read
                return {name: opened.get_tensor(name) for name in opened.offset_keys()}
        with warnings.catch_warnings():
            # A pickle of another protocol either loads or is refused below; the warning adds nothing to that.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            # only zip archives can be mapped; what torch wrote before 1.6 is read whole
            return torch.load(file, map_location="cpu", weights_only=True, mmap=_is_zip(file))
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|class|function) ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise DamagedWeights(
            f"{file.name} is no pickle of plain tensors{what}: refused, nothing in it was run"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedWeights(f"{file.name} cannot be read, it may be truncated: {one_line(error)}") from error


def check_bytes(file: Path) -> None:
    """Refuse a zip archive of ``torch.save`` of which a byte was changed; it is read whole, as torch does not look.

    Other files hold no checksum, nor do those that were saved with ``set_crc32_options(False)``.

    Raises
    ------
    DamagedWeights
        If the checksum of a record differs.
    """
    if file.suffix == ".safetensors" or not _is_zip(file):
        return
    try:
        with zipfile.ZipFile(file) as opened:
            changed = opened.testzip() if any(record.CRC for record in opened.infolist()) else None
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise DamagedWeights(f"{file.name} cannot be read, it may be truncated: {one_line(error)}") from error
    if changed is not None:
        raise DamagedWeights(f"{file.name} is damaged: the checksum of {changed} in it differs, copy it once more")


def fit_weights(
    weights: Mapping[str, torch.Tensor], model: nn.Module, *, prefix: str | None = None
) -> dict[str, torch.Tensor]:
    """Return ``weights`` under the names of ``model``, every one of its state and nothing else.

    Parameters
    ----------
    weights
        From `read_plain`.
    model
        What they belong to, on any device.
    prefix
        What stands before the names in the file, with its dot; weights without it are left out. Without it, the one
        prefix is taken with which every name fits (``net.``, ``module.``, ``_orig_mod.``, ``module.net.``).

    Returns
    -------
    dict of str to torch.Tensor
        Weights that the model ties stand under both names, also where the file has one.

    Raises
    ------
    MismatchedWeights
        Weights that are missing, without a place, of another shape or of a kind that the model cannot hold (complex,
        or fractions for integers), or that differ in the file where the model ties them: it lists them.
    """
    state = model.state_dict(keep_vars=True)
    tied: dict[int, list[str]] = {}
    for name, held in state.items():
        tied.setdefault(id(held), []).append(name)
    if prefix is not None:
        chosen = {name: value for name, value in weights.items() if name.startswith(prefix)}
        if not chosen:
            starts = sorted({name.partition(".")[0] for name in weights})
            raise MismatchedWeights(f"no weight starts with {prefix!r}: there are {listing(starts)}")
        known = prefix
    else:
        chosen, known = dict(weights), _likely_prefix(weights, state)
    own = {name.removeprefix(known): value for name, value in chosen.items() if name.startswith(known)}
    differing = []
    for names in tied.values():
        there = [name for name in names if name in own]
        differing += [f"{there[0]} and {name}" for name in there[1:] if not _equal(own[there[0]], own[name])]
        if there:
            own |= {name: own.get(name, own[there[0]]) for name in names}
    missing = [name for name in state if name not in own]
    faults = [f"missing weights ({len(missing)}): {listing(missing)}"] if missing else []
    unexpected = [name for name in chosen if not name.startswith(known) or name.removeprefix(known) not in state]
    if unexpected:
        faults.append(f"weights without a place in the model ({len(unexpected)}): {listing(unexpected)}")
    faults += _other_kinds(own, state)
    if differing:
        faults.append(f"weights that the model ties and the file does not ({len(differing)}): {listing(differing)}")
    if faults:
        partial = unexpected and known and not missing and prefix is None
        part = f", or the part of the file with --prefix {known}" if partial else ""
        raise MismatchedWeights(f"{type(model).__name__}: {'; '.join(faults)}; name the model with --model{part}")
    return {name: own[name] for name in state}


def _other_kinds(own: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> list[str]:
    """Say which weights are of another shape than the model's, or of a type that these cannot hold."""
    shapes = [
        f"{name} {list(own[name].shape)} instead of {list(held.shape)}"
        for name, held in state.items()
        if name in own and own[name].shape != held.shape
    ]
    kinds = [
        f"{name} {str(own[name].dtype).removeprefix('torch.')} into {str(held.dtype).removeprefix('torch.')}"
        for name, held in state.items()
        if name in own and not _is_held(own[name], held.dtype)
    ]
    return [
        f"weights of another {what} than the model's ({len(found)}): {listing(found)}"
        for what, found in (("shape", shapes), ("type", kinds))
        if found
    ]


def digest_tensors(weights: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes of tensors, whatever file they are in.

    Parameters
    ----------
    weights
        Tensors by name, in any order.
    """
    import torch

    digest = sha256()
    for name in sorted(weights):
        value = weights[name].detach().resolve_conj().resolve_neg().contiguous()
        digest.update(f"{name}\0{value.dtype}\0{list(value.shape)}\0".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def listing(names: Iterable[str]) -> str:
    """Return the first few of ``names`` and how many there are more."""
    listed = list(names)
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return ", ".join(listed[:_LISTED]) + more


def one_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its kind."""
    first = str(error).strip().partition("\n")[0]
    return first or type(error).__name__


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors hold the same, NaN counted as equal to NaN; those of a model without values do."""
    import torch

    if one.shape != other.shape:
        return False
    if one.is_meta or (one.dtype == other.dtype and torch.equal(one, other)):
        return True
    return bool(((one == other) | ((one != one) & (other != other))).all())


def _is_held(value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether a tensor of ``dtype`` can hold ``value`` but for rounding."""
    if value.is_complex() or not value.is_floating_point():
        return dtype.is_complex or not value.is_complex()
    return dtype.is_floating_point or dtype.is_complex or value.is_meta or bool((value == value.trunc()).all())


def _is_zip(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(4) == b"PK\x03\x04"


def _is_table(value: object) -> bool:
    import torch

    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(
            isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided
            for name, tensor in value.items()
        )
    )


def _count(value: object) -> int | None:
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _likely_prefix(weights: Mapping[str, torch.Tensor], state: Mapping[str, torch.Tensor]) -> str:
    """Return the prefix under which most names of ``state`` are found; of equals the shortest."""
    found: Counter[str] = Counter()
    for name in weights:
        for dot in (0, *(match.end() for match in re.finditer(r"\.", name))):
            if name[dot:] in state:
                found[name[:dot]] += 1
    return min(found, key=lambda prefix: (-found[prefix], len(prefix), prefix), default="")
