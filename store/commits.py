"""What may be written to a store, each in one short transaction whose end is the commit."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from store.catalog import Store
from store.errors import InvalidInput, InvalidProbes, UnknownRun
from store.keys import content_key, inputs_key, replay_key
from store.schema import (
    Activation,
    Capture,
    Fact,
    Finding,
    Operator,
    Point,
    Probe,
    ProbeSet,
    Replay,
    Result,
    Revision,
    Run,
    Segment,
    Tokenization,
    Weighing,
)
from store.segments import Array, Staged, discard, has_segment, publish, stage
from store.tables import replayed

__all__ = [
    "ARRAYS",
    "FindingRecord",
    "LayerArray",
    "LayerRow",
    "RevisionRecord",
    "commit_activations",
    "commit_inputs",
    "commit_operators",
    "commit_result",
    "commit_tokens",
    "commit_weighing",
    "fail_revisions",
    "get_findings",
    "get_revisions",
    "put_capture",
    "put_findings",
    "put_probe_set",
    "put_run",
    "put_scalars",
    "stage_activations",
    "stage_operators",
    "stage_result",
    "stage_weighing",
    "use_capture",
    "use_result",
]

ARRAYS = "arrays"
"""Stands for the tokenizer of a revision that is fed arrays: the same for every model."""


@dataclass(frozen=True)
class RevisionRecord:
    """What a source says of one revision; None where it is not known."""

    name: str
    """Name the source gives it."""
    commit: str | None = None
    """Commit sha it was resolved to; None in a folder."""
    step: int | None = None
    """Training step."""
    tokens: int | None = None
    """Training tokens seen."""
    epoch: float | None = None
    """Epoch."""
    stage: int | None = None
    """Training stage, where steps restart."""
    config: str | None = None
    """Blob id of config.json."""
    weights: str | None = None
    """Weights digest."""
    tokenizer: str | None = None
    """Digest of the tokenizer's files."""
    n_bytes: int | None = None
    """Size of the weight files."""
    files: dict[str, Any] = field(default_factory=dict)
    """[sha256 or blob id, size in bytes] of every file a replay needs, by name."""
    scalars: dict[str, float] = field(default_factory=dict)
    """Training scalars at this step, such as loss."""
    error: str | None = None
    """Why it cannot be replayed, if that is known before trying."""


@dataclass(frozen=True)
class FindingRecord:
    """What an audit says of a run, or of one of its revisions."""

    revision: str | None
    """Name of the revision; None if it concerns the run."""
    kind: str
    """What was found, such as ``duplicate`` or ``gap``."""
    level: str
    """``fault``: a trajectory is wrong with this revision in it; ``note``: worth knowing."""
    text: str
    """One line for a person."""
    others: tuple[str, ...] = ()
    """Other revisions that it involves."""


@dataclass(frozen=True)
class LayerRow:
    """One layer of one checkpoint, without its values."""

    layer: str
    """Canonical layer name, ``path:point:reduce``."""
    module: str
    """Module path in the model."""
    level: str
    """``probe`` or ``token``: what a row is."""
    width: int
    """Number of features."""


@dataclass(frozen=True)
class LayerArray:
    """One layer's activations of one checkpoint."""

    layer: str
    """Canonical layer name, ``path:point:reduce``."""
    module: str
    """Module path in the model."""
    level: str
    """``probe`` or ``token``: what a row is."""
    values: NDArray[np.float32]
    """(probe, feature) or (token, feature)."""

    @property
    def width(self) -> int:
        """Number of features."""
        return int(self.values.shape[1])

    @property
    def row(self) -> LayerRow:
        """What the index keeps of it."""
        return LayerRow(self.layer, self.module, self.level, self.width)


Layer = TypeVar("Layer", LayerRow, LayerArray)


def put_run(store: Store, name: str, *, source: str, location: str, records: Sequence[RevisionRecord] = ()) -> int:
    """Return the id of run ``name``, adding it if it is new, with its revisions inserted or updated.

    Scalars are merged: those of a record win over older ones of the same weights, those from `put_scalars` over all.

    Raises
    ------
    InvalidInput
        If the store already has a run of this name from elsewhere.
    """
    columns = [c.name for c in Revision.__table__.columns if c.name not in ("id", "run_id", "name")]
    with store.index.write() as session:
        run = session.scalar(select(Run).where(Run.name == name))
        if run is None:
            run = Run(name=name, source=source, location=location, created=time.time())
            session.add(run)
            session.flush()
        elif (run.source, run.location) != (source, location):
            raise InvalidInput(
                f"{store.root} already has a run {name!r}, from {run.location}: rename one of the two folders"
            )
        if records:
            statement = insert(Revision)
            changed = {column: statement.excluded[column] for column in columns}
            rows = [{"run_id": run.id, "name": r.name, **{c: getattr(r, c) for c in columns}} for r in records]
            scalars = _merge_scalars(session, run, records)
            for row in rows:
                row["scalars"] = scalars[row["name"]]
            session.execute(statement.on_conflict_do_update(["run_id", "name"], set_=changed), rows)
        return run.id


def put_scalars(store: Store, run: str, scalars: Mapping[str, Mapping[str, float]]) -> None:
    """Add scalars that a person gave to revisions of a run; what its source says of them later does not replace them.

    Parameters
    ----------
    store
        A writable store.
    run
        Name of the run.
    scalars
        Finite values by name, by the name of the revision.

    Raises
    ------
    UnknownRun
        If the store has no such run.
    """
    with store.index.write() as session:
        row = session.scalar(select(Run).where(Run.name == run))
        if row is None:
            raise UnknownRun(f"no run {run!r} in {store.root}: ingest it before its scalars are added")
        given = _given_scalars(session, run)
        for name, values in scalars.items():
            given[name] = {**given.get(name, {}), **values}
        session.merge(Fact(key=_given_key(run), value={"revisions": given}))
        for revision in session.scalars(select(Revision).where(Revision.run_id == row.id)):
            revision.scalars = {**revision.scalars, **given.get(revision.name, {})}


def _merge_scalars(session: Session, run: Run, records: Sequence[RevisionRecord]) -> dict[str, dict[str, float]]:
    there = select(Revision.name, Revision.weights, Revision.scalars).where(Revision.run_id == run.id)
    older = {name: (weights, scalars) for name, weights, scalars in session.execute(there)}
    given = _given_scalars(session, run.name)
    merged = {}
    for record in records:
        weights, scalars = older.get(record.name, (None, {}))
        kept = scalars if record.weights in (None, weights) else {}
        merged[record.name] = {**kept, **record.scalars, **given.get(record.name, {})}
    return merged


def _given_scalars(session: Session, run: str) -> dict[str, dict[str, float]]:
    return dict((session.scalar(select(Fact.value).where(Fact.key == _given_key(run))) or {}).get("revisions", {}))


def _given_key(run: str) -> str:
    return content_key("given scalars", run=run)


def get_revisions(store: Store, run: str) -> list[RevisionRecord]:
    """Return what was last recorded of the revisions of ``run``; nothing if there is no such run."""
    names = [f.name for f in fields(RevisionRecord)]
    with store.index.read() as session:
        rows = session.scalars(select(Revision).join(Run, Run.id == Revision.run_id).where(Run.name == run)).all()
    return [RevisionRecord(**{name: getattr(row, name) for name in names}) for row in rows]


def put_findings(store: Store, run: int, basis: str, findings: Sequence[FindingRecord]) -> None:
    """Record what an audit found in a run, in place of what it found before.

    Parameters
    ----------
    store
        A writable store.
    run
        Id of the run.
    basis
        What it looked at, such as ``hashes`` or ``values``; findings on another basis stay.
    findings
        All that is to be said now.
    """
    with store.index.write() as session:
        session.execute(delete(Finding).where(Finding.run_id == run, Finding.basis == basis))
        session.add_all(
            Finding(
                run_id=run,
                basis=basis,
                revision=found.revision,
                kind=found.kind,
                level=found.level,
                others=list(found.others),
                text=found.text,
            )
            for found in findings
        )


def get_findings(store: Store, run: int, basis: str) -> list[FindingRecord]:
    """Return what was last recorded of a run on one basis."""
    with store.index.read() as session:
        rows = session.scalars(select(Finding).where(Finding.run_id == run, Finding.basis == basis)).all()
    return [FindingRecord(row.revision, row.kind, row.level, row.text, tuple(row.others)) for row in rows]


def fail_revisions(store: Store, run: int, names: Iterable[str], error: str | None) -> None:
    """Record why revisions could not be replayed, or with None that they could."""
    with store.index.write() as session:
        session.execute(
            update(Revision).where(Revision.run_id == run, Revision.name.in_(list(names))).values(error=error)
        )


def put_probe_set(
    store: Store,
    name: str,
    *,
    digest: str,
    probes: Sequence[tuple[str, str | None, str | None]],
    inputs: NDArray[Any] | None = None,
) -> bool:
    """Add a probe set of (text, label, probe id) rows; False if the store has this very set under this name.

    Parameters
    ----------
    store
        A writable store.
    name, digest
        What it is called, and the digest of its content.
    probes
        Its rows.
    inputs
        (probe, …) arrays, where the probes are not the texts themselves.

    Raises
    ------
    InvalidProbes
        If ``name`` already names other probes and a run has used them: a used set never changes.
    """
    new = False

    def rows(session: Session) -> None:
        nonlocal new
        new = _put_probe_rows(session, name, digest, probes)

    there = store.inputs_segment(digest)
    if inputs is None or (there is not None and has_segment(store.root, there)):
        with store.index.write() as session:
            rows(session)
        return new
    axes = ("probe", *(f"axis_{number}" for number in range(1, inputs.ndim)))
    array, about = Array(inputs, axes), {"probe_set": digest}
    _commit(store, stage(store.root, inputs_key(digest), kind="inputs", arrays={"input": array}, attrs=about), rows)
    return new


def _put_probe_rows(
    session: Session, name: str, digest: str, probes: Sequence[tuple[str, str | None, str | None]]
) -> bool:
    there = session.scalar(select(ProbeSet).where(ProbeSet.name == name))
    if there is not None and there.digest == digest:
        return False
    same = session.get(ProbeSet, digest)
    if there is not None:
        if session.scalar(replayed(select(Capture.key).select_from(Revision)).where(Capture.probe_set == there.digest)):
            raise InvalidProbes(
                f"the store already has other probes named {name!r} and a run has used them, so they may not "
                "change: add these under another name, `replay probes add FILE --name NAME`"
            )
        session.execute(delete(Capture).where(Capture.probe_set == there.digest))  # of an ingest that failed
        session.delete(there)
        session.flush()
    if same is not None:
        raise InvalidProbes(f"the store already has these very probes under the name {same.name!r}: use that name")
    session.add(ProbeSet(digest=digest, name=name, created=time.time()))
    session.flush()
    session.add_all(
        Probe(probe_set=digest, position=position, text=text, label=label, probe_id=probe_id)
        for position, (text, label, probe_id) in enumerate(probes)
    )
    return True


def put_capture(store: Store, *, probe_set: str, max_length: int, dtype: str) -> str:
    """Return the key of this capture; `use_capture` makes it the most recently used."""
    key = content_key("capture", probe_set=probe_set, max_length=max_length, dtype=dtype)
    with store.index.write() as session:
        _ignore(
            session,
            Capture,
            [{"key": key, "probe_set": probe_set, "max_length": max_length, "dtype": dtype, "used": 0.0}],
        )
    return key


def use_capture(store: Store, key: str) -> None:
    """Mark a capture as the most recently used: what is read where nothing else is asked for."""
    with store.index.write() as session:
        session.execute(update(Capture).where(Capture.key == key).values(used=time.time()))


def commit_tokens(store: Store, *, tokenizer: str, capture: str, token_ids: Sequence[Sequence[int]]) -> str:
    """Keep the token ids that ``tokenizer`` makes of ``capture`` and return their content key."""
    lengths = [len(ids) for ids in token_ids]
    flat = np.array([i for ids in token_ids for i in ids], dtype=np.int32)
    key = content_key("tokens", token_ids=[list(ids) for ids in token_ids])
    arrays = {
        "token_id": Array(flat, ("token",)),
        "token_probe": Array(np.repeat(np.arange(len(lengths), dtype=np.int32), lengths), ("token",)),
        "token_position": Array(
            np.concatenate([np.arange(length, dtype=np.int32) for length in lengths]).astype(np.int32), ("token",)
        ),
    }

    def rows(session: Session) -> None:
        _ignore(session, Tokenization, [{"tokenizer": tokenizer, "capture": capture, "tokens": key}])

    _commit(store, stage(store.root, key, kind="tokens", arrays=arrays, attrs={}), rows)
    return key


def commit_inputs(store: Store, *, capture: str, probe_set: str) -> str:
    """Record that ``capture`` feeds every model the stored arrays of its probe set, and return their segment."""
    segment = inputs_key(probe_set)
    with store.index.write() as session:
        _ignore(session, Tokenization, [{"tokenizer": ARRAYS, "capture": capture, "tokens": segment}])
    return segment


def stage_activations(
    root: Path,
    *,
    weights: str,
    tokens: str,
    dtype: str,
    layers: Sequence[LayerArray],
    attrs: Mapping[str, Any],
    verified: bool = True,
) -> Staged:
    """Write one checkpoint's activations aside: one array for each level and width, one shard a layer.

    What comes from files that were not ``verified`` is never taken for the same.
    """
    groups = _groups(layers)
    arrays = {
        name: Array(
            [layer.values for layer in members],
            ("revision", _suffixed("layer", name), members[0].level, _suffixed("feature", name)),
            stacked=True,
        )
        for name, members in groups.items()
    }
    names = sorted(layer.layer for layer in layers)
    unverified = {} if verified else {"verified": False}
    key = content_key("activations", weights=weights, tokens=tokens, dtype=dtype, layers=names, **unverified)
    described = {name: [layer.layer for layer in members] for name, members in groups.items()}
    about = {"weights": weights, "tokens": tokens, "dtype": dtype, "layers": described, **unverified, **attrs}
    return stage(root, key, kind="activations", arrays=arrays, attrs=about)


def commit_activations(
    store: Store,
    staged: Staged,
    *,
    weights: str,
    tokens: str,
    dtype: str,
    layers: Sequence[LayerRow],
    claim: str,
    verified: bool = True,
) -> bool:
    """Publish a checkpoint's activations; False if the claim was lost and another process has done it."""
    replay = replay_key(weights=weights, tokens=tokens, dtype=dtype)
    slices = [
        {
            "replay": replay,
            "layer": layer.layer,
            "module": layer.module,
            "level": layer.level,
            "width": layer.width,
            "segment": staged.id,
            "array": name,
            "position": position,
            "verified": int(verified),
        }
        for name, members in _groups(layers).items()
        for position, layer in enumerate(members)
    ]

    def rows(session: Session) -> None:
        _ignore(session, Replay, [{"key": replay, "weights": weights, "tokens": tokens, "dtype": dtype}])
        _point(session, Activation, slices)
        # What was computed from activations that were lost or not verified is computed anew.
        names = [layer.layer for layer in layers]
        for table in (Operator, Point):
            session.execute(delete(table).where(table.replay == replay, table.layer.in_(names)))

    return _commit(store, staged, rows, claim=claim)


def stage_operators(
    root: Path,
    *,
    replay: str,
    gauge: str,
    operators: Mapping[str, Any],
    degrees: Sequence[NDArray[np.float64]],
    attrs: Mapping[str, Any],
) -> Staged:
    """Write the operators of one checkpoint aside, one a layer, with their degrees.

    A dense one is a (probe, probe) array, or whatever has its shape and dtype and gives its rows; sparse ones, in rows
    as scipy has them, are kept as the three arrays they consist of.
    """
    arrays = {"degrees": Array(np.stack(degrees), ("layer", "probe"))}
    if all(hasattr(P, "indptr") for P in operators.values()):
        for number, P in enumerate(operators.values()):
            arrays[f"indptr_{number}"] = Array(P.indptr.astype(np.int64), (f"row_{number}",))
            arrays[f"indices_{number}"] = Array(P.indices.astype(np.int32), (f"link_{number}",))
            arrays[f"data_{number}"] = Array(P.data.astype(np.float32), (f"link_{number}",))
    else:
        arrays["operator"] = Array(list(operators.values()), ("revision", "layer", "probe", "probe_to"), stacked=True)
    key = content_key("operators", replay=replay, gauge=gauge, layers=list(operators), degrees=True)
    about = {"replay": replay, "gauge": gauge, "layers": list(operators), **attrs}
    return stage(root, key, kind="operators", arrays=arrays, attrs=about)


def commit_operators(store: Store, staged: Staged, *, replay: str, gauge: str, layers: Sequence[str]) -> None:
    """Publish the operators of one checkpoint."""
    slices = [
        {"replay": replay, "layer": layer, "gauge": gauge, "segment": staged.id, "position": position}
        for position, layer in enumerate(layers)
    ]
    _commit(store, staged, lambda session: _point(session, Operator, slices))


def stage_weighing(
    root: Path, *, weights: str, version: int, groups: Sequence[str], arrays: Mapping[str, Array]
) -> Staged:
    """Write the statistics of one checkpoint's weights aside; an array named like an axis is its coordinate."""
    about = {"weights": weights, "version": version, "groups": list(groups)}
    return stage(root, content_key("weighing", **about), kind="weighing", arrays=arrays, attrs=about)


def commit_weighing(store: Store, staged: Staged, *, weights: str, version: int, whole: bool) -> None:
    """Publish the statistics of one checkpoint's weights, ``whole`` or of some of its tensors."""
    row = {"weights": weights, "segment": staged.id, "version": version, "whole": int(whole)}
    _commit(store, staged, lambda session: _point(session, Weighing, [row]))


def stage_result(root: Path, key: str, *, arrays: Mapping[str, Array], attrs: Mapping[str, Any]) -> Staged:
    """Write an analysis result aside; an array named like an axis is its coordinate."""
    return stage(root, key, kind="result", arrays=arrays, attrs=attrs)


def commit_result(store: Store, staged: Staged, *, name: str, parameters: Mapping[str, Any]) -> None:
    """Publish an analysis result."""

    def rows(session: Session) -> None:
        session.merge(Result(segment=staged.id, name=name, parameters=dict(parameters), used=time.time()))

    _commit(store, staged, rows)


def use_result(store: Store, key: str, *, parameters: Mapping[str, Any]) -> bool:
    """Mark a result as the latest of its name, with what is said of it now; False if the store does not hold it."""
    with store.index.write() as session:
        row = session.get(Result, key)
        if row is None or not has_segment(store.root, key):
            return False
        row.used, row.parameters = time.time(), dict(parameters)
    return True


def _commit(store: Store, staged: Staged, rows: Callable[[Session], None], *, claim: str | None = None) -> bool:
    with store.index.write() as session:
        if claim is not None and not store.index.holds(session, claim):
            discard(staged)
            return False
        row = session.get(Segment, staged.id)
        if row is None or not has_segment(store.root, staged.id):  # a folder that somebody removed
            publish(store.root, staged)
            session.merge(
                Segment(id=staged.id, kind=staged.kind, files=staged.files, n_bytes=staged.n_bytes, created=time.time())
            )
            session.flush()
        else:
            discard(staged)
        rows(session)
    return True


def _ignore(session: Session, table: type[Any], rows: Sequence[Mapping[str, Any]]) -> None:
    session.execute(insert(table).on_conflict_do_nothing(), list(rows))


def _point(session: Session, table: type[Any], slices: Sequence[Mapping[str, Any]]) -> None:
    # Rows that are there already name a segment that is lost, or one with the same values: the new one is as good.
    statement = insert(table)
    keys = [column.name for column in table.__table__.primary_key]
    changed = {name: statement.excluded[name] for name in slices[0] if name not in keys}
    session.execute(statement.on_conflict_do_update(keys, set_=changed), list(slices))


def _groups(layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    groups: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.level, layer.width), []).append(layer)
    names: dict[str, list[Layer]] = {}
    for (level, width), members in sorted(groups.items(), key=lambda g: (g[0][0] != "probe", -len(g[1]), g[0])):
        name = "activations" if level == "probe" else "activations_token"
        names[f"{name}_{width}" if name in names else name] = members
    return names


def _suffixed(dim: str, array: str) -> str:
    return dim + array.removeprefix("activations")
