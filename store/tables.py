"""The listings of a store as pandas tables."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVarTuple

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from store.index import Index
from store.names import layer_order
from store.schema import Activation, Capture, Finding, Probe, ProbeSet, Replay, Result, Revision, Run, Tokenization

if TYPE_CHECKING:
    import pandas as pd

Columns = TypeVarTuple("Columns")

__all__ = ["findings", "layers", "probe_sets", "replayed", "results", "revisions", "runs"]


def replayed(statement: Select[*Columns]) -> Select[*Columns]:
    """Join a selection of revisions with the captures and replays that hold their weights and their tokens."""
    return (
        statement.join(Tokenization, Tokenization.tokenizer == Revision.tokenizer)
        .join(Capture, Capture.key == Tokenization.capture)
        .join(
            Replay,
            (Replay.weights == Revision.weights)
            & (Replay.tokens == Tokenization.tokens)
            & (Replay.dtype == Capture.dtype),
        )
    )


def runs(index: Index) -> "pd.DataFrame":
    """Return one row a run."""
    import pandas as pd

    counts = select(
        Run.name.label("run"),
        Run.source,
        Run.location,
        func.count(Revision.id).label("revisions"),
        func.count(Revision.weights.distinct()).label("unique_weights"),
        func.min(Revision.step).label("first_step"),
        func.max(Revision.step).label("last_step"),
    )
    by_run = select(Run.name, func.count(Revision.id.distinct())).join(Revision, Revision.run_id == Run.id)
    with index.read() as session:
        rows = session.execute(
            counts.outerjoin(Revision, Revision.run_id == Run.id).group_by(Run.id).order_by(Run.name)
        ).all()
        done: dict[str, int] = dict(session.execute(replayed(by_run).group_by(Run.id)).all())
        failed: dict[str, int] = dict(session.execute(by_run.where(Revision.error.is_not(None)).group_by(Run.id)).all())
    columns = ["run", "source", "location", "revisions", "unique_weights", "first_step", "last_step"]
    table = pd.DataFrame([row._asdict() for row in rows], columns=columns)
    table.insert(4, "replayed", [done.get(name, 0) for name in table["run"]])
    table.insert(5, "failed", [failed.get(name, 0) for name in table["run"]])
    return _whole(table, "first_step", "last_step")


def revisions(index: Index, rows: Sequence[Revision], aliases: Mapping[str, str]) -> "pd.DataFrame":
    """Return one row a revision."""
    import pandas as pd

    layers_of = replayed(select(Revision.id, func.count(Activation.layer.distinct())))
    with index.read() as session:
        counts: dict[int, int] = dict(
            session.execute(
                layers_of.join(Activation, Activation.replay == Replay.key)
                .where(Revision.id.in_([row.id for row in rows]))
                .group_by(Revision.id)
            ).all()
        )
        found = session.execute(
            select(Finding.revision, Finding.kind, Finding.level)
            .where(Finding.run_id.in_({row.run_id for row in rows}))
            .order_by(Finding.level, Finding.id)
        ).all()
        partial = _unverified(session, {row.run_id for row in rows})
    faulty = {finding.revision for finding in found if finding.level == "fault"}
    records = []
    for row in rows:
        n_layers = counts.get(row.id, 0)
        state = "alias" if aliases[row.name] else "done"
        records.append(
            {
                "revision": row.name,
                "step": row.step,
                "tokens": row.tokens,
                "epoch": row.epoch,
                "stage": row.stage,
                "state": "failed" if row.error else state if n_layers else "listed",
                "alias_of": aliases[row.name],
                "layers": n_layers,
                "findings": ", ".join(
                    [
                        *dict.fromkeys(f.kind for f in found if f.revision == row.name),
                        *(["unverified"] if row.name in partial else []),
                    ]
                ),
                "flagged": row.name in faulty,
                "commit": row.commit,
                "weights": row.weights,
                "bytes": row.n_bytes,
                "error": row.error,
                "scalars": row.scalars,
            }
        )
    columns = [
        "revision",
        "step",
        "tokens",
        "epoch",
        "stage",
        "state",
        "alias_of",
        "layers",
        "findings",
        "flagged",
        "commit",
        "weights",
        "bytes",
        "error",
        "scalars",
    ]
    return _whole(pd.DataFrame(records, columns=columns), "step", "tokens", "stage", "bytes")


def layers(index: Index, run: int) -> "pd.DataFrame":
    """Return one row a stored layer."""
    import pandas as pd

    columns = (Activation.layer, Activation.module, Activation.level, Activation.width)
    statement = select(
        *columns, func.count(Revision.id.distinct()).label("revisions"), ProbeSet.name.label("probes"), Capture.dtype
    ).select_from(Revision)
    with index.read() as session:
        rows = session.execute(
            replayed(statement)
            .join(ProbeSet, ProbeSet.digest == Capture.probe_set)
            .join(Activation, Activation.replay == Replay.key)
            .where(Revision.run_id == run)
            .group_by(Activation.layer, Activation.width, Capture.key)
        ).all()
    rows = sorted(rows, key=lambda row: (row.probes, row.dtype, layer_order(row.layer)))
    names = ["layer", "module", "level", "width", "revisions", "probes", "dtype"]
    return pd.DataFrame([row._asdict() for row in rows], columns=names)


def findings(index: Index, run: int, revisions: Sequence[Revision]) -> "pd.DataFrame":
    """Return one row a finding, in the order of ``revisions``, those on the whole run first."""
    import pandas as pd

    places = {row.name: (number, row.step) for number, row in enumerate(revisions)}
    with index.read() as session:
        rows = session.scalars(select(Finding).where(Finding.run_id == run).order_by(Finding.level, Finding.id)).all()
        partial = _unverified(session, [run])
    nowhere = (-1, None)
    records = [
        {
            "revision": row.revision,
            "step": places.get(str(row.revision), nowhere)[1],
            "kind": row.kind,
            "level": row.level,
            "basis": row.basis,
            "others": row.others,
            "text": row.text,
        }
        for row in [*rows, *(_unverified_finding(name, count) for name, count in partial.items())]
    ]
    records.sort(key=lambda record: places.get(str(record["revision"]), nowhere)[0])
    columns = ["revision", "step", "kind", "level", "basis", "others", "text"]
    return _whole(pd.DataFrame(records, columns=columns), "step")


def _unverified(session: Session, runs: Collection[int]) -> dict[str, int]:
    """Return the revisions that have layers of files which were not verified, and how many."""
    layers = replayed(select(Revision.name, func.count(Activation.layer.distinct())).select_from(Revision))
    return dict(
        session.execute(
            layers.join(Activation, Activation.replay == Replay.key)
            .where(Revision.run_id.in_(runs), Activation.verified == 0)
            .group_by(Revision.name)
        ).all()
    )


def _unverified_finding(revision: str, n_layers: int) -> Finding:
    text = f"{revision}: {n_layers} layers come from a partial fetch, so the sha256 of the files was not checked"
    return Finding(basis="fetch", revision=revision, kind="unverified", level="note", others=[], text=text)


def probe_sets(index: Index) -> "pd.DataFrame":
    """Return one row a probe set."""
    import pandas as pd

    n_probes, n_labels = func.count(Probe.position).label("probes"), func.count(Probe.label.distinct()).label("labels")
    with index.read() as session:
        rows = session.execute(
            select(ProbeSet.name, n_probes, n_labels, ProbeSet.digest)
            .join(Probe, Probe.probe_set == ProbeSet.digest)
            .group_by(ProbeSet.digest)
            .order_by(ProbeSet.name)
        ).all()
        used = set(session.scalars(replayed(select(Capture.probe_set).select_from(Revision)).distinct()))
    table = pd.DataFrame([row._asdict() for row in rows], columns=["name", "probes", "labels", "digest"])
    table["used"] = [digest in used for digest in table["digest"]]
    return table


def results(index: Index) -> "pd.DataFrame":
    """Return one row a stored result."""
    import pandas as pd

    with index.read() as session:
        rows = session.execute(
            select(Result.name, Result.parameters, Result.segment.label("key")).order_by(Result.used)
        ).all()
    return pd.DataFrame([row._asdict() for row in rows], columns=["name", "parameters", "key"])


def _whole(table: "pd.DataFrame", *columns: str) -> "pd.DataFrame":
    # A column of whole numbers of which some are unknown; pandas would make them floats.
    for column in columns:
        table[column] = table[column].astype("Int64")
    return table
