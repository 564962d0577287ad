"""How far apart several runs are at a step."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import DiffusionGauge, Operator
from replay.geometry.influence import Influence, Pair, ResponsiveOperator, pair_influences, respond
from replay.geometry.statistics import (
    Moments,
    jackknife_error,
    jackknife_interval,
    moments,
    permutation_ceiling,
    probe_groups,
    runs_interval,
)
from store.errors import InvalidInput, Unavailable

if TYPE_CHECKING:
    from replay.geometry.measures import Measure

__all__ = [
    "VERSION",
    "FrobeniusPair",
    "PairDistance",
    "Spread",
    "StepSpread",
    "compare_frobenius",
    "compare_pairs",
    "spread_from_activations",
    "summarise",
]

VERSION = 3
"""Version of these computations, part of every cache key: raised whenever a result may change."""

N_GROUPS = 15
"""Groups of the jackknife: as many as the default gauge's ``knn``."""

FIRST_ORDER = 0.05
"""Largest error, as a share of the distance, that first-order replicates are trusted with."""

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True, eq=False)
class PairDistance:
    """Distance between two runs at one step."""

    value: float
    null: float | None
    """What it would be if one run's probes were relabelled at random; None where that changes nothing."""
    replicates: Floats
    """(G,) the distance without each group of probes in turn; groups agree between pairs and steps."""
    n_parts: int = 1
    """Parts that the graph of the less connected of the two operators falls into."""
    n_isolated: int = 0
    """Most probes without a link in either operator."""


class FrobeniusPair(NamedTuple):
    """Frobenius distance between the operators of two runs at one step, both ways."""

    raw: PairDistance
    """‖P - Q‖_F, which grows with the number of probes."""
    normalized: PairDistance
    """‖P - Q‖_F / √(‖P‖_F² + ‖Q‖_F²): 0 for equal runs, √2 at most. It stays when ``knn`` grows with the probes; at a
    fixed ``knn`` neighbourhoods narrow, and it grows too, far less than the raw one."""


@dataclass(frozen=True, eq=False)
class Spread:
    """Mean pairwise distance between runs at one step, with its doubt."""

    value: float
    low: float
    """Lower end of the 95 % interval over probes; the runs are taken as given."""
    high: float
    """Upper end of the same."""
    ceiling: float | None
    """The spread if each run's probes were relabelled at random; None where that changes nothing."""
    replicates: Floats
    """(G,) the spread without each group of probes in turn; groups agree between steps."""
    low_runs: float | None
    """Lower end of the 95 % interval over runs; the probes are taken as given."""
    high_runs: float | None
    """Upper end of the same."""
    no_runs: str | None
    """Why there is no interval over runs, where there is none."""


@dataclass(frozen=True, eq=False)
class StepSpread:
    """The Frobenius spread of several runs at one step."""

    raw: Spread
    normalized: Spread
    n_runs: int
    n_probes: int


def compare_frobenius(
    activations: Sequence[npt.ArrayLike],
    gauge: DiffusionGauge,
    pairs: Sequence[Pair],
    *,
    operators: Sequence[Operator | Matrix] | None = None,
    n_groups: int = N_GROUPS,
    seed: int = 0,
) -> list[FrobeniusPair]:
    """Compare the operators of pairs of runs at one step.

    Replicates are first-order: each group's weight is taken out of sums, densities, degrees and bandwidths at once by
    `pair_influences`, at a fraction of the time that computing operators anew takes. First order holds for small
    changes: where a probe is isolated, or the error made of them is above a twentieth of the distance, operators are
    computed anew without each group. Over fresh probes from four
    simulated populations (clusters, heavy-tailed clusters, no clusters, nearly equal runs; `benchmarks/coverage.py`),
    the nominal 95 % interval made of them held the expected raw and normalised spread in 91 to 99 % of draws (2, 3
    and 5 runs; 100, 256 and 512 probes). Where clusters are far apart and about as small as ``knn``, bandwidths jump
    and the interval is too narrow: it held the raw one in 83 to 90 %, the normalised one in 90 to 95 %. With one probe
    in a hundred isolated it held them in half of the draws only.

    Parameters
    ----------
    activations
        One (n, d) matrix a run, over the same probes in the same order; widths d may differ.
    gauge
        From activations to operators.
    pairs
        Positions in ``activations``; operators of runs that no pair names are not computed.
    operators
        What ``gauge`` makes of ``activations``, where that is at hand.
    n_groups
        Groups of the jackknife, at least 2; at most one a probe is made.
    seed
        Of the division into groups. Use one seed for all steps.

    Returns
    -------
    list of FrobeniusPair
        One a pair; exactly 0 for identical operators. Memory: that of `respond` for each run.

    Raises
    ------
    Unavailable
        If the gauge is undefined for one of the runs.
    InvalidInput
        If the runs differ in their number of probes, or activations or operators are unusable.
    """
    groups = _groups(activations, n_groups=n_groups, seed=seed)
    points: dict[int, ResponsiveOperator] = {}
    facts: dict[int, Moments] = {}
    used = sorted({i for pair in pairs for i in pair})
    room = np.empty((len(used), len(groups), len(groups)), np.float32)  # one piece, kept from step to step by malloc
    for i, out in zip(used, room, strict=True):
        operator = None if operators is None else _checked(operators[i], gauge, len(groups))
        points[i] = respond(gauge, activations[i], groups, operator=operator, out=out)
        facts[i] = moments(points[i].matrix)
    found = {
        (i, j): _frobenius_pair(
            influence,
            facts[i],
            facts[j],
            np.bincount(groups),
            n_parts=max(points[i].n_parts, points[j].n_parts),
            n_isolated=max(len(points[i].isolated), len(points[j].isolated)),
        )
        for influence, (i, j) in zip(pair_influences(points, pairs), pairs, strict=True)
    }
    beyond = [
        (i, j)
        for (i, j), pair in found.items()
        if pair.raw.n_isolated or _is_large(pair.raw) or _is_large(pair.normalized)
    ]
    del points, room, out
    found |= _with_exact_replicates(found, activations, gauge, beyond, groups)
    return [found[pair] for pair in pairs]


def compare_pairs(
    activations: Sequence[npt.ArrayLike],
    gauge: DiffusionGauge,
    measure: "Measure",
    pairs: Sequence[Pair],
    *,
    n_groups: int = N_GROUPS,
    seed: int = 0,
) -> list[PairDistance]:
    """Compare pairs of runs at one step by any measure.

    The two Frobenius distances are `compare_frobenius`. Every other measure is computed again without each group of
    probes in turn, from operators or activations of the probes left.

    Parameters
    ----------
    activations, gauge, pairs, n_groups, seed
        As for `compare_frobenius`.
    measure
        A distance, or a similarity with its distance.

    Returns
    -------
    list of PairDistance
        One a pair.

    Raises
    ------
    Unavailable, InvalidInput
        As for the gauge and for ``measure``.
    """
    if measure.name == "frobenius":
        return [pair.raw for pair in compare_frobenius(activations, gauge, pairs, n_groups=n_groups, seed=seed)]
    if measure.name == "frobenius_normalized":
        return [pair.normalized for pair in compare_frobenius(activations, gauge, pairs, n_groups=n_groups, seed=seed)]
    groups = _groups(activations, n_groups=n_groups, seed=seed)
    used = {i: np.asarray(activations[i]) for i in sorted({i for pair in pairs for i in pair})}
    points: Iterable[Sequence[Any]]
    if measure.of == "operator":
        whole: Sequence[Any] = [gauge(X) for X in used.values()]
        points = zip(*(gauge.leave_group_out(X, groups) for X in used.values()), strict=True)
    else:
        whole = list(used.values())
        points = ([X[groups != group] for X in used.values()] for group in range(int(groups.max()) + 1))
    at = {run: position for position, run in enumerate(used)}
    asked = [(at[i], at[j]) for i, j in pairs]
    views = [measure.view(point) for point in whole]
    values = _distances(measure, views, asked)
    nulls = [float(measure.to_distance(measure.null([views[i]], [views[j]]))[0, 0]) for i, j in asked]
    replicates = [_distances(measure, [measure.view(point) for point in left], asked) for left in points]
    qualities = [P.quality if isinstance(P, Operator) else None for P in whole]
    return [
        PairDistance(
            value,
            None if np.isnan(null) else null,
            parts,
            n_parts=max(q.n_components if q else 1 for q in (qualities[i], qualities[j])),
            n_isolated=max(len(q.isolated) if q else 0 for q in (qualities[i], qualities[j])),
        )
        for value, null, parts, (i, j) in zip(values.tolist(), nulls, np.transpose(replicates), asked, strict=True)
    ]


def summarise(pairs: Mapping[Pair, PairDistance], n_runs: int) -> Spread:
    """Summarise the distances between all pairs of runs at one step by their mean.

    Parameters
    ----------
    pairs
        Every pair i < j of 0 to ``n_runs`` - 1.
    n_runs
        How many runs, at least 2.

    Returns
    -------
    Spread
        Its interval over runs takes four runs or more.

    Raises
    ------
    Unavailable
        If there are fewer than two runs.
    InvalidInput
        If pairs are missing or surplus, or their replicates are of different groups.
    """
    if n_runs < 2:
        raise Unavailable(f"spread needs two runs or more, and there are {n_runs}")
    if set(pairs) != set(combinations(range(n_runs), 2)):
        raise InvalidInput(f"a spread of {n_runs} runs takes the pairs i < j of 0 to {n_runs - 1}, not {sorted(pairs)}")
    if len({pair.replicates.shape for pair in pairs.values()}) > 1:
        raise InvalidInput("a spread takes pairs with one number of replicates each: compare all with the same groups")
    ordered = [pairs[pair] for pair in sorted(pairs)]
    value = float(np.mean([pair.value for pair in ordered]))
    replicates = np.mean([pair.replicates for pair in ordered], axis=0)
    low, high = jackknife_interval(value, replicates)
    nulls = [pair.null for pair in ordered if pair.null is not None]
    low_runs = high_runs = no_runs = None
    try:
        low_runs, high_runs = runs_interval({key: pair.value for key, pair in pairs.items()}, n_runs)
        low_runs = max(low_runs, 0.0)
    except Unavailable as reason:
        no_runs = str(reason)
    return Spread(
        value=value,
        low=max(low, 0.0),
        high=high,
        ceiling=float(np.mean(nulls)) if len(nulls) == len(ordered) else None,
        replicates=replicates,
        low_runs=low_runs,
        high_runs=high_runs,
        no_runs=no_runs,
    )


def spread_from_activations(
    activations: Sequence[npt.ArrayLike],
    gauge: DiffusionGauge,
    *,
    operators: Sequence[Operator | Matrix] | None = None,
    n_groups: int = N_GROUPS,
    seed: int = 0,
) -> StepSpread:
    """Mean pairwise Frobenius distance between several runs at one step: `compare_frobenius`, then `summarise`.

    Raises
    ------
    Unavailable
        If there are fewer than two runs, or the gauge is undefined for one of them.
    InvalidInput
        If the runs differ in their number of probes, or activations or operators are unusable.
    """
    n_runs = len(activations)
    if n_runs < 2:
        raise Unavailable(f"spread needs two runs or more, and there are {n_runs}")
    pairs = list(combinations(range(n_runs), 2))
    compared = compare_frobenius(activations, gauge, pairs, operators=operators, n_groups=n_groups, seed=seed)
    return StepSpread(
        raw=summarise({pair: part.raw for pair, part in zip(pairs, compared, strict=True)}, n_runs),
        normalized=summarise({pair: part.normalized for pair, part in zip(pairs, compared, strict=True)}, n_runs),
        n_runs=n_runs,
        n_probes=len(np.asarray(activations[0])),
    )


def _groups(activations: Sequence[npt.ArrayLike], *, n_groups: int, seed: int) -> npt.NDArray[np.intp]:
    counts = sorted({len(np.asarray(X)) for X in activations})
    if len(counts) != 1:
        raise InvalidInput(f"runs must be compared over the same probes, not over {' and '.join(map(str, counts))}")
    if counts[0] < 3:
        raise Unavailable(f"spread needs at least 3 probes, and there are {counts[0]}")
    return probe_groups(counts[0], n_groups=n_groups, seed=seed)


def _checked(operator: Operator | Matrix, gauge: DiffusionGauge, n: int) -> Matrix:
    kind = "symmetric" if gauge.symmetric else "markov"
    if isinstance(operator, Operator) and operator.kind != kind:
        raise InvalidInput(f"operators of different kinds cannot be compared: {operator.kind} and {kind}")
    matrix: Matrix = operator.matrix if isinstance(operator, Operator) else np.asarray(operator)
    if matrix.shape != (n, n):
        raise InvalidInput(f"operators must be square and over the same {n} probes, not {matrix.shape}")
    if not np.isfinite(matrix.sum()):
        raise InvalidInput("operators must be finite to be compared, and one is not: compute it again")
    return matrix


def _frobenius_pair(
    influence: Influence, P: Moments, Q: Moments, sizes: npt.NDArray[np.intp], *, n_parts: int, n_isolated: int
) -> FrobeniusPair:
    raw = np.sqrt(influence.difference)
    normalized = raw / np.sqrt(influence.squares) if raw else 0.0
    of_raw = influence.of_difference / (2 * raw) if raw else np.zeros(len(sizes))
    of_normalized = normalized * (of_raw / raw - influence.of_squares / (2 * influence.squares)) if raw else of_raw
    return FrobeniusPair(
        PairDistance(float(raw), permutation_ceiling(P, Q), _without(float(raw), of_raw, sizes), n_parts, n_isolated),
        PairDistance(
            float(normalized),
            permutation_ceiling(P, Q, normalized=True),
            _without(float(normalized), of_normalized, sizes),
            n_parts,
            n_isolated,
        ),
    )


def _is_large(distance: PairDistance) -> bool:
    return bool(jackknife_error(distance.replicates) > FIRST_ORDER * distance.value)


def _with_exact_replicates(
    found: Mapping[Pair, FrobeniusPair],
    activations: Sequence[npt.ArrayLike],
    gauge: DiffusionGauge,
    pairs: Sequence[Pair],
    groups: npt.NDArray[np.intp],
) -> dict[Pair, FrobeniusPair]:
    """Compute the replicates of some pairs again, from operators made without each group."""
    if not pairs:
        return {}
    used = sorted({i for pair in pairs for i in pair})
    raw, normalized = np.zeros((2, len(pairs), int(groups.max()) + 1))
    left_out = zip(*(gauge.leave_group_out(activations[i], groups) for i in used), strict=True)
    for group, operators in enumerate(left_out):
        matrices = {i: P.matrix.astype(np.float64) for i, P in zip(used, operators, strict=True)}
        squares = {i: float(np.vdot(P, P)) for i, P in matrices.items()}
        for place, (i, j) in enumerate(pairs):
            raw[place, group] = np.linalg.norm(matrices[i] - matrices[j])
            normalized[place, group] = raw[place, group] / np.sqrt(squares[i] + squares[j])
    return {
        pair: FrobeniusPair(
            replace(found[pair].raw, replicates=raw[place]),
            replace(found[pair].normalized, replicates=normalized[place]),
        )
        for place, pair in enumerate(pairs)
    }


def _without(value: float, derivatives: Floats, sizes: npt.NDArray[np.intp]) -> Floats:
    """Take each group's weight out and divide it among the probes left, to first order."""
    n = sizes.sum()
    centred = derivatives - derivatives.sum() * sizes / n
    replicates: Floats = np.maximum(value - centred * (n / (n - sizes)), 0)
    return replicates


def _distances(measure: "Measure", views: Sequence[Any], pairs: Sequence[Pair]) -> Floats:
    """Compare pairs, one row of a matrix of comparisons at a time."""
    distances = np.empty(len(pairs))
    for first in {i for i, _ in pairs}:
        chosen = [k for k, (i, _) in enumerate(pairs) if i == first]
        row = measure.compare([views[first]], [views[pairs[k][1]] for k in chosen])
        distances[chosen] = measure.to_distance(row)[0]
    return distances
