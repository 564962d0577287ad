"""Many segments as one lazy Zarr hierarchy: a read-only Zarr store that rewrites keys and copies nothing.

Every array of a segment has the axes (revision=1, layer, row, column) and one shard a layer, so the file
``c/0/<position>/…`` of a segment is, byte for byte, the file ``c/<revision>/<layer>/…`` of the whole run's array.
"""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from store.errors import StoreDamaged
from store.segments import segment_path

__all__ = ["SegmentView", "VirtualArray"]


@dataclass(frozen=True)
class VirtualArray:
    """One array of the view and where each of its (revision, layer) slices lies."""

    dims: tuple[str, ...]
    """Names of the four axes."""
    segments: tuple[tuple[str, str], ...]
    """Segment id and array name of every segment that takes part."""
    sources: NDArray[np.int32]
    """(revision, layer, 2): number in ``segments`` and position along that segment's layer axis; -1 where absent."""


class SegmentView(Store):
    """A read-only Zarr v3 store over committed segments.

    It holds paths and numbers only, so it pickles to a few kilobytes and a worker that receives it opens no database.

    Parameters
    ----------
    root
        Folder of the replay store.
    arrays
        The arrays to show, by name.
    """

    supports_writes = False
    supports_deletes = False
    supports_listing = True

    def __init__(self, root: Path, arrays: Mapping[str, VirtualArray]) -> None:
        super().__init__(read_only=True)
        self.root = root
        self.arrays = dict(arrays)
        documents = {name: self._document(array) for name, array in self.arrays.items()}
        self.metadata = {f"{name}/zarr.json": _bytes(document) for name, document in documents.items()}
        consolidated = {"kind": "inline", "must_understand": False, "metadata": documents}
        self.metadata["zarr.json"] = _bytes(
            {"zarr_format": 3, "node_type": "group", "attributes": {}, "consolidated_metadata": consolidated}
        )

    def _document(self, array: VirtualArray) -> dict[str, Any]:
        segment, name = array.segments[0]
        path = segment_path(self.root, segment) / name / "zarr.json"
        try:
            document: dict[str, Any] = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise StoreDamaged(f"{path} is gone although the index names it") from error
        document["shape"][:2] = array.sources.shape[:2]
        document["dimension_names"] = list(array.dims)
        return document

    def locate(self, key: str) -> Path | None:
        """Return the file that holds chunk ``key``, or None where a revision lacks that layer."""
        name, _, revision, layer, rest = key.split("/", 4)
        array = self.arrays[name]
        number, position = (int(n) for n in array.sources[int(revision), int(layer)])
        if number < 0:
            return None
        segment, inner = array.segments[number]
        return segment_path(self.root, segment) / inner / "c" / "0" / str(position) / rest

    def chunks(self) -> Iterator[tuple[str, Path]]:
        """Yield every chunk's key and file."""
        for name, array in self.arrays.items():
            for revision, layer in np.argwhere(array.sources[:, :, 0] >= 0):
                number, position = array.sources[revision, layer]
                segment, inner = array.segments[number]
                folder = segment_path(self.root, segment) / inner / "c" / "0" / str(position)
                paths = sorted(p for p in folder.rglob("*") if p.is_file())
                if not paths:
                    raise StoreDamaged(f"{folder} is gone although the index names it")
                for path in paths:
                    yield f"{name}/c/{revision}/{layer}/{path.relative_to(folder).as_posix()}", path

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SegmentView) and pickle.dumps(self) == pickle.dumps(other)

    def __hash__(self) -> int:
        return hash((self.root, tuple(self.arrays)))

    def __reduce__(self) -> tuple[type["SegmentView"], tuple[Path, dict[str, VirtualArray]]]:
        return SegmentView, (self.root, self.arrays)

    def __str__(self) -> str:
        return f"replay://{self.root}"

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes of ``key``, or None where there are none."""
        prototype = prototype or default_buffer_prototype()
        if key in self.metadata:
            return prototype.buffer.from_bytes(_cut(self.metadata[key], byte_range))
        if not self._is_chunk(key):
            return None
        path = self.locate(key)
        if path is None:
            return None
        return prototype.buffer.from_bytes(await asyncio.to_thread(_read, path, byte_range))

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return the bytes of several ranges."""
        return [await self.get(key, prototype, byte_range) for key, byte_range in key_ranges]

    async def exists(self, key: str) -> bool:
        """Return whether ``key`` has bytes."""
        return key in self.metadata or (self._is_chunk(key) and self.locate(key) is not None)

    def _is_chunk(self, key: str) -> bool:
        return key.split("/", 1)[0] in self.arrays and "/c/" in key

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse: a view is read-only."""
        raise NotImplementedError(f"{self} is read-only; {key} was not written")

    async def delete(self, key: str) -> None:
        """Refuse: a view is read-only."""
        raise NotImplementedError(f"{self} is read-only; {key} was not deleted")

    def _keys(self) -> Iterator[str]:
        yield from self.metadata
        for key, _ in self.chunks():
            yield key

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in self._keys():
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield every key that begins with ``prefix``."""
        for key in self._keys():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names directly under ``prefix``."""
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        keys = self.metadata if not start else self._keys()
        for name in sorted({key[len(start) :].split("/")[0] for key in keys if key.startswith(start)}):
            yield name


def _bytes(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document).encode()


def _cut(content: bytes, byte_range: ByteRequest | None) -> bytes:
    match byte_range:
        case RangeByteRequest(start, end):
            return content[start:end]
        case OffsetByteRequest(offset):
            return content[offset:]
        case SuffixByteRequest(suffix):
            return content[-suffix:]
    return content


def _read(path: Path, byte_range: ByteRequest | None) -> bytes:
    try:
        with path.open("rb") as file:
            match byte_range:
                case None:
                    return file.read()
                case RangeByteRequest(start, end):
                    file.seek(start)
                    return file.read(end - start)
                case OffsetByteRequest(offset):
                    file.seek(offset)
                    return file.read()
                case SuffixByteRequest(suffix):
                    size = file.seek(0, 2)
                    file.seek(max(size - suffix, 0))
                    return file.read()
    except FileNotFoundError as error:
        raise StoreDamaged(f"{path} is gone although the index names it") from error
    raise NotImplementedError(f"byte range {byte_range!r}")
