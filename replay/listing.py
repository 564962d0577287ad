"""What a source holds, as the store remembers it: a commit never changes, so it is described once."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

from replay.sources import Source
from store.catalog import Store
from store.commits import RevisionRecord, get_revisions, put_run
from store.errors import SourceUnreachable, UnknownRevision, UnknownSource
from store.keys import content_key

__all__ = ["Advance", "describe_revisions", "get_listing", "list_run", "remember_listing"]

Advance = Callable[[str, int, int, str], None]
"""Told what is being done, how much of it is done, how much there is, and which part."""

CONCURRENT_REQUESTS = 8

KEPT = ("config", "weights", "tokenizer", "n_bytes", "files")
"""What a row knows of a commit; its tokenizer may be borrowed."""


def describe_revisions(
    store: Store, source: Source, listed: Sequence[RevisionRecord], *, retry: bool, advance: Advance | None = None
) -> list[RevisionRecord]:
    """Return records with the digests of their files, asking only for commits that the store does not know.

    Parameters
    ----------
    store
        A store.
    source
        The run.
    listed
        From `Source.list_revisions`.
    retry
        Whether a replay that failed shall be tried again, so that its error is forgotten.
    advance
        Told of the listing.

    Raises
    ------
    AccessError
        If the source cannot be reached. A revision that is gone by now is a record with its error.
    """
    known = {record.name: record for record in get_revisions(store, source.run)}
    described = {name: row["commit"] for name, row in _remembered(store, source.run).items() if row["described"]}

    def describe(record: RevisionRecord) -> RevisionRecord:
        row = known.get(record.name)
        if row is not None and record.step is None:  # the pattern that read it may not be given this time
            record = replace(record, step=row.step, tokens=row.tokens, epoch=row.epoch, stage=row.stage)
        # What has no weights is asked again, unless it was seen by a listing that could reach the source.
        same = row is not None and record.commit is not None and record.commit == row.commit
        if row is None or not same or not (row.weights or described.get(record.name) == record.commit):
            try:
                found = source.describe(record)
            except (UnknownRevision, UnknownSource) as error:
                return replace(record, error=str(error))
            # the files of plain weights stay when another factory makes another model of them
            if row is None or row.weights is None or (row.files, row.config) != (found.files, found.config):
                return found
        kept = {name: getattr(row, name) for name in KEPT}
        return replace(record, **kept, error=None if retry and row.weights else row.error)

    records: list[RevisionRecord] = []
    with ThreadPoolExecutor(CONCURRENT_REQUESTS) as pool:
        for record in pool.map(describe, listed):
            records.append(record)
            if advance is not None:
                advance(source.run, len(records), len(listed), f"listing {source.run}")
    return records


def list_run(store: Store, source: Source, *, advance: Advance | None = None) -> None:
    """Record all revisions of a source with the digests of their files; no weights are fetched.

    One request lists them, one each describes those that are new or have moved to another commit.

    Parameters
    ----------
    store
        A writable store.
    source
        The run.
    advance
        Told of the listing.

    Raises
    ------
    UnknownSource, AccessError
        If the source cannot be listed; a hub never can while ``HF_HUB_OFFLINE`` is set.
    InvalidInput
        If the store has a run of this name from elsewhere.
    """
    if source.kind == "hub" and _is_offline():
        raise SourceUnreachable(
            f"{source.run} cannot be listed while HF_HUB_OFFLINE is set: unset it, or audit what the store knows with "
            "--runs"
        )
    listed = source.list_revisions()
    records = describe_revisions(store, source, listed, retry=False, advance=advance)
    rows = {row.name: row for row in get_revisions(store, source.run)}  # an ingest may have written meanwhile
    records = [_as_ingested(record, rows.get(record.name)) for record in records]
    put_run(store, source.run, source=source.kind, location=source.location, records=records)
    remember_listing(store, source, listed, records)


def _as_ingested(record: RevisionRecord, row: RevisionRecord | None) -> RevisionRecord:
    """Return a record with what an ingest made of it: the tokenizer it settled on, and whether it failed."""
    if row is None or not row.weights:
        return record
    if (row.commit, row.weights, row.files) != (record.commit, record.weights, record.files):
        return record
    return replace(record, tokenizer=row.tokenizer, error=row.error)


def remember_listing(
    store: Store, source: Source, listed: Sequence[RevisionRecord], described: Sequence[RevisionRecord]
) -> None:
    """Keep which revisions a source has, so that those it lacks can be missed; an offline listing is not whole.

    Parameters
    ----------
    store
        A writable store.
    source
        The run.
    listed
        All of `Source.list_revisions`.
    described
        What `describe_revisions` made of all of them or of some.
    """
    if source.kind == "hub" and _is_offline():
        return  # these are only those that are here
    before, known = _remembered(store, source.run), {record.name: record for record in described}
    now = {}
    for record in listed:
        earlier, told = before.get(record.name, _NEVER), known.get(record.name, record)
        placed = told.step is not None or earlier["step"] is None  # the pattern that read it may not be given now
        now[record.name] = {
            "commit": record.commit,
            "step": told.step if placed else earlier["step"],
            "stage": told.stage if placed else earlier["stage"],
            "described": record.name in known or (earlier["described"] and earlier["commit"] == record.commit),
        }
    if store.index.fact(_key(source.run)) != {"revisions": now}:
        store.index.remember(_key(source.run), {"revisions": now})


def get_listing(store: Store, run: str) -> list[RevisionRecord] | None:
    """Return name, commit, step and stage of all revisions that a run's source had when it was last listed.

    None where it never was.
    """
    if store.index.fact(_key(run)) is None:
        return None
    rows = _remembered(store, run).items()
    return [RevisionRecord(name, commit=row["commit"], step=row["step"], stage=row["stage"]) for name, row in rows]


_NEVER = {"commit": None, "step": None, "stage": None, "described": False}


def _remembered(store: Store, run: str) -> dict[str, dict[str, Any]]:
    return dict((store.index.fact(_key(run)) or {}).get("revisions", {}))


def _key(run: str) -> str:
    return content_key("listed", run=run)


def _is_offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)
