"""A series of hub repositories, one checkpoint each, that together are one run."""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from threading import Event
from typing import Any

from replay.revisions import sort_key
from replay.sources.files import Wanted
from replay.sources.hub import HubSource, get_pages, step_record
from replay.sources.retries import Report
from store.commits import RevisionRecord
from store.errors import GatedSource, InvalidInput, SourceUnreachable, UnknownRevision, UnknownSource

__all__ = ["SeriesSource", "is_series", "series_run"]

PAGE = 1000
"""Repositories asked for at a time."""

_WILD = re.compile(r"[*?\[]")


class SeriesSource:
    """The repositories of one owner whose names match a pattern, such as ``google/multiberts-seed_0-step_*``.

    A repository is a revision, named without its owner; its commit is that of ``main``.

    Parameters
    ----------
    pattern
        ``ORG/GLOB``, with ``*``, ``?`` and ``[…]`` as file names have them.
    step_regex
        Pattern with a group ``step`` for repository names of no known suite, without the owner.
    known
        What an earlier listing said, to go on with while offline.
    report
        As for `HubSource`.

    Raises
    ------
    InvalidInput
        If ``pattern`` is none of this form.
    """

    kind = "hub"

    def __init__(
        self,
        pattern: str,
        *,
        step_regex: re.Pattern[str] | None = None,
        known: Sequence[RevisionRecord] = (),
        report: Report | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.*?\[\]!-]+", pattern):
            raise InvalidInput(
                f"--repo {pattern!r} is no series of repositories: expected ORG/GLOB, such as "
                "google/multiberts-seed_0-step_*"
            )
        self.location = pattern
        self.run = series_run(pattern)
        self.report = report
        self._owner = pattern.partition("/")[0]
        self._step_regex = step_regex
        self._known = {r.name: r for r in known if fnmatchcase(f"{self._owner}/{r.name}", pattern)}
        self._repositories: dict[str, HubSource] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"report": None}

    def list_revisions(self) -> list[RevisionRecord]:
        """Return one record a repository, ordered by step; one request a page.

        Offline, those of an earlier listing.

        Raises
        ------
        UnknownSource
            If no repository matches.
        InvalidInput
            If two of them have the same step.
        """
        from huggingface_hub import constants

        commits = self._known_commits() if constants.HF_HUB_OFFLINE else self._listed_commits()
        records = [step_record(name, commit, step_regex=self._step_regex) for name, commit in commits.items()]
        records.sort(key=lambda record: sort_key(record.name, step=record.step, pattern=self._step_regex))
        names: dict[tuple[int | None, int], str] = {}
        for record in records:
            if record.step is None:
                continue
            other = names.setdefault((record.stage, record.step), record.name)
            if other != record.name:
                raise InvalidInput(
                    f"{self.location} matches several series: {other} and {record.name} both are step {record.step}; "
                    "name one series with each --repo"
                )
        return records

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with the digests that its repository's tree names; one request.

        A repository that is gated or gone is an error of this record alone, which then has no commit, so that the
        next listing asks again.
        """
        try:
            described = self._repository(record).describe(replace(record, name="main"))
        except (GatedSource, UnknownSource) as error:
            return replace(record, commit=None, error=str(error))
        return replace(described, name=record.name)

    @contextmanager
    def fetch(
        self,
        record: RevisionRecord,
        names: list[str],
        scratch: Path,
        *,
        wanted: Wanted | None = None,
        stopped: Event | None = None,
    ) -> Iterator[Path]:
        """Hold a folder with the files, as `HubSource.fetch` does.

        Raises
        ------
        UnknownRevision
            Also if this one repository is gated or gone: the others of the series go on.
        """
        with ExitStack() as held:
            with _of_one_revision():
                fetched = self._repository(record).fetch(
                    replace(record, name="main"), names, scratch, wanted=wanted, stopped=stopped
                )
                folder = held.enter_context(fetched)
            yield folder

    def check(self, record: RevisionRecord, names: Sequence[str]) -> None:
        """Do as `HubSource.check` does."""
        self._repository(record).check(record, names)

    def bytes_to_fetch(
        self,
        record: RevisionRecord,
        names: Sequence[str],
        *,
        wanted: Wanted | None = None,
        scratch: Path | None = None,
        stopped: Event | None = None,
    ) -> int:
        """Return what `HubSource.bytes_to_fetch` does; a repository that is gated or gone raises as in `fetch`."""
        with _of_one_revision():
            repository = self._repository(record)
            return repository.bytes_to_fetch(record, names, wanted=wanted, scratch=scratch, stopped=stopped)

    def _repository(self, record: RevisionRecord) -> HubSource:
        if record.name not in self._repositories:
            known = [replace(self._known[record.name], name="main")] if record.name in self._known else []
            source = HubSource(f"{self._owner}/{record.name}", known=known, report=self.report)
            self._repositories.setdefault(record.name, source)
        return self._repositories[record.name]

    def _listed_commits(self) -> dict[str, str]:
        query = {"author": self._owner, "limit": str(PAGE), "expand": "sha"}
        if head := _fixed_head(self.location).partition("/")[2].rstrip("-_."):
            query["search"] = head
        pages = get_pages("models", repo=self.location, subject=self.location, report=self.report, query=query)
        ids = {entry["id"]: entry.get("sha") for page in pages for entry in page}
        found = {id_.partition("/")[2]: sha for id_, sha in ids.items() if sha and fnmatchcase(id_, self.location)}
        if not found:
            others = ", ".join(sorted(ids)[:4])
            raise UnknownSource(
                f"no repository matches {self.location}: "
                + (
                    f"there are {others}"
                    if others
                    else f"check the owner {self._owner} and the name before the first *"
                )
            )
        return found

    def _known_commits(self) -> dict[str, str]:
        if not self._known:
            raise SourceUnreachable(
                f"{self.location} has never been listed and HF_HUB_OFFLINE is set: unset it once, or name each "
                "repository of your cache with --repo"
            )
        return {name: record.commit for name, record in self._known.items() if record.commit}


@contextmanager
def _of_one_revision() -> Iterator[None]:
    try:
        yield
    except (GatedSource, UnknownSource) as error:
        raise UnknownRevision(str(error)) from error


def is_series(repo: str) -> bool:
    """Return whether what was given as a repository is a pattern for many."""
    return _WILD.search(repo) is not None


def series_run(pattern: str) -> str:
    """Return the name of the run that a series is: what its repositories share, without the word for step."""
    head = _fixed_head(pattern).rstrip("-_./")
    return re.sub(r"[-_.]steps?$", "", head)


def _fixed_head(pattern: str) -> str:
    return _WILD.split(pattern, maxsplit=1)[0]
