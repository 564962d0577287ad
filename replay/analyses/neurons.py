"""What single units do at every step of every run, which die or wake, and which change most between two checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.analyses.compared import Compared, compared_steps
from replay.analyses.comparing import read_point
from replay.analyses.measuring import Advance, Numbers, measure_points
from replay.analyses.results import Made, coordinates, keep_result, texts
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry import neuron_changes as changes_module
from replay.geometry import neurons as neurons_module
from replay.geometry.neuron_changes import UnitChanges, label_selectivity, unit_changes
from replay.geometry.neurons import (
    Nonlinearity,
    UnitStatistics,
    ValueRange,
    check_nonlinearity,
    tell_nonlinearity,
    unit_statistics,
    value_range,
)
from replay.jobs import Cluster, execute
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CHANGES", "STATISTICS", "analyze_neurons", "rank_movers"]

STATISTICS = UnitStatistics._fields
"""What is known of a unit at each step, in order."""

CHANGES = UnitChanges._fields
"""What is known of a unit between the two checkpoints that are compared, in order."""

SELECTIVITIES = ("selectivity_before", "selectivity_after")

INTERVAL = "95 % over probes, delete-group jackknife"

TOP_PROBES = 5
"""Probes that are named for each unit."""

UNDEFINED = {
    "sparsity": "of a unit that is dead or never responds",
    "movement, shift, p, q": "of a unit that is dead at both checkpoints",
    "movement_low, movement_high": "where a fifteenth of the probes holds all that varies",
    "correlation": "of a unit that is dead at both checkpoints, or does not vary at one",
    "selectivity": "of a unit that does not vary",
    "top_probe": "of a unit that is dead at both checkpoints",
}
"""Which numbers of single units are NaN, and why."""

Floats = npt.NDArray[np.float64]
Place = tuple[str, str]
"""Run and layer."""


def analyze_neurons(
    store: Store,
    *,
    choice: Choice | None = None,
    before: str | int | None = None,
    after: str | int | None = None,
    around: int | None = None,
    nonlinearity: Nonlinearity | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return what each unit does at every step, and how it changes between two, computing only what is missing.

    A unit is a feature of the stored activations. What dead, active and sparse mean follows from the nonlinearity its
    layer comes out of: see `replay.geometry.neurons.unit_statistics`.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default. Layers may differ in width.
    before, after
        Revision or step to compare, in each run; its first and last that have all the layers by default.
    around
        Compare the last checkpoint before this step with the first after it, in place of ``before`` and ``after``.
    nonlinearity
        Of all these layers; by default each layer's name and its values in all revisions of a run tell.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, step, layer, unit): ``mean``, ``std``, ``sparsity``, ``duty_cycle`` and ``dead`` (1 or 0), float32.
        Over (run, layer, unit): ``movement`` with ``_low`` and ``_high``, ``shift``, ``correlation``, ``p``, ``q``
        (Benjamini-Hochberg over all that is here), ``became_dead``, ``became_alive`` (1 or 0), and, where probes have
        labels, ``selectivity_before`` and ``selectivity_after``. ``top_probe`` (run, layer, unit, rank): the probes
        with the highest values after, or before of a unit that is dead then, as positions in ``text`` and ``label``
        (probe). ``nonlinearity`` and ``n_units`` (run, layer). ``attrs["compared"]`` has the two steps of each run. NaN
        beyond ``n_units``, where a run has no such step, for the reasons of ``attrs["undefined"]``, or with one in
        ``attrs["unavailable"]``.

    Raises
    ------
    InvalidInput
        If the two checkpoints are one or in the wrong order, or the values cannot come out of ``nonlinearity``.
    UnknownRevision
        If a run has no such checkpoint.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    cluster = cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    paths = selection.paths()
    steps = selection.steps()
    compared = compared_steps(store, selection, before, after, around)
    parameters = {**selection.parameters(), "steps": steps, "compared": compared, "given": nonlinearity}
    inputs = [[run, layer, step, p.point] for (run, layer), path in paths.items() for step, p in path.items()]
    versions = [neurons_module.VERSION, changes_module.VERSION, TOP_PROBES]
    made_from = selection.made_from(steps)
    key = content_key("neurons", inputs=inputs, made_from=made_from, versions=versions, **parameters)
    probes = store.probes(selection.capture.probes)

    def make() -> Made:
        kinds = _nonlinearities(store, paths, nonlinearity, cluster=cluster, advance=advance)
        labels = [None if label is None else str(label) for label in probes["label"]]
        shape = len(selection.runs), len(steps), len(selection.layers), max(piece.width for piece in _pieces(paths))
        over_steps: dict[str, npt.NDArray[np.float32]] = {
            name: np.full(shape, np.nan, np.float32) for name in STATISTICS
        }
        changes = {name: np.full((shape[0], *shape[2:]), np.nan) for name in (*CHANGES, *SELECTIVITIES)}
        tops = np.full((2, *changes["p"].shape, min(TOP_PROBES, len(probes))), np.nan)
        reasons: list[list[Any]] = []
        for (run, step, layer), numbers in _statistics(store, paths, kinds, cluster=cluster, advance=advance):
            if isinstance(numbers, str):
                reasons.append([run, step, layer, numbers])
            else:
                at = selection.runs.index(run), steps.index(step), selection.layers.index(layer)
                _fill([grid[at] for grid in over_steps.values()], numbers)
        for (run, layer), numbers in _changes(store, paths, compared, labels, cluster=cluster, advance=advance):
            if isinstance(numbers, str):
                reasons.append([run, None, layer, numbers])
            else:
                where = selection.runs.index(run), selection.layers.index(layer)
                _fill([*(grid[where] for grid in changes.values()), *tops[0][where].T, *tops[1][where].T], numbers)
        changes, top_probe = _judge(changes, tops, _dead_at(over_steps["dead"], compared, steps))
        widths = [[max(p.width for p in paths[run, layer].values()) for layer in selection.layers] for run in compared]
        said = [[kinds.get((run, layer), "") for layer in selection.layers] for run in compared]
        arrays = {name: Array(grid, ("run", "step", "layer", "unit")) for name, grid in over_steps.items()}
        arrays |= {name: Array(grid, ("run", "layer", "unit")) for name, grid in changes.items()}
        arrays |= {
            "top_probe": Array(top_probe, ("run", "layer", "unit", "rank")),
            "nonlinearity": texts(said, ("run", "layer")),
            "n_units": Array(np.array(widths, np.int64), ("run", "layer")),
            "unit": Array(np.arange(shape[3]), ("unit",)),
            **{name: texts(["" if v is None else v for v in probes[name]], ("probe",)) for name in ("label", "text")},
            **coordinates(selection, steps),
        }
        attrs = {"n_probes": len(probes), "interval": INTERVAL, "undefined": UNDEFINED, "unavailable": reasons}
        return Made(arrays, attrs)

    return keep_result(store, "neurons", key, parameters=parameters, remarks=selection.remarks(), make=make)


def rank_movers(result: "xr.Dataset", *, limit: int = 10) -> list[dict[str, Any]]:
    """Return the units that moved most between the two checkpoints, with the probes they respond to most.

    Parameters
    ----------
    result
        From `analyze_neurons`.
    limit
        How many, over all runs and layers.

    Returns
    -------
    list of dict
        By the lower end of the interval of ``movement``, so that no chance mover stands high: ``run``, ``layer``,
        ``unit``, all that is known of the unit between the two checkpoints, and ``top_probes``, each with ``probe``
        (its position), ``text`` and ``label``.

    Raises
    ------
    InvalidInput
        If ``limit`` is negative.
    """
    if limit < 0:
        raise InvalidInput(f"the number of movers to list is 0 or more, not {limit}")
    low = result["movement_low"].transpose("run", "layer", "unit").to_numpy()
    order = np.argsort(-np.where(np.isfinite(low), low, -np.inf), axis=None, kind="stable")[
        : min(limit, np.isfinite(low).sum())
    ]
    names = [name for name, variable in result.data_vars.items() if variable.dims == ("run", "layer", "unit")]
    movers = []
    for run, layer, unit in zip(*np.unravel_index(order, low.shape), strict=True):
        at = result.isel(run=run, layer=layer, unit=unit)
        found = at["top_probe"].to_numpy()
        named = [
            {"probe": int(probe), **{name: str(result[name].to_numpy()[int(probe)]) for name in ("text", "label")}}
            for probe in found[np.isfinite(found)]
        ]
        values = {str(name): None if np.isnan(at[name]) else float(at[name]) for name in names}
        movers.append(
            {
                "run": str(at["run"].item()),
                "layer": str(at["layer"].item()),
                "unit": int(unit),
                **values,
                "top_probes": named,
            }
        )
    return movers


def _pieces(paths: Mapping[Place, Mapping[int, Slice]]) -> list[Slice]:
    return [piece for path in paths.values() for piece in path.values()]


def _nonlinearities(
    store: Store,
    paths: Mapping[Place, Mapping[int, Slice]],
    given: Nonlinearity | None,
    *,
    cluster: Cluster,
    advance: Advance,
) -> dict[Place, Nonlinearity]:
    """Return what each layer of each run comes out of, as all its revisions together tell, or a person says."""
    recipe = {"what": "value ranges", "version": neurons_module.VERSION}
    found = measure_points(store, recipe, _pieces(paths), _value_ranges, cluster=cluster, advance=advance)
    kinds = {}
    for (run, layer), path in paths.items():
        ranges = [ValueRange(*found[p.point].numbers) for p in path.values() if not found[p.point].reason]
        if not ranges:
            continue
        kinds[run, layer] = given or tell_nonlinearity(ranges, layer)
        try:
            for range_ in ranges:
                check_nonlinearity(range_, kinds[run, layer])
        except InvalidInput as error:
            error.add_note(f"in {layer} of {run}")
            raise
    return kinds


def _statistics(
    store: Store,
    paths: Mapping[Place, Mapping[int, Slice]],
    kinds: Mapping[Place, Nonlinearity],
    *,
    cluster: Cluster,
    advance: Advance,
) -> Iterator[tuple[tuple[str, int, str], Numbers]]:
    """Give the statistics of each layer at each step, one run at a time: those of many runs would fill the memory."""
    for run in dict.fromkeys(run for run, _ in paths):
        for kind in sorted({kinds.get((r, layer), "linear") for r, layer in paths if r == run}):
            mine = {
                (step, layer): piece
                for (r, layer), path in paths.items()
                if r == run and kinds.get((r, layer), "linear") == kind
                for step, piece in path.items()
            }
            recipe = {"what": f"units, {kind}", "version": neurons_module.VERSION}
            task = partial(_unit_statistics, nonlinearity=kind)
            found = measure_points(store, recipe, mine.values(), task, cluster=cluster, advance=advance)
            for (step, layer), piece in mine.items():
                yield (run, step, layer), found[piece.point].reason or found[piece.point].numbers


def _changes(
    store: Store,
    paths: Mapping[Place, Mapping[int, Slice]],
    compared: Compared,
    labels: Sequence[str | None],
    *,
    cluster: Cluster,
    advance: Advance,
) -> list[tuple[Place, Numbers]]:
    """Return changes, selectivities and top probes of the units of each layer of each run, (number, unit) in a row."""
    found: dict[Place, Numbers] = {}
    tasks, of_key = {}, {}
    for number, ((run, layer), path) in enumerate(paths.items()):
        pair = compared[run]
        lacking = [] if isinstance(pair, str) else [step for step in pair if step not in path]
        if isinstance(pair, str) or lacking:
            found[run, layer] = (
                pair if isinstance(pair, str) else f"step {lacking[0]} has not this layer: ingest it with --layers"
            )
            continue
        of_key[f"changes-{number}"] = run, layer
        tasks[f"changes-{number}"] = partial(_change, store.root.resolve(), path[pair[0]], path[pair[1]], labels=labels)

    def done(key: str, numbers: Numbers) -> None:
        found[of_key[key]] = numbers
        advance("changes of units", len(found), len(paths))

    execute(tasks, cluster=cluster, done=done)
    return [(place, found[place]) for place in paths]


def _value_ranges(root: Path, slices: Sequence[Slice]) -> list[Numbers]:
    def measured(piece: Slice) -> Numbers:
        try:
            return np.array(value_range(read_point(root, piece)))
        except InvalidInput as error:
            return str(error)

    return [measured(piece) for piece in slices]


def _unit_statistics(root: Path, slices: Sequence[Slice], *, nonlinearity: Nonlinearity) -> list[Numbers]:
    def measured(piece: Slice) -> Numbers:
        try:
            return np.concatenate(unit_statistics(read_point(root, piece), nonlinearity), dtype=np.float64)
        except (InvalidInput, Unavailable) as error:
            return str(error)

    return [measured(piece) for piece in slices]


def _change(root: Path, before: Slice, after: Slice, *, labels: Sequence[str | None]) -> Numbers:
    X, Y = read_point(root, before), read_point(root, after)
    try:
        changes = unit_changes(X, Y)
    except (InvalidInput, Unavailable) as error:
        return str(error)
    try:
        selectivities = [label_selectivity(X, labels), label_selectivity(Y, labels)]
    except Unavailable:  # probes without labels
        selectivities = [np.full(X.shape[1], np.nan)] * 2
    tops = [np.argsort(-A, axis=0, kind="stable")[:TOP_PROBES].astype(np.float64) for A in (X, Y)]
    return np.concatenate([*changes, *selectivities, *tops[0], *tops[1]])


def _fill(rows: Sequence[npt.NDArray[np.floating[Any]]], numbers: Floats) -> None:
    """Write numbers, as many of each kind as there are units, into rows that are as long as the widest layer."""
    for row, values in zip(rows, numbers.reshape(len(rows), -1), strict=True):
        row[: len(values)] = values


def _judge(changes: Mapping[str, Floats], tops: Floats, dead: Floats) -> tuple[dict[str, Floats], Floats]:
    """Add who died, who woke and the q-values to changes, choose top probes, and leave out who is dead throughout."""
    before, after = dead
    throughout = (before == 1) & (after == 1)
    judged = {name: np.where(throughout, np.nan, changes[name]) for name in CHANGES}
    if np.isfinite(changes[SELECTIVITIES[0]]).any():
        judged |= {name: changes[name] for name in SELECTIVITIES}
    known = np.isfinite(before) & np.isfinite(after)
    judged |= {
        "q": _false_discovery(judged["p"]),
        "became_dead": np.where(known, after > before, np.nan),
        "became_alive": np.where(known, before > after, np.nan),
    }
    top_probe = np.where((after == 1)[..., None], tops[0], tops[1])
    top_probe[throughout] = np.nan
    return judged, top_probe


def _dead_at(dead: npt.NDArray[np.float32], compared: Compared, steps: Sequence[int]) -> Floats:
    """Return which units are dead before and after, (2, run, layer, unit); NaN where that is not known."""
    found = np.full((2, dead.shape[0], *dead.shape[2:]), np.nan)
    for run, pair in enumerate(compared.values()):
        if not isinstance(pair, str):
            found[:, run] = dead[run, [steps.index(step) for step in pair]]
    return found


def _false_discovery(p: Floats) -> Floats:
    """Return q-values of all p-values together (Benjamini and Hochberg, 1995)."""
    from scipy.stats import false_discovery_control

    q, known = np.full_like(p, np.nan), np.isfinite(p)
    if known.any():
        q[known] = false_discovery_control(p[known])
    return q
