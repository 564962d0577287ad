"""The precision floor: by how much a metric changes when weights move within the rounding of their stored precision."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import aliased

from replay.analyses.comparing import read_point
from replay.analyses.measuring import Advance, Numbers, measure_points
from replay.analyses.selection import Choice, Selection, Slice, select_layers
from replay.geometry.dimension import METRICS, VERSION, dimension
from replay.jobs import Cluster
from replay.rounding import moved_dtype
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.schema import Activation, Replay
from store.segments import has_segment

__all__ = ["precision_floor"]


def precision_floor(
    store: Store,
    choice: Choice | None = None,
    metrics: Sequence[str] = METRICS,
    *,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> dict[tuple[str, str, str], float]:
    """Return the root mean square change of metrics between stored weights and weights that round to them.

    It is the mean over the checkpoints that ``replay ingest --floor`` replayed once more. A smaller difference between
    two checkpoints may come from the rounding of their files alone.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    metrics
        Names of `replay.geometry.dimension.METRICS`; others are passed over.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    dict
        In the unit of the metric, by (metric, run, layer). Runs and layers without such a replay are not there, nor are
        metrics that are undefined in all of them.

    Raises
    ------
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    names = tuple(dict.fromkeys(name for name in metrics if name in METRICS))
    selection = select_layers(store, choice or Choice())
    pairs = {
        (run, layer): both
        for (run, layer), path in selection.paths().items()
        if (both := _with_moved(store, selection, list(path.values())))
    }
    if not names or not pairs:
        return {}
    recipe = {"what": "precision floor", "metrics": list(names), "version": VERSION}
    pieces = [piece for both in pairs.values() for pair in both for piece in pair]
    found = measure_points(
        store, recipe, pieces, partial(_measure, metrics=names), cluster=cluster or Cluster(), advance=advance
    )
    changes: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for (run, layer), both in pairs.items():
        for plain, moved in both:
            numbers = [found[piece.point].numbers for piece in (plain, moved)]
            if not all(map(len, numbers)):
                continue
            for name, change in zip(names, numbers[1] - numbers[0], strict=True):
                if np.isfinite(change):
                    changes[name, run, layer].append(float(change))
    return {place: float(np.sqrt(np.mean(np.square(found)))) for place, found in changes.items()}


def _with_moved(store: Store, selection: Selection, pieces: Sequence[Slice]) -> list[tuple[Slice, Slice]]:
    """Return the points that were replayed once more, each with its replay of moved weights."""
    here, there = aliased(Replay), aliased(Replay)
    of_layer = {(piece.replay, piece.layer): piece for piece in pieces}
    statement = (
        select(here.key, *Activation.__table__.columns)
        .select_from(here)
        .join(there, (there.weights == here.weights) & (there.tokens == here.tokens))
        .join(Activation, Activation.replay == there.key)
        .where(here.key.in_({piece.replay for piece in pieces}), there.dtype == moved_dtype(selection.capture.dtype))
    )
    with store.index.read() as session:
        rows = session.execute(statement).all()
    return [
        (
            plain,
            replace(plain, replay=row.replay, segment=row.segment, array=row.array, position=row.position),
        )
        for row in rows
        if (plain := of_layer.get((row.key, row.layer))) and has_segment(store.root, row.segment)
    ]


def _measure(root: Path, slices: Sequence[Slice], *, metrics: Sequence[str]) -> list[Numbers]:
    return [_point(root, piece, metrics) for piece in slices]


def _point(root: Path, piece: Slice, metrics: Sequence[str]) -> Numbers:
    """Return the metrics of one point, NaN where one is undefined: that one says nothing of the floor."""
    try:
        found = dimension(read_point(root, piece), metrics=metrics)
    except (InvalidInput, Unavailable) as error:
        return str(error)
    return np.array([np.nan if isinstance(found[name], str) else found[name] for name in metrics], np.float64)
