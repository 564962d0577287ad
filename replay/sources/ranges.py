"""Some tensors of a hub checkpoint, by HTTP ranges of its safetensors files."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, BinaryIO

from replay.sources.files import choose_weights
from store.errors import CheckpointError, DamagedWeights, MissingWeights, SourceUnreachable

if TYPE_CHECKING:
    from httpx2 import Response

__all__ = ["PartialWeights", "fetch_tensors", "partial_files", "plan_tensors"]

_SINGLE = "model.safetensors"
_GROWING = f"{_SINGLE}.incomplete"
_LONGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""
_GAPS = 0.005
"""The share of the wanted bytes that may be fetched besides, so that neighbours come in one range."""


@dataclass(frozen=True)
class PartialWeights:
    """Which tensors a partial checkpoint holds, and what they cost."""

    names: tuple[str, ...]
    """The tensors, in the order of the file."""
    n_bytes: int
    """Their bytes."""
    n_fetched: int
    """The bytes to fetch for them from the start: theirs, small gaps between them, the headers they are found by."""
    n_ranges: int
    """The requests that these take, besides those for the headers."""


@dataclass(frozen=True)
class _Tensor:
    """Where a tensor stands in a file of the repository, in bytes from the start of the file."""

    name: str
    file: str
    start: int
    stop: int
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return self.stop - self.start

    @property
    def itemsize(self) -> int:
        return self.n_bytes // max(math.prod(self.shape), 1)


@dataclass(frozen=True)
class _Range:
    """Bytes to ask for at once, and the parts of them to keep."""

    file: str
    parts: tuple[tuple[int, int], ...]

    @property
    def start(self) -> int:
        return self.parts[0][0]

    @property
    def stop(self) -> int:
        return self.parts[-1][1]


def plan_tensors(
    repo: str,
    *,
    commit: str,
    files: Mapping[str, Sequence[Any]],
    wanted: Callable[[str], bool],
    folder: Path,
    stopped: Event | None = None,
) -> PartialWeights:
    """Tell what `fetch_tensors` would fetch, from the headers alone; they stay in ``folder`` and are not asked twice.

    Parameters and errors are those of `fetch_tensors`.
    """
    tensors, n_read = _find_tensors(_Checkpoint(repo, commit, files, stopped), wanted, folder)
    return _describe(tensors, n_read)


def fetch_tensors(
    repo: str,
    *,
    commit: str,
    files: Mapping[str, Sequence[Any]],
    wanted: Callable[[str], bool],
    folder: Path,
    stopped: Event | None = None,
) -> PartialWeights:
    """Write one ``model.safetensors`` with the wanted tensors of a checkpoint, and fetch little else.

    The file grows from front to back under another name and gets its own when it is whole; its metadata name the files
    that its bytes come from. So a call after an interrupted one goes on where that stopped, and one after a finished
    one does nothing. Endpoint, token and proxies are the client's own.

    Parameters
    ----------
    repo
        Repository id, ``org/name``.
    commit
        Full sha of the commit.
    files
        (sha256, bytes) of the files of the checkpoint, by name, as the repository's tree lists them; of an index, git's
        blob id in place of the sha256. Files that are no weights may be among them.
    wanted
        Says of a tensor's name whether it is needed, such as `replay.models.NeededWeights`.
    folder
        Where the file goes; made if need be. Only one process at a time may use it.
    stopped
        Once it is set, the download ends at its next block; what came is kept.

    Raises
    ------
    SourceUnreachable
        If it was stopped.
    CheckpointError
        Weights that are no safetensors; a server that gives whole files only.
    MissingWeights
        No complete weights, or none that are wanted.
    DamagedWeights
        A file that is not the one listed, or not what its header says; an answer that is not what was asked for.
    huggingface_hub.errors.HfHubHTTPError, httpx2.TransportError, OSError
        As the client, the connection and the disk raise them; the call may be repeated.
    """
    checkpoint = _Checkpoint(repo, commit, files, stopped)
    tensors, n_read = _find_tensors(checkpoint, wanted, folder)
    header = _header(tensors, files)
    n_bytes = len(header) + sum(tensor.n_bytes for tensor in tensors)
    whole, growing = folder / _SINGLE, folder / _GROWING
    if _n_written(whole, header) != n_bytes:
        n_written = _n_written(growing, header)
        if n_written > n_bytes:
            n_written = 0
        # every write goes to the end, so that after a kill the length of the file is what can be relied on
        with growing.open("ab" if n_written else "wb") as out:
            out.write(header[n_written:])
            for span in _join_ranges(tensors, skip=max(0, n_written - len(header))):
                checkpoint.copy(span, out)
        growing.replace(whole)
    return _describe(tensors, n_read)


def partial_files(files: Mapping[str, Sequence[Any]]) -> set[str]:
    """Return the names of what `fetch_tensors` leaves in its folder, ``files`` being as there."""
    return {_SINGLE, _GROWING, *(_header_name(digest) for digest, _ in files.values())}


class _Checkpoint:
    """The weight files of one commit, to be read in part."""

    def __init__(
        self, repo: str, commit: str, files: Mapping[str, Sequence[Any]], stopped: Event | None = None
    ) -> None:
        self.repo = repo
        self._commit = commit
        self._files = files
        self._stopped = stopped or Event()
        self.chosen = choose_weights(files)
        if not all(name.endswith((".safetensors", ".safetensors.index.json")) for name in self.chosen):
            raise CheckpointError(
                f"{self.chosen[0]} of {repo} cannot be fetched in part: only safetensors can, fetch it whole"
            )

    def size(self, name: str) -> int:
        return int(self._files[name][1])

    def glimpse(self, name: str) -> int:
        """Return how many bytes to ask for unseen: most headers are shorter, and it is nothing beside a large file."""
        return min(self.size(name), 1 << 16, max(512, self.size(name) >> 10))

    def index(self, folder: Path) -> bytes:
        """Return the index; the digest tells that it is the one listed."""
        name = self.chosen[0]
        kept = self._kept(name, folder)
        if kept is not None:
            return kept
        content = self._read(name, 0, self.size(name))
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False)
        if self._files[name][0] not in (blob.hexdigest(), hashlib.sha256(content).hexdigest()):
            raise DamagedWeights(
                f"{name} of {self.repo} is not the file that the repository lists (its digest differs)"
            )
        return self._keep(name, folder, content)

    def header(self, name: str, folder: Path) -> bytes:
        """Return the length and the table of tensors that a weight file begins with."""
        kept = self._kept(name, folder)
        if kept is not None:
            return kept
        size, first = self.size(name), self.glimpse(name)
        content = self._read(name, 0, first) if size > 8 else b""
        stop = 8 + int.from_bytes(content[:8], "little")
        if not 8 < stop <= min(size, 8 + _LONGEST_HEADER):
            raise DamagedWeights(f"{name} of {self.repo} does not begin with the header of a safetensors file")
        if stop > first:
            content += self._read(name, first, stop)
        return self._keep(name, folder, content[:stop])

    def copy(self, span: _Range, out: BinaryIO) -> None:
        """Write the parts of ``span`` to ``out``, a piece at a time."""
        at = span.start
        with self._asking(span.file, span.start, span.stop) as pieces:
            for piece in pieces:
                out.writelines(piece[max(start - at, 0) : max(stop - at, 0)] for start, stop in span.parts)
                at += len(piece)

    def _kept(self, name: str, folder: Path) -> bytes | None:
        path = folder / _header_name(self._files[name][0])
        return (path.read_bytes() or None) if path.is_file() else None

    def _keep(self, name: str, folder: Path, content: bytes) -> bytes:
        path = folder / _header_name(self._files[name][0])
        aside = path.with_suffix(".incomplete")
        aside.write_bytes(content)
        aside.replace(path)
        return content

    def _read(self, name: str, start: int, stop: int) -> bytes:
        with self._asking(name, start, stop) as pieces:
            return b"".join(pieces)

    @contextmanager
    def _asking(self, name: str, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """Ask for the bytes from ``start`` to ``stop`` of a file; give them in pieces if the answer is to that."""
        from huggingface_hub import constants, get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined] # documented, lazily exported

        digest, size = self._files[name]
        what = f"{name} of {self.repo}"
        self._go_on(what)
        in_part = (start, stop) != (0, size)
        headers = build_hf_headers(library_name="replay") | {"Accept-Encoding": "identity"}
        if in_part:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        url, timeout = hf_hub_url(self.repo, name, revision=self._commit), constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            if _digest(answer) != digest:
                raise DamagedWeights(
                    f"{what} is not the file that the repository lists: {digest} was listed, {_digest(answer)} is there"
                )
            if in_part and answer.status_code != 206:
                raise CheckpointError(
                    f"{what} cannot be fetched in part: asked for a range, the server answered {answer.status_code} "
                    "instead of 206; fetch it whole"
                )
            given, asked = answer.headers.get("Content-Range"), f"bytes {start}-{stop - 1}/{size}"
            if in_part and given != asked:
                raise DamagedWeights(f"{what}: asked for {asked}, the server gave {given or 'no range'}")
            length = answer.headers.get("Content-Length")
            if in_part and length not in (None, str(stop - start)):
                raise DamagedWeights(f"{what}: asked for {stop - start} bytes, the server gave {length}")
            yield self._counted(answer, stop - start, what)

    def _counted(self, answer: "Response", n_bytes: int, what: str) -> Iterator[bytes]:
        n_given = 0
        # As the blocks come: to gather them into larger ones would lose what is in hand when the line breaks.
        for piece in answer.iter_bytes():
            self._go_on(what)
            n_given += len(piece)
            if n_given > n_bytes:
                raise DamagedWeights(f"{what}: asked for {n_bytes} bytes, the server gave more")
            yield piece
        if n_given != n_bytes:
            raise DamagedWeights(f"{what}: asked for {n_bytes} bytes, the server gave {n_given}")

    def _go_on(self, what: str) -> None:
        if self._stopped.is_set():
            raise SourceUnreachable(f"{what}: the download was stopped; what came is kept")


def _header_name(digest: str) -> str:
    return f".{digest}.header"


def _digest(answer: "Response") -> str | None:
    """Return what the hub calls the file: on the way to a large one in a header of its own, else its ETag."""
    linked = [hop.headers["X-Linked-ETag"] for hop in (*answer.history, answer) if "X-Linked-ETag" in hop.headers]
    tag = linked[-1] if linked else answer.headers.get("ETag")
    return None if tag is None else str(tag).removeprefix("W/").strip('"')


def _find_tensors(checkpoint: _Checkpoint, wanted: Callable[[str], bool], folder: Path) -> tuple[list[_Tensor], int]:
    """Return the wanted tensors in the order in which they are written, and the bytes read to find them."""
    folder.mkdir(parents=True, exist_ok=True)
    if len(checkpoint.chosen) == 1:
        table = _read_header(checkpoint, _SINGLE, folder)
        tensors = [tensor for name, tensor in table.items() if wanted(name)]
        n_read = max(checkpoint.glimpse(_SINGLE), len(checkpoint.header(_SINGLE, folder)))
    else:
        tensors, n_read = [], checkpoint.size(checkpoint.chosen[0])
        for shard, names in _read_index(checkpoint, wanted, folder).items():
            table = _read_header(checkpoint, shard, folder)
            absent = [name for name in names if name not in table]
            if absent:
                raise DamagedWeights(f"{shard} lacks {absent[0]}, which the index says it holds")
            tensors += [table[name] for name in names]
            n_read += max(checkpoint.glimpse(shard), len(checkpoint.header(shard, folder)))
    if not tensors:
        raise MissingWeights(f"{', '.join(checkpoint.chosen[:3])} of {checkpoint.repo}: no weight is one of the needed")
    # larger items first, as in every safetensors file, so that each tensor starts at a multiple of its item
    return sorted(tensors, key=lambda tensor: (-tensor.itemsize, tensor.file, tensor.start)), n_read


def _read_index(checkpoint: _Checkpoint, wanted: Callable[[str], bool], folder: Path) -> dict[str, list[str]]:
    """Return the wanted tensors of each shard that has any."""
    index, *shards = checkpoint.chosen
    content = checkpoint.index(folder)
    names_of: dict[str, list[str]] = {}
    try:
        for name, shard in json.loads(content)["weight_map"].items():
            if wanted(name):
                names_of.setdefault(shard, []).append(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedWeights(f"{index} is no index of weight files: {error}") from error
    strange = [shard for shard in names_of if shard not in shards]
    if strange:
        raise DamagedWeights(f"{index} names {strange[0]}, which is no weight file of {checkpoint.repo}")
    return names_of


def _read_header(checkpoint: _Checkpoint, file: str, folder: Path) -> dict[str, _Tensor]:
    content, size = checkpoint.header(file, folder), checkpoint.size(file)
    tensors = {}
    try:
        for name, entry in json.loads(content[8:]).items():
            if name == "__metadata__":
                continue
            start, stop = (len(content) + int(offset) for offset in entry["data_offsets"])
            shape = tuple(int(length) for length in entry["shape"])
            tensors[name] = _Tensor(name, file, start, stop, str(entry["dtype"]), shape)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedWeights(f"the header of {file} is no table of tensors: {error}") from error
    outside = [name for name, tensor in tensors.items() if not len(content) <= tensor.start <= tensor.stop <= size]
    if outside:
        raise DamagedWeights(f"the header of {file} places {outside[0]} outside its {size} bytes")
    return tensors


def _header(tensors: Iterable[_Tensor], files: Mapping[str, Sequence[Any]]) -> bytes:
    """Return what the new file begins with, padded so that its data start at a multiple of 8."""
    sources = dict.fromkeys(str(files[tensor.file][0]) for tensor in tensors)
    table: dict[str, Any] = {"__metadata__": {"format": "pt", "taken_from": " ".join(sources)}}
    at = 0
    for tensor in tensors:
        offsets = [at, at + tensor.n_bytes]
        table[tensor.name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
        at += tensor.n_bytes
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _n_written(path: Path, header: bytes) -> int:
    """Return how long ``path`` is if it begins with ``header``, or with as much of it as it holds; else 0."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return path.stat().st_size if header.startswith(file.read(len(header))) else 0


def _join_ranges(tensors: Sequence[_Tensor], *, skip: int = 0) -> list[_Range]:
    """Join tensors that stand side by side, or nearly so; their first ``skip`` bytes are there already."""
    parts: list[tuple[str, int, int]] = []
    for tensor in tensors:
        there = min(skip, tensor.n_bytes)
        skip -= there
        start = tensor.start + there
        if parts and parts[-1][0] == tensor.file and parts[-1][2] == start:
            parts[-1] = (tensor.file, parts[-1][1], tensor.stop)
        elif start < tensor.stop:
            parts.append((tensor.file, start, tensor.stop))
    bridged = _bridged(parts)
    ranges: list[_Range] = []
    for i, (file, start, stop) in enumerate(parts):
        before = ranges.pop().parts if i in bridged else ()
        ranges.append(_Range(file, (*before, (start, stop))))
    return ranges


def _bridged(parts: Sequence[tuple[str, int, int]]) -> set[int]:
    """Return the parts that are asked for together with the one before: the smallest gaps, while they cost little."""
    gaps = [
        (start - end, i)
        for i, ((file_before, _, end), (file, start, _)) in enumerate(pairwise(parts), start=1)
        if file == file_before and start > end
    ]
    left = _GAPS * sum(stop - start for _, start, stop in parts)
    bridged = set()
    for gap, i in sorted(gaps):
        left -= gap
        if left >= 0:
            bridged.add(i)
    return bridged


def _describe(tensors: Sequence[_Tensor], n_read: int) -> PartialWeights:
    ranges = _join_ranges(tensors)
    return PartialWeights(
        names=tuple(tensor.name for tensor in tensors),
        n_bytes=sum(tensor.n_bytes for tensor in tensors),
        n_fetched=n_read + sum(span.stop - span.start for span in ranges),
        n_ranges=len(ranges),
    )
