"""Measurements of points and pairs of points: what the store lacks, as tasks of keys within a memory figure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.analyses.selection import Slice
from replay.jobs import Cluster, execute
from replay.units import human_bytes
from store.catalog import Store
from store.errors import InvalidInput
from store.keys import canonical
from store.measurements import Measured, Pair, get_measurements, point_ids, put_measurements

__all__ = ["Advance", "Numbers", "PairTask", "PointTask", "measure_pairs", "measure_points"]

Advance = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""

Numbers = npt.NDArray[np.float64] | str
"""What was measured, or why it is undefined."""

PointTask = Callable[[Path, Sequence[Slice]], list[Numbers]]
"""Measures each of several layers of one checkpoint, reading them from the store at a path."""

PairTask = Callable[[Path, Sequence[Slice], Sequence[tuple[int, int]]], list[Numbers]]
"""Measures pairs of points, given as positions in the list of points."""


def measure_points(
    store: Store,
    recipe: Mapping[str, Any],
    slices: Iterable[Slice],
    task: PointTask,
    *,
    cluster: Cluster,
    advance: Advance,
) -> dict[tuple[str, str], Measured]:
    """Return what ``recipe`` makes of each point, computing and keeping what the store lacks; one task a checkpoint.

    Parameters
    ----------
    store
        A writable store.
    recipe
        What is measured: name, parameters and code version, in plain JSON types.
    slices
        The points.
    task
        Pure, module-level (or a partial of such): it is sent to workers.
    cluster
        Where to compute.
    advance
        Told of the progress in checkpoints.
    """
    of_point = {piece.point: piece for piece in slices}
    ids = point_ids(store, of_point)
    text = canonical(recipe)
    known = get_measurements(store, text, set(ids.values()))
    lacking: dict[str, list[Slice]] = {}
    for point, piece in of_point.items():
        if (ids[point], ids[point]) not in known:
            lacking.setdefault(piece.replay, []).append(piece)
    root, n_done = store.root.resolve(), 0

    def done(replay: str, found: list[Numbers]) -> None:
        nonlocal n_done
        fresh = {ids[piece.point]: numbers for piece, numbers in zip(lacking[replay], found, strict=True)}
        put_measurements(store, text, {(number, number): numbers for number, numbers in fresh.items()})
        known.update({(number, number): _measured(numbers) for number, numbers in fresh.items()})
        n_done += 1
        advance(str(recipe["what"]), n_done, len(lacking))

    execute({replay: partial(task, root, pieces) for replay, pieces in lacking.items()}, cluster=cluster, done=done)
    return {point: known[number, number] for point, number in ids.items()}


def measure_pairs(
    store: Store,
    recipe: Mapping[str, Any],
    groups: Mapping[str, Sequence[tuple[Slice, Slice]]],
    task: PairTask,
    *,
    point_bytes: Callable[[Slice], int],
    cluster: Cluster,
    advance: Advance,
) -> dict[tuple[tuple[str, str], tuple[str, str]], Measured]:
    """Return what ``recipe`` makes of each pair of points, computing and keeping what the store lacks.

    Parameters
    ----------
    store
        A writable store.
    recipe
        What is measured, symmetric in the two points.
    groups
        Pairs by the name of what they belong to; what is needed of a point is computed once for all its pairs in a
        group, as far as memory allows.
    task
        Pure, module-level (or a partial of such): it is sent to workers.
    point_bytes
        Memory that the task takes for each point it holds.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress in pairs.

    Raises
    ------
    InvalidInput
        If two points do not fit into the memory of one task.
    """
    of_point = {piece.point: piece for pairs in groups.values() for pair in pairs for piece in pair}
    ids = point_ids(store, of_point)
    slices = {ids[point]: piece for point, piece in of_point.items()}
    text = canonical(recipe)
    known = get_measurements(store, text, set(slices))
    root = store.root.resolve()
    tiles: dict[str, tuple[list[int], list[tuple[int, int]]]] = {}
    for name, pairs in groups.items():
        wanted = {_ordered(ids[one.point], ids[other.point]) for one, other in pairs}
        lacking = sorted(wanted - known.keys())
        if lacking:
            at_once = _at_once(
                [slices[number] for number in {n for pair in lacking for n in pair}], point_bytes, cluster
            )
            for number, tile in enumerate(_tiles(lacking, at_once)):
                tiles[f"{name}-{number}"] = tile
    n_pairs, n_done = sum(len(pairs) for _, pairs in tiles.values()), 0

    def done(key: str, found: list[Numbers]) -> None:
        nonlocal n_done
        points, places = tiles[key]
        fresh = {_ordered(points[i], points[j]): numbers for (i, j), numbers in zip(places, found, strict=True)}
        put_measurements(store, text, fresh)
        known.update({pair: _measured(numbers) for pair, numbers in fresh.items()})
        n_done += len(fresh)
        advance(str(recipe["what"]), n_done, n_pairs)

    tasks = {key: partial(task, root, [slices[n] for n in points], places) for key, (points, places) in tiles.items()}
    execute(tasks, cluster=cluster, done=done)
    return {
        (one.point, other.point): known[_ordered(ids[one.point], ids[other.point])]
        for pairs in groups.values()
        for one, other in pairs
    }


def _at_once(slices: Sequence[Slice], point_bytes: Callable[[Slice], int], cluster: Cluster) -> int:
    largest = max(slices, key=point_bytes)
    at_once = cluster.task_memory // point_bytes(largest)
    if at_once < 2:
        raise InvalidInput(
            f"two points of {largest.n_probes} probes take {human_bytes(2 * point_bytes(largest))} and a task may take "
            f"{human_bytes(cluster.task_memory)}: give more --memory, or choose fewer probes"
        )
    return at_once


def _tiles(pairs: Sequence[Pair], at_once: int) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Split pairs into lists over at most ``at_once`` points each: the points, and the pairs as positions in them."""
    counts: dict[int, int] = {}
    for pair in pairs:
        for number in pair:
            counts[number] = counts.get(number, 0) + 1
    points = sorted(counts, key=lambda number: (-counts[number], number))  # what is new stands together
    size = len(points) if len(points) <= at_once else at_once // 2
    block = {number: place // size for place, number in enumerate(points)}
    place_of = {number: place for place, number in enumerate(points)}
    members: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for one, other in pairs:
        first, second = sorted((one, other), key=place_of.__getitem__)
        members.setdefault((block[first], block[second]), []).append((first, second))
    tiles = []
    for blocks in combinations_with_replacement(range(-(-len(points) // size)), 2):
        if blocks in members:
            held = sorted({number for pair in members[blocks] for number in pair}, key=place_of.__getitem__)
            position = {number: place for place, number in enumerate(held)}
            tiles.append((held, [(position[one], position[other]) for one, other in members[blocks]]))
    return tiles


def _ordered(one: int, other: int) -> Pair:
    return (one, other) if one < other else (other, one)


def _measured(numbers: Numbers) -> Measured:
    return Measured(np.empty(0), numbers) if isinstance(numbers, str) else Measured(numbers, None)
