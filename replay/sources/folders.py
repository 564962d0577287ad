"""Checkpoints in folders: ``step*/`` revisions, a Trainer's ``checkpoint-*/``, or one model."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from replay.revisions import parse_step, sort_key
from replay.scalars import trainer_log
from replay.sources.files import CONFIG, Wanted, describe_files, is_of_a_set, is_weight_file, sha256
from store.commits import RevisionRecord
from store.errors import CheckpointError, DamagedWeights, UnknownSource
from store.index import Index
from store.keys import content_key, git_blob_id

__all__ = ["FolderSource"]

TRAINER_STATE = "trainer_state.json"


class FolderSource:
    """The checkpoints below a folder.

    Parameters
    ----------
    folder
        A folder of revision folders, a Trainer's output folder, or one model folder.
    run
        Name of the run; the folder's own by default.
    index
        Where file digests are remembered by path, size and time of change.
    step_regex
        Pattern with a group ``step`` for folder names of no known suite.

    Raises
    ------
    UnknownSource
        If there is no such folder or it holds no checkpoint.
    """

    kind = "folder"

    def __init__(
        self, folder: Path, *, index: Index, run: str | None = None, step_regex: re.Pattern[str] | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.location = str(self.folder)
        self.run = run or self.folder.name
        self._index = index
        self._step_regex = step_regex
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise UnknownSource(f"{folder} {what}: --path takes a folder of checkpoints")

    def list_revisions(self) -> list[RevisionRecord]:
        """Return one record a revision folder, ordered by step.

        The step inside a Trainer's ``trainer_state.json`` beats the one in the folder's name. A model that stands
        beside its checkpoints is the revision ``main``.
        """
        below = [path for path in self.folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
        folders = {path.name: path for path in below if _holds_model(path) or self._parse(path.name)}
        alone = _holds_model(self.folder)
        if not folders and not alone:
            raise UnknownSource(self._nothing_found(below))
        records = [self._record(name, path) for name, path in folders.items()]
        if alone:
            name = "main" if folders or not self._parse(self.folder.name) else self.folder.name
            records.append(self._record(name, self.folder))
        return self._ordered(records)

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with the digests of its files; unchanged files are not read again."""
        if record.error:
            return record
        files: dict[str, tuple[str, int]] = {}
        try:
            for path in sorted(self._of(record.name).iterdir()):
                if path.is_file() and (is_of_a_set(path.name) or path.stat().st_size < 2**26):
                    files[path.name] = (self._listed_digest(path), path.stat().st_size)
        except OSError as error:
            return replace(record, error=f"{error.filename} cannot be read ({error.strerror})")
        return describe_files(record, files)

    @contextmanager
    def fetch(
        self,
        record: RevisionRecord,
        names: list[str],
        scratch: Path,  # noqa: ARG002 (nothing is downloaded)
        *,
        wanted: Wanted | None = None,  # noqa: ARG002
        stopped: Event | None = None,  # noqa: ARG002
    ) -> Iterator[Path]:
        """Hold the revision's own folder, after a look that its files are still those that were listed."""
        self.check(record, names)
        yield self._of(record.name)

    def check(self, record: RevisionRecord, names: Sequence[str]) -> None:
        """Refuse files that are gone or changed since they were listed; unchanged weights are not read again."""
        folder = self._of(record.name)
        for name in names:
            try:
                digest = self._listed_digest(folder / name)
            except FileNotFoundError as error:
                raise DamagedWeights(f"{folder / name} is gone since it was listed") from error
            if digest != record.files[name][0]:
                raise DamagedWeights(f"{folder / name} was changed since it was listed: run the same command again")

    def bytes_to_fetch(
        self,
        record: RevisionRecord,  # noqa: ARG002 (nothing is downloaded)
        names: Sequence[str],  # noqa: ARG002
        *,
        wanted: Wanted | None = None,  # noqa: ARG002
        scratch: Path | None = None,  # noqa: ARG002
        stopped: Event | None = None,  # noqa: ARG002
    ) -> int:
        """Return 0: everything is here."""
        return 0

    def _ordered(self, records: list[RevisionRecord]) -> list[RevisionRecord]:
        return sorted(records, key=lambda record: sort_key(record.name, step=record.step, pattern=self._step_regex))

    def _parse(self, name: str) -> bool:
        return parse_step(name, pattern=self._step_regex) is not None

    def _of(self, name: str) -> Path:
        folder = self.folder / name
        return folder if folder.is_dir() else self.folder

    def _record(self, name: str, folder: Path) -> RevisionRecord:
        parsed = parse_step(folder.name, pattern=self._step_regex)
        record = RevisionRecord(name=name)
        if parsed is not None:
            record = replace(record, step=parsed.step, tokens=parsed.tokens, epoch=parsed.epoch, stage=parsed.stage)
        state = folder / TRAINER_STATE
        if not state.is_file():
            return record
        try:
            return _with_trainer_state(record, json.loads(state.read_bytes()))
        except (ValueError, KeyError, TypeError) as error:
            return replace(record, error=str(CheckpointError(f"{state} cannot be read ({error})")))

    def _listed_digest(self, path: Path) -> str:
        return self._digest(path) if is_of_a_set(path.name) else git_blob_id(path.read_bytes())

    def _digest(self, path: Path) -> str:
        return str(self._remembered("file", path, lambda path: {"sha256": sha256(path)})["sha256"])

    def _remembered(self, kind: str, path: Path, find: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``find`` says of a file; unchanged in size and time it is not asked again."""
        stat = path.stat()
        key = content_key(kind, path=str(path), size=stat.st_size, changed=stat.st_mtime_ns)
        known = self._index.fact(key)
        if known is None:
            known = find(path)
            self._index.remember(key, known)
        return known

    def _nothing_found(self, below: list[Path]) -> str:
        deeper = [path.name for path in sorted(below) if any(_holds_model(p) for p in path.iterdir() if p.is_dir())]
        line = f"no checkpoint in {self.folder}: expected step*/, checkpoint-*/ or a {CONFIG} with its weights"
        nearby = (path for folder in (self.folder, *below) for path in folder.iterdir())
        plain = sorted(path.name for path in nearby if path.is_file() and is_weight_file(path.name))
        if plain:
            return f"{line}; {plain[0]} is plain weights: say with --model FILE.py:FUNCTION what builds their model"
        if deeper:
            return f"{line}; its folders {', '.join(deeper[:8])} hold some: name each with its own --path"
        names = ", ".join(sorted(path.name for path in below)[:8])
        return f"{line}; there is {names or 'no folder'} (--step-regex reads other names)"


def _holds_model(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def _with_trainer_state(record: RevisionRecord, state: Mapping[str, Any]) -> RevisionRecord:
    step = int(state["global_step"])
    return replace(record, step=step, epoch=state.get("epoch"), scalars=trainer_log(state).at(step))
