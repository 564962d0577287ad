"""Measurements: numbers of one layer of one checkpoint, or of two, kept one by one under the recipe that made them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select, tuple_
from sqlalchemy.dialects.sqlite import insert

from store.catalog import Store
from store.schema import Measurement, Point, Recipe, Replay

__all__ = [
    "Measured",
    "MeasuredPoint",
    "Pair",
    "find_measurements",
    "get_measurements",
    "point_ids",
    "put_measurements",
]

Pair = tuple[int, int]
"""Two points, the smaller number first; one point twice where something is measured of it alone."""

AT_ONCE = 5000
"""Values in one statement: SQLite takes 32,766."""


class Measured(NamedTuple):
    """What a recipe made of one or two points."""

    numbers: NDArray[np.float64]
    """As many as the recipe makes; empty where it is undefined."""
    reason: str | None
    """Why it is undefined."""


class MeasuredPoint(NamedTuple):
    """What a recipe made of one point, and which point it is."""

    replay: str
    """Replay key."""
    weights: str
    """Weights digest of the checkpoint."""
    layer: str
    """Layer of the replay, or what else of it was measured."""
    measured: Measured
    """Numbers, or why there are none."""


def find_measurements(
    store: Store,
    recipe: str,
    *,
    replays: Collection[str] = (),
    weights: Collection[str] = (),
    layer: str | None = None,
) -> list[MeasuredPoint]:
    """Return what is known by ``recipe`` of single points; nothing is written.

    Parameters
    ----------
    store
        The store.
    recipe
        Its canonical text.
    replays, weights
        Replay keys, and digests of weights: points of either are meant.
    layer
        Name of the points; any by default.
    """
    found: list[MeasuredPoint] = []
    with store.index.read() as session:
        number = session.scalar(select(Recipe.id).where(Recipe.text == recipe))
        known = (
            select(Point.replay, Replay.weights, Point.layer, Measurement.numbers, Measurement.reason)
            .join(Measurement, (Measurement.left == Point.id) & (Measurement.right == Point.id))
            .join(Replay, Replay.key == Point.replay)
            .where(Measurement.recipe == number)
        )
        if layer is not None:
            known = known.where(Point.layer == layer)
        for column, values in ((Point.replay, replays), (Replay.weights, weights)):
            for some in _batches(values) if number is not None else ():
                for replay, digest, name, numbers, reason in session.execute(known.where(column.in_(some))):
                    found.append(MeasuredPoint(replay, digest, name, Measured(np.frombuffer(numbers, "<f8"), reason)))
    return found


def point_ids(store: Store, layers: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Return the number of each (replay key, layer), giving one to those that have none."""
    wanted = list(dict.fromkeys(layers))
    found = _find_points(store, wanted)
    fresh = [{"replay": replay, "layer": layer} for replay, layer in wanted if (replay, layer) not in found]
    if fresh:
        with store.index.write() as session:
            session.execute(insert(Point).on_conflict_do_nothing(), fresh)
        found = _find_points(store, wanted)
    return found


def get_measurements(store: Store, recipe: str, points: Collection[int]) -> dict[Pair, Measured]:
    """Return all that is known by ``recipe`` of these points and of pairs of them."""
    known: dict[Pair, Measured] = {}
    with store.index.read() as session:
        number = session.scalar(select(Recipe.id).where(Recipe.text == recipe))
        for some in _batches(points) if number is not None else ():
            rows = session.execute(
                select(Measurement.left, Measurement.right, Measurement.numbers, Measurement.reason).where(
                    Measurement.recipe == number, Measurement.left.in_(some)
                )
            )
            for left, right, numbers, reason in rows:
                if right in points:
                    known[left, right] = Measured(np.frombuffer(numbers, "<f8"), reason)
    return known


def put_measurements(store: Store, recipe: str, measured: Mapping[Pair, NDArray[np.float64] | str]) -> None:
    """Keep what ``recipe`` made of points and pairs: numbers, or the reason why there are none."""
    with store.index.write() as session:
        session.execute(insert(Recipe).on_conflict_do_nothing(), [{"text": recipe}])
        number = session.scalar(select(Recipe.id).where(Recipe.text == recipe))
        rows: list[dict[str, Any]] = [
            {
                "recipe": number,
                "left": left,
                "right": right,
                "numbers": b"" if isinstance(found, str) else np.ascontiguousarray(found, "<f8").tobytes(),
                "reason": found if isinstance(found, str) else None,
            }
            for (left, right), found in measured.items()
        ]
        if rows:
            session.execute(insert(Measurement).on_conflict_do_nothing(), rows)


def _find_points(store: Store, wanted: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    with store.index.read() as session:
        for some in _batches(wanted):
            rows = session.execute(
                select(Point.replay, Point.layer, Point.id).where(tuple_(Point.replay, Point.layer).in_(some))
            )
            found |= {(row.replay, row.layer): row.id for row in rows}
    return found


def _batches(values: Collection[Any]) -> list[list[Any]]:
    listed = list(values)
    return [listed[start : start + AT_ONCE] for start in range(0, len(listed), AT_ONCE)]
