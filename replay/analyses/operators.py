"""The operators of stored activations: computed where missing, kept as segments of their own."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.geometry import gauge as gauge_module
from replay.geometry.gauge import DiffusionGauge
from replay.jobs import Cluster, execute
from store.catalog import Store
from store.commits import commit_operators, stage_operators
from store.errors import InvalidInput, Unavailable
from store.keys import canonical
from store.schema import Operator
from store.segments import Staged, has_segment, read_slice

__all__ = ["Computed", "Slice", "compute_operators", "gauge_key", "missing_operators"]


@dataclass(frozen=True)
class Slice:
    """One layer of one checkpoint."""

    replay: str
    """Replay key of the checkpoint."""
    layer: str
    """Layer name."""
    segment: str
    """Segment that holds its activations."""
    array: str
    """Array of that segment."""
    position: int
    """Position along the layer axis."""


@dataclass(frozen=True)
class Computed:
    """What a task made of one checkpoint."""

    staged: Staged | None
    """The operators, staged; None if no layer has one."""
    layers: tuple[str, ...]
    """The layers in order."""
    unavailable: dict[str, str]
    """Layers without an operator, with the reason."""


def gauge_key(gauge: DiffusionGauge) -> str:
    """Return the canonical JSON of a gauge and its code version, under which its operators are cached."""
    return canonical({**gauge.parameters(), "gauge": "diffusion", "version": gauge_module.VERSION})


def missing_operators(store: Store, slices: Sequence[Slice], gauge: DiffusionGauge) -> list[Slice]:
    """Return the slices whose operator the store does not hold, each once."""
    from sqlalchemy import select

    with store.index.read() as session:
        rows = session.execute(
            select(Operator.replay, Operator.layer, Operator.segment).where(Operator.gauge == gauge_key(gauge))
        ).all()
    kept = {segment: has_segment(store.root, segment) for segment in {row.segment for row in rows}}
    there = {(row.replay, row.layer) for row in rows if kept[row.segment]}
    return list({(s.replay, s.layer): s for s in slices if (s.replay, s.layer) not in there}.values())


def compute_operators(
    store: Store, slices: Sequence[Slice], gauge: DiffusionGauge, *, cluster: Cluster, advance: "Any" = None
) -> dict[tuple[str, str], str]:
    """Compute and store the operators of ``slices``, one task and one segment a checkpoint.

    Parameters
    ----------
    store
        A writable store.
    slices
        What is missing.
    gauge
        The recipe.
    cluster
        Where to compute.
    advance
        Called without arguments after each checkpoint.

    Returns
    -------
    dict
        Why there is no operator, by (replay, layer), where there is none.
    """
    by_replay: dict[str, list[Slice]] = {}
    for piece in slices:
        by_replay.setdefault(piece.replay, []).append(piece)
    unavailable: dict[tuple[str, str], str] = {}

    def done(replay: str, computed: Computed) -> None:
        if computed.staged is not None:
            commit_operators(store, computed.staged, replay=replay, gauge=gauge_key(gauge), layers=computed.layers)
        unavailable.update({(replay, layer): reason for layer, reason in computed.unavailable.items()})
        if advance is not None:
            advance()

    root = store.root.resolve()
    tasks = {replay: partial(_operators_of, root, gauge, pieces) for replay, pieces in by_replay.items()}
    execute(tasks, cluster=cluster, done=done)
    return unavailable


def _operators_of(root: Path, gauge: DiffusionGauge, slices: Sequence[Slice]) -> Computed:
    operators: dict[str, npt.NDArray[np.float32]] = {}
    quality: dict[str, Mapping[str, Any]] = {}
    unavailable: dict[str, str] = {}
    for piece in slices:
        X = read_slice(root, piece.segment, piece.array, piece.position)
        try:
            operator = gauge(X)
        except (InvalidInput, Unavailable) as error:
            unavailable[piece.layer] = str(error)
            continue
        operators[piece.layer] = operator.matrix
        quality[piece.layer] = asdict(operator.quality)
    if not operators:
        return Computed(None, (), unavailable)
    attrs = {"quality": json.loads(json.dumps(quality))}
    staged = stage_operators(root, replay=slices[0].replay, gauge=gauge_key(gauge), operators=operators, attrs=attrs)
    return Computed(staged, tuple(operators), unavailable)
