"""Similarity of representations: layers with layers, steps with steps, runs with runs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from replay.analyses.comparing import compare, describe, disconnected, fill_matrix
from replay.analyses.measuring import Advance
from replay.analyses.results import Made, coordinates, keep_result, texts
from replay.analyses.selection import Choice, Selection, Slice, choose_steps, select_layers
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import Measure, find_measure
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Across", "analyze_similarity"]

VERSION = 1
"""Version of how panels are laid out, part of every result's key."""

Across = Literal["layers", "steps", "runs"]

Panel = tuple[dict[str, str], list[Slice | None]]


def analyze_similarity(
    store: Store,
    *,
    choice: Choice | None = None,
    across: Across = "layers",
    measure: Measure | None = None,
    steps: Sequence[int] = (),
    gauge: DiffusionGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return how alike representations are, each cell with its value under relabelled probes.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    across
        ``layers``: layers of one checkpoint, a panel a run and step. ``steps``: checkpoints of one run, a panel a run
        and layer. ``runs``: runs at one step, a panel a layer and step.
    measure
        Any of `replay.geometry.measures`; debiased linear CKA by default.
    steps
        Which steps to look at; the last common one by default, and for ``across="steps"`` all.
    gauge
        The recipe of operators, for a measure of operators.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        ``similarity`` and ``null`` (panel, row, column), symmetric; coordinates ``panel`` and ``label`` (row), and
        ``panel_run``, ``panel_step``, ``panel_layer``. Undefined cells are NaN with a reason in
        ``attrs["unavailable"]``; so is the null of the diagonal.

    Raises
    ------
    Unavailable
        If there are fewer than two layers, steps or runs to compare.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, a step is not there, or the runs share no probe set or no step.
    """
    if across not in get_args(Across):
        raise InvalidInput(f"across must be one of {', '.join(get_args(Across))}, not {across!r}")
    measure, gauge, cluster = measure or find_measure("cka"), gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    chosen, dropped = choose_steps(selection, steps, all_by_default=across == "steps")
    labels, panels = _panels(selection, across, chosen)
    if len(labels) < 2:
        what = {"layers": "--layers", "steps": "checkpoints", "runs": "--runs"}[across]
        raise Unavailable(
            f"similarity across {across} needs two of them, and there is only {', '.join(labels) or 'none'}: choose or "
            f"ingest more {what}"
        )
    parameters = {
        **selection.parameters(),
        "across": across,
        "steps": chosen,
        **describe(measure, gauge),
    }
    inputs = [[None if piece is None else piece.point for piece in members] for _, members in panels]
    made_from = selection.made_from(chosen)
    key = content_key("similarity", inputs=inputs, labels=labels, made_from=made_from, version=VERSION, **parameters)

    def make() -> Made:
        groups = {
            f"similarity-{number}": [piece for piece in members if piece is not None]
            for number, (_, members) in enumerate(panels)
        }
        found = compare(store, groups, measure, gauge, cluster=cluster, advance=advance)
        values, nulls, reasons = [], [], []
        for about, members in panels:
            value, null, undefined = fill_matrix(members, found, 0.0 if measure.sense == "distance" else 1.0)
            values.append(value)
            nulls.append(null)
            reasons += [[about["panel"], labels[i], labels[j], reason] for (i, j), reason in undefined.items()]
        dims = ("panel", "row", "column")
        arrays = {"similarity": Array(np.stack(values), dims), "null": Array(np.stack(nulls), dims)}
        arrays |= {"label": texts(labels, ("row",)), "panel": texts([a["panel"] for a, _ in panels], ("panel",))}
        for name in ("run", "step", "layer"):
            arrays[f"panel_{name}"] = texts([about.get(name, "") for about, _ in panels], ("panel",))
        arrays |= coordinates(selection, chosen)
        attrs = {
            "measure_title": measure.title,
            "sense": measure.sense,
            "no_null": measure.no_null,
            "n_probes": max(piece.n_probes for _, members in panels for piece in members if piece is not None),
            "disconnected": disconnected({(about["panel"],): members for about, members in panels}, found),
            "unavailable": reasons,
        }
        return Made(arrays, attrs)

    return keep_result(store, "similarity", key, parameters=parameters, remarks=selection.remarks(dropped), make=make)


def _panels(selection: Selection, across: Across, steps: Sequence[int]) -> tuple[list[str], list[Panel]]:
    """Return the labels of the rows, and of each panel what it is and the points of its rows."""
    histories: Mapping[str, Any] = selection.histories
    if across == "layers":
        labels = selection.layers
        return labels, [
            (
                {"panel": f"{run}, step {step}", "run": run, "step": str(step)},
                [history.slices.get((step, layer)) for layer in labels],
            )
            for run, history in histories.items()
            for step in steps
        ]
    if across == "steps":
        return [str(step) for step in steps], [
            (
                {"panel": f"{run}, {layer}" if len(histories) > 1 else layer, "run": run, "layer": layer},
                [history.slices.get((step, layer)) for step in steps],
            )
            for run, history in histories.items()
            for layer in selection.layers
        ]
    return selection.runs, [
        (
            {"panel": f"{layer}, step {step}", "step": str(step), "layer": layer},
            [history.slices.get((step, layer)) for history in histories.values()],
        )
        for layer in selection.layers
        for step in steps
    ]
