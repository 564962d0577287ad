"""Jumps of any metric over training, in every run and layer, with one account of chance for all of them."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.stats import false_discovery_control

from replay.analyses.comparing import read_point
from replay.analyses.floors import precision_floor
from replay.analyses.measuring import Advance
from replay.analyses.results import Made, keep_result, texts
from replay.analyses.selection import Choice, Selection, select_layers
from replay.analyses.series import Series, read_series
from replay.geometry import jumps as jumps_module
from replay.geometry.dimension import METRICS, N_GROUPS, dimension
from replay.geometry.jumps import Change, Detection, detect_jumps
from replay.geometry.statistics import jackknife_error, probe_groups
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["ERRORS", "FLOORS", "JUMP_METRICS", "RATE", "Jump", "PairedError", "analyze_jumps", "find_jumps"]

JUMP_METRICS = ("stable_rank", "participation_ratio")
"""Looked at where no other is named."""

RATE = 0.05
"""Largest share of false jumps among those reported, over all series (Benjamini and Hochberg, 1995)."""

FLOORS = 3.0
"""A change within so many precision floors of the stored weights is not reported."""

ERRORS = 2.0
"""A change within so many standard errors over probes is not reported: of both ends together as if of different probes,
and, for a dimension, of their difference over the probes they share."""

COUNTED = "cumulative_energy"
"""How the names of metrics begin whose values are counts."""


PairedError = Callable[[Series, int, int], float]
"""Takes a series and two of its steps; gives the standard error of their difference over shared probes, or NaN."""


class Jump(NamedTuple):
    """One change of one metric of one layer of one run."""

    metric: str
    run: str
    layer: str
    kind: str
    """As of `replay.geometry.jumps.Change`."""
    start: int
    """Training step of the last checkpoint before it."""
    end: int
    """Training step of the first checkpoint after it; of a single checkpoint, that one."""
    before: float
    """Value before it."""
    after: float
    """Value after it."""
    effect: float
    """After - before, in robust standard deviations of a change from one checkpoint to the next around there."""
    p: float
    """Chance of one as large in a series without jumps."""
    q: float
    """Share of false ones among all that are as sure as this, over all series."""


def analyze_jumps(
    store: Store,
    *,
    choice: Choice | None = None,
    metrics: Sequence[str] = JUMP_METRICS,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return where metrics jump over training, one event a change.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default. Revisions that an audit holds for faulty are left out.
    metrics
        Names of `read_series`.
    cluster
        Where to compute what is missing, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over event, which may be empty: the fields of `Jump`. Over (series, point): ``step``, ``value`` and ``error`` of
        what was looked at, NaN beyond its end, with ``series_metric``, ``series_run`` and ``series_layer``.
        ``attrs["unavailable"]`` has the series that are too short and the values left out as undefined,
        ``attrs["within"]`` the changes that were found and
        lie within `ERRORS` standard errors over probes or `FLOORS` precision floors, ``attrs["no_floor"]`` the runs
        whose floor was not measured.

    Raises
    ------
    Unavailable
        If all series are too short.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing.
    """
    cluster, choice = cluster or Cluster(), choice or Choice()
    selection = select_layers(store, choice)
    found = read_series(store, metrics, choice=choice, cluster=cluster, advance=advance)
    of_dimension = [name for name in METRICS if name in metrics]
    floors: dict[tuple[str, str, str], float] = {}
    if of_dimension:
        floors = precision_floor(store, choice, of_dimension, cluster=cluster, advance=advance)
    parameters = {**selection.parameters(), "metrics": list(metrics), "rate": RATE, "floors": FLOORS, "errors": ERRORS}
    inputs = [[*_place(one), _digest(one), floors.get(_place(one))] for one in found]
    key = content_key("jumps", inputs=inputs, version=jumps_module.VERSION, **parameters)

    def make() -> Made:
        jumps, within, undefined = find_jumps(found, floors, paired=partial(_paired_error, store, selection))
        if len(undefined) == len(found):
            raise Unavailable(undefined[0][-1])
        arrays = _events(jumps) | _looked_at(found)
        measured = {run for _, run, _ in floors}
        no_floor = [run for run in selection.runs if run not in measured] if of_dimension else []
        n_probes = max(p.n_probes for history in selection.histories.values() for p in history.slices.values())
        attrs = {
            "unavailable": undefined + _left_out(found),
            "within": within,
            "no_floor": no_floor,
            "n_probes": n_probes,
        }
        return Made(arrays, attrs)

    return keep_result(store, "jumps", key, parameters=parameters, remarks=selection.remarks(), make=make)


def find_jumps(
    found: Sequence[Series],
    floors: Mapping[tuple[str, str, str], float],
    *,
    paired: PairedError = lambda *_: np.nan,
) -> tuple[list[Jump], list[list[Any]], list[list[Any]]]:
    """Find the jumps of several series together.

    Parameters
    ----------
    found
        Series; values that are undefined are passed over.
    floors
        What one rounding of the stored weights changes, by metric, run and layer.
    paired
        Asked for changes that lie within the errors of their two ends; the smaller error counts.

    Returns
    -------
    tuple
        Jumps with q of at most `RATE`; changes that are as sure and lie within doubt of another kind, each with its
        place and the reason; series that are too short, likewise.
    """
    detections: list[tuple[Series, Detection]] = []
    undefined: list[list[Any]] = []
    for one in found:
        there = np.isfinite(one.values)
        try:
            detection = detect_jumps(one.steps[there], one.values[there], resolution=_resolution(one))
        except Unavailable as error:
            undefined.append([one.run, one.layer, one.metric, str(error)])
            continue
        detections.append((one, detection))
    changes = [(one, change) for one, detection in detections for change in detection.changes]
    quiet = [detection.p for _, detection in detections if not detection.changes]
    chances = [change.p for _, change in changes] + quiet
    shares = false_discovery_control(chances) if chances else np.empty(0)
    jumps, within = [], []
    for (one, change), q in zip(changes, shares, strict=False):
        if q > RATE:
            continue
        jump = _jump(one, change, float(q))
        reason = _within(one, change, floors.get(_place(one)), paired)
        if reason:
            within.append([jump.run, jump.layer, jump.metric, jump.start, jump.end, reason])
        else:
            jumps.append(jump)
    return jumps, within, undefined


def _place(one: Series) -> tuple[str, str, str]:
    return one.metric, one.run, one.layer


def _resolution(one: Series) -> float:
    return float(one.metric.startswith(COUNTED))


def _left_out(found: Sequence[Series]) -> list[list[Any]]:
    """Name the values that are undefined."""
    lacking = [(one, one.steps[~np.isfinite(one.values)]) for one in found]
    return [
        [one.run, one.layer, one.metric, f"undefined at step {', '.join(map(str, steps))}: left out"]
        for one, steps in lacking
        if len(steps)
    ]


def _paired_error(store: Store, selection: Selection, one: Series, start: int, end: int) -> float:
    """Give the delete-group jackknife error of the difference of a dimension between two steps of a series."""
    if one.metric not in METRICS:
        return np.nan
    slices = selection.histories[one.run].slices
    before, after = (read_point(store.root, slices[step, one.layer]) for step in (start, end))
    groups = probe_groups(len(before), n_groups=N_GROUPS)
    parts = [
        [dimension(X[groups != group], metrics=[one.metric])[one.metric] for X in (before, after)]
        for group in range(groups.max() + 1)
    ]
    if any(isinstance(value, str) for part in parts for value in part):
        return np.nan
    # Counts may agree in all parts: they are known to their unit.
    return max(float(jackknife_error(np.diff(np.array(parts, float))[:, 0])), _resolution(one))


def _digest(one: Series) -> str:
    parts = (one.steps, one.values, *(() if one.error is None else (one.error,)))
    return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def _jump(one: Series, change: Change, q: float) -> Jump:
    steps = one.steps[np.isfinite(one.values)]
    start, end = int(steps[change.start]), int(steps[change.end])
    return Jump(*_place(one), change.kind, start, end, change.before, change.after, change.effect, change.p, q)


def _within(one: Series, change: Change, floor: float | None, paired: PairedError) -> str | None:
    """Return which other doubt a change lies within; None if it exceeds both."""
    size = abs(change.after - change.before)
    if floor is not None and size <= FLOORS * floor:
        return f"changes by {size:.3g}, within {FLOORS:g} precision floors of the stored weights ({floor:.3g})"
    if one.error is not None:
        there = np.isfinite(one.values)
        ends, steps = one.error[there][[change.start, change.end]], one.steps[there][[change.start, change.end]]
        doubt = float(np.hypot(*ends))
        if size <= ERRORS * doubt:
            doubt = float(np.fmin(doubt, paired(one, *map(int, steps))))
        if size <= ERRORS * doubt:
            return f"changes by {size:.3g}, within {ERRORS:g} standard errors over probes ({doubt:.3g})"
    return None


def _events(jumps: Sequence[Jump]) -> dict[str, Array]:
    arrays = {name: texts([getattr(j, name) for j in jumps], ("event",)) for name in ("metric", "run", "layer", "kind")}
    for name in ("start", "end"):
        arrays[name] = Array(np.array([getattr(jump, name) for jump in jumps], np.int64), ("event",))
    for name in ("before", "after", "effect", "p", "q"):
        arrays[name] = Array(np.array([getattr(jump, name) for jump in jumps], np.float64), ("event",))
    return arrays


def _looked_at(found: Sequence[Series]) -> dict[str, Array]:
    shape = len(found), max(len(one.steps) for one in found)
    grids = {name: np.full(shape, np.nan) for name in ("step", "value", "error")}
    for row, one in enumerate(found):
        n = len(one.steps)
        grids["step"][row, :n], grids["value"][row, :n] = one.steps, one.values
        if one.error is not None:
            grids["error"][row, :n] = one.error
    arrays = {name: Array(grid, ("series", "point")) for name, grid in grids.items()}
    for name in ("metric", "run", "layer"):
        arrays[f"series_{name}"] = texts([getattr(one, name) for one in found], ("series",))
    return arrays
