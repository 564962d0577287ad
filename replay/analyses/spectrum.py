"""Spectra of the operators of every run, step and layer."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from replay.analyses.comparing import describe_gauge, read_point
from replay.analyses.measuring import Advance, Numbers, measure_points
from replay.analyses.results import Made, coordinates, keep_result
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry import spectrum as spectrum_module
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.spectrum import spectrum, uniform_walk
from replay.geometry.spread import N_GROUPS
from replay.geometry.statistics import jackknife_interval, probe_groups
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SCALARS", "analyze_spectrum"]

SCALARS = tuple(uniform_walk(2))
"""Names of the numbers that stand for a spectrum, in order."""


def analyze_spectrum(
    store: Store,
    *,
    choice: Choice | None = None,
    gauge: DiffusionGauge | None = None,
    k: int = 50,
    t: int = 1,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return what the spectra of the operators say, for every run, step and layer, computing only what is missing.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    gauge
        The recipe of operators.
    k
        Eigenvalues to keep.
    t
        Diffusion time of the von Neumann entropy.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, step, layer): ``spectral_gap``, ``stationary_entropy`` and ``von_neumann_entropy`` (nats),
        ``diffusion_spectral_entropy`` (bits), ``neighbourhood_mean`` and ``neighbourhood_median`` (probes), each with
        ``_low`` and ``_high`` (95 % over probes, delete-group jackknife with operators recomputed); ``eigenvalues``
        with an axis ``rank``, ``stationary`` with an axis ``probe``. ``attrs["uniform"]`` has the numbers of a walk
        that sees no geometry. NaN where a run has no such step, or with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    if k < 1 or t < 1:
        raise InvalidInput(f"a spectrum needs k and t of at least 1, not k={k} and t={t}")
    gauge, cluster = gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    steps, cells = selection.steps(), selection.cells()
    n_probes = max(piece.n_probes for piece in cells.values())
    recipe = {
        "what": "spectra",
        "gauge": describe_gauge(gauge),
        "k": k,
        "t": t,
        "groups": N_GROUPS,
        "version": spectrum_module.VERSION,
    }
    parameters = {**selection.parameters(), **{name: recipe[name] for name in ("gauge", "k", "t")}, "steps": steps}
    inputs = [[*place, piece.point] for place, piece in cells.items()]
    made_from = selection.made_from(steps)
    key = content_key("spectrum", inputs=inputs, made_from=made_from, recipe=recipe, **parameters)

    def make() -> Made:
        found = measure_points(
            store, recipe, cells.values(), partial(_spectra, gauge=gauge, k=k, t=t), cluster=cluster, advance=advance
        )
        shape = (len(selection.runs), len(steps), len(selection.layers))
        n_kept = min(k, n_probes)
        grids = {f"{name}{end}": np.full(shape, np.nan) for end in ("", "_low", "_high") for name in SCALARS}
        eigenvalues, stationary = np.full((*shape, n_kept), np.nan), np.full((*shape, n_probes), np.nan)
        reasons: list[list[Any]] = []
        apart: list[list[Any]] = []
        for (run, step, layer), piece in cells.items():
            at = selection.runs.index(run), steps.index(step), selection.layers.index(layer)
            measured = found[piece.point]
            if measured.reason:
                reasons.append([run, step, layer, measured.reason])
                continue
            parts, scalars, eigenvalues[at], stationary[at] = np.split(
                measured.numbers, np.cumsum([2, len(grids), n_kept])
            )
            if parts[0] > 1:
                apart.append([run, step, layer, int(parts[0]), int(parts[1])])
            for name, value in zip(grids, scalars, strict=True):
                grids[name][at] = value
        axes = ("run", "step", "layer")
        arrays = {name: Array(grid, axes) for name, grid in grids.items()}
        arrays |= {
            "eigenvalues": Array(eigenvalues, (*axes, "rank")),
            "stationary": Array(stationary, (*axes, "probe")),
        }
        arrays |= {**coordinates(selection, steps), "rank": Array(np.arange(1, n_kept + 1), ("rank",))}
        attrs = {
            "n_probes": n_probes,
            "uniform": uniform_walk(n_probes, t=t),
            "interval": "95 % over probes, delete-group jackknife with operators recomputed",
            "disconnected": apart,
            "unavailable": reasons,
        }
        return Made(arrays, attrs)

    return keep_result(store, "spectrum", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _spectra(root: Path, slices: Sequence[Slice], *, gauge: DiffusionGauge, k: int, t: int) -> list[Numbers]:
    return [_spectrum(root, piece, gauge, k, t) for piece in slices]


def _spectrum(root: Path, piece: Slice, gauge: DiffusionGauge, k: int, t: int) -> Numbers:
    try:
        X = read_point(root, piece)
        P = gauge(X)
        whole = spectrum(P, k=k, t=t)
        groups = probe_groups(len(X), n_groups=N_GROUPS)
        parts = [list(spectrum(Q, k=1, t=t).scalars().values()) for Q in gauge.leave_group_out(X, groups)]
    except (InvalidInput, Unavailable) as error:
        return str(error)
    values = np.array(list(whole.scalars().values()))
    largest = [1, np.log(len(X)), np.log(len(X)), np.log2(len(X)), len(X), len(X)]
    quality = [P.quality.n_components, len(P.quality.isolated)]
    ends = [jackknife_interval(value, column) for value, column in zip(values, np.array(parts).T, strict=True)]
    low, high = np.array(ends).T
    bounded = [np.clip(part, 0, largest) for part in (values, low, high)]
    return np.concatenate([quality, *bounded, whole.eigenvalues, whole.stationary])
