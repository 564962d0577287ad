"""Trajectories in a plane: all checkpoints of all runs as points, from the distances between them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.analyses.comparing import compare, describe, disconnected, distance_title, fill_matrix
from replay.analyses.measuring import Advance
from replay.analyses.results import Made, keep_result, texts
from replay.analyses.selection import Choice, Slice, select_layers
from replay.geometry import embedding as embedding_module
from replay.geometry.embedding import SMALLEST, Method, check_seed, embed
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import Measure, find_measure
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["analyze_embedding"]

JUDGEMENTS = ("trustworthiness", "continuity", "random_agreement", "stress")


def analyze_embedding(
    store: Store,
    *,
    choice: Choice | None = None,
    measure: Measure | None = None,
    method: Method = "phate",
    n_components: int = 2,
    seed: int = 0,
    gauge: DiffusionGauge | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return every checkpoint of every run as a point in a plane, layer by layer, with how far it can be trusted.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default. Runs need not share steps.
    measure
        What distances are made of; a similarity is turned into one. Frobenius between operators by default.
    method, n_components, seed
        As for `replay.geometry.embedding.embed`.
    gauge
        The recipe of operators, for a measure of operators.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        ``embedding`` (layer, point, component) and ``distance`` (layer, point, point_to), with coordinates ``run``,
        ``step``, ``revision``, ``commit`` and ``weights`` of each point; over layer ``trustworthiness``,
        ``continuity``, their value for points dealt out at random (``random_agreement``), and ``stress``. A layer that
        cannot be embedded is NaN with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    Unavailable
        If there are fewer than four points.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    check_seed(seed)
    measure, gauge, cluster = measure or find_measure("frobenius"), gauge or DiffusionGauge(), cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    places = [(run, step) for run, history in selection.histories.items() for step in history.steps(selection.layers)]
    if len(places) < SMALLEST:
        raise Unavailable(
            f"an embedding needs {SMALLEST} checkpoints or more, and {', '.join(selection.runs)} have {len(places)}: "
            "ingest more revisions"
        )
    members: dict[str, list[Slice | None]] = {
        layer: [selection.histories[run].slices.get((step, layer)) for run, step in places]
        for layer in selection.layers
    }
    parameters = {
        **selection.parameters(),
        **describe(measure, gauge),
        "method": method,
        "n_components": n_components,
        "seed": seed,
    }
    inputs = [[*place, *(None if p is None else p.point for p in row)] for place, row in zip(
        places, zip(*members.values(), strict=True), strict=True
    )]  # fmt: skip
    revisions = [selection.histories[run].revisions[step] for run, step in places]
    made_from = [[revision.name, revision.commit, revision.weights] for revision in revisions]
    key = content_key("embedding", inputs=inputs, made_from=made_from, version=embedding_module.VERSION, **parameters)

    def make() -> Made:
        groups = {layer: [piece for piece in pieces if piece is not None] for layer, pieces in members.items()}
        found = compare(store, groups, measure, gauge, cluster=cluster, advance=advance)
        shape = len(selection.layers), len(places)
        points, distances = np.full((*shape, n_components), np.nan), np.full((*shape, len(places)), np.nan, np.float32)
        judged = {name: np.full(len(selection.layers), np.nan) for name in JUDGEMENTS}
        facts: dict[str, Any] = {}
        reasons = []
        for number, layer in enumerate(selection.layers):
            values, _, undefined = fill_matrix(members[layer], found, 0.0 if measure.sense == "distance" else 1.0)
            D = measure.to_distance(values)
            distances[number] = D
            kept, told = _whole(D, undefined)
            reasons += [[layer, *places[point], reason] for point, reason in told.items()]
            try:
                embedded = embed(D[np.ix_(kept, kept)], method=method, n_components=n_components, seed=seed)
            except Unavailable as error:
                reasons.append([layer, None, None, str(error)])
                continue
            points[number, kept] = embedded.points
            facts[layer] = {**embedded.parameters, **embedded.facts, "n_neighbours": embedded.n_neighbours}
            for name in JUDGEMENTS:
                judged[name][number] = getattr(embedded, name)
        arrays = {
            "embedding": Array(points, ("layer", "point", "component")),
            "distance": Array(distances, ("layer", "point", "point_to")),
            **{name: Array(values, ("layer",)) for name, values in judged.items()},
            "layer": texts(selection.layers, ("layer",)),
            "run": texts([run for run, _ in places], ("point",)),
            "step": Array(np.array([step for _, step in places], np.int64), ("point",)),
            "revision": texts([r.name for r in revisions], ("point",)),
            "commit": texts([r.commit or "" for r in revisions], ("point",)),
            "weights": texts([r.weights or "" for r in revisions], ("point",)),
        }
        attrs = {
            "measure_title": distance_title(measure),
            "n_probes": max(piece.n_probes for pieces in groups.values() for piece in pieces),
            "facts": facts,
            "disconnected": disconnected({(layer,): pieces for layer, pieces in groups.items()}, found),
            "unavailable": reasons,
        }
        return Made(arrays, attrs)

    return keep_result(store, "embed", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _whole(
    D: npt.NDArray[np.float64], undefined: Mapping[tuple[int, int], str]
) -> tuple[npt.NDArray[np.intp], dict[int, str]]:
    """Return the points whose distances are all there, and why others are left out; absent ones are not named."""
    reasons: dict[int, str] = {}
    kept = np.nonzero(~np.isnan(np.diagonal(D)))[0]
    while np.isnan(lacking := D[np.ix_(kept, kept)]).any():
        worst = int(kept[np.isnan(lacking).sum(axis=1).argmax()])
        reasons[worst] = next(reason for (i, j), reason in undefined.items() if i != j and worst in (i, j))
        kept = kept[kept != worst]
    return kept, reasons
