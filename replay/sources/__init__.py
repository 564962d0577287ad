"""Where checkpoints come from: one contract, kept by the hub and by folders."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event
from typing import Protocol

from replay.factories import ModelFactory
from replay.sources.files import Wanted
from replay.sources.retries import Report
from store.catalog import Store
from store.commits import RevisionRecord, get_revisions
from store.errors import InvalidInput

__all__ = ["Source", "open_sources"]


class Source(Protocol):
    """One training run somewhere: lists its revisions, says what they hold, hands out their files."""

    kind: str
    """``hub`` or ``folder``."""
    location: str
    """Repository id, or absolute path."""
    run: str
    """Name of the run."""

    def list_revisions(self) -> list[RevisionRecord]:
        """Return name, commit and step of every revision, in order, as cheaply as the source can.

        Raises
        ------
        UnknownSource, AccessError
            If there is no such source, or it cannot be reached.
        """

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with digests and sizes of its files, or with ``error`` where it has no usable weights.

        Nothing heavy is fetched: a hub's tree names the digests, a folder's files are hashed.
        """

    def fetch(
        self,
        record: RevisionRecord,
        names: list[str],
        scratch: Path,
        *,
        wanted: Wanted | None = None,
        stopped: Event | None = None,
    ) -> AbstractContextManager[Path]:
        """Hold a local folder that has the files ``names`` of ``record``, verified against their digests.

        ``scratch`` is where a source may download to; it keeps what an interrupted download left and is emptied when
        the folder has been used. With ``wanted`` a source that can do it downloads those tensors only, in which case
        the sha256 of the weight files is not checked. Once ``stopped`` is set a download ends at its next block and a
        wait between two attempts at once; what came is kept, and no thread is left behind.

        Raises
        ------
        AccessError, DamagedWeights
            If the files cannot be had, or are not what was listed; also if it was stopped.
        """

    def check(self, record: RevisionRecord, names: Sequence[str]) -> None:
        """Look once more at files that were fetched and stand where others may write.

        To be called when they have been read and before anything that was made of them is kept.

        Raises
        ------
        DamagedWeights
            If they are no longer what was listed.
        """

    def bytes_to_fetch(
        self,
        record: RevisionRecord,
        names: Sequence[str],
        *,
        wanted: Wanted | None = None,
        scratch: Path | None = None,
        stopped: Event | None = None,
    ) -> int:
        """Return how many bytes `fetch` would have to download for the files ``names``, or for the wanted tensors.

        0 for a folder, and for a revision of which the user's own hub cache has them all. With ``scratch``, as right
        before the download, those are read and have to be what was listed; without it their presence is enough. What
        an interrupted download left is not counted off. ``stopped`` is as for `fetch`.
        """


def open_sources(
    store: Store,
    *,
    repos: Sequence[str],
    paths: Sequence[Path],
    step_regex: re.Pattern[str] | None = None,
    report: Report | None = None,
    factory: ModelFactory | None = None,
) -> list[Source]:
    """Return one source for each repository, series of repositories (a name with ``*``, ``?`` or ``[``) and folder.

    ``report`` is told of each request to a hub that failed and is tried again. With a ``factory`` the folders hold
    plain weights of its model.

    A folder's run is named after it; where two folders share a name, as many parents are put before it as tell them
    apart (``seed0/model``, ``seed1/model``).

    Raises
    ------
    InvalidInput
        If none is given, or one twice, or a repository with a factory.
    UnknownSource
        If a folder does not exist.
    """
    from replay.sources.folders import FolderSource
    from replay.sources.hub import HubSource
    from replay.sources.plain import PlainSource
    from replay.sources.series import SeriesSource, is_series, series_run

    if not repos and not paths:
        raise InvalidInput("nothing to ingest: give --repo ORG/NAME or --path DIR")
    if repos and factory is not None:
        raise InvalidInput(f"--model reads plain weight files in folders: download {repos[0]} and give its --path")
    folders = [path.resolve() for path in paths]
    given = [*repos, *map(str, folders)]
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        raise InvalidInput(f"{twice[0]} is given twice")
    taken = store.locations()
    sources: list[Source] = []
    for repo in repos:
        if is_series(repo):
            known = get_revisions(store, series_run(repo))
            sources.append(SeriesSource(repo, step_regex=step_regex, known=known, report=report))
        else:
            known = get_revisions(store, repo)
            sources.append(HubSource(repo, step_regex=step_regex, known=known, report=report))
    for path, folder in zip(paths, folders, strict=True):
        names = ["/".join(folder.parts[-depth:]) for depth in range(1, len(folder.parts))]
        others = [other for other in folders if other != folder]
        here = next((name for name, location in taken.items() if location == str(folder)), None)
        for name in [here] if here else names:
            depth = name.count("/") + 1
            alone = all("/".join(other.parts[-depth:]) != name for other in others)
            if here or (alone and taken.get(name, str(folder)) == str(folder)):
                break
        if factory is None:
            sources.append(FolderSource(path, index=store.index, run=name, step_regex=step_regex))
        else:
            sources.append(PlainSource(path, factory=factory, index=store.index, run=name, step_regex=step_regex))
    return sources
