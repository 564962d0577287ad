"""What an ingest would do: which revisions, which weights are new, which layers of them are missing."""

import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

from sqlalchemy import select as sql_select

from replay import layers as layers_module
from replay.audit import BASES, refresh_audit
from replay.layers import DEFAULT_LAYERS, LayerSpec, ResolvedLayer
from replay.listing import Advance, describe_revisions, remember_listing
from replay.models import DTYPES
from replay.probes import MAX_LENGTH, Probe, ProbeSet, builtin_probes, read_probes
from replay.revisions import DEFAULT_REVISIONS, select
from replay.sources import Source
from replay.sources.files import CONFIG, tokenizer_files
from store.catalog import INDEX, Store
from store.commits import (
    RevisionRecord,
    commit_tokens,
    get_findings,
    put_capture,
    put_probe_set,
    put_run,
    use_capture,
)
from store.errors import (
    AccessError,
    CheckpointError,
    InvalidInput,
    InvalidLayer,
    SourceUnreachable,
    UnknownLayer,
    UnknownRevision,
    UnknownSource,
)
from store.keys import content_key, n_blocks_key, replay_key
from store.schema import Activation, Tokenization
from store.segments import has_segment, scratch_name, segment_path

__all__ = [
    "IngestRequest",
    "Job",
    "Plan",
    "RunPlan",
    "choose_probes",
    "make_plan",
    "scratch_store",
    "stored_layers",
]


@dataclass(frozen=True)
class IngestRequest:
    """What to replay, and how."""

    probes: ProbeSet
    """The probe set."""
    revisions: tuple[str, ...] = (DEFAULT_REVISIONS,)
    """Expressions that choose revisions."""
    layers: tuple[str, ...] = DEFAULT_LAYERS
    """Layer expressions."""
    reduce: str = "mean"
    """Reduction of layers that name none."""
    max_length: int = MAX_LENGTH
    """Length limit of a probe in tokens."""
    dtype: str = "float32"
    """Precision of the replay."""
    device: str = "auto"
    """Device of the replay as torch names it; ``auto`` is the first GPU, else the CPU."""
    batch_tokens: int = 512
    """Tokens in one forward pass, padding included."""
    step_regex: re.Pattern[str] | None = None
    """Pattern of revision names of no known suite."""
    partial: bool = False
    """Whether to fetch only the tensors that the layers need; whole files can then not be verified."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype {self.dtype!r} is not known: expected one of {', '.join(DTYPES)}")
        for name in ("max_length", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InvalidInput(f"{name} is {getattr(self, name)}: expected a whole number of 1 or more")


@dataclass(frozen=True)
class Job:
    """One checkpoint to replay, for every revision that holds its weights."""

    key: str
    """Replay key, under which the work is claimed."""
    source: Source
    """Where its files are."""
    record: RevisionRecord
    """The first revision with these weights."""
    revisions: tuple[tuple[int, str], ...]
    """(run id, revision name) of all of them."""
    tokens: str
    """Segment of the token ids."""
    layers: tuple[ResolvedLayer, ...]
    """The layers asked for."""
    missing: tuple[ResolvedLayer, ...]
    """Those of them that were not stored when the plan was made."""
    dtype: str
    """Precision of the replay."""
    wanted: Callable[[str], bool] | None = None
    """Tells the tensors that the layers need, where only those are to be fetched."""

    @property
    def names(self) -> list[str]:
        """The files that a replay reads: config and weights."""
        tokenizer = tokenizer_files(self.record.files)
        return [name for name in self.record.files if name not in tokenizer]


@dataclass
class RunPlan:
    """What would happen to one run."""

    run: str
    """Name of the run."""
    run_id: int
    """Its row."""
    selected: list[RevisionRecord]
    """The chosen revisions."""
    n_unique: int = 0
    """Different weights among them."""
    n_present: int = 0
    """Revisions, aliases aside, of which every layer is stored."""
    n_aliases: int = 0
    """Revisions that hold the weights of another one."""
    failed: list[RevisionRecord] = field(default_factory=list)
    """Revisions that cannot be replayed, with their reason in ``error``."""


@dataclass
class Plan:
    """What an ingest would do."""

    request: IngestRequest
    """What was asked for."""
    runs: list[RunPlan]
    """Per run."""
    jobs: list[Job]
    """Checkpoints to replay, in order."""
    bytes_to_fetch: int = 0
    """Size of the weights to download."""
    bytes_to_store: int = 0
    """Size of the activations to write, before compression."""
    lost: dict[str, str] = field(default_factory=dict)
    """Runs whose source could not be reached, and why."""
    notes: list[str] = field(default_factory=list)
    """What the user should know before it starts."""

    @property
    def n_revisions(self) -> int:
        """How many revisions were chosen."""
        return sum(len(run.selected) for run in self.runs)


def choose_probes(store: Store, given: str) -> ProbeSet:
    """Return the probe set that ``--probes`` names: a file, a set of the store, or the built-in ``topics``.

    Raises
    ------
    InvalidProbes
        If it is a file that cannot be used.
    UnknownRun
        If it is neither a file nor the name of a set.
    """
    builtin = builtin_probes()
    if given == builtin.name:
        return builtin
    path = Path(given)
    names = set(store.probe_sets()["name"])
    if given not in names and (path.suffix or path.exists() or "/" in given):
        return read_probes(path)
    rows = store.probes(given).to_dict("records")
    return ProbeSet(given, tuple(Probe(row["text"], row["label"], row["probe_id"]) for row in rows))


def make_plan(
    store: Store, sources: Sequence[Source], request: IngestRequest, *, advance: Advance | None = None
) -> Plan:
    """Work out what is missing; fetches listings, configs and tokenizers, but no weights.

    Parameters
    ----------
    store
        A writable store; runs, revisions, the probe set and its token ids are recorded in it.
    sources
        One for each run.
    request
        What to replay.
    advance
        Told of the listing of revisions.

    Raises
    ------
    ReplayError
        If the only source cannot be reached, or none of several; if a selection is wrong, a layer does not exist or the
        probes cannot be used. One of several sources that cannot be reached stands in ``Plan.lost`` instead, a
        revision that cannot be replayed in ``RunPlan.failed``.
    """
    probes = request.probes
    rows = [(probe.text, probe.label, probe.id) for probe in probes.probes]
    plan = Plan(request=request, runs=[], jobs=[])
    reaching = partial(_reaching, lost=plan.lost, alone=len(sources) == 1)
    listings = []
    for source in sources:
        with reaching(source):
            listings.append(_list(store, source, request, advance))
    if not listings:
        raise SourceUnreachable("; ".join(plan.lost.values()))
    put_probe_set(store, probes.name, digest=probes.digest, probes=rows)
    capture = put_capture(store, probe_set=probes.digest, max_length=request.max_length, dtype=request.dtype)
    jobs: dict[str, Job] = {}
    for source, listed, every in listings:
        with reaching(source), _Preparation(store, source, request, capture) as preparation:
            records = [preparation.complete(record, listed) for record in listed]
            run_id = put_run(store, source.run, source=source.kind, location=source.location, records=records)
            run = RunPlan(run=source.run, run_id=run_id, selected=records, failed=[r for r in records if r.error])
            run.n_unique = len({record.weights for record in records if record.weights})
            plan.runs.append(run)
            remember_listing(store, source, every, records)
            refresh_audit(store, source.run)
            n_faults = sum(found.level == "fault" for basis in BASES for found in get_findings(store, run_id, basis))
            if n_faults:
                plan.notes.append(
                    f"{source.run}: an audit found {n_faults} faults (`replay audit --runs {source.run}`)"
                )
            _plan_run(store, plan, run, preparation, jobs)
            plan.notes += preparation.notes
    plan.jobs = list(jobs.values())
    use_capture(store, capture)
    return plan


@contextmanager
def _reaching(source: Source, lost: dict[str, str], *, alone: bool) -> Iterator[None]:
    """Note in ``lost`` that a source cannot be reached, unless it stands alone; the others go on."""
    try:
        yield
    except (AccessError, UnknownSource) as error:
        if alone:
            raise
        lost[source.run] = str(error)


def _plan_run(store: Store, plan: Plan, run: RunPlan, preparation: "_Preparation", jobs: dict[str, Job]) -> None:
    """Add the checkpoints of one run that are not stored to ``jobs``, and its counts to ``run`` and ``plan``."""
    request, source = plan.request, preparation.source
    sound = [r for r in run.selected if not r.error and r.weights and r.config and r.tokenizer]
    keys = [
        replay_key(weights=str(r.weights), tokens=preparation.tokens[str(r.tokenizer)], dtype=request.dtype)
        for r in sound
    ]
    stored = stored_layers(store, keys, verified=not request.partial)
    seen: set[str] = set()
    for key, record in zip(keys, sound, strict=True):
        layers = preparation.layers[str(record.config)]
        if key in seen:
            run.n_aliases += 1
        if key in jobs:
            jobs[key] = replace(jobs[key], revisions=(*jobs[key].revisions, (run.run_id, record.name)))
        if key in seen or key in jobs:
            seen.add(key)
            continue
        seen.add(key)
        missing = tuple(layer for layer in layers if str(layer.spec) not in stored[key])
        if not missing:
            run.n_present += 1
            continue
        job = Job(
            key=key,
            source=source,
            record=record,
            revisions=((run.run_id, record.name),),
            tokens=preparation.tokens[str(record.tokenizer)],
            layers=tuple(layers),
            missing=missing,
            dtype=request.dtype,
        )
        try:
            job = replace(job, wanted=preparation.wanted(record, missing) if request.partial else None)
            plan.bytes_to_fetch += preparation.bytes_to_fetch(job)
        except UnknownRevision as error:  # gone since it was listed
            run.failed.append(replace(record, error=str(error)))
            continue
        jobs[key] = job
        width = preparation.widths[str(record.config)]
        for layer in missing:
            by_token = layer.spec.reduce == "all"
            n_rows = preparation.n_tokens[str(record.tokenizer)] if by_token else len(request.probes.probes)
            plan.bytes_to_store += 4 * n_rows * width


def stored_layers(store: Store, keys: Collection[str], *, verified: bool) -> dict[str, set[str]]:
    """Return the names of the layers stored for each replay; one whose segment somebody removed is not stored.

    With ``verified`` neither is one that comes from a partial fetch.
    """
    chosen = sql_select(Activation.replay, Activation.layer, Activation.segment).where(
        Activation.replay.in_(keys), Activation.verified >= int(verified)
    )
    with store.index.read() as session:
        rows = session.execute(chosen).all()
    there = {segment: has_segment(store.root, segment) for segment in {row.segment for row in rows}}
    layers: dict[str, set[str]] = {key: set() for key in keys}
    for row in rows:
        if there[row.segment]:
            layers[row.replay].add(row.layer)
    return layers


@contextmanager
def scratch_store(root: Path) -> Iterator[Store]:
    """Hold a throw-away store with a copy of the index of ``root``, in which a plan may be made without a trace."""
    import sqlite3

    from replay.opening import open_store

    with tempfile.TemporaryDirectory(prefix="replay-plan-") as folder:
        copy = Path(folder) / "store"
        if root.exists() and any(root.iterdir()):
            Store(root)  # refuses what is no store of this version
        if (root / INDEX).exists():
            copy.mkdir()
            with closing(sqlite3.connect(f"{(root / INDEX).resolve().as_uri()}?mode=ro", uri=True)) as connection:
                connection.execute("VACUUM INTO ?", (str(copy / INDEX),))
            for segment in (root / "segments").glob("*/*"):
                link = segment_path(copy, segment.name)
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(segment.resolve(), target_is_directory=True)
        yield open_store(copy, write=True)


class _Preparation:
    """What the checkpoints of one source share: resolved layers by config, token ids by tokenizer."""

    def __init__(self, store: Store, source: Source, request: IngestRequest, capture: str) -> None:
        self.store, self.source, self.request, self.capture = store, source, request, capture
        self.layers: dict[str, list[ResolvedLayer]] = {}
        self.widths: dict[str, int] = {}
        self.tokens: dict[str, str] = {}
        self.n_tokens: dict[str, int] = {}
        self.notes: list[str] = []
        self._positions: dict[str, int | None] = {}
        self._broken: dict[str, str] = {}
        self._stranger: RevisionRecord | None = None
        self._wanted: dict[tuple[str, tuple[ResolvedLayer, ...]], Callable[[str], bool]] = {}
        self._shares: dict[tuple[str, tuple[ResolvedLayer, ...]], int] = {}
        self.scratch = store.root / "checkpoints" / scratch_name()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.scratch, ignore_errors=True)

    def complete(self, record: RevisionRecord, listed: Sequence[RevisionRecord]) -> RevisionRecord:
        """Return ``record`` with its tokenizer settled, its config's layers resolved and its token ids stored."""
        if record.error or record.config is None:
            return record
        try:
            self._resolve_layers(record)
            return self._settle_tokens(record, listed)
        except (CheckpointError, UnknownRevision) as error:
            return replace(record, error=str(error))

    def wanted(self, record: RevisionRecord, layers: Sequence[ResolvedLayer]) -> Callable[[str], bool] | None:
        """Return what tells the tensors that ``layers`` need, or None where whole files have to be fetched."""
        from replay.models import layer_model, needed_weights

        if self.source.kind != "hub":
            return None
        if not any(name.endswith(".safetensors") for name in record.files):
            self.notes.append(f"{self.source.run} {record.name} has no safetensors and is fetched whole")
            return None
        key = (str(record.config), tuple(layers))
        if key not in self._wanted:
            with self.source.fetch(record, [CONFIG], self.scratch) as folder:
                self._wanted[key] = needed_weights(layer_model(folder), layers)
        return self._wanted[key]

    def bytes_to_fetch(self, job: Job) -> int:
        """Return the bytes of a download; of one in part as many as the first like it would take."""
        if job.wanted is None:
            return self.source.bytes_to_fetch(job.record, job.names)
        key = (str(job.record.config), job.missing)
        if key not in self._shares:
            self._shares[key] = self.source.bytes_to_fetch(
                job.record, job.names, wanted=job.wanted, scratch=self.scratch
            )
        return self._shares[key]

    def _resolve_layers(self, record: RevisionRecord) -> None:
        config = str(record.config)
        if config in self._broken:
            raise CheckpointError(self._broken[config])
        if config in self.layers:
            return
        request = self.request
        key = content_key(
            "layers", config=config, layers=request.layers, reduce=request.reduce, version=layers_module.VERSION
        )
        known = self.store.index.fact(key)
        if known is None:
            try:
                known = self._read_config(record)
            except CheckpointError as error:
                self._broken[config] = str(error)
                raise
            self.store.index.remember(key, known)
        self.layers[config] = [ResolvedLayer(LayerSpec.parse(spec), module) for spec, module in known["layers"]]
        self.widths[config] = known["width"]
        self._positions[config] = known["positions"]

    def _read_config(self, record: RevisionRecord) -> dict[str, Any]:
        from replay.layers import expand_layers, n_blocks
        from replay.models import layer_model

        with self.source.fetch(record, [CONFIG], self.scratch) as folder:
            model = layer_model(folder)
        try:
            layers = expand_layers(model, self.request.layers, reduce=self.request.reduce)
        except (InvalidLayer, UnknownLayer) as error:
            error.add_note(f"in {self.source.run} {record.name}")
            raise
        config = model.config
        self.store.index.remember(n_blocks_key(str(record.config)), {"n_blocks": n_blocks(model)})
        return {
            "layers": [[str(layer.spec), layer.module] for layer in layers],
            "width": int(getattr(config, "hidden_size", 0) or 0),
            "positions": _n_positions(config),
        }

    def _settle_tokens(self, record: RevisionRecord, listed: Sequence[RevisionRecord]) -> RevisionRecord:
        # Files, not the digest, tell whose tokenizer it is: a row that was reused carries what it borrowed.
        lender = record
        if not tokenizer_files(record.files):
            lender = self._lender(listed)
            self.notes.append(f"{self.source.run} {record.name} has no tokenizer; that of {lender.name} is used")
        positions = self._positions[str(record.config)]
        # A reused row already carries the limit behind the colon.
        digest = f"{str(lender.tokenizer).partition(':')[0]}:{positions or ''}"
        if digest not in self.tokens:
            stored, facts = self._stored_tokens(digest), self.store.index.fact(self._counts_key(digest))
            if stored is None or facts is None:
                stored, facts = self._tokenize(lender, digest, positions)
            self.tokens[digest], self.n_tokens[digest] = stored, facts["n_tokens"]
            if facts["n_cut"]:
                limit = min(self.request.max_length, positions or self.request.max_length)
                self.notes.append(
                    f"{self.source.run}: {facts['n_cut']} of {len(self.request.probes.probes)} probes are longer than "
                    f"{limit} tokens and were cut, the first is number {facts['first_cut'] + 1}"
                )
        return replace(record, tokenizer=digest)

    def _lender(self, listed: Sequence[RevisionRecord]) -> RevisionRecord:
        """Return the revision whose tokenizer stands in: the last chosen one that has one, else ``main``, else any."""
        chosen = [record for record in listed if tokenizer_files(record.files)]
        if chosen:
            return chosen[-1]
        if self._stranger is None:
            others = sorted(self.source.list_revisions(), key=lambda record: record.name != "main")
            described = (self.source.describe(record) for record in others)
            self._stranger = next((record for record in described if tokenizer_files(record.files)), None)
        if self._stranger is None:
            raise CheckpointError("no tokenizer files (such as tokenizer.json) in this or any other revision")
        return self._stranger

    def _stored_tokens(self, digest: str) -> str | None:
        with self.store.index.read() as session:
            row = session.get(Tokenization, (digest, self.capture))
            return None if row is None or not has_segment(self.store.root, row.tokens) else row.tokens

    def _counts_key(self, digest: str) -> str:
        return content_key("tokens", tokenizer=digest, capture=self.capture)

    def _tokenize(self, lender: RevisionRecord, digest: str, positions: int | None) -> tuple[str, dict[str, int]]:
        from replay.probes import load_tokenizer, tokenize

        with self.source.fetch(lender, [CONFIG, *tokenizer_files(lender.files)], self.scratch) as folder:
            tokenizer = load_tokenizer(folder)
        tokens = tokenize(self.request.probes, tokenizer, max_length=self.request.max_length, n_positions=positions)
        counts = {
            "n_tokens": sum(map(len, tokens.ids)),
            "n_cut": len(tokens.cut),
            "first_cut": min(tokens.cut, default=0),
        }
        self.store.index.remember(self._counts_key(digest), counts)
        return commit_tokens(self.store, tokenizer=digest, capture=self.capture, token_ids=tokens.ids), counts


def _n_positions(config: Any) -> int | None:
    """Return how many tokens a model can take, or None where its config names no limit."""
    limit = getattr(config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return None
    # RoBERTa and its kin count positions from behind the padding token's.
    from_padding = any(name in config.model_type for name in ("roberta", "camembert", "longformer", "xmod", "mpnet"))
    return limit - 2 if from_padding else limit


def _list(
    store: Store, source: Source, request: IngestRequest, advance: Advance | None
) -> tuple[Source, list[RevisionRecord], list[RevisionRecord]]:
    """Return the source, its chosen revisions, and all that it lists."""
    listed = source.list_revisions()
    chosen = select(listed, request.revisions, pattern=request.step_regex)
    records = describe_revisions(store, source, chosen, retry=True, advance=advance)
    return source, records, listed
