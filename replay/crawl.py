"""Fetching ahead: checkpoints are claimed, given room under the cache budget and fetched while others are replayed."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from replay.plan import Job
from replay.units import human_bytes
from replay.work import Work, remaining
from store.catalog import Store
from store.errors import AccessError, InvalidInput, ReplayError, StoreError, StoreNotWritable, UnknownSource

__all__ = ["Ended", "Fetched", "crawl"]

POLL_SECONDS = 0.2
"""How long to wait before looking again for room, or at work that another process has claimed."""

PATIENCE_SECONDS = 5.0
"""How long a download that is told to stop is waited for; one that hears of it later keeps what it has all the same."""

DOWNLOADS = 3
"""Checkpoints that are downloaded at the same time, at most."""

SPARE_BYTES = 64 * 2**20
"""Room on the disk that a download leaves to everything else."""

OVERHEAD_BYTES = 64 * 2**10
"""Small files that the hub's client keeps beside a download."""


@dataclass(frozen=True)
class Fetched:
    """A checkpoint whose files are here, claimed by this process."""

    job: Job
    """The work."""
    folder: Path
    """Folder of its files."""
    missing: Work
    """What the store lacks of what is asked for."""
    evict: Callable[[], None]
    """Removes the files, and gives claim and room back; to be called once, when everything is committed."""


@dataclass(frozen=True)
class Ended:
    """A checkpoint that was not fetched."""

    job: Job
    """The work."""
    error: Exception | None = None
    """Why; None if another process had done it meanwhile."""
    lost: bool = False
    """Whether its whole source could not be reached."""


@contextmanager
def crawl(
    store: Store,
    jobs: Sequence[Job],
    events: "SimpleQueue[Any]",
    *,
    budget: int,
    ahead: int,
    report: Callable[[str], None],
) -> Iterator[None]:
    """Fetch checkpoints in the background while the context is open, and put what becomes of each into ``events``.

    Every job gives one event, `Fetched` or `Ended`; what goes wrong with the store is put as the exception itself. Work
    that another process has claimed is left for later; a source that cannot be reached is not asked again.

    Parameters
    ----------
    store
        A writable store.
    jobs
        What to fetch, in order.
    events
        Where the events go.
    budget
        Bytes that all downloads into this store may take together, those of other processes included.
    ahead
        Checkpoints that may be held at once: fetched, being fetched, or not evicted yet.
    report
        Told what is being waited for.

    Raises
    ------
    InvalidInput
        If a checkpoint alone is larger than the budget.
    """
    for job in jobs:
        if job.wanted is None:
            _check_budget(job, job.source.bytes_to_fetch(job.record, job.names), budget)
    crawler = _Crawler(store, jobs, events, budget, ahead, report)
    crawler.start()
    try:
        yield
    finally:
        crawler.stop()


class _Crawler:
    def __init__(
        self,
        store: Store,
        jobs: Sequence[Job],
        events: "SimpleQueue[Any]",
        budget: int,
        ahead: int,
        report: Callable[[str], None],
    ) -> None:
        self._store, self._jobs, self._events, self._budget, self._report = store, jobs, events, budget, report
        self._stopping = threading.Event()
        self._places = threading.Semaphore(ahead)
        self._lines = threading.Semaphore(DOWNLOADS)
        self._lost: dict[str, Exception] = {}
        self._held: dict[str, Job] = {}
        self._threads = [threading.Thread(target=self._guarded, args=(self._run,), name="crawl", daemon=True)]

    def start(self) -> None:
        self._threads[0].start()

    def stop(self) -> None:
        """End the downloads at their next block, keep what they have, and give every claim back."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
        for key in list(self._held):
            with suppress(StoreError):
                self._store.index.release(key)

    def _guarded(self, work: Callable[..., None], *given: Any) -> None:
        try:
            work(*given)
        except BaseException as error:  # noqa: BLE001 (it is raised by whoever reads the events)
            self._events.put(error)

    def _run(self) -> None:
        waiting, n_told = list(self._jobs), 0
        while waiting and not self._stopping.is_set():
            later = [job for job in waiting if not self._begin(job)]
            if len(later) == len(waiting):
                if n_told != len(later):
                    self._report(f"waiting for another process, {len(later)} left")
                    n_told = len(later)
                self._stopping.wait(POLL_SECONDS)
            waiting = later

    def _begin(self, job: Job) -> bool:
        """Claim, make room and start to fetch; False if another process has the work now."""
        self._acquire(self._places)
        if self._stopping.is_set():
            return True
        if (lost := self._lost.get(job.source.run)) is not None:
            self._places.release()
            self._events.put(Ended(job, error=lost, lost=True))
            return True
        if not self._store.index.claim(job.key):
            self._places.release()
            return False
        self._held[job.key] = job
        (missing,) = remaining(self._store, [job.work], verified=job.wanted is None)
        if not missing:
            self._end(Ended(job))
            return True
        try:
            self._make_room(job)
        except (StoreError, InvalidInput):
            raise
        except (ReplayError, OSError) as error:
            self._fail(job, error)
            return True
        self._acquire(self._lines)
        fetch = threading.Thread(
            target=self._guarded, args=(self._fetch, job, missing), name=f"fetch {job.record.name}", daemon=True
        )
        self._threads = [self._threads[0], *(thread for thread in self._threads[1:] if thread.is_alive()), fetch]
        fetch.start()
        return True

    def _fetch(self, job: Job, missing: Work) -> None:
        held = ExitStack()
        try:
            if self._stopping.is_set():
                return
            folder = held.enter_context(
                job.source.fetch(job.record, job.names, self._scratch(job), wanted=job.wanted, stopped=self._stopping)
            )
        except StoreError:
            raise
        except Exception as error:  # noqa: BLE001 (whatever it is, the other checkpoints go on)
            if not self._stopping.is_set():
                self._fail(job, error)
        else:

            def evict() -> None:
                held.close()
                self._give_back(job)

            self._events.put(Fetched(job, folder, missing, evict))
        finally:
            self._lines.release()

    def _fail(self, job: Job, error: Exception) -> None:
        lost = isinstance(error, AccessError | UnknownSource)
        if lost:
            self._lost.setdefault(job.source.run, error)
        self._end(Ended(job, error=error, lost=lost))

    def _end(self, event: Ended) -> None:
        self._give_back(event.job)
        self._events.put(event)

    def _give_back(self, job: Job) -> None:
        if self._held.pop(job.key, None) is not None:
            self._store.index.release(job.key)
        self._places.release()

    def _acquire(self, semaphore: threading.Semaphore) -> None:
        while not semaphore.acquire(timeout=POLL_SECONDS):
            if self._stopping.is_set():
                return

    def _scratch(self, job: Job) -> Path:
        return self._store.root / "checkpoints" / job.key  # the claim on the key is the claim on the folder

    def _make_room(self, job: Job) -> None:
        """Wait until the budget and the disk have room for a download, and reserve it."""
        scratch = self._scratch(job)
        n_bytes = job.source.bytes_to_fetch(
            job.record, job.names, wanted=job.wanted, scratch=scratch, stopped=self._stopping
        )
        if not n_bytes:
            return
        _check_budget(job, n_bytes, self._budget)
        told = False
        while not self._stopping.is_set():
            reserved = self._store.index.claimed()
            if self._fits_disk(job, n_bytes, reserved) and self._fits_budget(job, n_bytes + OVERHEAD_BYTES, reserved):
                return
            if not told:
                self._report(f"waiting for room for {job.source.run} {job.record.name}")
                told = True
            self._stopping.wait(POLL_SECONDS)

    def _fits_disk(self, job: Job, n_bytes: int, reserved: Mapping[str, int]) -> bool:
        """Return whether the disk has room beside what other downloads have still to come; False if it may get some."""
        folder = self._store.root / "checkpoints"
        coming = {key: max(0, size - _size(folder / key)) for key, size in reserved.items() if size and key != job.key}
        free = shutil.disk_usage(self._store.root).free
        lacking = n_bytes - _size(self._scratch(job))
        if lacking + SPARE_BYTES + sum(coming.values()) <= free:
            return True
        if not any(reserved[key] for key in coming):
            raise StoreNotWritable(
                f"{job.source.run} {job.record.name} needs {human_bytes(lacking + SPARE_BYTES)} of the disk of "
                f"{self._store.root}, which has {human_bytes(free)} left: free some and run the same command again; "
                "nothing is lost"
            )
        return False

    def _fits_budget(self, job: Job, n_bytes: int, reserved: Mapping[str, int]) -> bool:
        index, folder = self._store.index, self._store.root / "checkpoints"
        strays = {path: _size(path) for path in folder.iterdir() if path.name not in reserved}
        if index.reserve(job.key, n_bytes, budget=self._budget, stray=sum(strays.values())):
            return True
        # What a killed process left is worth going on from, but not worth waiting for.
        left = [path for path in strays if len(path.name) == len(job.key)]
        if left:
            oldest = min(left, key=_changed)
            if index.claim(oldest.name):
                shutil.rmtree(oldest, ignore_errors=True)
                index.release(oldest.name)
        elif strays and not any(size for key, size in reserved.items() if key != job.key):
            largest = max(strays, key=lambda path: strays[path])
            raise InvalidInput(
                f"{largest} takes {human_bytes(strays[largest])} of the --cache-budget of {human_bytes(self._budget)} "
                "and belongs to nobody here: remove it unless another machine works on this store, or raise the budget"
            )
        return False


def _check_budget(job: Job, n_bytes: int, budget: int) -> None:
    if n_bytes and n_bytes + OVERHEAD_BYTES > budget:
        raise InvalidInput(
            f"{job.source.run} {job.record.name} needs {human_bytes(n_bytes + OVERHEAD_BYTES)} of room, "
            f"--cache-budget is {human_bytes(budget)}: raise it to that at least"
        )


def _size(folder: Path) -> int:
    n_bytes = 0
    for parent, _, names in os.walk(folder):  # which passes over what another process removes meanwhile
        for name in names:
            with suppress(OSError):
                n_bytes += Path(parent, name).lstat().st_size
    return n_bytes


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return time.time()
