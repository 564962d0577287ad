"""Probe sets: ordered, content-hashed lists of inputs, read from a file or built in, and their tokens."""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from store.errors import CheckpointError, InvalidInput, InvalidProbes

__all__ = [
    "MAX_LENGTH",
    "Probe",
    "ProbeReport",
    "ProbeSet",
    "Probes",
    "Tokenizer",
    "Tokens",
    "builtin_probes",
    "load_tokenizer",
    "read_probes",
    "tokenize",
]

MAX_LENGTH = 128
"""Tokens kept of each probe unless the user asks for another limit."""


class Probes(Protocol):
    """A probe set of either kind: texts (`ProbeSet`) or arrays (`replay.arrays.ArrayProbes`)."""

    @property
    def name(self) -> str:
        """What it is called; not part of its content."""

    @property
    def digest(self) -> str:
        """The sha256 (hexadecimal) of its ordered content, labels and ids."""

    @property
    def rows(self) -> list[tuple[str, str | None, str | None]]:
        """(text, label, id) of each probe in order, as a store keeps them."""

    def __len__(self) -> int:
        """Count the probes."""

    def notes(self) -> list[str]:
        """Say what its owner should know, in sentences."""


@dataclass(frozen=True)
class Probe:
    """One input."""

    text: str
    """The text as it is given to the tokenizer, spaces at its ends included."""
    label: str | None = None
    """The class it belongs to, where one is known."""
    id: str | None = None
    """Its name where it came from."""


@dataclass(frozen=True)
class ProbeReport:
    """What reading a probe file found that its owner should know; lines are counted from 1."""

    duplicates: tuple[tuple[int, ...], ...] = ()
    """The lines of each text that stands more than once; all of them are kept."""
    empties: tuple[int, ...] = ()
    """The lines without text, or with white space only; they are left out."""

    def notes(self) -> list[str]:
        """Say it in sentences, one for each kind of finding."""
        found = []
        if self.empties:
            found.append(f"left out {_count(len(self.empties), 'empty probe')}: {_lines_named(self.empties)}")
        if self.duplicates:
            groups = [_lines_named(lines) for lines in self.duplicates]
            shown = "; ".join(groups[:3]) + ("; …" if len(groups) > 3 else "")
            found.append(f"kept {_count(len(groups), 'text')} given more than once: {shown}")
        return found


@dataclass(frozen=True)
class ProbeSet:
    """An ordered list of probes, known by its content."""

    name: str
    """What it is called; not part of its content."""
    probes: tuple[Probe, ...]
    """The probes in their order."""
    report: ProbeReport = field(default=ProbeReport(), compare=False, repr=False)
    """What was found while reading it."""

    def __post_init__(self) -> None:
        """Refuse a set without a probe."""
        if not self.probes:
            raise InvalidProbes(f"probe set {self.name!r} holds no probe")

    def __len__(self) -> int:
        """Count the probes."""
        return len(self.probes)

    @cached_property
    def digest(self) -> str:
        """The sha256 (hexadecimal) of the ordered texts, labels and ids."""
        return _sha256(["replay probe set 1", self.rows])

    @property
    def rows(self) -> list[tuple[str, str | None, str | None]]:
        """(text, label, id) of each, as a store keeps them."""
        return [(probe.text, probe.label, probe.id) for probe in self.probes]

    def notes(self) -> list[str]:
        """Say what was found while reading it, in sentences."""
        return self.report.notes()

    @property
    def texts(self) -> tuple[str, ...]:
        """The texts in order."""
        return tuple(probe.text for probe in self.probes)

    @property
    def labels(self) -> tuple[str | None, ...]:
        """The labels in order, `None` where there is none."""
        return tuple(probe.label for probe in self.probes)


def read_probes(path: Path, *, name: str | None = None) -> ProbeSet:
    """Read a probe set from a file, its order kept.

    Parameters
    ----------
    path
        A UTF-8 file. `.txt` has one probe a line; `.jsonl` an object a line with `text` and, if wanted, `label`
        and `id`; `.csv` a header that names those columns. Other keys and columns are ignored.
    name
        What to call the set; the file's name without its suffix if not given.

    Returns
    -------
    ProbeSet
        Its `report` names the lines left out as empty and those whose text stands more than once.

    Raises
    ------
    InvalidProbes
        If the file cannot be read or holds no usable probe; the text names the file, the line and the remedy.
    """
    try:
        read_rows = _reader(path)
        rows = list(read_rows(_read_text(path)))
        used = [row for row in rows if row.probe.text.strip()]
        if not used:
            held = _count(len(rows), "empty probe") if rows else "a header"
            raise InvalidProbes(f"no usable probe, only {held}")
    except InvalidProbes as problem:
        raise InvalidProbes(f"{path}: {problem}") from None
    lines_of = defaultdict(list)
    for row in used:
        lines_of[row.probe.text].append(row.line)
    report = ProbeReport(
        duplicates=tuple(tuple(lines) for lines in lines_of.values() if len(lines) > 1),
        empties=tuple(row.line for row in rows if not row.probe.text.strip()),
    )
    return ProbeSet(path.stem if name is None else name, tuple(row.probe for row in used), report)


def builtin_probes() -> ProbeSet:
    """Give the built-in set `topics`: 512 short English definitions, 64 of each of 8 topics, taken in turn.

    Any prefix is balanced over the topics. The texts are WordNet 3.0 glosses; their licence is in `data/NOTICE`.
    """
    with resources.as_file(resources.files("replay") / "data" / "topics.jsonl") as path:
        return read_probes(path, name="topics")


class Tokenizer(Protocol):
    """What is asked of a tokenizer: to be called as transformers' are."""

    def __call__(self, text: str, /, **options: Any) -> Mapping[str, Any]:
        """Give `input_ids` and, asked for it, `special_tokens_mask`."""
        ...


@dataclass(frozen=True)
class Tokens:
    """A probe set as one tokenizer reads it, without padding."""

    ids: tuple[tuple[int, ...], ...]
    """The token ids of each probe, special tokens included."""
    cut: tuple[int, ...]
    """The indices (from 0) of the probes that were longer than the limit."""


def tokenize(
    probe_set: ProbeSet, tokenizer: Tokenizer, *, max_length: int = MAX_LENGTH, n_positions: int | None = None
) -> Tokens:
    """Turn probes into token ids the way a user of the run's own tokenizer would.

    Parameters
    ----------
    probe_set
        The probes.
    tokenizer
        The run's tokenizer; it adds its own special tokens and cuts on its own side.
    max_length
        The most tokens kept of a probe, special tokens included.
    n_positions
        The most tokens the model can take, where it has such a limit; the lower limit holds.

    Raises
    ------
    InvalidInput
        If the limit leaves no room for a probe.
    InvalidProbes
        If a text gives no token of its own; special tokens do not stand in for it.
    """
    limit = max_length if n_positions is None else min(max_length, n_positions)
    if limit < 1:
        raise InvalidInput(f"a probe cannot be cut to {limit} tokens: give a max_length of 1 or more")
    ids: list[tuple[int, ...]] = []
    cut: list[int] = []
    for index, probe in enumerate(probe_set.probes):
        encoded = tokenizer(probe.text, truncation=True, max_length=limit, return_special_tokens_mask=True)
        ids.append(tuple(encoded["input_ids"]))
        is_cut = len(ids[-1]) >= limit and len(tokenizer(probe.text, verbose=False)["input_ids"]) > limit
        if is_cut:
            cut.append(index)
        if sum(encoded["special_tokens_mask"]) == len(ids[-1]):
            if is_cut:
                raise InvalidInput(
                    f"a limit of {_count(limit, 'token')} leaves no room beside the special tokens: raise max_length"
                )
            raise InvalidProbes(
                f"probe {index + 1} of {probe_set.name!r}, {probe.text[:40]!r}, gives no token with this tokenizer: "
                "remove it or give it other text"
            )
    return Tokens(tuple(ids), tuple(cut))


def load_tokenizer(folder: Path) -> Any:
    """Load the tokenizer of a checkpoint from its folder, silently and without a network.

    Raises
    ------
    CheckpointError
        If the folder holds no tokenizer, or one that cannot be read.
    """
    from transformers import AutoTokenizer
    from transformers.utils import logging

    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder to load a tokenizer from")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as problem:  # transformers raises whatever its parsers do
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        raise CheckpointError(f"{folder}: no tokenizer could be loaded from its files ({reason})") from problem
    finally:
        logging.set_verbosity(verbosity)
    # With its vocabulary files gone, transformers builds the class that config.json names around an empty
    # vocabulary: every text would give no token.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise CheckpointError(f"{folder}: no tokenizer files (such as tokenizer.json) beside the weights")
    return tokenizer


class _Row(NamedTuple):
    line: int
    probe: Probe


def _reader(path: Path) -> Callable[[str], Iterator[_Row]]:
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_txt}
    allowed = ", ".join(readers)
    if path.is_dir():
        raise InvalidProbes(f"a folder, not a file: name one file ({allowed}) inside it")
    if not path.exists():
        raise InvalidProbes("no such file")
    if path.suffix.lower() not in readers:
        raise InvalidProbes(
            f"unknown kind of probe file {path.suffix!r}: use one of {allowed} for texts, .npy, .npz for arrays"
        )
    return readers[path.suffix.lower()]


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as problem:
        raise InvalidProbes(f"cannot be read ({problem.strerror})") from problem
    try:
        text = content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as problem:
        line = content.count(b"\n", 0, problem.start) + 1
        raise InvalidProbes(f"line {line}, byte {problem.start} is not UTF-8: save the file as UTF-8") from None
    if not text:
        raise InvalidProbes("the file is empty")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InvalidProbes(f"line {line} holds a NUL character: save the file as UTF-8, not UTF-16")
    return text


def _read_txt(content: str) -> Iterator[_Row]:
    for line, text in _lines(content):
        yield _Row(line, Probe(text))


def _read_jsonl(content: str) -> Iterator[_Row]:
    for line, source in _lines(content):
        if not source.strip():
            yield _Row(line, Probe(""))
            continue
        try:
            record = json.loads(source)
        except json.JSONDecodeError as problem:
            raise InvalidProbes(f"line {line} is not JSON: {problem.msg} at column {problem.colno}") from None
        except (RecursionError, ValueError):
            raise InvalidProbes(f"line {line} is not JSON that can be read") from None
        if not isinstance(record, dict):
            raise InvalidProbes(f'line {line} is not a JSON object such as {{"text": "…"}}')
        if "text" not in record:
            raise InvalidProbes(f"line {line} has no key 'text', only {_names(record)}")
        if not isinstance(record["text"], str):
            raise InvalidProbes(f"line {line}: 'text' is {json.dumps(record['text'])[:40]}, not a string")
        probe = Probe(record["text"], _plain(record, "label", line=line), _plain(record, "id", line=line))
        if any(
            "\ud800" <= letter <= "\udfff" for value in (probe.text, probe.label, probe.id) for letter in value or ""
        ):
            raise InvalidProbes(f"line {line} holds half of a surrogate pair, which is no character")
        yield _Row(line, probe)


def _read_csv(content: str) -> Iterator[_Row]:
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    line = 1
    try:
        header = [column.strip() for column in next(reader)]
        if header.count("text") != 1:
            which = "more than one column" if "text" in header else "no column"
            raise InvalidProbes(f"{which} 'text' in the header, which has {_names(header)}")
        line = reader.line_num + 1  # a quoted cell may run over several lines: a row is named by its first
        for cells in reader:
            if cells and len(cells) != len(header):
                raise InvalidProbes(
                    f"line {line} has {_count(len(cells), 'cell')}, the header {len(header)}: "
                    "quote a text that holds commas"
                )
            row = dict(zip(header, cells, strict=False))
            yield _Row(line, Probe(row.get("text", ""), row.get("label") or None, row.get("id") or None))
            line = reader.line_num + 1
    except csv.Error as problem:
        raise InvalidProbes(f"line {line} is not CSV: {problem}") from None


def _lines(content: str) -> Iterator[tuple[int, str]]:
    # Not str.splitlines, which also breaks at form feeds and U+2028, both of which may stand inside a text.
    for line, source in enumerate(content.removesuffix("\n").split("\n"), 1):
        yield line, source.removesuffix("\r")


def _plain(record: dict[str, Any], key: str, *, line: int) -> str | None:
    value = record.get(key)
    if isinstance(value, bool) or not isinstance(value, str | int | None):
        raise InvalidProbes(f"line {line}: {key!r} is {json.dumps(value)[:40]}, not a string")
    return None if value is None or value == "" else str(value)


def _names(names: Mapping[str, Any] | list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"


def _lines_named(lines: tuple[int, ...]) -> str:
    shown = ", ".join(str(line) for line in lines[:5]) + (", …" if len(lines) > 5 else "")
    return f"line{'s' if len(lines) > 1 else ''} {shown}"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _sha256(value: object) -> str:
    # ASCII JSON without spaces has one spelling for each value, on any machine and whatever the letters.
    return hashlib.sha256(json.dumps(value, separators=(",", ":")).encode("ascii")).hexdigest()
