"""Replaying checkpoints into a store: claim, fetch, replay, commit, one checkpoint after the other."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from replay.plan import Advance, Job, Plan, stored_layers
from store.catalog import Store
from store.commits import LayerArray, commit_activations, fail_revisions, stage_activations
from store.errors import InvalidInput, InvalidLayer, ReplayError, StoreError

__all__ = ["Outcome", "choose_device", "ingest"]

VERSION = 1
"""Recorded with every segment; raised when the replay would give other numbers for the same weights and tokens."""

POLL_SECONDS = 0.5
"""How long to wait before looking again at work that another process has claimed."""


@dataclass(frozen=True)
class Outcome:
    """What became of one checkpoint."""

    job: Job
    """The work."""
    seconds: float
    """How long it took."""
    elsewhere: bool = False
    """Whether another process had done it meanwhile."""
    error: str | None = None
    """Why it failed."""


def ingest(store: Store, plan: Plan, *, advance: Advance | None = None) -> Iterator[Outcome]:
    """Carry out a plan, yielding each checkpoint's outcome as it ends.

    Several processes may work on one store: a checkpoint is claimed before it is touched, one that another process
    holds is left for later, and one whose owner died is taken over. A checkpoint that fails is recorded with its
    reason and does not stop the rest.

    Raises
    ------
    InvalidInput
        If the device cannot be used, or a layer cannot be captured as asked.
    StoreError
        If the store itself cannot be written; nothing committed is lost.
    """
    advance = advance or (lambda *_: None)
    waiting, n_ended, n_probes = list(plan.jobs), 0, len(plan.request.probes.probes)

    def report(what: str, n_replayed: int) -> None:
        advance("ingest", n_ended * n_probes + n_replayed, len(plan.jobs) * n_probes, what)

    if waiting:
        choose_device(plan.request.device)  # a wrong one is the user's mistake, not that of every checkpoint
    while waiting:
        later = []
        for job in waiting:
            if not store.index.claim(job.key):
                later.append(job)
                continue
            try:
                outcome = _attempt(store, plan, job, report)
            finally:
                store.index.release(job.key)
            n_ended += 1
            report(f"{n_ended} of {len(plan.jobs)}", 0)
            yield outcome
        if len(later) == len(waiting):
            report(f"waiting for another process, {len(later)} left", 0)
            time.sleep(POLL_SECONDS)
        waiting = later


def choose_device(name: str) -> str:
    """Return ``name``, with ``auto`` settled.

    Raises
    ------
    InvalidInput
        If torch knows no such device or this machine has none.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"device {name!r} cannot be used here: expected auto, cpu or a GPU such as cuda:0"
        ) from error
    return name


def _attempt(store: Store, plan: Plan, job: Job, report: Callable[[str, int], None]) -> Outcome:
    started = time.monotonic()
    error, elsewhere = None, False
    try:
        elsewhere = not _replay(store, plan, job, report)
    except (InvalidLayer, StoreError):
        raise  # what was asked for is wrong, or the store is: the next checkpoint would meet the same
    except ReplayError as failure:
        error = " ".join([str(failure), *getattr(failure, "__notes__", [])])
    except Exception as failure:  # noqa: BLE001 (whatever one checkpoint's model code raises, the rest go on)
        error = f"{type(failure).__name__}: {(str(failure).strip().splitlines() or ['no message'])[0]}"
    for run, name in job.revisions:
        fail_revisions(store, run, [name], error)
    return Outcome(job=job, seconds=time.monotonic() - started, elsewhere=elsewhere, error=error)


def _replay(store: Store, plan: Plan, job: Job, report: Callable[[str, int], None]) -> bool:
    from importlib.metadata import version as version_of

    from replay.capture import replay_probes
    from replay.models import load_model

    stored = stored_layers(store, job.key)
    missing = [layer for layer in job.layers if str(layer.spec) not in stored]
    if not missing:
        return False
    scratch = store.root / "checkpoints" / job.key  # the claim on the key is the claim on the folder
    device = choose_device(plan.request.device)
    name, n_replayed = f"{job.source.run} {job.record.name}", 0

    def batch_done(n_probes: int) -> None:
        nonlocal n_replayed
        n_replayed += n_probes
        report(f"replaying {name}", n_replayed)

    report(f"fetching {name}", 0)
    with job.source.fetch(job.record, list(job.record.files), scratch) as folder:
        model = load_model(folder, dtype=job.dtype, device=device)
        values = replay_probes(
            model,
            _token_ids(store, job.tokens, len(plan.request.probes.probes)),
            missing,
            batch_tokens=plan.request.batch_tokens,
            device=device,
            progress=batch_done,
        )
    layers = [
        LayerArray(
            layer=str(layer.spec),
            module=layer.module,
            level="token" if layer.spec.reduce == "all" else "probe",
            values=values[str(layer.spec)],
        )
        for layer in missing
    ]
    identity = {"weights": str(job.record.weights), "tokens": job.tokens, "dtype": job.dtype}
    made = {
        "version": VERSION,
        "batch_tokens": plan.request.batch_tokens,
        "device": device,
        "torch": version_of("torch"),
    }
    staged = stage_activations(store.root, layers=layers, attrs=made, **identity)
    return commit_activations(store, staged, layers=layers, claim=job.key, **identity)


def _token_ids(store: Store, segment: str, n_probes: int) -> Sequence[Sequence[int]]:
    table = store.token_table(segment)
    bounds = np.searchsorted(table["token_probe"], np.arange(n_probes + 1))
    ids = table["token_id"].tolist()
    return [ids[start:stop] for start, stop in pairwise(bounds.tolist())]
