"""Analyses of a store: from names of runs and layers to a stored, memoised result."""

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.analyses.operators import Slice, compute_operators, gauge_key, missing_operators
from replay.geometry import spread as spread_module
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.spread import N_GROUPS, Rate, StepSpread, convergence_rate, join_on_step, spread_from_activations
from replay.jobs import Cluster, execute
from replay.revisions import parse_step, sort_key
from store.catalog import CaptureInfo, Store
from store.commits import commit_result, stage_result, use_result
from store.errors import InvalidInput, Unavailable, UnknownLayer, UnknownRun
from store.keys import content_key
from store.names import layer_order, match_layers, suggest
from store.schema import Activation, Operator, Revision
from store.segments import Array, read_slice

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyze_spread", "choose_runs"]

Advance = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class _Cell:
    step: int
    layer: str
    slices: tuple[Slice, ...]


@dataclass
class _History:
    """What one run has to compare: its pooled layers at each step."""

    revisions: dict[int, Revision] = field(default_factory=dict)
    slices: dict[tuple[int, str], Slice] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    """Revisions at a step that another one, with other weights, already holds, or another stage."""
    flagged: dict[str, str] = field(default_factory=dict)
    """Revisions that an audit holds for faulty, and why."""

    def steps(self, layers: Sequence[str]) -> list[int]:
        """Return the steps at which any of ``layers`` is stored."""
        return sorted({step for step, layer in self.slices if layer in layers})


def analyze_spread(
    store: Store,
    *,
    runs: Sequence[str] = ("*",),
    layers: Sequence[str] | None = None,
    probes: str | None = None,
    gauge: DiffusionGauge | None = None,
    include_flagged: bool = False,
    cluster: Cluster | None = None,
    advance: Advance | None = None,
) -> "xr.Dataset":
    """Return how far several runs' operators lie apart at each step and layer, computing only what is missing.

    Runs are joined on the training step; checkpoints at a step that another run lacks are left out and named in
    ``attrs["dropped"]``. So are revisions that an audit holds for faulty, since the weights of another step are no
    training; ``attrs["flagged"]`` has the reasons. Operators are cached in the store, and so is the result.

    Parameters
    ----------
    store
        A writable store.
    runs
        Names or globs of runs; all by default.
    layers
        Stored layers, names or globs; every pooled layer that all runs have by default.
    probes
        Name of the probe set, where the runs share several; the one used last by default.
    gauge
        The recipe from activations to operators.
    include_flagged
        Take faulty revisions for what their names say; they are named all the same.
    cluster
        Where to compute; threads of this process by default.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (step, layer): ``spread`` and ``spread_normalized``, each with ``_low``, ``_high`` (95 % interval over
        probes) and ``_ceiling``; over layer: ``rate``, ``rate_low``, ``rate_high`` (slope of ln spread per 1,000
        steps); over (run, step): ``revision``, ``commit`` and ``weights`` that each value was made from. Where
        something is undefined the value is NaN and ``attrs["unavailable"]`` has the reason.

    Raises
    ------
    Unavailable
        If fewer than two runs are chosen, or all that one has is flagged.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set or no step.
    """
    gauge, cluster, advance = gauge or DiffusionGauge(), cluster or Cluster(), advance or (lambda *_: None)
    names = choose_runs(store, runs)
    if len(names) < 2:
        raise Unavailable(
            f"spread is the distance between runs and needs two: {names[0]} is the only one chosen; ingest another "
            "seed of it, or choose more with --runs"
        )
    capture = _shared_capture(store, names, probes)
    histories = {name: _history(store, name, capture, include_flagged=include_flagged) for name in names}
    for name, history in histories.items():
        if history.flagged and not history.slices:
            raise Unavailable(f"nothing of {name} is sound: {_left_out({name: history})}")
    depths = {store.n_blocks(name) for name in names}
    chosen = _shared_layers(histories, layers, depths.pop() if len(depths) == 1 else None)
    try:
        join = join_on_step({name: history.steps(chosen) for name, history in histories.items()})
    except InvalidInput as error:
        if not include_flagged and any(history.flagged for history in histories.values()):
            error.add_note(_left_out(histories))
        raise
    cells, lacking = _cells(histories, join.steps, chosen)
    made_from = {
        what: [[getattr(histories[name].revisions[step], what) or "" for step in join.steps] for name in names]
        for what in ("name", "commit", "weights")
    }
    parameters: dict[str, Any] = {
        "runs": names,
        "layers": chosen,
        "steps": join.steps,
        "probes": capture.probes,
        "probe_set": capture.probe_set,
        "max_length": capture.max_length,
        "dtype": capture.dtype,
        "gauge": gauge_key(gauge),
        "groups": N_GROUPS,
        "version": spread_module.VERSION,
    }
    inputs = [[cell.step, cell.layer, [piece.replay for piece in cell.slices]] for cell in cells]
    key = content_key("spread", inputs=inputs, made_from=made_from, **parameters)
    parameters["dropped"] = _dropped(histories, join.dropped)
    parameters["identical"] = _identical(names, cells)
    parameters["flagged"] = {run: history.flagged for run, history in histories.items() if history.flagged}
    parameters["include_flagged"] = include_flagged
    if not use_result(store, key, parameters=parameters):
        rows, unavailable = _compute(store, cells, gauge, cluster, advance)
        _store_spread(store, key, parameters, made_from, rows, lacking | unavailable)
    return store.result("spread", key=key)


def choose_runs(store: Store, patterns: Sequence[str], *, replayed: bool = True) -> list[str]:
    """Return the replayed runs that names or globs choose, in order; or any runs.

    Raises
    ------
    UnknownRun
        If a pattern chooses none.
    """
    table = store.runs()
    there = list(table["run"][table["replayed"] > 0] if replayed else table["run"])
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in there if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not found:
            what = "replayed run" if replayed else "run"
            raise UnknownRun(f"no {what} {pattern!r} in {store.root}; {suggest(pattern, there)}")
        chosen |= found
    return sorted(chosen)


def _shared_capture(store: Store, runs: Sequence[str], probes: str | None) -> CaptureInfo:
    there = {run: store.captures(run) for run in runs}
    common = [
        info
        for info in there[runs[0]]
        if all(info.key in {c.key for c in captures} for captures in there.values()) and probes in (None, info.probes)
    ]
    if not common:
        has = "; ".join(f"{run}: {', '.join(f'{c.probes} ({c.dtype})' for c in there[run])}" for run in runs)
        wanted = f"probes {probes!r}" if probes else "one probe set at one precision"
        raise InvalidInput(f"the runs were not all replayed with {wanted}, so they cannot be compared; they have {has}")
    return common[-1]


def _history(store: Store, run: str, capture: CaptureInfo, *, include_flagged: bool) -> _History:
    history, flagged = _History(), store.flagged(run)
    branches: dict[int, tuple[int, str | None]] = {}
    for row in store.slices(run, capture, Activation):
        revision = row.Revision
        if revision.step is None or row.level != "probe":
            continue
        # Training order: where stages restart their count, the first keeps the step, even if nothing of it is sound.
        branch = _branch(revision)
        foreign = branches.setdefault(revision.step, branch) != branch
        if revision.name in flagged:
            history.flagged[revision.name] = flagged[revision.name]
            if not include_flagged:
                continue
        first = history.revisions.get(revision.step)
        if first is None and not foreign:
            first = history.revisions[revision.step] = revision
        if first is not None and first.name == revision.name:
            piece = Slice(row.key, row.layer, row.segment, row.array, row.position)
            history.slices[revision.step, row.layer] = piece
        elif (first is None or first.weights != revision.weights) and revision.name not in history.doubles:
            history.doubles.append(revision.name)
    return history


def _branch(revision: Revision) -> tuple[int, str | None]:
    """Return the stage of a revision, and which of its branches."""
    parsed = parse_step(revision.name)
    return revision.stage or sort_key(revision.name).stage or 1, None if parsed is None else parsed.kind


def _shared_layers(histories: Mapping[str, _History], wanted: Sequence[str] | None, n_blocks: int | None) -> list[str]:
    per_run = {run: {layer for _, layer in history.slices} for run, history in histories.items()}
    shared = set.intersection(*per_run.values())
    if not shared:
        has = "; ".join(f"{run}: {', '.join(sorted(layers)[:3])}" for run, layers in per_run.items())
        raise UnknownLayer(f"the runs have no pooled layer in common; they have {has or 'none'}")
    return sorted(match_layers(wanted, shared, n_blocks=n_blocks), key=layer_order)


def _cells(
    histories: Mapping[str, _History], steps: Sequence[int], layers: Sequence[str]
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


def _dropped(histories: Mapping[str, _History], steps: Mapping[str, Sequence[int]]) -> dict[str, list[str]]:
    """Name the revisions left out: at a step that another run lacks, or that another revision of the run holds."""
    names = {
        run: [history.revisions[step].name for step in steps.get(run, ())] + history.doubles
        for run, history in histories.items()
    }
    return {run: left_out for run, left_out in names.items() if left_out}


def _left_out(histories: Mapping[str, _History]) -> str:
    counts = ", ".join(f"{len(history.flagged)} of {run}" for run, history in histories.items() if history.flagged)
    return f"revisions left out as flagged: {counts}; `replay audit` tells why, --include-flagged takes them in"


def _identical(runs: Sequence[str], cells: Sequence[_Cell]) -> list[list[str]]:
    """Name the pairs of runs that hold the very same checkpoints, as one folder ingested from two places does."""
    columns = list(zip(*([piece.replay for piece in cell.slices] for cell in cells), strict=True))
    return [[runs[i], runs[j]] for i, j in combinations(range(len(runs)), 2) if columns and columns[i] == columns[j]]


def _compute(
    store: Store, cells: Sequence[_Cell], gauge: DiffusionGauge, cluster: Cluster, advance: Advance
) -> tuple[dict[tuple[int, str], StepSpread], dict[tuple[int, str], str]]:
    missing = missing_operators(store, [piece for cell in cells for piece in cell.slices], gauge)
    n_checkpoints, n_done = len({piece.replay for piece in missing}), 0

    def operator_done() -> None:
        nonlocal n_done
        n_done += 1
        advance("operators", n_done, n_checkpoints)

    reasons = compute_operators(store, missing, gauge, cluster=cluster, advance=operator_done)
    places = _operator_places(store, gauge)
    root = store.root.resolve()
    tasks, of_key = {}, {}
    unavailable: dict[tuple[int, str], str] = {}
    for cell in cells:
        lacking = [reasons[p.replay, p.layer] for p in cell.slices if (p.replay, p.layer) in reasons]
        if lacking:
            unavailable[cell.step, cell.layer] = lacking[0]
            continue
        key = f"spread-{cell.step}-{cell.layer}"
        operators = tuple(places[p.replay, p.layer] for p in cell.slices)
        tasks[key] = partial(_spread_of, root, gauge, cell.slices, operators)
        of_key[key] = (cell.step, cell.layer)
    rows: dict[tuple[int, str], StepSpread] = {}

    def row_done(key: str, row: StepSpread | str) -> None:
        if isinstance(row, str):
            unavailable[of_key[key]] = row
        else:
            rows[of_key[key]] = row
        advance("spread", len(rows) + len(unavailable), len(cells))

    execute(tasks, cluster=cluster, done=row_done)
    return rows, unavailable


def _operator_places(store: Store, gauge: DiffusionGauge) -> dict[tuple[str, str], tuple[str, int]]:
    from sqlalchemy import select

    with store.index.read() as session:
        rows = session.execute(
            select(Operator.replay, Operator.layer, Operator.segment, Operator.position).where(
                Operator.gauge == gauge_key(gauge)
            )
        ).all()
    return {(row.replay, row.layer): (row.segment, row.position) for row in rows}


def _spread_of(
    root: Path, gauge: DiffusionGauge, slices: Sequence[Slice], places: Sequence[tuple[str, int]]
) -> StepSpread | str:
    operators = [read_slice(root, segment, "operator", position) for segment, position in places]
    activations = [read_slice(root, piece.segment, piece.array, piece.position) for piece in slices]
    try:
        return spread_from_activations(activations, gauge, operators=operators)
    except (Unavailable, InvalidInput) as error:
        return str(error)


def _store_spread(
    store: Store,
    key: str,
    parameters: dict[str, Any],
    made_from: Mapping[str, Sequence[Sequence[str]]],
    rows: dict[tuple[int, str], StepSpread],
    unavailable: dict[tuple[int, str], str],
) -> None:
    steps, layers = parameters["steps"], parameters["layers"]
    names = ("spread", "spread_normalized")
    grids = {
        f"{name}{end}": np.full((len(steps), len(layers)), np.nan)
        for name in names
        for end in ("", "_low", "_high", "_ceiling")
    }
    for (step, layer), row in rows.items():
        at = steps.index(step), layers.index(layer)
        for name, spread in zip(names, (row.raw, row.normalized), strict=True):
            grids[name][at] = spread.value
            grids[f"{name}_low"][at] = spread.low
            grids[f"{name}_high"][at] = spread.high
            grids[f"{name}_ceiling"][at] = spread.ceiling
    rates = {name: np.full(len(layers), np.nan) for name in ("rate", "rate_low", "rate_high")}
    reasons = [[step, layer, reason] for (step, layer), reason in sorted(unavailable.items())]
    for number, layer in enumerate(layers):
        try:
            rate = _rate(layer, rows)
        except Unavailable as error:
            reasons.append([None, layer, f"rate: {error}"])
            continue
        rates["rate"][number], rates["rate_low"][number], rates["rate_high"][number] = rate.slope, rate.low, rate.high
    arrays = {name: Array(values, ("step", "layer")) for name, values in grids.items()}
    arrays |= {name: Array(values, ("layer",)) for name, values in rates.items()}
    arrays["step"] = Array(np.array(steps, dtype=np.int64), ("step",))
    for name, values in made_from.items():
        text = np.array(values, dtype=object)
        arrays["revision" if name == "name" else name] = Array(text, ("run", "step"))
    arrays["run"] = Array(np.array(parameters["runs"], dtype=object), ("run",))
    attrs = {
        "analysis": "spread",
        "runs": parameters["runs"],
        "probes": parameters["probes"],
        "probe_set": parameters["probe_set"],
        "n_probes": max((row.n_probes for row in rows.values()), default=0),
        "gauge": parameters["gauge"],
        "interval": "95 % over probes, delete-group jackknife with operators recomputed",
        "rate_unit": "ln(spread) per 1,000 steps",
        "unavailable": reasons,
    }
    arrays["layer"] = Array(np.array(layers, dtype=object), ("layer",))
    staged = stage_result(store.root, key, arrays=arrays, attrs=attrs)
    commit_result(store, staged, name="spread", parameters=parameters)


def _rate(layer: str, rows: dict[tuple[int, str], StepSpread]) -> Rate:
    mine = {step: row.normalized for (step, name), row in rows.items() if name == layer}
    if len(mine) < 3:
        raise Unavailable(f"a convergence rate needs 3 steps, and there are {len(mine)}")
    return convergence_rate(
        list(mine), [spread.value for spread in mine.values()], np.stack([s.replicates for s in mine.values()])
    )
