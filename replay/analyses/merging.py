"""Merged operators: several of the store's into one, kept with where its probes lie."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
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
from replay.geometry.embedding import DiffusionMap, Embedding, diffusion_map, phate_of_operator
from replay.geometry.gauge import DiffusionGauge, Operator
from replay.geometry.merging import DiffusionMerging, normalized_weights
from replay.jobs import Cluster, execute
from replay.units import human_bytes
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

COPIES = 4
"""Float64 matrices that a merge holds for each operator, and beside them."""

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
    made_from: dict[str, list[str]]
    """Revision, commit and weights digest of each member."""


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
        ``diffusion_map`` (probe, component), and over member its ``share``, its ``distance`` (normalised Frobenius) to
        the merge, and the ``revision``, ``commit`` and ``weights`` it is from. Places that do not exist, as in a graph
        of several parts, are NaN with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    InvalidInput
        If weights do not name the members, a step is not there, the runs share no probe set, or the operators do not
        fit into the memory of one task.
    Unavailable
        If there is nothing with two members or more.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    if across not in get_args(MergeAcross):
        raise InvalidInput(f"across must be one of {', '.join(get_args(MergeAcross))}, not {across!r}")
    gauge, cluster = gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    chosen, dropped = choose_steps(selection, steps, all_by_default=across == "steps")
    merges, reasons = _merges(selection, across, chosen)
    _check_members(merges, reasons, cluster)
    probes = store.probes(selection.capture.probes)
    what = {
        **selection.parameters(),
        "across": across,
        "strategy": merging.strategy,
        "merging": {**merging.parameters(), "version": merging_module.VERSION},
        "gauge": gauge_key(gauge),
    }
    remarks = {**selection.remarks(dropped), "identical": _identical(merges)}
    keys, tasks, parameters = [], {}, {}
    for merge in merges:
        shares = normalized_weights(merge.members, weights)
        inputs = {name: piece.point for name, piece in merge.members.items()}
        key = content_key("merge", inputs=inputs, made_from=merge.made_from, weights=shares, version=VERSION, **what)
        keys.append(key)
        parameters[key] = {**what, **merge.about, "shares": shares, **remarks}
        if not use_result(store, key, parameters=parameters[key]):
            labels = {name: ["" if v is None else v for v in probes[name]] for name in ("label", "text", "probe_id")}
            tasks[key] = partial(
                _merge, store.root.resolve(), key, merge.members, merge.made_from, merging, shares, gauge, labels
            )
    failed: dict[str, str] = {}
    n_done = 0

    def done(key: str, made: Staged | str) -> None:
        nonlocal n_done
        if isinstance(made, str):
            failed[key] = made
        else:
            commit_result(store, made, name="merge", parameters=parameters[key])
        n_done += 1
        advance("merges", n_done, len(tasks))

    execute(tasks, cluster=cluster, done=done)
    reasons |= {_name(merge.about): failed[key] for merge, key in zip(merges, keys, strict=True) if key in failed}
    return Merges([store.result("merge", key=key) for key in keys if key not in failed], reasons)


def _merges(selection: Selection, across: MergeAcross, steps: Sequence[int]) -> tuple[list[_Merge], dict[str, str]]:
    """Return what is to be merged, and why some of it cannot be: a member that was chosen lacks the layer."""
    apart = {"runs": ("step", "layer"), "layers": ("run", "step"), "steps": ("run", "layer"), "all": ()}[across]
    groups: dict[tuple[tuple[str, Any], ...], _Merge] = {}
    reasons: dict[str, str] = {}
    for run, history in selection.histories.items():
        for step in steps:
            for layer in selection.layers:
                place = {"run": run, "step": step, "layer": layer}
                about = {axis: place[axis] for axis in apart}
                merge = groups.setdefault(
                    tuple(about.items()), _Merge(about, {}, {"revision": [], "commit": [], "weights": []})
                )
                piece, revision = history.slices.get((step, layer)), history.revisions.get(step)
                if piece is None or revision is None:
                    reasons[_name(about)] = f"{run} has not {layer} at step {step}: ingest it with --layers"
                    continue
                name = {"runs": run, "layers": layer, "steps": revision.name, "all": f"{run} {revision.name} {layer}"}
                merge.members[name[across]] = piece
                for what, value in (
                    ("revision", revision.name),
                    ("commit", revision.commit),
                    ("weights", revision.weights),
                ):
                    merge.made_from[what].append(value or "")
    return [merge for merge in groups.values() if _name(merge.about) not in reasons], reasons


def _check_members(merges: Sequence[_Merge], reasons: Mapping[str, str], cluster: Cluster) -> None:
    if not merges:
        raise Unavailable(next(iter(reasons.values())))
    largest = max(merges, key=lambda merge: len(merge.members))
    if len(largest.members) < 2:
        raise Unavailable(
            f"a merge needs two operators, and there is only {next(iter(largest.members))}: choose more with --runs, "
            "--layers, --step or --across"
        )
    n = max(piece.n_probes for piece in largest.members.values())
    needed = (len(largest.members) * COPIES + COPIES) * 8 * n**2
    if needed > cluster.task_memory:
        raise InvalidInput(
            f"merging {len(largest.members)} operators of {n} probes takes {human_bytes(needed)} and a task may take "
            f"{human_bytes(cluster.task_memory)}: give more --memory, or choose fewer"
        )


def _identical(merges: Sequence[_Merge]) -> list[list[str]]:
    """Name members that are the very same layer of the same checkpoint, and so count twice."""
    pairs = (pair for merge in merges for pair in combinations(merge.members.items(), 2))
    return [list(names) for names in dict.fromkeys((a, b) for (a, p), (b, q) in pairs if p.point == q.point)]


def _name(about: Mapping[str, Any]) -> str:
    return ", ".join(f"{axis} {value}" for axis, value in about.items()) or "all"


def _merge(
    root: Path,
    key: str,
    members: Mapping[str, Slice],
    made_from: Mapping[str, Sequence[str]],
    merging: DiffusionMerging,
    shares: Mapping[str, float],
    gauge: DiffusionGauge,
    labels: Mapping[str, Sequence[str]],
) -> Staged | str:
    try:
        operators = {name: gauge(read_point(root, piece)) for name, piece in members.items()}
        merged = merging(operators, shares)
    except (InvalidInput, Unavailable) as error:
        return str(error)
    places, unavailable = {}, []
    embeddings: dict[str, Callable[[Operator], Embedding | DiffusionMap]] = {
        "phate": phate_of_operator,
        "diffusion_map": diffusion_map,
    }
    for name, embed in embeddings.items():
        try:
            places[name] = embed(merged).points
        except Unavailable as error:
            places[name] = np.full((len(merged), 2), np.nan)
            unavailable.append([name, str(error)])
    distances = [normalized_frobenius_distance(P, merged) for P in operators.values()]
    arrays = {
        "operator": Array(merged.matrix, ("probe", "probe_to")),
        "degrees": Array(merged.degrees, ("probe",)),
        **{name: Array(points, ("probe", f"component_{name}")) for name, points in places.items()},
        **{name: texts(values, ("probe",)) for name, values in labels.items()},
        "member": texts(list(members), ("member",)),
        "share": Array(np.array([shares[name] for name in members]), ("member",)),
        "distance": Array(np.array(distances), ("member",)),
        **{name: texts(values, ("member",)) for name, values in made_from.items()},
    }
    attrs = {
        "analysis": "merge",
        "kind": merged.kind,
        "reversible": merged.reversible,
        "n_components": merged.quality.n_components,
        "disconnected": [
            [name, P.quality.n_components, len(P.quality.isolated)]
            for name, P in operators.items()
            if P.quality.disconnected
        ],
        "unavailable": unavailable,
    }
    return stage_result(root, key, arrays=arrays, attrs=attrs)
