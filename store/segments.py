"""Segments: small immutable Zarr v3 groups, written aside, digested, synced and published by one rename.

A segment's folder is named by the content key of what it holds, so writing the same thing twice gives the same folder
with the same bytes. A folder without a row in the index is invisible: a killed writer leaves either a ``staging``
folder, swept later, or a complete folder without a row, which the next writer of that content adopts.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store.errors import StoreDamaged, StoreError, StoreNotWritable

__all__ = [
    "NOT_ALLOWED",
    "NO_ROOM",
    "Array",
    "Staged",
    "discard",
    "has_segment",
    "publish",
    "read_slice",
    "refusal",
    "scratch_name",
    "segment_path",
    "stage",
    "sweep",
    "verify",
]

ROWS_PER_CHUNK = 256
"""Rows of the row axis in one compressed chunk: reading one probe costs a quarter of a thousand-probe shard."""

SHARD_BYTES = 512 * 2**20
"""A shard is built in memory as a whole; one of more bytes than this is split along its rows."""

ABANDONED_SECONDS = 24 * 3600.0
"""A scratch folder of unknown owner that has not changed for this long is taken for abandoned."""

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS}


@dataclass(frozen=True)
class Array:
    """One array of a segment."""

    values: Sequence[Any] | NDArray[Any]
    """The values; with ``stacked`` a sequence of (row, column) matrices, one a layer, never copied together: arrays, or
    what has their shape and dtype and gives slices of rows."""
    dims: tuple[str, ...]
    """Name of each axis of what is stored."""
    stacked: bool = False
    """Store as (revision=1, layer, row, column) with one shard a layer, so that segments concatenate by file name."""


@dataclass(frozen=True)
class Staged:
    """A complete segment that nobody sees yet."""

    id: str
    """Content key of the segment."""
    kind: str
    """What it holds: ``tokens``, ``activations``, ``operators`` or ``result``."""
    folder: Path
    """Where it lies until it is published."""
    files: dict[str, list[Any]]
    """Size in bytes and sha256 of each file by its path inside the folder."""

    @property
    def n_bytes(self) -> int:
        """Size of all files."""
        return sum(size for size, _ in self.files.values())


def segment_path(root: Path, segment: str) -> Path:
    """Return the folder of segment ``segment`` in the store at ``root``."""
    return root / "segments" / segment[:2] / segment


def has_segment(root: Path, segment: str) -> bool:
    """Return whether the folder of a segment is there; one that the index names may have been removed by hand."""
    return segment_path(root, segment).is_dir()


def stage(root: Path, segment: str, *, kind: str, arrays: Mapping[str, Array], attrs: Mapping[str, Any]) -> Staged:
    """Write a segment aside, with the digest of every file, synced to the disk.

    Parameters
    ----------
    root
        Folder of the store.
    segment
        Content key of the segment.
    kind
        What it holds.
    arrays
        Its arrays by name.
    attrs
        JSON-able attributes of the group; nothing that differs between two computations of the same content.

    Raises
    ------
    StoreNotWritable
        If there is no room or no permission; what was staged is removed.
    """
    folder = root / "staging" / scratch_name()
    try:
        _write(folder, arrays, attrs)
        files: dict[str, list[Any]] = {}
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
            _sync(path)
        for path in (*(p for p in folder.rglob("*") if p.is_dir()), folder):
            _sync(path)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, OSError):
            raise refusal(error, root) from error
        raise
    return Staged(id=segment, kind=kind, folder=folder, files=files)


def read_slice(root: Path, segment: str, array: str, position: int) -> NDArray[np.float32]:
    """Return one layer of a segment, (row, column), reading its shard only.

    Raises
    ------
    StoreDamaged
        If the segment is gone or its checksums do not hold.
    """
    from numcodecs import blosc
    from numcodecs.checksum32 import CRC32C

    path = segment_path(root, segment)
    remedy = f"remove {path} and run the same commands again"
    checked = CRC32C(location="end")
    try:
        stored = json.loads((path / array / "zarr.json").read_bytes())
        n_rows, n_columns = stored["shape"][2:]
        shard = stored["chunk_grid"]["configuration"]["chunk_shape"][2]
        chunk = stored["codecs"][0]["configuration"]["chunk_shape"][2]
        values = np.empty((-(-n_rows // chunk) * chunk, n_columns), stored["data_type"])
        for number, first in enumerate(range(0, n_rows, shard)):
            content = memoryview((path / array / "c" / "0" / str(position) / str(number) / "0").read_bytes())
            # zarr would take three times as long: a shard ends in offset and size of each chunk, and all have checksums
            places = np.frombuffer(checked.decode(content[-16 * (shard // chunk) - 4 :]), "<u8").reshape(-1, 2)
            for row, (offset, size) in zip(range(first, n_rows, chunk), places.tolist(), strict=False):
                blosc.decompress(checked.decode(content[offset : offset + size]), values[row : row + chunk])
    except FileNotFoundError as error:
        raise StoreDamaged(f"{error.filename} is gone: {remedy}") from error
    except (ValueError, LookupError, TypeError, RuntimeError) as error:
        raise StoreDamaged(f"{path / array} cannot be read ({error}): {remedy}") from error
    return np.asarray(values[:n_rows], dtype=np.float32)


def publish(root: Path, staged: Staged) -> None:
    """Move a staged segment to its place; the caller then inserts its row, inside the same write transaction.

    A folder already there without a row was left by a killed writer: it is adopted if its bytes are the same, replaced
    if not. The caller holds the index's write lock and has seen that there is no row.
    """
    target = segment_path(root, staged.id)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            if not _differences(target, staged.files):
                shutil.rmtree(staged.folder)
                return
            target.rename(root / "staging" / f"{staged.folder.name}replaced")
        staged.folder.rename(target)
        for path in (target.parent, target.parent.parent, root / "staging"):
            _sync(path)
    except OSError as error:
        raise refusal(error, root) from error


def discard(staged: Staged) -> None:
    """Remove a staged segment that another process has committed already."""
    shutil.rmtree(staged.folder, ignore_errors=True)


def verify(root: Path, segment: str, files: Mapping[str, list[Any]]) -> None:
    """Check every file of a committed segment against the digests in its row.

    Raises
    ------
    StoreDamaged
        If a file is missing or altered, with its path.
    """
    wrong = _differences(segment_path(root, segment), files)
    if wrong:
        raise StoreDamaged(
            f"segment {segment[:12]} of {root}: {', '.join(wrong)} missing or altered since it was written"
        )


def scratch_name() -> str:
    """Return a folder name that tells whose scratch it is, so that `sweep` knows when its owner is gone."""
    return f"{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex}"


def sweep(root: Path, *, claimed: Collection[str] = ()) -> int:
    """Remove what gone processes left in ``staging`` and ``checkpoints``; return how many folders.

    A folder of this host goes when its process is gone; any other, and a download that nobody went on with, when it
    has not changed for a day. One whose name is ``claimed`` stays: somebody works in it.
    """
    import psutil

    n_removed = 0
    for folder in (*(root / "staging").iterdir(), *(root / "checkpoints").iterdir()):
        if folder.name in claimed:
            continue
        owner = re.fullmatch(rf"{re.escape(socket.gethostname())}\.(\d+)\.\w+", folder.name)
        if owner:
            abandoned = not psutil.pid_exists(int(owner[1]))
        else:
            abandoned = time.time() - folder.stat().st_mtime > ABANDONED_SECONDS
        if abandoned:
            shutil.rmtree(folder, ignore_errors=True)
            n_removed += 1
    return n_removed


def refusal(error: OSError, root: Path) -> StoreError:
    """Return the error that tells a person why the store at ``root`` could not be written."""
    if error.errno in NO_ROOM:
        return StoreNotWritable(f"no space left for {root}: free some and run the same command again; nothing is lost")
    if error.errno in NOT_ALLOWED:
        return StoreNotWritable(f"{root} may not be written by this user: check its permissions")
    return StoreError(f"{root} could not be written: {error}")


def _write(folder: Path, arrays: Mapping[str, Array], attrs: Mapping[str, Any]) -> None:
    import zarr
    from zarr.codecs import BloscCodec, Crc32cCodec

    group = zarr.create_group(str(folder), attributes=dict(attrs))
    for name, array in arrays.items():
        first = array.values[0] if array.stacked else np.asarray(array.values)
        text = first.dtype.kind in "OTU"
        fill = "" if text else np.nan if first.dtype.kind == "f" else 0
        blosc = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=first.dtype.itemsize)
        if array.stacked:
            rows, columns = first.shape
            chunk = min(ROWS_PER_CHUNK, rows)
            split = max(chunk, SHARD_BYTES // (columns * first.dtype.itemsize) // chunk * chunk)
            shard = min(-(-rows // chunk) * chunk, split)
            shape: tuple[int, ...] = (1, len(array.values), rows, columns)
            chunks: tuple[int, ...] = (1, 1, chunk, columns)
            shards: tuple[int, ...] | None = (1, 1, shard, columns)
        else:
            shape, chunks, shards = first.shape, tuple(max(size, 1) for size in first.shape), None
        target = group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            shards=shards,
            dtype=str if text else first.dtype,
            compressors=[blosc, Crc32cCodec()],
            fill_value=fill,
            dimension_names=array.dims,
            config={"write_empty_chunks": True},  # a chunk of NaN is written too: a missing file is always damage
        )
        if array.stacked:
            # Whole shards only: writing part of one reads and rewrites it, and two writers of one shard lose data.
            for position, values in enumerate(array.values):
                for start in range(0, rows, shard):
                    target[0, position, start : start + shard] = values[start : start + shard]
        else:
            target[...] = first


def _differences(folder: Path, files: Mapping[str, list[Any]]) -> list[str]:
    wrong = []
    for name, (size, digest) in files.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size or _sha256(path) != digest:
            wrong.append(name)
    return wrong


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
