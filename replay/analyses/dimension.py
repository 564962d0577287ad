"""The dimension of the activations of every run, step and layer."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.analyses.comparing import read_point
from replay.analyses.measuring import Advance, Numbers, measure_points
from replay.analyses.results import Made, coordinates, keep_result
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry.dimension import (
    METRICS,
    N_GROUPS,
    VERSION,
    Estimate,
    dimension_null,
    dimension_with_doubt,
    resolve_metrics,
)
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DEFAULTS", "analyze_dimension"]

DEFAULTS = (
    "stable_rank",
    "participation_ratio",
    "participation_ratio_unbiased",
    "effective_rank",
    "cumulative_energy",
    "nuclear_norm_ratio",
    "alpha_req",
    "two_nn",
)
"""The metrics measured where none is named."""

TOGETHER = (
    ("stable_rank", "participation_ratio", "participation_ratio_unbiased"),
    (
        "effective_rank",
        "cumulative_energy_90",
        "nuclear_norm_ratio",
        "alpha_req",
        "participation_ratio_singular",
    ),
    tuple(name for name in METRICS if name.endswith("_uncentred")),
)
"""Metrics that cost little more than one of them: measured and kept together. Others are alone."""


def analyze_dimension(
    store: Store,
    *,
    choice: Choice | None = None,
    metrics: Sequence[str] | None = None,
    energy: float = 0.9,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return the dimension of the activations of every run, step and layer, computing only what is missing.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    metrics
        Names, see `replay.geometry.dimension.METRICS`; by default `DEFAULTS`.
    energy
        Share of the energy for a cumulative energy whose name has none, above 0 and below 1.
    cluster
        Where to compute.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, step, layer): each metric, ``_low`` and ``_high`` (95 % over probes, delete-group jackknife) and
        ``_null``, its value for as many independent normal features. ``attrs["metrics"]`` has their names. NaN where a
        run has no such step, or with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    cluster, names = cluster or Cluster(), resolve_metrics(metrics or DEFAULTS, energy=energy)
    selection = select_layers(store, choice or Choice())
    steps, cells = selection.steps(), selection.cells()
    recipe = {"what": "dimension", "groups": N_GROUPS, "version": VERSION}
    parameters = {**selection.parameters(), "metrics": list(names), "steps": steps}
    inputs = [[*place, piece.point] for place, piece in cells.items()]
    key = content_key("dimension", inputs=inputs, made_from=selection.made_from(steps), recipe=recipe, **parameters)

    def make() -> Made:
        shape = (len(selection.runs), len(steps), len(selection.layers))
        grids = {f"{name}{end}": np.full(shape, np.nan) for name in names for end in ("", "_low", "_high", "_null")}
        reasons: dict[tuple[Any, ...], None] = {}
        for group in _groups(names):
            found = measure_points(
                store,
                {**recipe, "metrics": list(group)},
                cells.values(),
                partial(_measure, metrics=group),
                cluster=cluster,
                advance=advance,
            )
            asked = [name for name in group if name in names]
            for (run, step, layer), piece in cells.items():
                measured = found[piece.point]
                if measured.reason:
                    reasons[run, step, layer, measured.reason] = None
                    continue
                at = selection.runs.index(run), steps.index(step), selection.layers.index(layer)
                numbers, said = _unpacked(measured.numbers, group)
                null = dimension_null(piece.n_probes, piece.width, metrics=asked)
                for name in asked:
                    for end, number in zip(("", "_low", "_high"), numbers[name], strict=True):
                        grids[name + end][at] = number
                    grids[f"{name}_null"][at] = np.nan if isinstance(null[name], str) else null[name]
                    if name in said:
                        reasons[run, step, layer, name, said[name]] = None
        arrays = {name: Array(grid, ("run", "step", "layer")) for name, grid in grids.items()}
        attrs = {
            "n_probes": max(piece.n_probes for piece in cells.values()),
            "interval": "95 % over probes, delete-group jackknife",
            "unavailable": [list(reason) for reason in reasons],
        }
        return Made({**arrays, **coordinates(selection, steps)}, attrs)

    return keep_result(store, "dimension", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _groups(names: Sequence[str]) -> list[tuple[str, ...]]:
    together = [group for group in TOGETHER if set(group) & set(names)]
    return together + [(name,) for name in names if not any(name in group for group in together)]


def _measure(root: Path, slices: Sequence[Slice], *, metrics: Sequence[str]) -> list[Numbers]:
    return [_measure_point(root, piece, metrics) for piece in slices]


def _measure_point(root: Path, piece: Slice, metrics: Sequence[str]) -> Numbers:
    """Give value and interval of each metric, NaN what is undefined; then, if any, the reasons as bytes of JSON."""
    try:
        found = dimension_with_doubt(read_point(root, piece), metrics=metrics)
    except InvalidInput as error:
        return str(error)
    said = {name: one if isinstance(one, str) else one.interval for name, one in found.items()}
    reasons = {name: reason for name, reason in said.items() if isinstance(reason, str)}
    text = json.dumps(reasons).encode() if reasons else b""
    return np.concatenate([*(_numbers(one) for one in found.values()), np.frombuffer(text, np.uint8)])


def _numbers(found: Estimate | str) -> Any:
    if isinstance(found, str):
        return np.full(3, np.nan)
    interval = (np.nan, np.nan) if isinstance(found.interval, str) else found.interval
    return np.array([found.value, *interval])


def _unpacked(measured: Any, metrics: Sequence[str]) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """Give the numbers of each metric, and the reasons of those that are undefined."""
    numbers, text = np.split(measured, [3 * len(metrics)])
    reasons: Mapping[str, str] = json.loads(text.astype(np.uint8).tobytes() or b"{}")
    return dict(zip(metrics, numbers.reshape(-1, 3), strict=True)), reasons
