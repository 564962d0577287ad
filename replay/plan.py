"""What an ingest would do: which revisions, which weights are new, which layers of them are missing."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
from sqlalchemy import select as select_rows

from replay.arrays import ArrayProbes, read_probe_file
from replay.audit import BASES, refresh_audit
from replay.factories import ModelFactory
from replay.layers import DEFAULT_LAYERS
from replay.listing import Advance, describe_revisions, remember_listing
from replay.models import DTYPES
from replay.preparation import Preparation
from replay.probes import MAX_LENGTH, Probe, ProbeSet, builtin_probes
from replay.revisions import DEFAULT_REVISIONS, select
from replay.rounding import moved_dtype
from replay.scalars import add_logged, give_again
from replay.sources import Source
from replay.sources.files import tokenizer_files
from replay.work import Work, remaining
from store.catalog import INDEX, Store, read_inputs
from store.commits import RevisionRecord, get_findings, put_capture, put_probe_set, put_run, use_capture
from store.errors import (
    AccessError,
    CheckpointError,
    InvalidInput,
    MismatchedWeights,
    SourceUnreachable,
    UnknownRevision,
    UnknownSource,
)
from store.keys import factory_key, replay_key
from store.schema import Replay, Revision, Run
from store.segments import scratch_name, segment_path

__all__ = [
    "IngestRequest",
    "Job",
    "Plan",
    "RunPlan",
    "add_probes",
    "choose_probes",
    "make_plan",
    "scratch_store",
]

FEWEST_PROBES = 3
"""On fewer than so many no analysis works."""


@dataclass(frozen=True)
class IngestRequest:
    """What to replay, and how."""

    probes: ProbeSet | ArrayProbes
    """The probe set: texts, or arrays."""
    revisions: tuple[str, ...] = (DEFAULT_REVISIONS,)
    """Expressions that choose revisions."""
    layers: tuple[str, ...] = DEFAULT_LAYERS
    """Layer expressions."""
    reduce: str = "mean"
    """Reduction of layers that name none."""
    max_length: int = MAX_LENGTH
    """Length limit of a probe in tokens; arrays have none."""
    dtype: str = "float32"
    """Precision of the replay."""
    device: str = "auto"
    """Device of the replay as torch names it; ``auto`` is the first GPU, else the CPU."""
    batch_tokens: int = 512
    """Size of one forward pass in tokens, padding included; for arrays see `replay.batches.plan_array_batches`."""
    step_regex: re.Pattern[str] | None = None
    """Pattern of revision names of no known suite."""
    partial: bool = False
    """Whether to fetch only the tensors that the layers need; whole files can then not be verified."""
    factory: ModelFactory | None = None
    """What builds the model, where no configuration of transformers describes it."""
    loss: bool = False
    """Whether to measure the language-model loss on the probes too."""
    weight_ranks: bool = False
    """Whether to measure the stable rank of every weight matrix too."""
    floor: int = 0
    """Checkpoints of each run to replay once more with weights moved within their rounding, spread over all."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise InvalidInput(f"dtype {self.dtype!r} is not known: expected one of {', '.join(DTYPES)}")
        of_text = isinstance(self.probes, ProbeSet)
        if of_text and self.factory is not None:
            raise InvalidInput(
                f"{self.probes.name!r} are texts and {self.factory.text} has no tokenizer: give array probes, such as "
                "--probes FILE.npz, or leave --model out"
            )
        if self.loss and not of_text:
            raise InvalidInput(
                f"{self.probes.name!r} are arrays, and a language-model loss is one of texts: leave --loss out"
            )
        if self.floor < 0:
            raise InvalidInput(f"floor is {self.floor}: expected 0 or the number of checkpoints of each run")
        if self.floor and self.dtype != "float32":
            raise InvalidInput(
                f"a floor is measured at float32: a replay at {self.dtype} rounds more than the stored weights do"
            )
        if self.partial and (self.loss or self.weight_ranks or self.floor):
            raise InvalidInput(
                "--loss, --weight-ranks and --floor need all weights: leave --partial out, or ask for them apart"
            )
        for name in ("max_length", "batch_tokens") if of_text else ("batch_tokens",):
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
    """Segment of what the model is fed: token ids, or arrays."""
    work: Work
    """What is asked for."""
    missing: Work
    """What of it the store lacked when the plan was made."""
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
    """Revisions, aliases aside, of which all that is asked for is stored."""
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


def choose_probes(store: Store, given: str) -> ProbeSet | ArrayProbes:
    """Return the probe set that ``--probes`` names: a file, a set of the store, or the built-in ``topics``.

    Raises
    ------
    InvalidProbes
        If it is a file that cannot be used.
    StoreDamaged
        If the arrays of a set of the store are gone.
    UnknownRun
        If it is neither a file nor the name of a set.
    """
    builtin, path, there = builtin_probes(), Path(given), store.probe_sets()
    if given == builtin.name and given not in set(there["name"]):
        return builtin
    if given not in set(there["name"]) and (path.suffix or path.exists() or "/" in given):
        return read_probe_file(path)
    rows = store.probes(given)
    segment = store.inputs_segment(str(there.set_index("name").loc[given, "digest"]))
    if segment is None:
        return ProbeSet(given, tuple(Probe(*row) for row in rows[["text", "label", "probe_id"]].to_numpy().tolist()))
    values = read_inputs(store.root, segment)
    return ArrayProbes(given, values, tuple(rows["label"]), tuple(rows["probe_id"]))


def add_probes(store: Store, probes: ProbeSet | ArrayProbes) -> bool:
    """Keep a probe set under its name; False if the store has this very set under it.

    Raises
    ------
    InvalidProbes
        If the name is that of other probes and a run has used them.
    """
    inputs = probes.values if isinstance(probes, ArrayProbes) else None
    return put_probe_set(store, probes.name, digest=probes.digest, probes=probes.rows, inputs=inputs)


def make_plan(
    store: Store, sources: Sequence[Source], request: IngestRequest, *, advance: Advance | None = None
) -> Plan:
    """Work out what is missing; downloads listings, configs and tokenizers, but no weights.

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
        probes cannot be used; if no checkpoint of a run fits the factory, or the run was replayed with another model.
        One of several sources that cannot be reached stands in ``Plan.lost`` instead, a revision that cannot be
        replayed in ``RunPlan.failed``.
    """
    probes = request.probes
    plan = Plan(request=request, runs=[], jobs=[])
    reaching = partial(_reaching, lost=plan.lost, alone=len(sources) == 1)
    listings = []
    for source in sources:
        with reaching(source):
            listings.append(_list(store, source, request, advance))
    if not listings:
        raise SourceUnreachable("; ".join(plan.lost.values()))
    add_probes(store, probes)
    if len(probes) < FEWEST_PROBES:
        plan.notes.append(f"{probes.name!r} has fewer than {FEWEST_PROBES} probes, too few for any analysis")
    max_length = request.max_length if isinstance(probes, ProbeSet) else 0
    capture = put_capture(store, probe_set=probes.digest, max_length=max_length, dtype=request.dtype)
    if (factory := request.factory) is not None:
        store.index.remember(factory_key(factory.digest), {"text": factory.text, "prefix": factory.prefix})
    jobs: dict[str, Job] = {}
    for source, listed, every in listings:
        with reaching(source), Preparation(store, source, request, capture) as preparation:
            records = [preparation.complete(record, listed) for record in listed]
            if source.kind == "folder":
                records = add_logged(Path(source.location), records, report=plan.notes.append)
            run_id = put_run(store, source.run, source=source.kind, location=source.location, records=records)
            give_again(store, source.run)
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


def _plan_run(store: Store, plan: Plan, run: RunPlan, preparation: Preparation, jobs: dict[str, Job]) -> None:
    """Add the checkpoints of one run that are not stored to ``jobs``, and its counts to ``run`` and ``plan``."""
    request, source = plan.request, preparation.source
    sound = [r for r in run.selected if not r.error and r.weights and r.config and r.tokenizer]
    works = _works(sound, preparation, request)
    lacking = {work.replay: work for work in remaining(store, list(works.values()), verified=not request.partial)}
    seen: set[str] = set()
    for record in sound:
        key = _key(record, preparation, request.dtype)
        if key in seen:
            run.n_aliases += 1
        if key in jobs:
            job = jobs[key]
            more = replace(job.missing, moved_layers=job.missing.moved_layers or lacking[key].moved_layers)
            work = replace(job.work, moved_layers=job.work.moved_layers or works[key].moved_layers)
            jobs[key] = replace(job, work=work, missing=more, revisions=(*job.revisions, (run.run_id, record.name)))
        if key in seen or key in jobs:
            seen.add(key)
            continue
        seen.add(key)
        missing = lacking[key]
        if not missing:
            run.n_present += 1
            continue
        job = Job(
            key=key,
            source=source,
            record=record,
            revisions=((run.run_id, record.name),),
            tokens=preparation.feed.segment(record),
            work=works[key],
            missing=missing,
            dtype=request.dtype,
        )
        try:
            job = replace(job, wanted=preparation.wanted(record, missing.layers) if request.partial else None)
            plan.bytes_to_fetch += preparation.bytes_to_fetch(job)
        except UnknownRevision as error:  # gone since it was listed
            run.failed.append(replace(record, error=str(error)))
            continue
        jobs[key] = job
        n_values = preparation.feed.n_values(record, preparation.architecture(record))
        plan.bytes_to_store += 4 * sum(n_values[str(layer.spec)] for layer in (*missing.layers, *missing.moved_layers))


def _works(records: Sequence[RevisionRecord], preparation: Preparation, request: IngestRequest) -> dict[str, Work]:
    """Return what is asked of each different checkpoint of one run, by replay key."""
    distinct: dict[str, RevisionRecord] = {}
    for record in records:
        distinct.setdefault(_key(record, preparation, request.dtype), record)
    places = np.linspace(len(distinct) - 1, 0, min(request.floor, len(distinct))).round().astype(int)
    works = {}
    for number, (key, record) in enumerate(distinct.items()):
        layers = preparation.architecture(record).layers
        works[key] = Work(
            replay=key,
            moved_replay=_key(record, preparation, moved_dtype(request.dtype)),
            weights=str(record.weights),
            layers=layers,
            moved_layers=layers if number in places else (),
            loss=request.loss,
            weight_ranks=request.weight_ranks,
        )
    return works


def _key(record: RevisionRecord, preparation: Preparation, dtype: str) -> str:
    return replay_key(weights=str(record.weights), tokens=preparation.feed.segment(record), dtype=dtype)


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


def _list(
    store: Store, source: Source, request: IngestRequest, advance: Advance | None
) -> tuple[Source, list[RevisionRecord], list[RevisionRecord]]:
    """Return the source, its chosen revisions, and all that it lists."""
    listed = source.list_revisions()
    chosen = select(listed, request.revisions, pattern=request.step_regex)
    records = describe_revisions(store, source, chosen, retry=True, advance=advance)
    if request.factory is not None:
        _refuse_misfit(store, source, records, request.factory)
    _refuse_other_model(store, source, request.factory)
    return source, records, listed


def _refuse_misfit(store: Store, source: Source, records: Sequence[RevisionRecord], factory: ModelFactory) -> None:
    """Raise why the first checkpoint has no place in the model of ``factory``, unless a later one has."""
    from replay.state_dicts import fit_weights, read_plain

    model, misfit = factory.skeleton(), None
    for record in records:
        if record.error or not record.files:
            continue
        names = list(record.files)
        try:
            with source.fetch(record, names, store.root / "checkpoints" / scratch_name()) as folder:
                fit_weights(read_plain(folder / names[0]).weights, model, prefix=factory.prefix)
        except MismatchedWeights as error:
            misfit = misfit or MismatchedWeights(f"{source.run} {names[0]}: {error}")
        except CheckpointError:  # the replay will tell
            continue
        else:
            return
    if misfit is not None:
        raise misfit


def _refuse_other_model(store: Store, source: Source, factory: ModelFactory | None) -> None:
    """Raise if what is stored of a run was replayed with another factory, or with one or none the other way round.

    Models of transformers may change with the ``config.json`` of each revision.
    """
    of_run = (Run.name == source.run, Run.location == source.location)
    replayed = select_rows(Revision.config).join(Run, Run.id == Revision.run_id).where(*of_run)
    with store.index.read() as session:
        configs = session.scalars(replayed.join(Replay, Replay.weights == Revision.weights).distinct()).all()
    for config in configs:
        known = store.index.fact(factory_key(str(config)))
        if config == (factory and factory.digest) or not (known or factory):
            continue
        told = f"--model {known['text']}" if known else "one of transformers"
        told += f" --prefix {known['prefix']}" if known and known["prefix"] else ""
        if known and factory and known == {"text": factory.text, "prefix": factory.prefix}:
            told += ", which was changed since"
        raise InvalidInput(
            f"{source.run} was ingested with another model ({told}) and would hold two: use another --store, or give a "
            "copy of the folder another name"
        )
