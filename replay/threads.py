"""Work on torch's threads, each with torch to itself."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["side_by_side"]


@contextmanager
def side_by_side(n_workers: int) -> Iterator[ThreadPoolExecutor]:
    """Hold a pool whose threads share torch's out among themselves; afterwards torch has as many as before.

    One task a thread beats all threads on one task: they never wait for each other within it. What has not begun when
    the context ends is cancelled.

    Parameters
    ----------
    n_workers
        Threads of the pool, no more than torch has.
    """
    import torch

    n_threads = torch.get_num_threads()
    each = n_threads // n_workers
    with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(each,)) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(n_threads)  # MKL's count is one for the whole process
