"""`Store`: index, segments and views as one; what a reader opens."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import Row, func, select
from sqlalchemy.orm import defer

from store import tables
from store.errors import InvalidInput, NotAStore, StoreDamaged, UnknownRevision, UnknownRun
from store.index import Index
from store.keys import inputs_key, n_blocks_key
from store.names import layer_order, match_layers, suggest
from store.schema import (
    Activation,
    Capture,
    Finding,
    Operator,
    Probe,
    ProbeSet,
    Replay,
    Result,
    Revision,
    Run,
    Segment,
    Weighing,
)
from store.segments import has_segment, segment_path

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    from scipy.sparse import csr_array

    from store.views import SegmentView, VirtualArray

__all__ = ["INDEX", "CaptureInfo", "Store", "open_segment", "read_inputs", "read_tokens"]

INDEX = "index.sqlite"

IN_ORDER = (Revision.step.is_(None), func.coalesce(Revision.stage, 1), Revision.step, Revision.name)
"""Training order: a run's first stage often goes without a number; what has no step stands last."""


@dataclass(frozen=True)
class CaptureInfo:
    """What makes runs comparable: one probe set, one length limit, one precision."""

    key: str
    """Content key."""
    probe_set: str
    """Digest of the probe set."""
    probes: str
    """Name of the probe set."""
    max_length: int
    """Length limit in tokens; 0 for arrays, which have none."""
    dtype: str
    """Precision of the replay."""


class Store:
    """A replay store, read from Python and xarray.

    Parameters
    ----------
    root
        Folder of the store.
    write
        Allow changes.

    Raises
    ------
    NotAStore
        If there is no store in ``root``.
    StoreTooNew, StoreTooOld
        If another version of replay wrote it.
    """

    def __init__(self, root: Path | str, *, write: bool = False) -> None:
        self.root = Path(root)
        if not (self.root / INDEX).is_file():
            what = "does not exist" if not self.root.exists() else "is not a replay store (it has no index.sqlite)"
            raise NotAStore(f"{self.root} {what}: name one with --store, or make one with `replay ingest`")
        self.index = Index(self.root / INDEX, read_only=not write)

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def runs(self) -> "pd.DataFrame":
        """Return one row a run: name, source, location, counts of revisions, unique weights and failures, steps."""
        return tables.runs(self.index)

    def locations(self) -> dict[str, str]:
        """Return where each run comes from, by its name: a repository id or a path."""
        with self.index.read() as session:
            return {row.name: row.location for row in session.execute(select(Run.name, Run.location))}

    def revisions(self, run: str) -> "pd.DataFrame":
        """Return one row a revision of ``run`` in order of its step.

        Columns: revision, step, tokens, epoch, stage, state (``done``, ``alias``, ``failed``, ``listed``), alias_of,
        layers (how many are stored), findings (kinds of what an audit found, faults first), flagged (whether there is a
        fault among them), commit, weights, bytes, error, scalars.

        Raises
        ------
        UnknownRun
            If the store has no such run.
        """
        revisions = self._revisions(run)
        return tables.revisions(self.index, revisions, _aliases(revisions))

    def findings(self, run: str) -> "pd.DataFrame":
        """Return one row a finding of an audit of ``run``, in training order, those on the whole run first.

        Columns: revision (None for the run), step, kind, level (``fault`` or ``note``), basis (``hashes``, ``values``,
        ``fetch``), others (revisions), text.

        Raises
        ------
        UnknownRun
            If the store has no such run.
        """
        return tables.findings(self.index, self._run(run).id, self._revisions(run))

    def flagged(self, run: str) -> dict[str, str]:
        """Return the revisions of ``run`` that an audit holds for faulty, and why."""
        with self.index.read() as session:
            rows = session.execute(
                select(Finding.revision, Finding.text)
                .join(Run, Run.id == Finding.run_id)
                .where(Run.name == run, Finding.level == "fault", Finding.revision.is_not(None))
                .order_by(Finding.id.desc())
            ).all()
        return {str(row.revision): row.text for row in rows}

    def weighings(self, weights: Iterable[str], *, version: int | None = None) -> "dict[str, xr.Dataset]":
        """Return the statistics of the weights of checkpoints by their weights digest, where they are stored.

        Those of another ``version``, if one is given, are left out: they cannot be compared.
        """
        segments = self.weighing_segments(weights, version=version)
        return {digest: open_segment(self.root, segment) for digest, segment in segments.items()}

    def weighing_segments(
        self, weights: Iterable[str], *, version: int | None = None, whole: bool = False
    ) -> dict[str, str]:
        """Return where the statistics of `weighings` lie; with ``whole`` only those of all tensors of a checkpoint."""
        chosen = select(Weighing.weights, Weighing.segment).where(
            Weighing.weights.in_(list(weights)), Weighing.whole >= int(whole)
        )
        if version is not None:
            chosen = chosen.where(Weighing.version == version)
        with self.index.read() as session:
            rows = session.execute(chosen).all()
        return {row.weights: row.segment for row in rows if has_segment(self.root, row.segment)}

    def layers(self, run: str) -> "pd.DataFrame":
        """Return one row a stored layer of ``run``: layer, module, level, width, revisions, probes, dtype.

        Raises
        ------
        UnknownRun
            If the store has no such run.
        """
        return tables.layers(self.index, self._run(run).id)

    def probe_sets(self) -> "pd.DataFrame":
        """Return one row a probe set: name, number of probes and labels, digest, whether a run has used it."""
        return tables.probe_sets(self.index)

    def results(self) -> "pd.DataFrame":
        """Return one row a stored result: name, parameters, key; the newest last."""
        return tables.results(self.index)

    def captures(self, run: str) -> list[CaptureInfo]:
        """Return what ``run`` was replayed with, the most recently used last."""
        with self.index.read() as session:
            rows = session.execute(
                tables.replayed(
                    select(
                        Capture.key, Capture.probe_set, ProbeSet.name, Capture.max_length, Capture.dtype
                    ).select_from(Revision)
                )
                .join(ProbeSet, ProbeSet.digest == Capture.probe_set)
                .where(Revision.run_id == self._run(run).id)
                .distinct()
                .order_by(Capture.used)
            ).all()
        return [CaptureInfo(*row) for row in rows]

    def capture(self, run: str, *, probes: str | None = None, dtype: str | None = None) -> CaptureInfo:
        """Return the most recently used capture of ``run``, of the probe set named ``probes`` if given.

        Raises
        ------
        UnknownRun
            If ``run`` has not been replayed with such a probe set.
        """
        there = self.captures(run)
        found = [info for info in there if probes in (None, info.probes) and dtype in (None, info.dtype)]
        if not found:
            has = ", ".join(f"{info.probes} at {info.dtype}" for info in there) or "nothing yet: run `replay ingest`"
            raise UnknownRun(
                f"run {run!r} was not replayed with probes {probes or 'of any kind'}"
                f"{f' at {dtype}' if dtype else ''}; it has {has}"
            )
        return found[-1]

    def activations(
        self,
        run: str,
        *,
        layers: str | Sequence[str] | None = None,
        probes: str | None = None,
        dtype: str | None = None,
    ) -> "xr.Dataset":
        """Return the stored activations of ``run``, lazily.

        Parameters
        ----------
        run
            Name of the run.
        layers
            Layer names or globs; all by default. ``blocks[-1]:output:mean`` counts from the last block.
        probes, dtype
            Name of the probe set and precision, where the run has been replayed with several; the latest by default.

        Returns
        -------
        xarray.Dataset
            ``activations`` (revision, layer, probe, feature), float32, with coordinates step, tokens, commit, weights,
            alias_of, module, text, label and probe_id. Layers of another width stand beside it as
            ``activations_<width>``, token-level ones as ``activations_token`` (revision, layer_token, token,
            feature_token) with coordinates token_probe, token_position and token_id.

        Raises
        ------
        UnknownRun, UnknownLayer
            If the store does not hold what was asked for.
        """
        capture = self.capture(run, probes=probes, dtype=dtype)
        rows = self.slices(run, capture, Activation)
        kept = match_layers(layers, {row.layer for row in rows}, n_blocks=self.n_blocks(run))
        rows = [row for row in rows if row.layer in kept]
        groups: dict[tuple[str, int], list[Row[Any]]] = {}
        for row in rows:
            groups.setdefault((row.level, row.width), []).append(row)
        ranked = sorted(groups, key=lambda key: (key[0] != "probe", -len({r.layer for r in groups[key]}), key[1]))
        suffixes: dict[tuple[str, int], str] = {}
        for level, width in ranked:
            suffix = "" if level == "probe" else "_token"
            suffixes[level, width] = f"{suffix}_{width}" if suffix in suffixes.values() else suffix
        virtual, coordinates = {}, {}
        revisions = self._replayed(rows)
        for (level, width), suffix in suffixes.items():
            names = sorted({row.layer for row in groups[level, width]}, key=layer_order)
            dims = ("revision", f"layer{suffix}", level, f"feature{suffix}")
            virtual[f"activations{suffix}"] = _virtual(groups[level, width], dims, revisions, names, "activations")
            modules = {row.layer: row.module for row in groups[level, width]}
            coordinates[f"layer{suffix}"] = (f"layer{suffix}", np.array(names, dtype=object))
            coordinates[f"module{suffix}"] = (f"layer{suffix}", np.array([modules[n] for n in names], dtype=object))
        dataset = self._dataset(virtual, run, capture, revisions)
        tokens = {row.replay_tokens for row in rows if row.level == "token"}
        if len(tokens) > 1:
            raise InvalidInput(
                f"the revisions of {run!r} have {len(tokens)} different tokenizers, so their token-level activations "
                "cannot share an axis: open them one segment at a time"
            )
        for segment in tokens:
            for name, values in self.token_table(segment).items():
                coordinates[name] = ("token", values)
        return dataset.assign_coords(coordinates)

    def operators(
        self,
        run: str,
        *,
        layer: str | Sequence[str] | None = None,
        gauge: str | None = None,
        probes: str | None = None,
        dtype: str | None = None,
    ) -> "xr.Dataset":
        """Return the diffusion operators of ``run`` that `replay gauge` has kept, lazily.

        Parameters
        ----------
        run
            Name of the run.
        layer
            Layer names or globs; all by default.
        gauge
            Canonical JSON of the gauge's parameters, where several were used; by default the one computed last.
        probes, dtype
            As for `activations`.

        Returns
        -------
        xarray.Dataset
            ``operator`` (revision, layer, probe, probe_to), float32.

        Raises
        ------
        UnknownRun, UnknownLayer
            If the store does not hold what was asked for.
        """
        capture = self.capture(run, probes=probes, dtype=dtype)
        rows, gauge = self._operators(run, capture, layer, gauge, sparse=False)
        names = sorted({row.layer for row in rows}, key=layer_order)
        revisions = self._replayed(rows)
        array = _virtual(rows, ("revision", "layer", "probe", "probe_to"), revisions, names, "operator")
        dataset = self._dataset({"operator": array}, run, capture, revisions)
        return dataset.assign_coords(layer=np.array(names, dtype=object)).assign_attrs(gauge=gauge)

    def sparse_operator(
        self,
        run: str,
        revision: str,
        *,
        layer: str,
        gauge: str | None = None,
        probes: str | None = None,
        dtype: str | None = None,
    ) -> "csr_array[np.float32]":
        """Return one kept operator of a nearest-neighbour gauge, (probe, probe).

        Parameters
        ----------
        run, revision, layer
            Which one; a layer as for `activations`, that names one.
        gauge, probes, dtype
            As for `operators`.

        Raises
        ------
        UnknownRun, UnknownRevision, UnknownLayer
            If the store does not hold what was asked for.
        """
        from scipy.sparse import csr_array

        capture = self.capture(run, probes=probes, dtype=dtype)
        rows, gauge = self._operators(run, capture, layer, gauge, sparse=True)
        there = {row.Revision.name: row for row in rows}
        if revision not in there:
            raise UnknownRevision(f"run {run!r} has no such operator of {revision!r}; {suggest(revision, list(there))}")
        row = there[revision]
        segment = open_segment(self.root, row.segment)
        parts = (segment[f"{name}_{row.position}"].to_numpy() for name in ("data", "indices", "indptr"))
        return csr_array(tuple(parts), shape=(segment.sizes["probe"],) * 2)

    def _operators(
        self, run: str, capture: CaptureInfo, layer: str | Sequence[str] | None, gauge: str | None, *, sparse: bool
    ) -> tuple[list[Row[Any]], str]:
        """Return the rows of one gauge's operators, and which gauge that is."""
        rows = [
            row for row in self.slices(run, capture, Operator) if (json.loads(row.gauge)["gauge"] == "knn") == sparse
        ]
        if not rows:
            how = "replay gauge --kernel decay" if sparse else "replay gauge"
            raise UnknownRun(f"run {run!r} has no {'sparse ' if sparse else ''}operators yet: `{how}` keeps them")
        kept = match_layers(layer, {row.layer for row in rows}, n_blocks=self.n_blocks(run))
        rows = [row for row in rows if row.layer in kept]
        gauges = list(dict.fromkeys(row.gauge for row in rows))
        gauge = gauge or gauges[-1]
        if gauge not in gauges:
            raise UnknownRun(f"run {run!r} has no operators of gauge {gauge}; it has {'; '.join(gauges)}")
        return [row for row in rows if row.gauge == gauge], gauge

    def result(
        self, name: str, *, key: str | None = None, runs: Iterable[str] | None = None, measure: str | None = None
    ) -> "xr.Dataset":
        """Return a stored analysis result: the latest named ``name``, of exactly these ``runs`` if given.

        If ``measure`` is given, the latest that was made with it.

        Raises
        ------
        UnknownRun
            If there is none.
        """
        wanted = None if runs is None else sorted(runs)
        with self.index.read() as session:
            rows = session.execute(select(Result).order_by(Result.used.desc())).scalars().all()
        for row in rows:
            same = wanted is None or sorted(row.parameters.get("runs", [])) == wanted
            same &= measure in (None, row.parameters.get("measure", {}).get("measure"))
            if row.name == name and same and key in (None, row.segment):
                # The row, not the segment, knows what was left out: that changes without changing any number.
                about = {name: value for name, value in row.parameters.items() if name not in ("layers", "steps")}
                return open_segment(self.root, row.segment).assign_attrs(about)
        there = sorted({row.name for row in rows})
        which = (f" of runs {wanted}" if wanted else "") + (f" by {measure}" if measure else "")
        raise UnknownRun(
            f"the store has no result {name!r}{which}: "
            + (f"it has {', '.join(there)}" if there else f"`replay analyze {name}` computes one")
        )

    def n_probes(self, probe_set: str) -> int:
        """Return how many probes the set of this digest has."""
        with self.index.read() as session:
            return session.scalar(select(func.count()).where(Probe.probe_set == probe_set)) or 0

    def probes(self, name: str) -> "pd.DataFrame":
        """Return the probes of one set in order: text, label, probe_id.

        Raises
        ------
        UnknownRun
            If the store has no such probe set.
        """
        import pandas as pd

        with self.index.read() as session:
            rows = session.execute(
                select(Probe.text, Probe.label, Probe.probe_id)
                .join(ProbeSet, ProbeSet.digest == Probe.probe_set)
                .where(ProbeSet.name == name)
                .order_by(Probe.position)
            ).all()
            names = session.scalars(select(ProbeSet.name)).all()
        if not rows:
            raise UnknownRun(f"no probe set {name!r} in {self.root}; {suggest(name, names)}")
        return pd.DataFrame([row._asdict() for row in rows], dtype=object)  # None stays None

    def inputs_segment(self, probe_set: str) -> str | None:
        """Return the segment of the arrays of the probe set of this digest; None if it has none, being texts."""
        segment = inputs_key(probe_set)
        with self.index.read() as session:
            return None if session.get(Segment, segment) is None else segment

    def token_table(self, segment: str) -> "dict[str, np.ndarray[Any, Any]]":
        """Return the flat token axis of a tokenization: token_probe, token_position, token_id, each (token,)."""
        return read_tokens(self.root, segment)

    def n_blocks(self, run: str) -> int | None:
        """Return how many blocks the models of ``run`` have, stored or not; None if it is not known or varies."""
        configs = {revision.config for revision in self._revisions(run) if revision.config}
        counts = {(self.index.fact(n_blocks_key(config)) or {}).get("n_blocks") for config in configs}
        return counts.pop() if len(counts) == 1 else None

    def view(self, run: str, **selection: Any) -> "SegmentView":
        """Return the Zarr store behind `activations`, to be listed, pickled or exported."""
        view: SegmentView = self.activations(run, **selection).encoding["view"]
        return view

    def _dataset(
        self,
        virtual: "dict[str, VirtualArray]",
        run: str,
        capture: CaptureInfo,
        revisions: "Sequence[Revision]",
    ) -> "xr.Dataset":
        import xarray as xr

        from store.views import SegmentView

        view = SegmentView(self.root, virtual)
        dataset: xr.Dataset = xr.open_zarr(view, consolidated=True, chunks=None)
        for variable in dataset.variables.values():
            # One task must read whole shards: a block smaller than a shard would decode the same shard many times.
            shards = variable.encoding.get("shards") or variable.encoding["chunks"]
            variable.encoding["preferred_chunks"] = dict(zip(variable.dims, shards, strict=True))
        aliases = _aliases(revisions)
        probes = self.probes(capture.probes)
        per_revision = {
            "revision": [r.name for r in revisions],
            "commit": [r.commit or "" for r in revisions],
            "weights": [r.weights or "" for r in revisions],
            "alias_of": [aliases[r.name] for r in revisions],
        }
        coordinates: dict[str, tuple[str, Any]] = {
            name: ("revision", np.array(values, dtype=object)) for name, values in per_revision.items()
        }
        for name in ("step", "tokens"):
            values = [getattr(r, name) for r in revisions]
            if name == "step" or any(value is not None for value in values):
                coordinates[name] = ("revision", np.array([np.nan if v is None else v for v in values], dtype=float))
        coordinates["probe"] = ("probe", np.arange(len(probes)))
        for name in ("text", "label", "probe_id"):
            coordinates[name] = ("probe", np.array(["" if v is None else v for v in probes[name]], dtype=object))
        dataset = dataset.assign_coords(coordinates).assign_attrs(
            run=run,
            probes=capture.probes,
            probe_set=capture.probe_set,
            max_length=capture.max_length,
            dtype=capture.dtype,
        )
        dataset.encoding |= {"source": str(self.root), "view": view}
        return dataset

    def _run(self, name: str) -> Run:
        with self.index.read() as session:
            run = session.scalar(select(Run).where(Run.name == name))
            names = session.scalars(select(Run.name).order_by(Run.name)).all()
        if run is None:
            raise UnknownRun(f"no run {name!r} in {self.root}; {suggest(name, names)}")
        return run

    def _revisions(self, run: str) -> Sequence[Revision]:
        with self.index.read() as session:
            return session.scalars(
                select(Revision).where(Revision.run_id == self._run(run).id).order_by(*IN_ORDER)
            ).all()

    def slices(self, run: str, capture: CaptureInfo, table: type[Activation] | type[Operator]) -> Sequence[Row[Any]]:
        """Return one row for each replayed revision and layer: the Revision, replay key, and where its array lies."""
        with self.index.read() as session:
            return session.execute(
                tables.replayed(
                    select(
                        Revision, Replay.key, Replay.tokens.label("replay_tokens"), *table.__table__.columns
                    ).select_from(Revision)
                )
                .join(table, table.replay == Replay.key)
                .join(Segment, Segment.id == table.segment)
                .where(Revision.run_id == self._run(run).id, Capture.key == capture.key)
                .order_by(*IN_ORDER, Segment.created)
                .options(defer(Revision.files), defer(Revision.scalars))
            ).all()

    @staticmethod
    def _replayed(rows: Sequence[Row[Any]]) -> list[Revision]:
        return list({row.Revision.id: row.Revision for row in rows}.values())


def read_tokens(root: Path, segment: str) -> "dict[str, np.ndarray[Any, Any]]":
    """Return the flat token axis of a tokenization, as `Store.token_table`, without opening the index."""
    dataset = open_segment(root, segment)
    return {name: dataset[name].to_numpy() for name in ("token_probe", "token_position", "token_id")}


def read_inputs(root: Path, segment: str) -> "np.ndarray[Any, Any]":
    """Return array probes, (probe, …) in the type they were given in, without opening the index."""
    return open_segment(root, segment)["input"].to_numpy()


def open_segment(root: Path, segment: str) -> "xr.Dataset":
    """Return one segment as it lies, without opening the index.

    Raises
    ------
    StoreDamaged
        If it is gone.
    """
    import xarray as xr

    path = segment_path(root, segment)
    if not path.is_dir():
        raise StoreDamaged(f"{path} is gone although the index names it")
    dataset: xr.Dataset = xr.open_zarr(path, consolidated=False, chunks=None)
    dataset = dataset[sorted(dataset.data_vars, key=str)]  # a folder lists its arrays in any order
    texts = {name: values.astype(object) for name, values in dataset.variables.items() if values.dtype.kind == "T"}
    return dataset.assign(texts)


def _aliases(revisions: Sequence[Revision]) -> dict[str, str]:
    first: dict[str, str] = {}
    aliases = {}
    for revision in revisions:
        original = first.setdefault(revision.weights, revision.name) if revision.weights else revision.name
        aliases[revision.name] = "" if original == revision.name else original
    return aliases


def _virtual(
    rows: Sequence[Row[Any]], dims: tuple[str, ...], revisions: Sequence[Revision], layers: Sequence[str], array: str
) -> "VirtualArray":
    from store.views import VirtualArray

    row_of = {revision.id: number for number, revision in enumerate(revisions)}
    layer_of = {layer: number for number, layer in enumerate(layers)}
    segments: dict[tuple[str, str], int] = {}
    sources = np.full((len(revisions), len(layers), 2), -1, dtype=np.int32)
    for row in rows:
        number = segments.setdefault((row.segment, getattr(row, "array", array)), len(segments))
        sources[row_of[row.Revision.id], layer_of[row.layer]] = number, row.position
    return VirtualArray(dims=dims, segments=tuple(segments), sources=sources)
