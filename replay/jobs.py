"""Key-to-key tasks on Dask: threads in this process, a local cluster, or a cluster that exists.

Tasks carry paths and content keys, never arrays: whoever runs one reads what it needs from the store and returns
something small. Every task computes on one BLAS thread, so that the numbers do not depend on where it ran.
"""

import functools
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from store.errors import InvalidInput, SourceUnreachable

__all__ = ["Cluster", "execute"]

CONNECT_SECONDS = 10.0
"""How long to wait for a scheduler's answer."""


@dataclass(frozen=True)
class Cluster:
    """Where tasks run."""

    workers: int = 0
    """Worker processes to start on this machine; 0 runs in threads of this process."""
    scheduler: str | None = None
    """Address of a Dask scheduler that exists, such as ``tcp://host:8786``; its workers must see the store."""

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise InvalidInput(f"workers is {self.workers}: expected 0 (threads) or the number of processes to start")
        if self.scheduler is not None and "://" not in self.scheduler:
            raise InvalidInput(f"{self.scheduler!r} is no scheduler's address: expected one such as tcp://host:8786")
        if self.workers and self.scheduler:
            raise InvalidInput("give either workers or a scheduler: a scheduler has workers of its own")


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
    if not cluster.workers and cluster.scheduler is None:
        _execute_in_threads(tasks, done)
        return
    from distributed import as_completed

    with _client(cluster) as client:
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
def _client(cluster: Cluster) -> Iterator[Any]:
    from distributed import Client, LocalCluster

    if cluster.scheduler is None:
        with (
            LocalCluster(n_workers=cluster.workers, threads_per_worker=1, dashboard_address=None) as local,
            Client(local, set_as_default=False) as client,
        ):
            yield client
        return
    try:
        client = Client(cluster.scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise SourceUnreachable(
            f"no Dask scheduler answers at {cluster.scheduler}: start one (`dask scheduler`) or use --workers"
        ) from error
    with client:
        yield client
