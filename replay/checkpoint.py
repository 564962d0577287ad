"""One fetched checkpoint replayed and staged: what a process does that never opens the index."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from replay.layers import ResolvedLayer
from store.catalog import read_tokens
from store.commits import LayerArray, LayerRow, stage_activations, stage_weighing
from store.errors import InvalidInput
from store.segments import Staged

__all__ = ["VERSION", "ReplayTask", "Staging", "choose_device", "stage_checkpoint"]

VERSION = 2
"""Recorded with every segment; raised when the replay would give other numbers for the same weights and tokens."""

_ONE_AT_A_TIME = threading.Lock()
"""A worker process replays one checkpoint at a time, however many threads its scheduler gives it."""


@dataclass(frozen=True)
class ReplayTask:
    """What to replay: paths and keys, no arrays, so that it can be sent to any process that sees the store."""

    root: Path
    """Folder of the store."""
    folder: Path
    """Folder of the checkpoint's files."""
    weights: str
    """Weights digest."""
    tokens: str
    """Segment of the token ids."""
    n_probes: int
    """How many probes these are of."""
    dtype: str
    """Precision of the replay."""
    layers: tuple[ResolvedLayer, ...]
    """Layers to capture."""
    batch_tokens: int
    """Tokens in one forward pass, padding included."""
    device: str
    """Device as torch names it, or ``auto``."""
    weigh: bool
    """Whether the statistics of the weights are wanted too."""
    verified: bool
    """Whether the sha256 of whole weight files was checked."""
    threads: int | None = None
    """Threads of the forward pass; None leaves torch's own number."""


@dataclass(frozen=True)
class Staging:
    """What a task has written aside, for the process that owns the index to commit."""

    activations: Staged
    """The activations."""
    layers: tuple[LayerRow, ...]
    """What the index keeps of them."""
    weighing: Staged | None
    """The statistics of the weights, if they were wanted."""


def stage_checkpoint(task: ReplayTask, progress: Callable[[int], None] | None = None) -> Staging:
    """Replay one checkpoint and write what it gives aside.

    Parameters
    ----------
    task
        What to replay.
    progress
        Called after each batch with the number of probes in it.

    Raises
    ------
    CheckpointError
        If the weights cannot be used.
    InvalidLayer
        If a layer cannot be captured as asked.
    StoreError
        If the store cannot be written.
    """
    from importlib.metadata import version as version_of

    import torch

    from replay.capture import replay_probes
    from replay.models import load_model

    device = choose_device(task.device)
    with _ONE_AT_A_TIME:
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        weighing = _stage_weighing(task) if task.weigh else None
        model = load_model(task.folder, dtype=task.dtype, device=device, layers=task.layers, partial=not task.verified)
        values = replay_probes(
            model,
            _token_ids(task.root, task.tokens, task.n_probes),
            task.layers,
            batch_tokens=task.batch_tokens,
            device=device,
            progress=progress,
        )
        del model
    arrays = [
        LayerArray(
            layer=str(layer.spec),
            module=layer.module,
            level="token" if layer.spec.reduce == "all" else "probe",
            values=values[str(layer.spec)],
        )
        for layer in task.layers
    ]
    made = {
        "version": VERSION,
        "batch_tokens": task.batch_tokens,
        "device": device,
        "torch": version_of("torch"),
    }
    staged = stage_activations(
        task.root,
        weights=task.weights,
        tokens=task.tokens,
        dtype=task.dtype,
        layers=arrays,
        attrs=made,
        verified=task.verified,
    )
    return Staging(activations=staged, layers=tuple(array.row for array in arrays), weighing=weighing)


def choose_device(name: str) -> str:
    """Return ``name``, with ``auto`` settled: the first GPU, or that of a numbered worker process, else the CPU.

    Raises
    ------
    InvalidInput
        If torch knows no such device or this machine has none.
    """
    import torch

    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        number = _worker_number()
        return "cuda" if number is None else f"cuda:{number % torch.cuda.device_count()}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InvalidInput(
            f"device {name!r} cannot be used here: expected auto, cpu or a GPU such as cuda:0"
        ) from error
    return name


def _worker_number() -> int | None:
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # no worker process
        return None
    return name if isinstance(name, int) else None


def _stage_weighing(task: ReplayTask) -> Staged:
    from replay.models import read_weights
    from replay.weighing import VERSION as WEIGHING_VERSION
    from replay.weighing import weigh, weighing_arrays

    weighing = weigh(read_weights(task.folder))
    arrays = weighing_arrays(weighing)
    return stage_weighing(
        task.root, weights=task.weights, version=WEIGHING_VERSION, groups=weighing.groups, arrays=arrays
    )


def _token_ids(root: Path, segment: str, n_probes: int) -> Sequence[Sequence[int]]:
    table = read_tokens(root, segment)
    bounds = np.searchsorted(table["token_probe"], np.arange(n_probes + 1))
    ids = table["token_id"].tolist()
    return [ids[start:stop] for start, stop in pairwise(bounds.tolist())]
