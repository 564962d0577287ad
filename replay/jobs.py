"""Key-to-key tasks on Dask: threads in this process, a local cluster, or a cluster that exists.

Tasks carry paths and content keys, never arrays: whoever runs one reads what it needs from the store and returns
something small. Every task computes on one BLAS thread, so that the numbers do not depend on where it ran.
"""

import functools
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from store.errors import InvalidInput, SourceUnreachable

__all__ = ["Cluster", "connect", "execute"]

LEAST_MEMORY = 500_000_000
"""Bytes that a process takes before it holds an array."""

CONNECT_SECONDS = 10.0
"""How long to wait for a scheduler's answer."""


@dataclass(frozen=True)
class Cluster:
    """Where tasks run."""

    workers: int = 0
    """Worker processes to start on this machine; 0 runs in threads of this process."""
    scheduler: str | None = None
    """Address of a Dask scheduler that exists, such as ``tcp://host:8786``; its workers must see the store."""
    memory: int = 2_000_000_000
    """Bytes that this process and its tasks should stay within; on a scheduler's workers, each of their tasks."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InvalidInput(f"workers is {self.workers}: expected 0 (threads) or the number of processes to start")
        if self.scheduler is not None and "://" not in self.scheduler:
            raise InvalidInput(f"{self.scheduler!r} is no scheduler's address: expected one such as tcp://host:8786")
        if self.workers and self.scheduler:
            raise InvalidInput("give either workers or a scheduler: a scheduler has workers of its own")
        if self.memory < LEAST_MEMORY:
            raise InvalidInput(f"memory is {self.memory} bytes: expected at least {LEAST_MEMORY // 10**6} MB")

    @property
    def task_memory(self) -> int:
        """Bytes of arrays that one task may hold, beside what Python and its libraries take."""
        at_a_time = 1 if self.scheduler else self.workers or os.cpu_count() or 1
        return (self.memory - LEAST_MEMORY) // at_a_time

    @property
    def elsewhere(self) -> bool:
        """Whether tasks run in other processes than this one."""
        return bool(self.workers) or self.scheduler is not None


def execute(tasks: Mapping[str, Callable[[], Any]], *, cluster: Cluster, done: Callable[[str, Any], None]) -> None:
    """Run every task and hand each result to ``done`` in this process, as it comes.

    Parameters
    ----------
    tasks
        Pure functions without arguments (``functools.partial`` of module-level ones) by content key.
    cluster
        Where to run them.
    done
        Called with key and result, in this thread, one at a time; the place to commit.

    Raises
    ------
    SourceUnreachable
        If ``cluster.scheduler`` does not answer.
    """
    if not tasks:
        return
    if not cluster.elsewhere:
        _execute_in_threads(tasks, done)
        return
    from distributed import as_completed

    with connect(cluster) as (client, _, _):
        # A scheduler hands one result to all who submit under one key: two stores or two gauges must never share one.
        call = uuid.uuid4().hex
        futures = {client.submit(_alone, task, key=f"{key}-{call}"): key for key, task in tasks.items()}
        for future, result in as_completed(list(futures), loop=client.loop, with_results=True):
            done(futures[future], result)
            future.release()


def _execute_in_threads(tasks: Mapping[str, Callable[[], Any]], done: Callable[[str, Any], None]) -> None:
    import dask
    from dask.callbacks import Callback
    from threadpoolctl import threadpool_limits

    graph = [dask.delayed(task, pure=True)(dask_key_name=key) for key, task in tasks.items()]
    with threadpool_limits(1), Callback(posttask=lambda key, result, *_: done(key, result)):
        dask.compute(*graph, scheduler="threads", optimize_graph=False)


def _alone(task: Callable[[], Any]) -> Any:
    _one_thread()
    return task()


@functools.cache
def _one_thread() -> None:
    # Once for the life of a worker process: leaving a limit while another of its threads computes would lift it there.
    from threadpoolctl import threadpool_limits

    threadpool_limits(1)


@contextmanager
def connect(cluster: Cluster, *, whole_machine: bool = False) -> Iterator[tuple[Any, int, int]]:
    """Hold a Dask client, the number of its worker processes and the threads that a task may use in each.

    Parameters
    ----------
    cluster
        Where its workers are; they are started here if it names no scheduler.
    whole_machine
        Whether each task may use its share of this machine's cores instead of one thread, and as much memory as it
        takes: a process that maps a model would be taken for one that leaks.

    Raises
    ------
    SourceUnreachable
        If ``cluster.scheduler`` does not answer, or has no worker.
    """
    import dask
    from distributed import Client, LocalCluster

    if cluster.scheduler is None:
        n_threads = max(1, (os.cpu_count() or 1) // cluster.workers) if whole_machine else 1
        limit = {"memory_limit": 0} if whole_machine else {}
        with (
            # The profiler looks at the frames of all threads: CPython before 3.12 can lock itself up in that for ever.
            dask.config.set({"distributed.worker.profile.enabled": False}),
            LocalCluster(n_workers=cluster.workers, threads_per_worker=1, dashboard_address=None, **limit) as local,
            Client(local, set_as_default=False) as client,
        ):
            yield client, cluster.workers, n_threads
        return
    try:
        client = Client(cluster.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SourceUnreachable(
            f"no Dask scheduler answers at {cluster.scheduler}: start one (`dask scheduler`) or use --workers"
        ) from error
    with client:
        n_threads = client.nthreads()
        if whole_machine and not n_threads:
            raise SourceUnreachable(f"the Dask scheduler at {cluster.scheduler} has no worker: start some")
        yield client, len(n_threads), min(n_threads.values(), default=1) if whole_machine else 1
