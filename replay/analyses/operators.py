"""Operators that are kept: the dense ones of a gauge and the sparse ones of a nearest-neighbour graph."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.analyses.comparing import describe_gauge, read_point
from replay.analyses.measuring import Advance
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.knn_gauge import KnnGauge
from replay.geometry.streaming import StreamedOperator
from replay.jobs import Cluster, execute
from store.catalog import Store
from store.commits import commit_operators, stage_operators
from store.errors import InvalidInput, Unavailable
from store.keys import canonical
from store.schema import Operator
from store.segments import Staged, has_segment

__all__ = ["DENSE_PROBES", "Kept", "gauge_key", "keep_operators"]

DENSE_PROBES = 2000
"""Up to this many probes an operator is held in memory; one over more is streamed to the store in rows."""


class Kept(NamedTuple):
    """What became of the operators that were asked for."""

    n_layers: int
    """Layers of checkpoints that were asked for."""
    n_computed: int
    """How many of them the store lacked."""
    unavailable: dict[tuple[str, int, str], str]
    """Why there is no operator, by run, step and layer."""


@dataclass(frozen=True)
class Computed:
    """What a task made of one checkpoint."""

    staged: Staged | None
    """The operators, staged; None if no layer has one."""
    layers: tuple[str, ...]
    """The layers in order."""
    unavailable: dict[str, str]
    """Layers without an operator, with the reason."""


def gauge_key(gauge: DiffusionGauge | KnnGauge) -> str:
    """Return the canonical JSON of a gauge and its code version, under which its operators are kept."""
    return canonical(describe_gauge(gauge))


def keep_operators(
    store: Store,
    *,
    choice: Choice | None = None,
    gauge: DiffusionGauge | KnnGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> Kept:
    """Compute and keep the operators of every run, step and layer that the store lacks, one segment a checkpoint.

    No analysis needs them kept: making one anew takes less than reading it. They are for other programs.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    gauge
        The recipe.
    cluster
        Where to compute.
    advance
        Told of the progress in checkpoints.

    Raises
    ------
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    gauge, cluster = gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    cells = {
        (run, step, layer): piece
        for run, history in selection.histories.items()
        for (step, layer), piece in history.slices.items()
        if layer in selection.layers
    }
    by_replay: dict[str, list[Slice]] = {}
    for piece in _missing(store, {piece.point: piece for piece in cells.values()}, gauge):
        by_replay.setdefault(piece.replay, []).append(piece)
    reasons: dict[tuple[str, str], str] = {}
    n_done = 0

    def done(replay: str, computed: Computed) -> None:
        nonlocal n_done
        if computed.staged is not None:
            commit_operators(store, computed.staged, replay=replay, gauge=gauge_key(gauge), layers=computed.layers)
        reasons.update({(replay, layer): reason for layer, reason in computed.unavailable.items()})
        n_done += 1
        advance("operators", n_done, len(by_replay))

    root = store.root.resolve()
    tasks = {replay: partial(_operators_of, root, gauge, pieces) for replay, pieces in by_replay.items()}
    execute(tasks, cluster=cluster, done=done)
    unavailable = {place: reasons[piece.point] for place, piece in cells.items() if piece.point in reasons}
    return Kept(len(cells), sum(map(len, by_replay.values())), unavailable)


def _missing(store: Store, slices: Mapping[tuple[str, str], Slice], gauge: DiffusionGauge | KnnGauge) -> list[Slice]:
    from sqlalchemy import select

    with store.index.read() as session:
        rows = session.execute(
            select(Operator.replay, Operator.layer, Operator.segment).where(Operator.gauge == gauge_key(gauge))
        ).all()
    whole = {segment: has_segment(store.root, segment) for segment in {row.segment for row in rows}}
    there = {(row.replay, row.layer) for row in rows if whole[row.segment]}
    return [piece for point, piece in slices.items() if point not in there]


def _operators_of(root: Path, gauge: DiffusionGauge | KnnGauge, slices: Sequence[Slice]) -> Computed:
    operators: dict[str, Any] = {}
    unavailable: dict[str, str] = {}
    for piece in slices:
        X = read_point(root, piece)
        try:
            if isinstance(gauge, DiffusionGauge) and len(X) > DENSE_PROBES:
                operators[piece.layer] = gauge.stream(X)
            else:
                operators[piece.layer] = gauge(X)
        except (InvalidInput, Unavailable) as error:
            unavailable[piece.layer] = str(error)
    if not operators:
        return Computed(None, (), unavailable)
    staged = stage_operators(
        root,
        replay=slices[0].replay,
        gauge=gauge_key(gauge),
        operators={layer: _matrix(P) for layer, P in operators.items()},
        degrees=[P.degrees for P in operators.values()],
        attrs={"quality": {layer: _plain(asdict(P.quality)) for layer, P in operators.items()}},
    )
    return Computed(staged, tuple(operators), unavailable)


def _matrix(P: Any) -> Any:
    return _StreamedRows(P) if isinstance(P, StreamedOperator) else P.matrix


@dataclass(frozen=True)
class _StreamedRows:
    """A streamed operator as the rows of an array that is never whole."""

    operator: StreamedOperator

    dtype = np.dtype(np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.operator), len(self.operator)

    def __getitem__(self, rows: slice) -> npt.NDArray[np.float32]:
        return self.operator.rows(rows)


def _plain(quality: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in quality.items()}
