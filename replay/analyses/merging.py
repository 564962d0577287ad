"""Merged operators: several of the store's into one, kept with where its probes lie."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np

from replay.analyses.comparing import read_point
from replay.analyses.measuring import Advance
from replay.analyses.operators import gauge_key
from replay.analyses.results import texts
from replay.analyses.selection import Choice, Selection, Slice, choose_steps, select_layers
from replay.geometry import merging as merging_module
from replay.geometry.distances import normalized_frobenius_distance
from replay.geometry.embedding import diffusion_map, phate_of_operator
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.merging import DiffusionMerging, normalized_weights
from replay.jobs import Cluster, execute
from store.catalog import Store
from store.commits import commit_result, stage_result, use_result
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array, Staged

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MergeAcross", "Merges", "merge_operators"]

VERSION = 1
"""Version of what is kept beside a merged operator, part of every key."""

MergeAcross = Literal["runs", "layers", "steps", "all"]


class Merges(NamedTuple):
    """What became of the merges that were asked for."""

    merged: "list[xr.Dataset]"
    """The merged operators, in order of step and layer."""
    unavailable: dict[str, str]
    """Why there is none, by what it would have been."""


class _Merge(NamedTuple):
    about: dict[str, Any]
    members: dict[str, Slice]


def merge_operators(
    store: Store,
    merging: DiffusionMerging,
    *,
    choice: Choice | None = None,
    across: MergeAcross = "runs",
    steps: Sequence[int] = (),
    weights: Mapping[str, float] | None = None,
    gauge: DiffusionGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> Merges:
    """Merge operators of the store and keep each result; what is there already is not merged again.

    Parameters
    ----------
    store
        A writable store.
    merging
        The strategy.
    choice
        Runs, layers and probes; all by default.
    across
        ``runs``: those of one step and layer. ``layers``: those of one run and step. ``steps``: those of one run and
        layer. ``all``: everything chosen.
    steps
        Which steps; the last common one by default, and for ``across="steps"`` all.
    weights
        Of each member by its name: the run, the layer, the revision, or for ``all`` the three joined by spaces.
    gauge
        The recipe of the operators.
    cluster
        Where to compute.
    advance
        Told of the progress in merges.

    Returns
    -------
    Merges
        Each a dataset: ``operator`` (probe, probe_to), ``degrees``, ``label`` and ``text`` (probe), ``phate`` and
        ``diffusion_map`` (probe, component), and over member ``weight`` and ``distance``, normalised Frobenius from the
        member to the merge.

    Raises
    ------
    InvalidInput
        If weights do not name the members, a step is not there, or the runs share no probe set.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    if across not in get_args(MergeAcross):
        raise InvalidInput(f"across must be one of {', '.join(get_args(MergeAcross))}, not {across!r}")
    gauge, cluster = gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    chosen, dropped = choose_steps(selection, steps, all_by_default=across == "steps")
    merges = _merges(selection, across, chosen)
    probes = store.probes(selection.capture.probes)
    what = {
        **selection.parameters(),
        "across": across,
        "strategy": merging.strategy,
        "merging": {**merging.parameters(), "version": merging_module.VERSION},
        "gauge": gauge_key(gauge),
    }
    keys, tasks, parameters = [], {}, {}
    for merge in merges:
        shares = normalized_weights(merge.members, weights)
        inputs = {name: piece.point for name, piece in merge.members.items()}
        key = content_key("merge", inputs=inputs, weights=shares, version=VERSION, **what)
        keys.append(key)
        parameters[key] = {**what, **merge.about, "weights": shares, **selection.remarks(dropped)}
        if not use_result(store, key, parameters=parameters[key]):
            labels = {name: ["" if v is None else v for v in probes[name]] for name in ("label", "text", "probe_id")}
            tasks[key] = partial(_merge, store.root.resolve(), key, merge.members, merging, shares, gauge, labels)
    reasons: dict[str, str] = {}
    n_done = 0

    def done(key: str, made: Staged | str) -> None:
        nonlocal n_done
        if isinstance(made, str):
            reasons[key] = made
        else:
            commit_result(store, made, name="merge", parameters=parameters[key])
        n_done += 1
        advance("merges", n_done, len(tasks))

    execute(tasks, cluster=cluster, done=done)
    names = [", ".join(str(value) for value in merge.about.values()) for merge in merges]
    return Merges(
        [store.result("merge", key=key) for key in keys if key not in reasons],
        {name: reasons[key] for name, key in zip(names, keys, strict=True) if key in reasons},
    )


def _merges(selection: Selection, across: MergeAcross, steps: Sequence[int]) -> list[_Merge]:
    histories = selection.histories
    cells = {
        (run, step, layer): history.slices[step, layer]
        for run, history in histories.items()
        for step in steps
        for layer in selection.layers
        if (step, layer) in history.slices
    }
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Slice]] = {}
    for (run, step, layer), piece in cells.items():
        revision = histories[run].revisions[step].name
        place = {"run": run, "step": step, "layer": layer}
        name = {"runs": run, "layers": layer, "steps": revision, "all": f"{run} {revision} {layer}"}[across]
        apart = {"runs": ("step", "layer"), "layers": ("run", "step"), "steps": ("run", "layer"), "all": ()}[across]
        groups.setdefault(tuple((axis, place[axis]) for axis in apart), {})[name] = piece
    return [_Merge(dict(place), members) for place, members in groups.items()]


def _merge(
    root: Path,
    key: str,
    members: Mapping[str, Slice],
    merging: DiffusionMerging,
    weights: Mapping[str, float],
    gauge: DiffusionGauge,
    labels: Mapping[str, Sequence[str]],
) -> Staged | str:
    try:
        operators = {name: gauge(read_point(root, piece)) for name, piece in members.items()}
        merged = merging(operators, weights)
        places = {"phate": phate_of_operator(merged).points, "diffusion_map": diffusion_map(merged).points}
    except (InvalidInput, Unavailable) as error:
        return str(error)
    distances = [normalized_frobenius_distance(P, merged) for P in operators.values()]
    arrays = {
        "operator": Array(merged.matrix, ("probe", "probe_to")),
        "degrees": Array(merged.degrees, ("probe",)),
        **{name: Array(points, ("probe", f"component_{name}")) for name, points in places.items()},
        **{name: texts(values, ("probe",)) for name, values in labels.items()},
        "member": texts(list(members), ("member",)),
        "weight": Array(np.array([weights[name] for name in members]), ("member",)),
        "distance": Array(np.array(distances), ("member",)),
    }
    attrs = {
        "analysis": "merge",
        "kind": merged.kind,
        "reversible": merged.reversible,
        "n_components": merged.quality.n_components,
        "disconnected": [name for name, P in operators.items() if P.quality.disconnected],
    }
    return stage_result(root, key, arrays=arrays, attrs=attrs)
