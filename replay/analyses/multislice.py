"""Every probe at every step of a run in one plane: the multislice embedding."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from replay.analyses.comparing import read_point
from replay.analyses.measuring import Advance, Numbers
from replay.analyses.results import Made, coordinates, keep_result, texts
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry import multislice as multislice_module
from replay.geometry.embedding import check_seed
from replay.geometry.multislice import multislice_kernel, multislice_phate
from replay.jobs import Cluster, execute
from replay.units import human_bytes
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyze_multislice"]

N_LANDMARKS = 500
"""Landmarks by way of which nodes are embedded, where there are as many nodes."""


def analyze_multislice(
    store: Store,
    *,
    choice: Choice | None = None,
    knn: int = 5,
    seed: int = 0,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return where every probe lies at every step, one picture a run and layer (M-PHATE: Gigante et al., 2019).

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    knn
        Neighbour that sets the bandwidth of a probe within a step.
    seed
        Of landmarks and PHATE.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress in pictures.

    Returns
    -------
    xarray.Dataset
        ``multislice`` (run, layer, step, probe, component) with ``label`` and ``text`` (probe); over (run, layer)
        ``trustworthiness`` of the landmarks, beside ``random_agreement``. NaN where a run has no such step, or with a
        reason in ``attrs["unavailable"]``.

    Raises
    ------
    InvalidInput
        If a kernel does not fit into the memory of one task.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    check_seed(seed)
    if knn < 1:
        raise InvalidInput(f"--neighbours must be a whole number of at least 1, not {knn}")
    cluster = cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    slices = selection.paths()
    steps = sorted({step for pieces in slices.values() for step in pieces})
    n_probes = max(piece.n_probes for pieces in slices.values() for piece in pieces.values())
    parameters = {**selection.parameters(), "steps": steps, "knn": knn, "seed": seed}
    inputs = [[run, layer, step, p.point] for (run, layer), pieces in slices.items() for step, p in pieces.items()]
    made_from = selection.made_from(steps)
    key = content_key("multislice", inputs=inputs, made_from=made_from, version=multislice_module.VERSION, **parameters)
    probes = store.probes(selection.capture.probes)

    def make() -> Made:
        _check_memory(slices.values(), cluster)
        shape = len(selection.runs), len(selection.layers)
        points = np.full((*shape, len(steps), n_probes, 2), np.nan)
        judged = np.full((2, *shape), np.nan)
        reasons = []
        of_key = {f"multislice-{run}-{layer}": (run, layer) for run, layer in slices}
        n_done = 0

        def done(name: str, found: Numbers) -> None:
            nonlocal n_done
            run, layer = of_key[name]
            at = selection.runs.index(run), selection.layers.index(layer)
            if isinstance(found, str):
                reasons.append([run, layer, found])
            else:
                judged[(slice(None), *at)] = found[:2]
                there = [steps.index(step) for step in slices[run, layer]]
                points[at][there] = found[2:].reshape(len(there), n_probes, 2)
            n_done += 1
            advance("multislice", n_done, len(of_key))

        root = store.root.resolve()
        tasks = {
            name: partial(_embed, root, list(slices[place].values()), knn=knn, seed=seed)
            for name, place in of_key.items()
        }
        execute(tasks, cluster=cluster, done=done)
        arrays = {
            "multislice": Array(points, ("run", "layer", "step", "probe", "component")),
            "trustworthiness": Array(judged[0], ("run", "layer")),
            "random_agreement": Array(judged[1], ("run", "layer")),
            **coordinates(selection, steps),
            **{name: texts(["" if v is None else v for v in probes[name]], ("probe",)) for name in ("label", "text")},
        }
        return Made(arrays, {"n_probes": n_probes, "unavailable": sorted(reasons)})

    return keep_result(store, "multislice", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _check_memory(paths: Iterable[dict[int, Slice]], cluster: Cluster) -> None:
    def size(pieces: dict[int, Slice]) -> int:
        first, T = next(iter(pieces.values())), len(pieces)
        return 4 * (T * first.n_probes**2 + first.n_probes * T**2 + 2 * T * first.n_probes * first.width)

    largest = max(map(size, paths))
    if largest > cluster.task_memory:
        raise InvalidInput(
            f"one run's kernel takes {human_bytes(largest)} and a task may take {human_bytes(cluster.task_memory)}: "
            "give more --memory, or choose fewer probes"
        )


def _embed(root: Path, pieces: Sequence[Slice], *, knn: int, seed: int) -> Numbers:
    try:
        kernel = multislice_kernel([read_point(root, piece) for piece in pieces], knn=knn)
        embedded = multislice_phate(kernel, n_landmarks=min(N_LANDMARKS, kernel.degrees.size), seed=seed)
    except (InvalidInput, Unavailable) as error:
        return str(error)
    judged = [embedded.landmarks.trustworthiness, embedded.landmarks.random_agreement]
    return np.concatenate([judged, embedded.points.ravel()])
