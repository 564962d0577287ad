"""Where checkpoints come from: one contract, kept by the hub and by folders."""

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

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

    def fetch(self, record: RevisionRecord, names: list[str], scratch: Path) -> AbstractContextManager[Path]:
        """Hold a local folder that has the files ``names`` of ``record``, verified against their digests.

        ``scratch`` is where a source may download to; it keeps what an interrupted download left and is emptied when
        the folder has been used.

        Raises
        ------
        AccessError, DamagedWeights
            If the files cannot be had, or are not what was listed.
        """


def open_sources(
    store: Store, *, repos: Sequence[str], paths: Sequence[Path], step_regex: re.Pattern[str] | None = None
) -> list[Source]:
    """Return one source for each repository and folder.

    A folder's run is named after it; where two folders share a name, as many parents are put before it as tell them
    apart (``seed0/model``, ``seed1/model``).

    Raises
    ------
    InvalidInput
        If none is given, or one twice.
    UnknownSource
        If a folder does not exist.
    """
    from replay.sources.folders import FolderSource
    from replay.sources.hub import HubSource

    if not repos and not paths:
        raise InvalidInput("nothing to ingest: give --repo ORG/NAME or --path DIR")
    folders = [path.resolve() for path in paths]
    given = [*repos, *map(str, folders)]
    twice = [name for name in given if given.count(name) > 1]
    if twice:
        raise InvalidInput(f"{twice[0]} is given twice")
    table = store.runs()
    taken = dict(zip(table["run"], table["location"], strict=True))
    sources: list[Source] = [HubSource(repo, step_regex=step_regex, known=get_revisions(store, repo)) for repo in repos]
    for path, folder in zip(paths, folders, strict=True):
        names = ["/".join(folder.parts[-depth:]) for depth in range(1, len(folder.parts))]
        others = [other for other in folders if other != folder]
        here = next((name for name, location in taken.items() if location == str(folder)), None)
        for name in [here] if here else names:
            depth = name.count("/") + 1
            alone = all("/".join(other.parts[-depth:]) != name for other in others)
            if here or (alone and taken.get(name, str(folder)) == str(folder)):
                break
        sources.append(FolderSource(path, index=store.index, run=name, step_regex=step_regex))
    return sources
