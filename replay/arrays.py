"""Array probes: ordered, content-hashed arrays of numbers, read from `.npy` and `.npz` without any pickle."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.probes import ProbeSet, read_probes
from store.errors import InvalidProbes

__all__ = ["ArrayProbes", "read_arrays", "read_probe_file"]

SUFFIXES = (".npy", ".npz")
INPUTS = ("inputs", "x", "X")
"""Keys of an `.npz` under which the probes themselves may stand."""
MOST_BYTES = 2**31 - 2**16
"""What one compressed chunk can hold."""

_Words = tuple[str | None, ...]


@dataclass(frozen=True, eq=False)
class ArrayProbes:
    """Arrays of one shape in their order, known by their content: images, features, token ids of any model.

    Raises
    ------
    InvalidProbes
        Values that are no (probe, …) numbers, none at all, too many, or not all finite; another number of labels or
        ids than of probes.
    """

    name: str
    """What they are called; not part of their content."""
    values: NDArray[Any]
    """(probe, …): floats, or integers, which every model is fed as they are."""
    labels: _Words = ()
    """The class of each, `None` where there is none."""
    ids: _Words = ()
    """The name of each where it came from, `None` where there is none."""
    left_out: tuple[str, ...] = field(default=(), repr=False)
    """Keys of the file that were not read."""

    def __post_init__(self) -> None:
        """Refuse what cannot be replayed; bring the numbers into one order of bytes."""
        values = self.values
        if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
            raise InvalidProbes(f"holds {values.dtype}, not numbers a model takes: save float32, float64 or integers")
        if values.ndim < 2 or not values.size:
            hint = ": write X[:, None] for one number a probe" if values.ndim == 1 and values.size else ""
            raise InvalidProbes(f"an array of shape {values.shape}, expected (probe, …) with at least one number{hint}")
        if values.nbytes > MOST_BYTES:
            raise InvalidProbes(f"holds {values.nbytes:,} bytes, at most {MOST_BYTES:,} can be kept: use fewer probes")
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0].tolist()
            raise InvalidProbes(f"holds {values[tuple(place)]} at {place}: probes have to be finite")
        object.__setattr__(self, "values", np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("=")))
        for what in ("labels", "ids"):
            words = getattr(self, what) or (None,) * len(values)
            if len(words) != len(values):
                raise InvalidProbes(f"{len(words)} {what} for {len(values)} probes: give one each")
            object.__setattr__(self, what, words)

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.values)

    @cached_property
    def digest(self) -> str:
        """The sha256 (hexadecimal) of type, shape and values in their order, labels and ids."""
        little = self.values.astype(self.values.dtype.newbyteorder("<"), copy=False)
        head = ["replay array probes 1", little.dtype.str, little.shape, self.labels, self.ids]
        digest = hashlib.sha256(json.dumps(head, separators=(",", ":")).encode("ascii"))
        digest.update(little.tobytes())
        return digest.hexdigest()

    @property
    def rows(self) -> list[tuple[str, str | None, str | None]]:
        """(text, label, id) of each, as a store keeps them; what stands for a text is its id or its number from 0."""
        return [
            (id_ or f"array {number}", label, id_)
            for number, (label, id_) in enumerate(zip(self.labels, self.ids, strict=True))
        ]

    def notes(self) -> list[str]:
        """Say what their owner should know, in sentences."""
        read = "labels are read from 'labels', ids from 'ids'"
        found = [f"not used of the file: {', '.join(self.left_out)} ({read})"] if self.left_out else []
        earlier: set[bytes] = set()
        repeats = []
        for number, value in enumerate(self.values):
            content = hashlib.sha256(value.tobytes()).digest()
            if content in earlier:
                repeats.append(number)
            earlier.add(content)
        if repeats:
            found.append(
                f"kept {len(repeats)} of {len(self)} arrays that equal an earlier one, first array {repeats[0]}"
            )
        return found


def read_arrays(path: Path, *, name: str | None = None) -> ArrayProbes:
    """Read array probes from a file, their order kept; objects and pickles in it are refused and never run.

    Parameters
    ----------
    path
        An `.npy` with one array (probe, …), or an `.npz` with it under ``inputs``, ``x`` or ``X``, or as its only
        array beside ``labels`` and ``ids`` (strings or integers, one a probe).
    name
        What to call the set; the file's name without its suffix if not given.

    Raises
    ------
    InvalidProbes
        If the file cannot be read or what it holds cannot be replayed; the text names the file and the remedy.
    """
    try:
        values, extra, left_out = _load(path)
        labels, ids = (_words(extra, what) for what in ("labels", "ids"))
        return ArrayProbes(path.stem if name is None else name, values, labels, ids, left_out)
    except InvalidProbes as problem:
        raise InvalidProbes(f"{path}: {problem}") from None


def read_probe_file(path: Path, *, name: str | None = None) -> ProbeSet | ArrayProbes:
    """Read a probe set of texts or of arrays, told by the suffix of its file.

    Raises
    ------
    InvalidProbes
        As `read_arrays` and `replay.probes.read_probes`.
    """
    read = read_arrays if path.suffix.lower() in SUFFIXES else read_probes
    return read(path, name=name)


def _load(path: Path) -> tuple[NDArray[Any], dict[str, NDArray[Any]], tuple[str, ...]]:
    """Return the probes, what stands beside them by its key, and the keys that are not read."""
    if not path.is_file():
        raise InvalidProbes("a folder, not a file: name one file in it" if path.is_dir() else "no such file")
    try:
        with path.open("rb") as file:  # ours to close, for numpy leaves a broken archive open
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded, {}, ()
            key = _key_of_inputs(loaded.files)
            read = [key, *(what for what in ("labels", "ids") if what in loaded.files)]
            held = {what: loaded[what] for what in read}
            for what, value in held.items():
                if not isinstance(value, np.ndarray):  # numpy gives the bytes of any other member
                    raise InvalidProbes(f"{what} in it is no array: write it with np.savez")
            return held.pop(key), held, tuple(other for other in loaded.files if other not in read)
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, KeyError) as problem:
        if isinstance(problem, InvalidProbes):
            raise
        if "Object arrays" in str(problem):
            raise InvalidProbes(
                "holds Python objects, which are never loaded: save numbers, such as X.astype('float32')"
            ) from None
        raise InvalidProbes(f"no {' or '.join(SUFFIXES)} file that can be read, it may be cut short") from None


def _key_of_inputs(keys: list[str]) -> str:
    named = [key for key in INPUTS if key in keys]
    found = named or [key for key in keys if key not in ("labels", "ids")]
    if len(found) == 1:
        return found[0]
    raise InvalidProbes(
        f"which of its arrays are the probes? It has {', '.join(keys) or 'none'}: call them inputs, and what stands "
        "beside them labels and ids"
    )


def _words(held: Mapping[str, NDArray[Any]], what: str) -> _Words:
    if what not in held:
        return ()
    values = held[what]
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise InvalidProbes(f"{what} are {values.dtype} of shape {values.shape}: expected strings or integers (probe,)")
    return tuple(str(value) or None for value in values.tolist())
