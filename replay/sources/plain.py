"""Plain weight files in a folder: what a training script, Lightning or a Trainer saved of a model with a factory."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from replay.factories import ModelFactory
from replay.revisions import parse_step
from replay.sources.files import is_weight_file
from replay.sources.folders import FolderSource
from store.commits import RevisionRecord
from store.errors import DamagedWeights, MissingWeights, UnknownSource
from store.index import Index
from store.keys import weights_digest

__all__ = ["PlainSource"]

FOLDER = "checkpoints"
"""Where Lightning and many scripts keep them, below what is called the run."""


class PlainSource(FolderSource):
    """The weight files in a folder, or in the ``checkpoints`` below it, or one in each of its step folders.

    A revision is named by its file without suffix, or by its folder. Its digest is that of the tensors: files that hold
    the same, such as Lightning's ``last.ckpt``, are aliases. Optimizers, schedulers and the like are left out.

    Parameters
    ----------
    folder
        Holds ``*.pt``, ``*.pth``, ``*.bin``, ``*.ckpt`` or ``*.safetensors``.
    factory
        What builds their model.
    run, index, step_regex
        As for `FolderSource`; the pattern reads names of files with or without suffix, and of folders.

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
        """
        self._files = self._find()
        return self._ordered([self._list_one(name, files) for name, files in self._files.items()])

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
        for folder in (self.folder, self.folder / FOLDER):
            if not folder.is_dir():
                continue
            files, below = _weight_files(folder), _folders(folder)
            found = {path.name: inside for path in below if self._parse(path.name) and (inside := _weight_files(path))}
            names = [*found, *(file.stem for file in files)]
            found |= {file.stem if names.count(file.stem) == 1 else file.name: [file] for file in files}
            if found:
                return found
        line = f"no weights in {self.folder}: expected *.pt, *.pth, *.bin, *.ckpt or *.safetensors"
        deeper = [path.name for path in _folders(self.folder) if _weight_files(path)]
        if deeper:
            raise UnknownSource(f"{line}; its folders {', '.join(deeper[:8])} hold some: name each with its own --path")
        there = ", ".join(sorted(path.name for path in self.folder.iterdir())[:8])
        raise UnknownSource(f"{line}, in it, in {FOLDER}/ or in step folders; there is {there or 'nothing'}")

    def _list_one(self, name: str, files: list[Path]) -> RevisionRecord:
        file = files[0]
        record = self._record(name, file.parent if file.parent.name == name else file.with_suffix(""))
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
    from replay.state_dicts import digest_tensors, read_plain

    return {"digest": digest_tensors(read_plain(file).weights)}


def _weight_files(folder: Path) -> list[Path]:
    here = (path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return sorted(path for path in here if is_weight_file(path.name))


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
