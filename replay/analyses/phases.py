"""Phases of training, the basis that all checkpoints share, clusters of probes, and subspaces that turn."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.analyses.comparing import Found, compare_with_doubt, describe, read_distances, read_point
from replay.analyses.measuring import Advance, Numbers, measure_pairs
from replay.analyses.results import Made, coordinates, keep_result, texts
from replay.analyses.selection import Choice, Selection, Slice, select_layers
from replay.geometry import clusters as clusters_module
from replay.geometry import pooled_pca as pooled_pca_module
from replay.geometry import segmentation as segmentation_module
from replay.geometry import subspaces as subspaces_module
from replay.geometry.clusters import Clusters, cluster_points, divide_points, label_agreement
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.measures import Measure, find_measure
from replay.geometry.pooled_pca import PooledBasis, dense_bytes, pooled_basis, split_variance
from replay.geometry.segmentation import SHORTEST, Boundary, boundary_support, probe_replicates, segment_path
from replay.geometry.spread import N_GROUPS
from replay.geometry.subspaces import compare_subspaces, random_overlap, top_subspace
from replay.jobs import Cluster, execute
from replay.units import human_bytes
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["SHARES", "analyze_phases"]

VERSION = 2
"""Of this result beside its parts, raised when numbers change."""

SHARES = ("share_step", "share_probe", "share_interaction")
"""Parts of the variance of one run, in order."""

AGREEMENT = ("label_rand", "label_information", "label_information_null", "label_p")
"""What is said of the labels and clusters of one checkpoint."""

POINT_COPIES = 4
"""Copies of one checkpoint's activations in float64 that a task holds at once."""

AXES = ("run", "step", "layer")

Floats = npt.NDArray[np.float64]
Paths = Mapping[tuple[str, str], dict[int, Slice]]


@dataclass(frozen=True)
class LayerMap:
    """One layer of all runs in one basis."""

    basis: PooledBasis
    share_run: float
    """Share of the variance that lies between the means of the runs."""
    shares: Floats
    """(run, 3) `SHARES` of the variance of each run; NaN where a run does not vary."""
    scores: list[npt.NDArray[np.float32]]
    """(step, probe, component) of each run."""
    clusters: Clusters | str
    """Of all points, run by run and step by step, or why there are none."""
    agreement: dict[tuple[int, int], Floats | str]
    """`AGREEMENT` by positions of run and step, or why it is undefined."""


class Mapped(NamedTuple):
    """What became of one layer."""

    found: LayerMap | str
    """Its map over the checkpoints that are finite, or why there is none."""
    unsound: dict[tuple[int, int], str]
    """Why checkpoints were left out, by positions of run and step."""


def analyze_phases(
    store: Store,
    *,
    choice: Choice | None = None,
    n_components: int = 10,
    n_clusters: int | None = None,
    subspace: int = 10,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return the phases of training, and where the probes of all checkpoints lie in one basis.

    A phase is a stretch of checkpoints that a straight line follows better than any smooth curve, in the space where
    the inner product of two checkpoints of a run is their debiased centred kernel alignment: no rotation or scale of
    the activations enters (`replay.geometry.segmentation`). The basis of a layer has the principal components of all
    checkpoints of all runs, centred by their grand mean; k-means divides the probes of all checkpoints there. A
    checkpoint whose activations are not finite is left out, as if the run lacked it.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default. Runs need not share steps, but the width of each layer.
    n_components
        Components of the basis.
    n_clusters
        Clusters of probes; by default as many of 2 to 8 as have the largest silhouette.
    subspace
        Dimensions of the subspace of each checkpoint that is compared with that of the next.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, step, layer): ``phase`` from 1; ``overlap`` and ``mean_cosine`` of the subspace with that of the
        checkpoint before, ``angle`` (degrees) with an axis ``rank``; ``centroid`` and ``deviation`` (mean and standard
        deviation of the probes) with an axis ``component``; ``score`` and ``probe_cluster`` of every ``probe``;
        ``occupancy`` (share of the probes) of each ``cluster``; where there are labels,
        ``label_rand`` (adjusted), ``label_p``, ``label_information`` (normalised) and ``label_information_null`` of the
        clusters of that checkpoint alone, as many as labels. Over layer: ``explained`` (by
        component), ``share_run``, ``basis_residual``, ``silhouette``, ``silhouette_null`` and ``overlap_null``. Over
        (run, layer): ``share_step``, ``share_probe`` and ``share_interaction`` of the variance of a run.
        ``attrs["phases"]`` has each phase with its steps, clusters and confidence. NaN where a run has no such step,
        or with a reason in ``attrs["unavailable"]``.

    Raises
    ------
    Unavailable
        If no run has two checkpoints.
    InvalidInput
        If there are fewer probes or features than components or clusters, a layer has several widths, or a checkpoint
        does not fit into the memory of one task.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    cluster = cluster or Cluster()
    selection = select_layers(store, choice or Choice())
    paths = selection.paths()
    _check(paths, n_components, n_clusters, subspace, cluster)
    steps = selection.steps()
    measure, gauge = find_measure("cka"), DiffusionGauge()
    widths = {layer: next(iter(paths[selection.runs[0], layer].values())).width for layer in selection.layers}
    iterated = [layer for layer, width in widths.items() if dense_bytes(width) > cluster.task_memory]
    asked = {"n_components": n_components, "n_clusters": n_clusters, "subspace": subspace, "iterated": iterated}
    parameters = {**selection.parameters(), "steps": steps, **asked, **describe(measure, gauge), "groups": N_GROUPS}
    inputs = [[run, layer, step, p.point] for (run, layer), path in paths.items() for step, p in path.items()]
    modules = (clusters_module, pooled_pca_module, segmentation_module, subspaces_module)
    versions = [VERSION, *(module.VERSION for module in modules)]
    made_from = selection.made_from(steps)
    key = content_key("phases", inputs=inputs, made_from=made_from, versions=versions, **parameters)
    probes = store.probes(selection.capture.probes)

    def make() -> Made:
        labels = ["" if label is None else str(label) for label in probes["label"]]
        kinds = {label for label in labels if label}
        if len(kinds) < 2 or len(kinds) == sum(map(bool, labels)):  # nothing to agree with
            labels = [""] * len(labels)
        mapped = _maps(store, selection, paths, labels, asked, cluster, advance)
        sound, reasons = _leave_out(selection, paths, mapped)
        long = {f"phases-{'-'.join(at)}": list(p.values()) for at, p in sound.items() if len(p) >= 2 * SHORTEST}
        groups = {name: list(combinations(pieces, 2)) for name, pieces in long.items()}
        found = compare_with_doubt(store, groups, measure, gauge, cluster=cluster, advance=advance)
        turned = _turn(store, sound, subspace, cluster, advance)
        made = _Tables(selection, sound, steps, reasons, n_probes=len(labels))
        made.fill_maps({layer: of.found for layer, of in mapped.items()}, n_components, labelled=any(labels))
        made.fill_subspaces(turned, subspace, widths)
        made.fill_phases(found, measure)
        attrs = {
            "n_probes": len(labels),
            "phases": made.phases,
            "interval": "95 % over probes, multiplier bootstrap of the delete-group jackknife",
            "unavailable": made.reasons,
        }
        kept = {name: texts(["" if v is None else v for v in probes[name]], ("probe",)) for name in ("label", "text")}
        return Made({**made.arrays, **coordinates(selection, steps), **kept}, attrs)

    return keep_result(store, "phases", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _check(paths: Paths, n_components: int, n_clusters: int | None, subspace: int, cluster: Cluster) -> None:
    pieces = [(layer, piece) for (_, layer), path in paths.items() for piece in path.values()]
    longest = max(paths, key=lambda place: len(paths[place]))
    if len(paths[longest]) < 2:
        raise Unavailable(
            f"phases need 2 checkpoints or more, and {longest[0]} has {len(paths[longest])}: ingest more revisions, or "
            "choose other runs with --runs"
        )
    n_probes = min(piece.n_probes for _, piece in pieces)
    for layer in dict.fromkeys(layer for layer, _ in pieces):
        widths = sorted({piece.width for other, piece in pieces if other == layer})
        if len(widths) > 1:
            raise InvalidInput(
                f"{layer} has {' and '.join(map(str, widths))} features, and one basis needs one width: choose runs of "
                "one model with --runs"
            )
        if not 1 <= n_components <= min(n_probes, widths[0]):
            raise InvalidInput(
                f"{n_components} components of {layer}, which has {widths[0]} features, over {n_probes} probes: "
                f"expected 1 to {min(n_probes, widths[0])} (--components)"
            )
    if n_clusters is not None and not 2 <= n_clusters <= n_probes:
        raise InvalidInput(f"{n_clusters} clusters of {n_probes} probes: expected 2 to {n_probes} (--clusters)")
    if subspace < 1:
        raise InvalidInput(f"a subspace of {subspace} dimensions: expected 1 or more (--subspace)")
    largest = max(POINT_COPIES * 8 * piece.n_probes * piece.width for _, piece in pieces)
    if largest > cluster.task_memory:
        raise InvalidInput(
            f"one checkpoint takes {human_bytes(largest)} and a task may take {human_bytes(cluster.task_memory)}: give "
            "more --memory, or choose fewer probes"
        )


def _turn(store: Store, paths: Paths, k: int, cluster: Cluster, advance: Advance) -> Found:
    """Compare the subspace of each checkpoint with that of the next."""
    return measure_pairs(
        store,
        {"what": "subspaces", "k": k, "version": subspaces_module.VERSION},
        {f"subspaces-{'-'.join(place)}": list(pairwise(path.values())) for place, path in paths.items()},
        partial(_compare_subspaces, k=k),
        point_bytes=lambda piece: 8 * piece.width * k + POINT_COPIES * 8 * piece.n_probes * piece.width,
        cluster=cluster,
        advance=advance,
    )


def _compare_subspaces(
    root: Path, points: Sequence[Slice], pairs: Sequence[tuple[int, int]], *, k: int
) -> list[Numbers]:
    bases: list[Floats | str] = []
    for piece in points:
        try:
            bases.append(top_subspace(read_point(root, piece), k))
        except (InvalidInput, Unavailable) as error:
            bases.append(str(error))
    found: list[Numbers] = []
    for U, V in ((bases[i], bases[j]) for i, j in pairs):
        if isinstance(U, str) or isinstance(V, str):
            found.append(U if isinstance(U, str) else str(V))
        else:
            compared = compare_subspaces(U, V)
            found.append(np.array([compared.overlap, compared.mean_cosine, *compared.angles]))
    return found


def _maps(
    store: Store,
    selection: Selection,
    paths: Paths,
    labels: Sequence[str],
    asked: Mapping[str, Any],
    cluster: Cluster,
    advance: Advance,
) -> dict[str, Mapped]:
    """Find the basis and the clusters of each layer, one task a layer."""
    maps: dict[str, Mapped] = {}

    def done(layer: str, found: Mapped) -> None:
        maps[layer] = found
        advance("bases", len(maps), len(selection.layers))

    root = store.root.resolve()
    tasks = {
        layer: partial(
            _map_layer,
            root,
            [list(paths[run, layer].values()) for run in selection.runs],
            labels,
            n_components=asked["n_components"],
            n_clusters=asked["n_clusters"],
            dense=layer not in asked["iterated"],
        )
        for layer in selection.layers
    }
    execute(tasks, cluster=cluster, done=done)
    return maps


def _leave_out(selection: Selection, paths: Paths, maps: Mapping[str, Mapped]) -> tuple[Paths, list[list[Any]]]:
    """Return the paths of the checkpoints that are finite, and why others are left out."""
    sound, reasons = {}, []
    for (run, layer), path in paths.items():
        r, unsound = selection.runs.index(run), maps[layer].unsound
        sound[run, layer] = {step: piece for t, (step, piece) in enumerate(path.items()) if (r, t) not in unsound}
        reasons += [[run, step, layer, unsound[r, t]] for t, step in enumerate(path) if (r, t) in unsound]
    return sound, reasons


def _map_layer(
    root: Path,
    runs: Sequence[Sequence[Slice]],
    labels: Sequence[str],
    *,
    n_components: int,
    n_clusters: int | None,
    dense: bool,
) -> Mapped:
    unsound = {}
    for r, pieces in enumerate(runs):
        for t, piece in enumerate(pieces):
            X = read_point(root, piece)
            if bad := len(X) - int(np.isfinite(X).all(axis=1).sum()):
                unsound[r, t] = f"left out: activations of {bad} of {len(X)} probes are not finite"
    finite = [[piece for t, piece in enumerate(pieces) if (r, t) not in unsound] for r, pieces in enumerate(runs)]
    if not any(finite):
        return Mapped("no checkpoint has finite activations", unsound)
    return Mapped(_map_finite(root, finite, labels, n_components, n_clusters, dense=dense), unsound)


def _map_finite(
    root: Path,
    runs: Sequence[Sequence[Slice]],
    labels: Sequence[str],
    n_components: int,
    n_clusters: int | None,
    *,
    dense: bool,
) -> LayerMap | str:
    def read(members: Sequence[Sequence[Slice]]) -> Iterator[npt.NDArray[np.float32]]:
        return (read_point(root, piece) for pieces in members for piece in pieces)

    try:
        basis = pooled_basis(lambda: read(runs), n_components, dense=dense)
    except (InvalidInput, Unavailable) as error:
        return str(error)
    shares, within = np.full((len(runs), len(SHARES)), np.nan), 0.0
    for number, pieces in enumerate(runs):
        try:
            shares[number], squares = split_variance(lambda members=pieces: read([members]))  # type: ignore[misc]
            within += squares
        except Unavailable:  # all of this run is one constant
            continue
    scores = [
        np.array([basis.scores(X) for X in read([pieces])], np.float32).reshape(len(pieces), len(labels), n_components)
        for pieces in runs
    ]
    points = np.concatenate([part.reshape(-1, n_components) for part in scores]).astype(np.float64)
    times = np.concatenate([np.repeat(np.arange(len(part)) / len(part), part.shape[1]) for part in scores])
    clusters: Clusters | str
    try:
        clusters = cluster_points(points, times, n_clusters=n_clusters)
    except Unavailable as error:
        clusters = str(error)
    share_run = max(1 - within / (basis.total * len(points)), 0.0)
    return LayerMap(basis, share_run, shares, scores, clusters, _agree(scores, labels))


def _agree(scores: Sequence[npt.NDArray[np.float32]], labels: Sequence[str]) -> dict[tuple[int, int], Floats | str]:
    """Say how far each checkpoint's own clusters, as many as there are labels, agree with the labels."""
    named = np.array([bool(label) for label in labels])
    known = [label for label in labels if label]
    found: dict[tuple[int, int], Floats | str] = {}
    for run, of_run in enumerate(scores):
        for step, here in enumerate(of_run if known else ()):
            try:
                clusters, _ = divide_points(here[named].astype(np.float64), len(set(known)))
                agreement = label_agreement(clusters, known)
            except Unavailable as error:
                found[run, step] = str(error)
                continue
            found[run, step] = np.array([getattr(agreement, name.removeprefix("label_")) for name in AGREEMENT])
    return found


def _by_run(labels: npt.NDArray[np.intp], scores: Sequence[npt.NDArray[np.float32]]) -> list[npt.NDArray[np.intp]]:
    """Return the clusters (step, probe) of each run."""
    ends = np.cumsum([part.shape[0] * part.shape[1] for part in scores])[:-1]
    return [part.reshape(of.shape[:2]) for part, of in zip(np.split(labels, ends), scores, strict=True)]


class _Tables:
    """The arrays of the result, filled part by part."""

    def __init__(
        self,
        selection: Selection,
        paths: Paths,
        steps: Sequence[int],
        reasons: list[list[Any]],
        *,
        n_probes: int,
    ) -> None:
        self.arrays: dict[str, Array] = {}
        self.reasons = reasons
        self.phases: list[dict[str, Any]] = []
        self._runs, self._layers, self._steps = selection.runs, selection.layers, list(steps)
        self._paths, self._n_probes = paths, n_probes

    def fill_maps(self, maps: Mapping[str, LayerMap | str], n_components: int, *, labelled: bool) -> None:
        """Fill in bases, scores and clusters."""
        found = {layer: of for layer, of in maps.items() if isinstance(of, LayerMap)}
        most = max((len(m.clusters.centres) for m in found.values() if isinstance(m.clusters, Clusters)), default=0)
        explained = self._empty("explained", ("layer", "component"), component=n_components)
        of_layer = {
            name: self._empty(name, ("layer",))
            for name in ("share_run", "basis_residual", "silhouette", "silhouette_null")
        }
        shares = [self._empty(name, ("run", "layer")) for name in SHARES]
        centroid = self._empty("centroid", (*AXES, "component"), component=n_components)
        deviation = self._empty("deviation", (*AXES, "component"), component=n_components)
        score = self._empty("score", (*AXES, "probe", "component"), np.float32, component=n_components)
        probe_cluster = self._empty("probe_cluster", (*AXES, "probe"), np.float32)
        occupancy = self._empty("occupancy", (*AXES, "cluster"), cluster=most)
        agreement = [self._empty(name, AXES) for name in AGREEMENT] if labelled else []
        self.arrays["component"] = Array(np.arange(1, n_components + 1), ("component",))
        self.arrays["cluster"] = Array(np.arange(1, most + 1), ("cluster",))
        for c, layer in enumerate(self._layers):
            of = maps[layer]
            if isinstance(of, str):
                self.reasons.append([None, None, layer, of])
                continue
            explained[c] = of.basis.explained
            of_layer["share_run"][c], of_layer["basis_residual"][c] = of.share_run, of.basis.residual
            for at, values in zip(shares, of.shares.T, strict=True):
                at[:, c] = values
            for r, scores in enumerate(of.scores):
                there = self._positions(r, layer)
                centroid[r, there, c], deviation[r, there, c] = scores.mean(axis=1), scores.std(axis=1)
                score[r, there, c] = scores
            for (r, number), said in of.agreement.items():
                t = self._positions(r, layer)[number]
                if isinstance(said, str):
                    self.reasons.append([self._runs[r], self._steps[t], layer, said])
                    continue
                for at, value in zip(agreement, said, strict=True):
                    at[r, t, c] = value
            if isinstance(of.clusters, str):
                self.reasons.append([None, None, layer, of.clusters])
                continue
            of_layer["silhouette"][c] = of.clusters.silhouette
            of_layer["silhouette_null"][c] = of.clusters.silhouette_null
            k = len(of.clusters.centres)
            for r, labels in enumerate(_by_run(of.clusters.labels, of.scores)):
                there = self._positions(r, layer)
                probe_cluster[r, there, c] = labels + 1
                occupancy[r, there, c, :k] = (labels[..., None] == np.arange(k)).mean(axis=1)

    def fill_subspaces(self, turned: Found, k: int, widths: Mapping[str, int]) -> None:
        """Fill in how far each checkpoint's subspace is turned from the one before."""
        overlap, mean_cosine = self._empty("overlap", AXES), self._empty("mean_cosine", AXES)
        angle = self._empty("angle", (*AXES, "rank"), rank=k)
        null = self._empty("overlap_null", ("layer",))
        self.arrays["rank"] = Array(np.arange(1, k + 1), ("rank",))
        for c, layer in enumerate(self._layers):
            if k <= widths[layer]:
                null[c] = random_overlap(k, widths[layer])
            for r, run in enumerate(self._runs):
                pieces, there = list(self._paths[run, layer].values()), self._positions(r, layer)
                for number, (one, other) in enumerate(pairwise(pieces)):
                    measured, t = turned[one.point, other.point], there[number + 1]
                    if measured.reason:
                        self.reasons.append([run, self._steps[t], layer, measured.reason])
                        continue
                    overlap[r, t, c], mean_cosine[r, t, c] = measured.numbers[:2]
                    angle[r, t, c] = measured.numbers[2:]

    def fill_phases(self, found: Found, measure: Measure) -> None:
        """Find the phases of each run and layer, and what clusters fill them."""
        phase = self._empty("phase", AXES)
        occupancy = np.asarray(self.arrays["occupancy"].values)
        for c, layer in enumerate(self._layers):
            for r, run in enumerate(self._runs):
                there = self._positions(r, layer)
                try:
                    boundaries = _segment(list(self._paths[run, layer].values()), found, measure)
                except (InvalidInput, Unavailable) as error:
                    self.reasons.append([run, None, layer, str(error)])
                    continue
                starts = [None, *boundaries]
                ends = [0, *(boundary.start for boundary in boundaries), len(there)]
                for number, (boundary, (start, stop)) in enumerate(zip(starts, pairwise(ends), strict=True), 1):
                    at = there[start:stop]
                    phase[r, at, c] = number
                    shares = occupancy[r, at, c].mean(axis=0)
                    told = {
                        "run": run, "layer": layer, "phase": number,
                        "first": self._steps[at[0]], "last": self._steps[at[-1]], "n_checkpoints": len(at),
                        "occupancy": [float(share) for share in shares if np.isfinite(share)],
                    }  # fmt: skip
                    if boundary is not None:
                        interval = [self._steps[there[end]] for end in (boundary.low, boundary.high)]
                        told |= {"confidence": boundary.confidence, "first_low": interval[0], "first_high": interval[1]}
                    self.phases.append(told)

    def _empty(
        self, name: str, dims: tuple[str, ...], dtype: type[np.floating[Any]] = np.float64, **sizes: int
    ) -> npt.NDArray[Any]:
        known = {
            "run": len(self._runs), "step": len(self._steps), "layer": len(self._layers), "probe": self._n_probes,
            **sizes,
        }  # fmt: skip
        values = np.full([known[dim] for dim in dims], np.nan, dtype)
        self.arrays[name] = Array(values, dims)
        return values

    def _positions(self, run: int, layer: str) -> list[int]:
        return [self._steps.index(step) for step in self._paths[self._runs[run], layer]]


def _segment(pieces: Sequence[Slice], found: Found, measure: Measure) -> list[Boundary]:
    """Return the boundaries of one path with their confidence over probes."""
    T = len(pieces)
    if T < 2 * SHORTEST:
        segment_path(np.eye(T))  # says why there is none
    n_groups = min(N_GROUPS, pieces[0].n_probes)
    K, without = np.eye(T), np.repeat(np.eye(T)[..., None], n_groups, axis=2)
    for i, j in combinations(range(T), 2):
        measured = found[pieces[i].point, pieces[j].point]
        if measured.reason:
            raise Unavailable(measured.reason)
        distance = read_distances(measured, measure)[0]
        K[i, j] = K[j, i] = np.cos(distance.value)  # the distance is the angle of the alignment
        without[i, j] = without[j, i] = np.cos(distance.replicates)
    boundaries = segment_path(K)
    replicates = probe_replicates(K, without)
    return boundary_support(boundaries, [segment_path(replicate) for replicate in replicates])
