"""The path of each run through operator space: velocity, length, distance to the end, turns."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.analyses.comparing import Found, compare_with_doubt, describe, disconnected, distance_title, read_distances
from replay.analyses.measuring import Advance
from replay.analyses.results import Made, coordinates, keep_result
from replay.analyses.selection import Choice, Selection, Slice, select_layers
from replay.geometry import paths as paths_module
from replay.geometry import spread as spread_module
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import Measure, find_measure
from replay.geometry.paths import (
    Curve,
    PathRatio,
    curvature,
    distance_to_final,
    path_length,
    roughness,
    straightness,
    turning_angle,
    velocity,
)
from replay.geometry.spread import N_GROUPS
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["CURVES", "RATIOS", "analyze_path"]

CURVES = ("velocity", "velocity_log", "length", "distance_to_final", "turning_angle", "curvature")
"""What is known at each step, in order."""

RATIOS = ("straightness", "roughness")
"""What is known of a whole path."""

REACH = 2
"""How many checkpoints ahead distances are needed: triangles take every other one."""

Floats = npt.NDArray[np.float64]


def analyze_path(
    store: Store,
    *,
    choice: Choice | None = None,
    measure: Measure | None = None,
    gauge: DiffusionGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return how each run moves through the space of operators, computing only what is missing.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default. Runs need not share steps.
    measure
        What the distance between two checkpoints is; a similarity is turned into one. Frobenius between operators by
        default, which is a metric, as angles need one.
    gauge
        The recipe of operators.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, step, layer), each with ``_low`` and ``_high`` (95 % over probes): ``velocity`` (per 1,000 steps) and
        ``velocity_log`` (per unit of ln(step + 1)) at the end of each link, ``length`` so far, ``distance_to_final``,
        ``turning_angle`` (radians) and ``curvature``. Over (run, layer): ``straightness`` and ``roughness``, each with
        ``_low``, ``_high`` and its value for a ``_random_walk`` and for mere ``_noise``. NaN where a run has no such
        step, or with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    Unavailable
        If a run has fewer than three checkpoints.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    measure, gauge = measure or find_measure("frobenius"), gauge or DiffusionGauge()
    cluster = cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    paths = selection.paths()
    longest = max(paths, key=lambda place: len(paths[place]))
    if len(paths[longest]) <= REACH:
        raise Unavailable(
            f"a path needs {1 + REACH} checkpoints or more, and {longest[0]} has {len(paths[longest])}: ingest more "
            "revisions, or choose other runs with --runs"
        )
    steps = selection.steps()
    parameters = {**selection.parameters(), "steps": steps, **describe(measure, gauge), "groups": N_GROUPS}
    inputs = [[run, layer, step, p.point] for (run, layer), path in paths.items() for step, p in path.items()]
    versions = [spread_module.VERSION, paths_module.VERSION]
    made_from = selection.made_from(steps)
    key = content_key("path", inputs=inputs, made_from=made_from, versions=versions, **parameters)

    def make() -> Made:
        groups = {}
        for (run, layer), path in paths.items():
            pieces = list(path.values())
            if len(pieces) > REACH:
                groups[f"path-{run}-{layer}"] = [(pieces[i], pieces[j]) for i, j in _links(len(pieces))]
        found = compare_with_doubt(store, groups, measure, gauge, cluster=cluster, advance=advance)
        made = _tables(selection, paths, steps, found, measure)
        made.attrs.update(
            disconnected=disconnected({place: list(path.values()) for place, path in paths.items()}, found),
            measure_title=distance_title(measure),
            n_probes=max(piece.n_probes for path in paths.values() for piece in path.values()),
            interval="95 % over probes, delete-group jackknife",
        )
        return made

    return keep_result(store, "path", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _tables(
    selection: Selection,
    paths: Mapping[tuple[str, str], dict[int, Slice]],
    steps: Sequence[int],
    found: Found,
    measure: Measure,
) -> Made:
    shape = len(selection.runs), len(steps), len(selection.layers)
    grids = {f"{name}{end}": np.full(shape, np.nan) for name in CURVES for end in ("", "_low", "_high")}
    ends = ("", "_low", "_high", "_random_walk", "_noise")
    ratios = {f"{name}{end}": np.full((shape[0], shape[2]), np.nan) for name in RATIOS for end in ends}
    reasons: list[list[Any]] = []
    for (run, layer), path in paths.items():
        r, c = selection.runs.index(run), selection.layers.index(layer)
        try:
            curves, whole = _measure_path(list(path), *_distances(list(path.values()), found, measure))
        except Unavailable as error:
            reasons.append([run, None, layer, str(error)])
            continue
        for name, curve in curves.items():
            at = [steps.index(step) for step in curve.steps]
            for end, values in (("", curve.values), ("_low", curve.low), ("_high", curve.high)):
                grids[f"{name}{end}"][r, at, c] = values
            reasons += [[run, step, layer, f"{name}: {reason}"] for step, reason in curve.unavailable.items()]
        for name, ratio in whole.items():
            if isinstance(ratio, str):
                reasons.append([run, None, layer, f"{name}: {ratio}"])
                continue
            for end, value in zip(ends, ratio, strict=True):
                ratios[f"{name}{end}"][r, c] = value
    arrays = {name: Array(grid, ("run", "step", "layer")) for name, grid in grids.items()}
    arrays |= {name: Array(grid, ("run", "layer")) for name, grid in ratios.items()}
    arrays |= coordinates(selection, steps)
    return Made(arrays, {"unavailable": reasons})


def _links(n_points: int) -> list[tuple[int, int]]:
    """Return the pairs whose distances a path is made of: each with the next two, and with the last."""
    last = n_points - 1
    return sorted({(i, j) for i in range(last) for j in (i + 1, i + REACH, last) if j <= last})


def _distances(pieces: Sequence[Slice], found: Found, measure: Measure) -> tuple[Floats, Floats]:
    """Return distances and replicates as matrices; what no part of a path asks for is left at zero."""
    if len(pieces) <= REACH:
        raise Unavailable(f"a path needs {1 + REACH} checkpoints or more, and there are {len(pieces)} with this layer")
    links = _links(len(pieces))
    measured = [found[pieces[i].point, pieces[j].point] for i, j in links]
    reason = next((one.reason for one in measured if one.reason), None)
    if reason:
        raise Unavailable(reason)
    distances = [read_distances(one, measure)[0] for one in measured]
    D = np.zeros((len(pieces), len(pieces)))
    replicates = np.zeros((*D.shape, len(distances[0].replicates)))
    for (i, j), distance in zip(links, distances, strict=True):
        D[i, j] = D[j, i] = distance.value
        replicates[i, j] = replicates[j, i] = distance.replicates
    return D, replicates


def _measure_path(
    steps: Sequence[int], D: Floats, replicates: Floats
) -> tuple[dict[str, Curve], dict[str, PathRatio | str]]:
    curves = {
        "velocity": velocity(D, steps, replicates=replicates),
        "velocity_log": velocity(D, steps, clock="log", replicates=replicates),
        "length": path_length(D, steps, replicates=replicates),
        "distance_to_final": distance_to_final(D, steps, replicates=replicates),
        "turning_angle": turning_angle(D, steps, replicates=replicates),
        "curvature": curvature(D, steps, replicates=replicates),
    }
    whole: dict[str, PathRatio | str] = {}
    for name, ratio in (("straightness", straightness), ("roughness", roughness)):
        try:
            whole[name] = ratio(D, steps, replicates=replicates)
        except Unavailable as error:
            whole[name] = str(error)
    return curves, whole
