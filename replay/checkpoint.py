"""One fetched checkpoint replayed and staged: what a process does that never opens the index."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from replay.factories import ModelFactory
from replay.layers import ResolvedLayer
from replay.loss import TokenLosses, token_losses
from replay.rounding import SEED, moved_dtype
from replay.weight_ranks import WeightRank, weight_ranks
from replay.work import Work
from store.catalog import read_inputs, read_tokens
from store.commits import LayerArray, LayerRow, stage_activations, stage_weighing
from store.errors import InvalidInput, MismatchedWeights, Unavailable
from store.segments import Staged

__all__ = ["VERSION", "ReplayTask", "StagedLayers", "Staging", "choose_device", "stage_checkpoint"]

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
    """Segment of what the model is fed."""
    arrays: bool
    """Whether these are arrays; else token ids."""
    n_probes: int
    """How many probes these are of."""
    dtype: str
    """Precision of the replay."""
    missing: Work
    """What to capture and to measure."""
    batch_tokens: int
    """Size of one forward pass, as `IngestRequest` has it."""
    device: str
    """Device as torch names it, or ``auto``."""
    weigh: bool
    """Whether the statistics of the weights are wanted too."""
    verified: bool
    """Whether the sha256 of whole weight files was checked."""
    factory: ModelFactory | None = None
    """What builds the model, where that is not in the folder; sent as its text."""
    file: str | None = None
    """The weight file in the folder that belongs to it."""
    threads: int | None = None
    """Threads of the forward pass; None leaves torch's own number."""


class StagedLayers(NamedTuple):
    """Activations written aside."""

    activations: Staged
    """Where they are."""
    layers: tuple[LayerRow, ...]
    """What the index keeps of them."""


@dataclass(frozen=True)
class Staging:
    """What a task has written aside or measured, for the process that owns the index to commit."""

    layers: StagedLayers | None
    """The activations, if layers were missing."""
    moved_layers: StagedLayers | None
    """Those with moved weights, if such were missing."""
    weighing: Staged | None
    """The statistics of the weights, if they were wanted."""
    loss: TokenLosses | str | None
    """The language-model loss on each probe, or why there is none, if it was wanted."""
    weight_ranks: dict[str, WeightRank | str] | None
    """The stable rank of each weight matrix, or why it has none, if they were wanted."""


def stage_checkpoint(task: ReplayTask, progress: Callable[[int], None] | None = None) -> Staging:
    """Replay one checkpoint, write what it gives aside and measure the rest.

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
    import torch

    device = choose_device(task.device)
    missing = task.missing
    with _ONE_AT_A_TIME:
        if task.threads is not None:
            torch.set_num_threads(task.threads)
        return Staging(
            weighing=_stage_weighing(task) if task.weigh else None,
            weight_ranks=_rank_weights(task) if missing.weight_ranks else None,
            layers=_stage_layers(task, missing.layers, device, progress) if missing.layers else None,
            moved_layers=(
                _stage_layers(task, missing.moved_layers, device, progress, rounding=SEED)
                if missing.moved_layers
                else None
            ),
            loss=_measure_loss(task, device, progress) if missing.loss else None,
        )


def _stage_layers(
    task: ReplayTask,
    layers: tuple[ResolvedLayer, ...],
    device: str,
    progress: Callable[[int], None] | None,
    *,
    rounding: int | None = None,
) -> StagedLayers:
    from importlib.metadata import version as version_of

    from replay.capture import replay_arrays, replay_probes
    from replay.models import load_model

    model = load_model(
        task.folder,
        dtype=task.dtype,
        device=device,
        layers=layers,
        partial=not task.verified,
        factory=task.factory,
        file=task.file,
        rounding=rounding,
    )
    how: dict[str, Any] = {"batch_tokens": task.batch_tokens, "device": device, "progress": progress}
    if task.arrays:
        values = replay_arrays(model, read_inputs(task.root, task.tokens), layers, **how)
    else:
        values = replay_probes(model, _token_ids(task.root, task.tokens, task.n_probes), layers, **how)
    arrays = [
        LayerArray(
            layer=str(layer.spec),
            module=layer.module,
            level="token" if layer.spec.reduce == "all" else "probe",
            values=values[str(layer.spec)],
        )
        for layer in layers
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
        dtype=task.dtype if rounding is None else moved_dtype(task.dtype),
        layers=arrays,
        attrs=made,
        verified=task.verified,
    )
    return StagedLayers(staged, tuple(array.row for array in arrays))


def _measure_loss(task: ReplayTask, device: str, progress: Callable[[int], None] | None) -> TokenLosses | str:
    from replay.models import load_language_model

    try:
        return token_losses(
            load_language_model(task.folder, dtype=task.dtype, device=device),
            _token_ids(task.root, task.tokens, task.n_probes),
            batch_tokens=task.batch_tokens,
            device=device,
            progress=progress,
        )
    except (Unavailable, MismatchedWeights) as error:  # of the head: the layers have been replayed
        return str(error)


def _rank_weights(task: ReplayTask) -> dict[str, WeightRank | str]:
    from replay.models import read_weights

    return weight_ranks(read_weights(task.folder, file=task.file))


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

    weighing = weigh(read_weights(task.folder, file=task.file))
    arrays = weighing_arrays(weighing)
    return stage_weighing(
        task.root, weights=task.weights, version=WEIGHING_VERSION, groups=weighing.groups, arrays=arrays
    )


def _token_ids(root: Path, segment: str, n_probes: int) -> Sequence[Sequence[int]]:
    table = read_tokens(root, segment)
    bounds = np.searchsorted(table["token_probe"], np.arange(n_probes + 1))
    ids = table["token_id"].tolist()
    return [ids[start:stop] for start, stop in pairwise(bounds.tolist())]
