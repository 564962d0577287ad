"""Plain weight files in a folder: what a training script, Lightning or a Trainer saved of a model with a factory."""

import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

from replay.factories import ModelFactory
from replay.revisions import parse_step
from replay.sources.files import is_weight_file
from replay.sources.folders import FolderSource
from store.commits import RevisionRecord
from store.errors import DamagedWeights, InvalidInput, MissingWeights, UnknownSource
from store.index import Index
from store.keys import weights_digest

__all__ = ["PlainSource"]

FOLDER = "checkpoints"
"""Where Lightning and many scripts keep them, below what is called the run."""


class PlainSource(FolderSource):
    """The weight files in a folder and in the ``checkpoints`` below it, alone or one in each of their step folders.

    A revision is named by its file without suffix, or by its folder; ``checkpoints/`` stands before a name that the
    folder itself has as well. Its digest is that of the tensors: files that hold
    the same, such as Lightning's ``last.ckpt``, are aliases. Optimizers, schedulers and the like are left out.

    Parameters
    ----------
    folder
        Holds ``*.pt``, ``*.pth``, ``*.bin``, ``*.ckpt`` or ``*.safetensors``.
    factory
        What builds their model.
    run, index, step_regex
        As for `FolderSource`; the pattern reads names of files with or without suffix, and of folders. Where it fits
        some of them, the others have no step, whatever is in the files.

    Raises
    ------
    UnknownSource
        If there is no such folder.
    """

    def __init__(
        self,
        folder: Path,
        *,
        factory: ModelFactory,
        index: Index,
        run: str | None = None,
        step_regex: re.Pattern[str] | None = None,
    ) -> None:
        super().__init__(folder, index=index, run=run, step_regex=step_regex)
        self.factory = factory
        self._files: dict[str, list[Path]] = {}

    def list_revisions(self) -> list[RevisionRecord]:
        """Return one record a file, ordered by step; their tensors are not read yet.

        The step inside a file beats that of a ``trainer_state.json`` beside it, and this the one in a name.

        Raises
        ------
        UnknownSource
            If there is no weight file.
        InvalidInput
            If of several numbered files none says its step, or two say the same step and hold different weights.
        """
        self._files = self._find()
        # a pattern that fits some names chooses them: the others are no steps, whatever is in them
        chosen = [name for name in self._files if self._says_step(name)] if self._step_regex else []
        records = [self._list_one(name, files) for name, files in self._files.items()]
        records = [
            record if record.name in chosen or not chosen else replace(record, step=None, epoch=None, tokens=None)
            for record in records
        ]
        records = self._ordered(records)
        self._check_steps(records)
        self._check_series(records)
        return records

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with the digest of its tensors; an unchanged file is not read again."""
        if record.error:
            return record
        try:
            file = self._file(record.name)
            digest, n_bytes = self._listed_digest(file), file.stat().st_size
        except (DamagedWeights, MissingWeights) as error:
            return replace(record, error=str(error))
        except OSError as error:
            return replace(record, error=f"{error.filename} cannot be read ({error.strerror})")
        return replace(
            record,
            config=self.factory.digest,
            weights=weights_digest({"tensors": digest}, config=self.factory.digest),
            n_bytes=n_bytes,
            files={file.name: [digest, n_bytes]},
        )

    def _find(self) -> dict[str, list[Path]]:
        """Return the files of each revision by its name: one, or all those among which a step folder has no one."""
        found: dict[str, list[Path]] = {}
        for folder in (self.folder, self.folder / FOLDER):
            if folder.is_dir():
                here = self._find_in(folder)
                found |= {f"{FOLDER}/{name}" if name in found else name: files for name, files in here.items()}
        if found:
            return found
        line = f"no weights in {self.folder}: expected *.pt, *.pth, *.bin, *.ckpt or *.safetensors"
        deeper = [path.name for path in _folders(self.folder) if _weight_files(path)]
        if deeper:
            raise UnknownSource(f"{line}; its folders {', '.join(deeper[:8])} hold some: name each with its own --path")
        there = ", ".join(sorted(path.name for path in self.folder.iterdir())[:8])
        raise UnknownSource(f"{line}, in it, in {FOLDER}/ or in step folders; there is {there or 'nothing'}")

    def _find_in(self, folder: Path) -> dict[str, list[Path]]:
        files, below = _weight_files(folder), _folders(folder)
        found = {path.name: inside for path in below if self._parse(path.name) and (inside := _weight_files(path))}
        names = [*found, *(file.stem for file in files)]
        return found | {file.stem if names.count(file.stem) == 1 else file.name: [file] for file in files}

    def _check_steps(self, records: list[RevisionRecord]) -> None:
        """Refuse names that number a series in a way nobody knows; those without numbers are models, in no order."""
        names = [record.name for record in records if not record.error and re.search(r"\d", record.name)]
        if len(names) > 1 and all(record.step is None for record in records):
            raise InvalidInput(
                f"no step in {self.folder}, neither in the names ({_few(names)}) nor in the files: "
                f"say --step-regex '{_pattern(names[0])}'"
            )

    def _check_series(self, records: list[RevisionRecord]) -> None:
        """Refuse records of one step with different weights; only their tensors are read."""
        claims: dict[tuple[int | None, int | None], list[str]] = defaultdict(list)
        for record in records:
            if record.step is not None and not record.error:
                claims[record.stage, record.step].append(record.name)
        for (_, step), names in claims.items():
            found = {name: self._readable_digest(name) for name in names} if len(names) > 1 else {}
            read = {name: digest for name, digest in found.items() if digest}
            other = next((name for name in read if read[name] != read[next(iter(read))]), None)
            if other is not None:
                patterns = [_pattern(name, step) for name in (next(iter(read)), other) if re.search(r"\d", name)]
                fits = [
                    sum(re.fullmatch(pattern, record.name) is not None for record in records) for pattern in patterns
                ]
                choose = f", or choose it with --step-regex '{patterns[fits.index(max(fits))]}'" if patterns else ""
                raise InvalidInput(
                    f"{next(iter(read))} and {other} in {self.folder} are both of step {step} and hold different "
                    f"weights: move what is not of the series{choose}"
                )

    def _readable_digest(self, name: str) -> str | None:
        try:
            return self._listed_digest(self._file(name))
        except (DamagedWeights, MissingWeights, OSError):  # told when it is described
            return None

    def _says_step(self, name: str) -> bool:
        names = (name.rpartition("/")[2], self._files[name][0].name)
        return any(parse_step(each, pattern=self._step_regex) for each in names)

    def _list_one(self, name: str, files: list[Path]) -> RevisionRecord:
        file, leaf = files[0], name.rpartition("/")[2]
        record = self._record(name, file.parent if file.parent.name == leaf else file.with_suffix(""))
        if record.step is None and (parsed := parse_step(file.name, pattern=self._step_regex)):
            record = replace(record, step=parsed.step, tokens=parsed.tokens, epoch=parsed.epoch, stage=parsed.stage)
        try:
            inside = self._remembered("counts", self._file(name), _counts)
        except (DamagedWeights, MissingWeights, OSError) as error:
            return replace(record, error=str(error))
        return replace(record, **{field: count for field, count in inside.items() if count is not None})

    def _file(self, name: str) -> Path:
        if name not in self._files:
            self._files = self._find()
        files = self._files.get(name, [])
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:5])
            raise MissingWeights(f"{name} holds {len(files)} weight files ({names}): expected one")
        return files[0]

    def _of(self, name: str) -> Path:
        return self._file(name).parent

    def _listed_digest(self, path: Path) -> str:
        return str(self._remembered("tensors", path, _digest_of_tensors)["digest"])


def _counts(file: Path) -> dict[str, Any]:
    from replay.state_dicts import read_plain

    found = read_plain(file)
    return {"step": found.step, "epoch": found.epoch}


def _digest_of_tensors(file: Path) -> dict[str, Any]:
    from replay.state_dicts import check_bytes, digest_tensors, read_plain

    check_bytes(file)
    return {"digest": digest_tensors(read_plain(file).weights)}


def _pattern(name: str, step: int | None = None) -> str:
    """Guess the pattern of a name: its last number is the step, or the one that equals ``step``; others vary."""
    parts = re.split(r"(\d+(?:[kKmM](?![A-Za-z]))?)", name.rpartition("/")[2])
    numbers = range(1, len(parts), 2)
    place = max(numbers, key=lambda at: (parts[at].lstrip("0") == str(step), at))
    words = [re.escape(part).replace(r"\-", "-") for part in parts]
    for at in numbers:
        digits = r"\d+" + parts[at].lstrip("0123456789")
        words[at] = f"(?P<step>{digits})" if at == place else digits
    return "".join(words)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _weight_files(folder: Path) -> list[Path]:
    here = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in here if is_weight_file(path.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
