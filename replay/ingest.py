"""Replaying checkpoints into a store: fetched ahead, replayed here or on a cluster, committed by this process."""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from replay.arrays import ArrayProbes
from replay.audit import refresh_audit
from replay.checkpoint import ReplayTask, Staging, choose_device, stage_checkpoint
from replay.crawl import Ended, Fetched, crawl
from replay.jobs import Cluster, connect
from replay.listing import Advance
from replay.loss import LOSS
from replay.loss import RECIPE as LOSS_RECIPE
from replay.plan import Job, Plan
from replay.rounding import moved_dtype
from replay.weighing import VERSION as WEIGHING_VERSION
from replay.weight_ranks import RECIPE as RANKS_RECIPE
from replay.weight_ranks import WEIGHTS
from store.catalog import Store
from store.commits import commit_activations, commit_weighing, fail_revisions
from store.errors import CheckpointError, InvalidLayer, ReplayError, SourceUnreachable, StoreError
from store.keys import canonical
from store.measurements import point_ids, put_measurements

__all__ = ["CACHE_BUDGET", "Outcome", "ingest"]

HEARTBEAT = 0.2
"""Seconds between two calls of ``advance`` while there is nothing to do."""

CACHE_BUDGET = 20 * 10**9
"""Bytes that downloads may take in the store unless something else is asked for."""


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint."""

    job: Job
    """The work."""
    elsewhere: bool = False
    """Whether another process had done it meanwhile."""
    error: str | None = None
    """Why it failed."""
    lost: bool = False
    """Whether it failed because its whole source could not be reached."""
    no_loss: str | None = None
    """Why it has no language-model loss, if one was asked for."""


@dataclass(frozen=True)
class _Replayed:
    fetched: Fetched
    staging: Staging | None
    error: BaseException | None


_Inbox = SimpleQueue[Any]
_Replay = Callable[[Fetched, ReplayTask], _Replayed | None]


def ingest(
    store: Store,
    plan: Plan,
    *,
    cluster: Cluster | None = None,
    cache_budget: int = CACHE_BUDGET,
    advance: Advance | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Outcome]:
    """Carry out a plan, yielding each checkpoint's outcome as it ends.

    While one checkpoint is replayed the next are fetched. Several processes may work on one store: a checkpoint is
    claimed before it is touched, one that another process holds is left for later, and one whose owner died is taken
    over. A checkpoint that fails is recorded with its reason and does not stop the rest; a source that cannot be
    reached ends for this time, without a record.

    Parameters
    ----------
    store
        A writable store.
    plan
        From `make_plan`.
    cluster
        Where to replay; in this process by default. This process fetches and commits in any case.
    cache_budget
        Bytes that downloads may take in the store at any moment.
    advance
        Told of the progress.
    report
        Told in one line what is waited for or tried again.

    Raises
    ------
    InvalidInput
        If the device cannot be used, or a checkpoint is larger than the budget.
    InvalidLayer
        If a layer cannot be captured as asked.
    StoreError
        If the store itself cannot be written; nothing committed is lost.
    """
    if not plan.jobs:
        return
    cluster, advance, report = cluster or Cluster(), advance or (lambda *_: None), report or (lambda _: None)
    inbox: _Inbox = SimpleQueue()
    n_probes = len(plan.request.probes)
    weights = {str(job.record.weights) for job in plan.jobs}
    known = set(store.weighing_segments(weights, version=WEIGHING_VERSION, whole=True))
    ended = 0

    def progressed(what: str, n_replayed: int) -> None:
        advance("ingest", ended * n_probes + n_replayed, len(plan.jobs) * n_probes, what)

    with (
        _audited(store, plan),
        _replaying(cluster, plan, inbox, progressed) as (replay, n_replaying),
        # one more than are replayed and fetched: the next is ready when one ends
        crawl(store, plan.jobs, inbox, budget=cache_budget, ahead=n_replaying + 2, report=report),
    ):
        for event in _arrivals(inbox, progressed):
            outcome = _outcome(store, plan, event, replay, known)
            if outcome is None:
                continue
            if not outcome.lost:
                for revision in outcome.job.revisions:
                    fail_revisions(store, revision[0], [revision[1]], outcome.error)
            ended += 1
            progressed(f"{ended} of {len(plan.jobs)}", 0)
            yield outcome
            if ended == len(plan.jobs):
                break


@contextmanager
def _audited(store: Store, plan: Plan) -> Iterator[None]:
    """Audit all runs at the end, whatever ends it: the values of more weights are known than before."""
    try:
        yield
    finally:
        for run in plan.runs:
            refresh_audit(store, run.run)


def _outcome(store: Store, plan: Plan, event: Any, replay: _Replay, known: set[str]) -> Outcome | None:
    """Do what an event asks for; None if that goes on elsewhere."""
    if isinstance(event, BaseException):
        raise event
    if isinstance(event, Fetched):
        weights = str(event.job.record.weights)
        replayed = replay(event, _task(store, plan, event, weigh=weights not in known))
        if _is_whole(store, event):
            known.add(weights)
        return None if replayed is None else _commit(store, replayed)
    return _commit(store, event) if isinstance(event, _Replayed) else _ended(event)


def _arrivals(inbox: _Inbox, progressed: Callable[[str, int], None]) -> Iterator[Any]:
    while True:
        try:
            event = inbox.get(timeout=HEARTBEAT)
        except Empty:
            progressed("fetching", 0)
        else:
            yield event


def _task(store: Store, plan: Plan, fetched: Fetched, *, weigh: bool) -> ReplayTask:
    job = fetched.job
    return ReplayTask(
        root=store.root.resolve(),
        folder=fetched.folder.resolve(),
        weights=str(job.record.weights),
        tokens=job.tokens,
        arrays=isinstance(plan.request.probes, ArrayProbes),
        n_probes=len(plan.request.probes),
        dtype=job.dtype,
        missing=fetched.missing,
        batch_tokens=plan.request.batch_tokens,
        device=plan.request.device,
        weigh=weigh,
        verified=_is_whole(store, fetched),
        factory=plan.request.factory,
        file=None if plan.request.factory is None else job.names[0],
    )


def _is_whole(store: Store, fetched: Fetched) -> bool:
    """Return whether whole files were verified; those of the user's own cache and folders are, whatever was wanted."""
    return fetched.job.wanted is None or not fetched.folder.is_relative_to(store.root)


def _ended(event: Ended) -> Outcome:
    return Outcome(
        job=event.job,
        elsewhere=event.error is None,
        error=None if event.error is None else _reason(event.error),
        lost=event.lost,
    )


def _commit(store: Store, replayed: _Replayed) -> Outcome:
    fetched, staging = replayed.fetched, replayed.staging
    job, elsewhere, error = fetched.job, False, replayed.error
    try:
        if isinstance(error, InvalidLayer | StoreError) or (error and not isinstance(error, Exception)):
            raise error  # what was asked for is wrong, or the store is: the next checkpoint would meet the same
        if staging is not None:
            job.source.check(job.record, job.names)
            weights = str(job.record.weights)
            if staging.weighing is not None:
                commit_weighing(
                    store,
                    staging.weighing,
                    weights=weights,
                    version=WEIGHING_VERSION,
                    whole=_is_whole(store, fetched),
                )
            whole = _is_whole(store, fetched)
            for staged, dtype in ((staging.layers, job.dtype), (staging.moved_layers, moved_dtype(job.dtype))):
                if staged is not None and not elsewhere:
                    elsewhere = not commit_activations(
                        store,
                        staged.activations,
                        weights=weights,
                        tokens=job.tokens,
                        dtype=dtype,
                        layers=staged.layers,
                        claim=job.key,
                        verified=whole,
                    )
            if not elsewhere:
                _keep_measured(store, job.key, staging)
    except CheckpointError as changed:  # a trainer wrote over it meanwhile
        error = changed
    finally:
        fetched.evict()
    reason = None if error is None else _reason(error)
    no_loss = staging.loss if staging is not None and isinstance(staging.loss, str) else None
    return Outcome(job=job, elsewhere=elsewhere, error=reason, no_loss=no_loss)


def _keep_measured(store: Store, replay: str, staging: Staging) -> None:
    """Keep the loss and the weight ranks of a checkpoint as measurements of points that are no layers."""
    if staging.loss is not None:
        numbers = staging.loss if isinstance(staging.loss, str) else np.array(staging.loss, np.float64).ravel()
        _put(store, LOSS_RECIPE, {(replay, LOSS): numbers})
    if staging.weight_ranks is not None:
        found: dict[tuple[str, str], NDArray[np.float64] | str] = {
            (replay, f"{WEIGHTS}:{name}"): rank if isinstance(rank, str) else np.array(rank, np.float64)
            for name, rank in staging.weight_ranks.items()
        }
        found[replay, WEIGHTS] = np.array([len(staging.weight_ranks)], np.float64)
        _put(store, RANKS_RECIPE, found)


def _put(store: Store, recipe: dict[str, Any], found: Mapping[tuple[str, str], NDArray[np.float64] | str]) -> None:
    ids = point_ids(store, found)
    put_measurements(store, canonical(recipe), {(ids[point], ids[point]): numbers for point, numbers in found.items()})


def _reason(error: BaseException) -> str:
    if isinstance(error, ReplayError):
        return " ".join([str(error), *getattr(error, "__notes__", [])])
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


@contextmanager
def _replaying(
    cluster: Cluster, plan: Plan, inbox: _Inbox, progressed: Callable[[str, int], None]
) -> Iterator[tuple[_Replay, int]]:
    """Hold a way to replay a fetched checkpoint, and how many are replayed at once.

    It gives what became of it; or, where that comes later, None, and puts it into ``inbox`` then.
    """
    if not cluster.elsewhere:
        choose_device(plan.request.device)  # a wrong one is the user's mistake, not that of every checkpoint
        yield partial(_replay_here, progressed), 1
        return
    with connect(cluster, whole_machine=True) as (client, n_workers, n_threads):
        if plan.request.device != "auto":
            client.submit(choose_device, plan.request.device, pure=False).result()

        def replay(fetched: Fetched, task: ReplayTask) -> None:
            future = client.submit(stage_checkpoint, replace(task, threads=n_threads), pure=False)
            future.add_done_callback(partial(_replayed_there, inbox, fetched))

        yield replay, n_workers


def _replay_here(progressed: Callable[[str, int], None], fetched: Fetched, task: ReplayTask) -> _Replayed:
    name, n_replayed = f"replaying {fetched.job.source.run} {fetched.job.record.name}", 0

    def batch_done(n_probes: int) -> None:
        nonlocal n_replayed
        n_replayed += n_probes
        progressed(name, n_replayed // task.missing.n_passes)

    try:
        return _Replayed(fetched, stage_checkpoint(task, batch_done), None)
    except Exception as error:  # noqa: BLE001 (whatever one checkpoint's model code raises, the rest go on)
        return _Replayed(fetched, None, error)


def _replayed_there(inbox: _Inbox, fetched: Fetched, future: Any) -> None:
    """Put what became of a task into the inbox, whatever that is: Dask drops what a callback raises."""
    from distributed.scheduler import KilledWorker

    try:
        error = future.exception()
        if isinstance(error, KilledWorker):
            error = RuntimeError("the worker process died of it, more than once: it may need more memory")
        inbox.put(_Replayed(fetched, None if error else future.result(), error))
        future.release()
    except BaseException as lost:  # noqa: BLE001 (cancelled, because the scheduler is gone or the ingest over)
        inbox.put(SourceUnreachable(f"the Dask scheduler was lost ({type(lost).__name__}): run the same command again"))
