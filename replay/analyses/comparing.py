"""Comparisons of points by a measure: the tasks, and matrices filled from what they found."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from replay.analyses.measuring import Advance, Numbers, measure_pairs
from replay.analyses.selection import Slice
from replay.geometry import gauge as gauge_module
from replay.geometry import knn_gauge as knn_gauge_module
from replay.geometry import spread as spread_module
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.knn_gauge import KnnGauge
from replay.geometry.measures import Measure
from replay.geometry.spread import N_GROUPS, PairDistance, compare_frobenius, compare_pairs
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.measurements import Measured
from store.segments import read_slice

__all__ = [
    "Found",
    "Place",
    "compare",
    "compare_with_doubt",
    "describe",
    "describe_gauge",
    "disconnected",
    "distance_title",
    "fill_matrix",
    "read_distances",
    "read_point",
]

VERSION = 2
"""Version of what is kept of a comparison, part of its recipe."""

Place = tuple[str | int, ...]
"""Where something was measured: run, step, layer, in the order of the analysis."""

Found = dict[tuple[tuple[str, str], tuple[str, str]], Measured]
"""What was measured of each pair of points."""


def describe_gauge(gauge: DiffusionGauge | KnnGauge) -> dict[str, Any]:
    """Return what an operator depends on beside the activations, in plain JSON types."""
    module = gauge_module if isinstance(gauge, DiffusionGauge) else knn_gauge_module
    return {**gauge.parameters(), "version": module.VERSION}


def describe(measure: Measure, gauge: DiffusionGauge) -> dict[str, Any]:
    """Return what a comparison depends on beside its two points, in plain JSON types."""
    return {"measure": measure.parameters(), "gauge": describe_gauge(gauge) if measure.of == "operator" else None}


def compare(
    store: Store,
    groups: Mapping[str, Sequence[Slice]],
    measure: Measure,
    gauge: DiffusionGauge,
    *,
    cluster: Cluster,
    advance: Advance,
) -> Found:
    """Return value and null of all pairs of different points within each group, computing only what the store lacks."""
    return measure_pairs(
        store,
        {"what": "comparisons", **describe(measure, gauge), "version": VERSION},
        {
            name: [(one, other) for one, other in combinations(members, 2) if one.point != other.point]
            for name, members in groups.items()
        },
        partial(_compare, gauge=gauge, measure=measure),
        point_bytes=_point_bytes(measure, copies=1),
        cluster=cluster,
        advance=advance,
    )


def compare_with_doubt(
    store: Store,
    groups: Mapping[str, Sequence[tuple[Slice, Slice]]],
    measure: Measure,
    gauge: DiffusionGauge,
    *,
    cluster: Cluster,
    advance: Advance,
) -> Found:
    """Return the distances of pairs with their jackknife replicates, for `read_distances`; only what is missing."""
    return measure_pairs(
        store,
        {"what": "distances", **describe(measure, gauge), "groups": N_GROUPS, "version": spread_module.VERSION},
        groups,
        partial(_compare_with_doubt, gauge=gauge, measure=measure),
        point_bytes=_point_bytes(measure, copies=4),
        cluster=cluster,
        advance=advance,
    )


def distance_title(measure: Measure) -> str:
    """Return a few words for what distances by a measure are."""
    return measure.title if measure.sense == "distance" else f"{measure.title} as a distance"


def read_distances(measured: Measured, measure: Measure) -> tuple[PairDistance, ...]:
    """Return what `compare_with_doubt` kept of a pair: the measure's distance; for Frobenius the normalised one too."""
    rows = measured.numbers.reshape(2 if measure.name == "frobenius" else 1, -1)
    return tuple(
        PairDistance(float(r[0]), None if np.isnan(r[1]) else float(r[1]), r[4:], int(r[2]), int(r[3])) for r in rows
    )


def disconnected(places: Mapping[Place, Sequence[Slice | None]], found: Found) -> list[list[Any]]:
    """Say where graphs fall into parts: the place, into how many at most, and how many probes have no link."""
    told = []
    for place, members in places.items():
        there = [piece.point for piece in members if piece is not None]
        measured = [found[pair] for pair in combinations(there, 2) if pair in found]
        known = [one.numbers for one in measured if not one.reason]
        n_parts, n_isolated = (int(max((numbers[k] for numbers in known), default=0)) for k in (2, 3))
        if n_parts > 1:
            told.append([*place, n_parts, n_isolated])
    return told


def fill_matrix(
    members: Sequence[Slice | None],
    found: Found,
    diagonal: float,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[tuple[int, int], str]]:
    """Return the matrix of values, that of nulls, and why entries are undefined; rows without a point are NaN."""
    values, nulls = np.full((2, len(members), len(members)), np.nan)
    reasons: dict[tuple[int, int], str] = {}
    for i, one in enumerate(members):
        if one is None:
            reasons[i, i] = "this checkpoint has not this layer: ingest it with --layers"
            continue
        values[i, i] = diagonal
        for j in range(i):
            other = members[j]
            if other is None:
                continue
            if one.point == other.point:
                values[i, j] = values[j, i] = diagonal
                continue
            measured = found[other.point, one.point]
            if measured.reason:
                reasons[j, i] = measured.reason
            else:
                values[i, j] = values[j, i] = measured.numbers[0]
                nulls[i, j] = nulls[j, i] = measured.numbers[1]
    return values, nulls, reasons


def read_point(root: Path, piece: Slice) -> npt.NDArray[np.float32]:
    """Return the activations of a point, (probe, feature)."""
    return read_slice(root, piece.segment, piece.array, piece.position)


def _point_bytes(measure: Measure, *, copies: int) -> Callable[[Slice], int]:
    """Return how much memory a point takes in a task that holds as much as ``copies`` of its view."""
    return lambda piece: copies * measure.view_bytes(piece.n_probes, piece.width) + 4 * piece.n_probes * piece.width


def _compare(
    root: Path,
    points: Sequence[Slice],
    pairs: Sequence[tuple[int, int]],
    *,
    gauge: DiffusionGauge,
    measure: Measure,
) -> list[Numbers]:
    views: dict[int, Any] = {}
    reasons: dict[int, str] = {}
    parts: dict[int, tuple[int, int]] = {}
    for place, piece in enumerate(points):
        try:
            X = read_point(root, piece)
            if measure.of == "operator":
                P = gauge(X)
                views[place], parts[place] = measure.view(P), (P.quality.n_components, len(P.quality.isolated))
            else:
                views[place], parts[place] = measure.view(X), (1, 0)
        except (InvalidInput, Unavailable) as error:
            reasons[place] = str(error)
    sound = [pair for pair in pairs if pair[0] in views and pair[1] in views]
    rows, columns = sorted({i for i, _ in sound}), sorted({j for _, j in sound})
    held = sorted({*rows, *columns})
    if len(sound) == len(held) * (len(held) - 1) // 2:
        rows = columns = held
    left, right = [views[i] for i in rows], None if rows is columns else [views[j] for j in columns]
    values = measure.compare(left, right) if sound else np.empty((0, 0))
    nulls = measure.null(left, right) if sound else np.empty((0, 0))
    row_of, column_of = {i: n for n, i in enumerate(rows)}, {j: n for n, j in enumerate(columns)}
    return [
        np.array([values[row_of[i], column_of[j]], nulls[row_of[i], column_of[j]], *map(max, parts[i], parts[j])])
        if i in views and j in views
        else reasons.get(i) or reasons[j]
        for i, j in pairs
    ]


def _compare_with_doubt(
    root: Path,
    points: Sequence[Slice],
    pairs: Sequence[tuple[int, int]],
    *,
    gauge: DiffusionGauge,
    measure: Measure,
) -> list[Numbers]:
    try:
        X = [read_point(root, piece) for piece in points]
        if measure.name == "frobenius":
            found = [tuple(pair) for pair in compare_frobenius(X, gauge, pairs)]
        else:
            found = [(pair,) for pair in compare_pairs(X, gauge, measure, pairs)]
    except (InvalidInput, Unavailable) as error:
        if len(pairs) == 1:
            return [str(error)]
        # One of the points is at fault: the pairs without it stand.
        return [
            _compare_with_doubt(root, [points[i], points[j]], [(0, 1)], gauge=gauge, measure=measure)[0]
            for i, j in pairs
        ]
    return [
        np.concatenate([_packed(distance, same=i == j) for distance in distances])
        for (i, j), distances in zip(pairs, found, strict=True)
    ]


def _packed(distance: PairDistance, *, same: bool) -> npt.NDArray[np.float64]:
    """Give a distance in one row; that of a point from itself is free of rounding."""
    null = np.nan if distance.null is None else distance.null
    numbers = np.array([distance.value, null, distance.n_parts, distance.n_isolated, *distance.replicates])
    if same:
        numbers[0] = numbers[4:] = 0
    return numbers
