"""Spread between runs, step by step and layer by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.analyses.comparing import Found, compare_with_doubt, describe, disconnected, distance_title, read_distances
from replay.analyses.measuring import Advance
from replay.analyses.results import Made, coordinates, keep_result
from replay.analyses.selection import Choice, History, Selection, Slice, select_layers
from replay.geometry import convergence as convergence_module
from replay.geometry import spread as spread_module
from replay.geometry.convergence import convergence_rate, phases_of_convergence
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import Measure, find_measure
from replay.geometry.spread import N_GROUPS, Spread, summarise
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyze_spread"]

ENDS = ("", "_low", "_high", "_ceiling", "_runs_low", "_runs_high")
"""What stands beside a spread: interval over probes, value of relabelled probes, interval over runs."""


@dataclass(frozen=True)
class _Cell:
    step: int
    layer: str
    slices: tuple[Slice, ...]


def analyze_spread(
    store: Store,
    *,
    choice: Choice | None = None,
    measure: Measure | None = None,
    gauge: DiffusionGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return how far several runs lie apart at each step and layer, computing only what is missing.

    Runs are joined on the training step; checkpoints at a step that another run lacks are left out and named in
    ``attrs["dropped"]``. So are revisions that an audit holds for faulty, since the weights of another step are no
    training; ``attrs["flagged"]`` has the reasons. The distance of each pair of runs is kept by itself, so that a new
    checkpoint costs its own pairs and a new run those with the others.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    measure
        What the distance between two runs is; a similarity is turned into one. Frobenius between operators by default,
        raw and normalised.
    gauge
        The recipe from activations to operators.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (step, layer): ``spread``, with ``_low`` and ``_high`` (95 % interval over probes), ``_ceiling``
        (relabelled probes) and, from four runs up, ``_runs_low`` and ``_runs_high`` (95 % interval over runs); for
        Frobenius ``spread_normalized`` with the same. Over layer: ``rate``, ``rate_low``, ``rate_high`` (slope of ln
        spread per 1,000 steps, of the normalised spread where there is one). ``attrs["phases"]`` has for each layer
        where the spread falls, rises and is flat: layer, start, end, direction, change of ln spread, its interval and
        confidence. Over (run, step): ``revision``, ``commit`` and ``weights`` that each value was made from. Where
        something is undefined the value is NaN and ``attrs["unavailable"]`` has the reason.

    Raises
    ------
    Unavailable
        If fewer than two runs are chosen, or all that one has is flagged.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set or no step.
    """
    measure, gauge, cluster = measure or find_measure("frobenius"), gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    if len(selection.runs) < 2:
        raise Unavailable(
            f"spread is the distance between runs and needs two: {selection.runs[0]} is the only one chosen; ingest "
            "another seed of it, or choose more with --runs"
        )
    join = selection.join()
    cells, lacking = _cells(selection.histories, join.steps, selection.layers)
    made_from = selection.made_from(join.steps)
    parameters = {**selection.parameters(), "steps": join.steps, **describe(measure, gauge), "groups": N_GROUPS}
    inputs = [[cell.step, cell.layer, [piece.point for piece in cell.slices]] for cell in cells]
    versions = [spread_module.VERSION, convergence_module.VERSION]
    key = content_key("spread", inputs=inputs, made_from=made_from, versions=versions, **parameters)

    def make() -> Made:
        groups = {f"spread-{cell.step}-{cell.layer}": list(combinations(cell.slices, 2)) for cell in cells}
        found = compare_with_doubt(store, groups, measure, gauge, cluster=cluster, advance=advance)
        names = ("spread", "spread_normalized") if measure.name == "frobenius" else ("spread",)
        rows, undefined = _summaries(cells, found, measure)
        made = _tables(names, rows, lacking | undefined, selection, join.steps)
        made.attrs.update(
            disconnected=disconnected({(cell.step, cell.layer): cell.slices for cell in cells}, found),
            measure_title=distance_title(measure),
            no_ceiling=measure.no_null,
            n_probes=max((piece.n_probes for cell in cells for piece in cell.slices), default=0),
            interval="95 % over probes, delete-group jackknife",
        )
        return made

    remarks = {**selection.remarks(join.dropped), "identical": _identical(selection.runs, cells)}
    return keep_result(store, "spread", key, parameters=parameters, remarks=remarks, make=make)


def _cells(
    histories: Mapping[str, History], steps: Sequence[int], layers: Sequence[str]
) -> tuple[list[_Cell], dict[tuple[int, str], str]]:
    cells, lacking = [], {}
    for step in steps:
        for layer in layers:
            without = [run for run, history in histories.items() if (step, layer) not in history.slices]
            if without:
                lacking[step, layer] = f"{', '.join(without)} has this layer not at this step: ingest it with --layers"
            else:
                cells.append(_Cell(step, layer, tuple(h.slices[step, layer] for h in histories.values())))
    return cells, lacking


def _identical(runs: Sequence[str], cells: Sequence[_Cell]) -> list[list[str]]:
    """Name the pairs of runs that hold the very same checkpoints, as one folder ingested from two places does."""
    columns = list(zip(*([piece.replay for piece in cell.slices] for cell in cells), strict=True))
    return [[runs[i], runs[j]] for i, j in combinations(range(len(runs)), 2) if columns and columns[i] == columns[j]]


def _summaries(
    cells: Sequence[_Cell], found: Found, measure: Measure
) -> tuple[dict[tuple[int, str], tuple[Spread, ...]], dict[tuple[int, str], str]]:
    """Return the spread of each cell, one for each distance, and why others have none."""
    rows, undefined = {}, {}
    for cell in cells:
        n_runs = len(cell.slices)
        measured = {
            (i, j): found[cell.slices[i].point, cell.slices[j].point] for i, j in combinations(range(n_runs), 2)
        }
        reason = next((pair.reason for pair in measured.values() if pair.reason), None)
        if reason:
            undefined[cell.step, cell.layer] = reason
            continue
        pairs = {pair: read_distances(one, measure) for pair, one in measured.items()}
        rows[cell.step, cell.layer] = tuple(
            summarise({pair: distances[number] for pair, distances in pairs.items()}, n_runs)
            for number in range(len(pairs[0, 1]))
        )
    return rows, undefined


def _tables(
    names: Sequence[str],
    rows: Mapping[tuple[int, str], tuple[Spread, ...]],
    undefined: Mapping[tuple[int, str], str],
    selection: Selection,
    steps: Sequence[int],
) -> Made:
    layers = selection.layers
    grids = {f"{name}{end}": np.full((len(steps), len(layers)), np.nan) for name in names for end in ENDS}
    for (step, layer), spreads in rows.items():
        cell = steps.index(step), layers.index(layer)
        for name, spread in zip(names, spreads, strict=True):
            numbers = (spread.value, spread.low, spread.high, spread.ceiling, spread.low_runs, spread.high_runs)
            for end, value in zip(ENDS, numbers, strict=True):
                grids[f"{name}{end}"][cell] = np.nan if value is None else value
    rates = {name: np.full(len(layers), np.nan) for name in ("rate", "rate_low", "rate_high")}
    phases: list[list[Any]] = []
    reasons = [[step, layer, reason] for (step, layer), reason in sorted(undefined.items())]
    for number, layer in enumerate(layers):
        at = [step for step in steps if (step, layer) in rows]
        curve = [rows[step, layer][-1] for step in at]  # the normalised one where there are two
        values, replicates = [spread.value for spread in curve], [spread.replicates for spread in curve]
        try:
            rate = convergence_rate(at, values, replicates)
            rates["rate"][number], rates["rate_low"][number], rates["rate_high"][number] = (
                rate.slope,
                rate.low,
                rate.high,
            )
        except (Unavailable, InvalidInput) as error:
            reasons.append([None, layer, f"rate: {error}"])
        try:
            phases += [[layer, *phase] for phase in phases_of_convergence(at, values, replicates)]
        except (Unavailable, InvalidInput) as error:
            reasons.append([None, layer, f"phases: {error}"])
    arrays = {name: Array(values, ("step", "layer")) for name, values in grids.items()}
    arrays |= {name: Array(values, ("layer",)) for name, values in rates.items()}
    arrays |= coordinates(selection, steps)
    no_runs = next((spreads[0].no_runs for spreads in rows.values()), None)
    attrs = {
        "phases": phases,
        "rate_unit": "ln(spread) per 1,000 steps",
        "no_interval_over_runs": no_runs,
        "unavailable": reasons,
    }
    return Made(arrays, attrs)
