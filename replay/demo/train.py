"""Trains the demonstration's replicas: one small GPT-NeoX from several seeds, every checkpoint a complete folder."""

import csv
import io
import math
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from replay.demo.corpus import build_tokenizer, cut_blocks, read_corpus

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Loss", "Recipe", "is_complete", "read_losses", "train_replica", "train_replicas", "train_tokenizer"]


@dataclass(frozen=True)
class Recipe:
    """How a replica is built and trained; its seed sets the initial weights and the order of the data."""

    steps: tuple[int, ...] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768)
    """Optimizer steps after which a checkpoint is kept; training ends at the last."""
    n_layers: int = 4
    """Transformer blocks."""
    n_heads: int = 4
    """Attention heads in each block."""
    n_features: int = 64
    """Width of the residual stream."""
    n_vocabulary: int = 2048
    """Tokens the tokenizer may learn."""
    n_positions: int = 128
    """Longest text the model takes, in tokens."""
    n_context: int = 64
    """Length of a training sequence, in tokens."""
    n_batch: int = 8
    """Training sequences in a step."""
    learning_rate: float = 5e-3
    """Highest learning rate, reached after the warm-up; it then falls along a cosine to a tenth."""
    n_warmup: int = 64
    """Steps over which the learning rate rises from zero."""

    def learning_rate_at(self, step: int) -> float:
        """Give the learning rate of the update that leads to `step` (from 1)."""
        if step <= self.n_warmup:
            return self.learning_rate * step / self.n_warmup
        done = (step - self.n_warmup) / (self.steps[-1] - self.n_warmup)
        return self.learning_rate * (0.55 + 0.45 * math.cos(math.pi * done))


class Loss(NamedTuple):
    """The loss at one checkpoint, in nats a token."""

    step: int
    tokens: int
    """Tokens trained on so far."""
    validation: float
    """On text held out of the training."""


def train_replicas(folder: Path, *, seeds: Sequence[int] = (1, 2, 3), recipe: Recipe = Recipe()) -> list[Path]:
    """Train one replica for each seed under `folder`, side by side; those that are complete are left as they are.

    Each trains on one thread of a process of its own: two threads on small matrices gain little, and lose tenfold
    when another program wants one of the cores. Progress is drawn on stderr where that is a terminal.

    Returns
    -------
    list of Path
        The replicas' folders `replica-seed<N>`, in the order of the seeds.
    """
    from rich.console import Console
    from rich.progress import Progress

    replicas = {seed: folder / f"replica-seed{seed}" for seed in seeds}
    missing = [seed for seed, replica in replicas.items() if not is_complete(replica, recipe)]
    if not missing:
        return list(replicas.values())
    console = Console(stderr=True)
    context = multiprocessing.get_context("spawn")
    counts = context.Array("i", len(missing), lock=False)
    with (
        Progress(console=console, disable=not console.is_terminal, transient=True) as progress,
        ProcessPoolExecutor(len(missing), context, _begin_worker, (counts,)) as pool,
    ):
        tasks = [progress.add_task(replicas[seed].name, total=recipe.steps[-1]) for seed in missing]
        tokenizer = train_tokenizer(recipe)
        running = {
            pool.submit(_train_in_worker, index, replicas[seed], seed, recipe, tokenizer)
            for index, seed in enumerate(missing)
        }
        while running:
            finished, running = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            for task, count in zip(tasks, counts, strict=True):
                progress.update(task, completed=count)
            for future in finished:
                future.result()
    return list(replicas.values())


def train_replica(
    folder: Path,
    *,
    seed: int,
    recipe: Recipe = Recipe(),
    tokenizer: Any = None,
    advance: Callable[[], None] = lambda: None,
) -> None:
    """Train one replica from scratch, writing `folder/step<N>/` at every step of the recipe and `folder/losses.csv`.

    A replica whose last checkpoint exists is left as it is. One that was stopped on the way is trained again from its
    seed, which gives the same weights, and only what is missing is written.

    Parameters
    ----------
    folder
        The replica's folder; made if missing.
    seed
        Sets the initial weights and the order of the data. One seed gives the same bytes on one machine.
    recipe
        The model and its training.
    tokenizer
        The one that several replicas share; by default what `train_tokenizer` gives for the recipe.
    advance
        Called after every optimizer step.
    """
    if is_complete(folder, recipe):
        return
    with _one_quiet_thread():
        _train(folder, seed=seed, recipe=recipe, tokenizer=tokenizer or train_tokenizer(recipe), advance=advance)


def train_tokenizer(recipe: Recipe) -> Any:
    """Train the tokenizer of a recipe on the corpus, its held-out part left aside."""
    return build_tokenizer(read_corpus().train, n_vocabulary=recipe.n_vocabulary, max_length=recipe.n_positions)


def is_complete(folder: Path, recipe: Recipe) -> bool:
    """Say whether the replica in `folder` has its last checkpoint, which is written last."""
    return _checkpoint(folder, recipe.steps[-1]).exists()


def read_losses(folder: Path) -> list[Loss]:
    """Read the losses that the training of a replica recorded, by step."""
    with (folder / "losses.csv").open(encoding="utf-8", newline="") as file:
        return [Loss(int(row["step"]), int(row["tokens"]), float(row["validation"])) for row in csv.DictReader(file)]


# How many steps each replica has made, as the parent draws it: shared memory, set once in each worker.
_counts: Any = None


def _begin_worker(counts: Any) -> None:
    global _counts  # noqa: PLW0603 - the one way that a pool hands shared memory to its workers
    _counts = counts
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the parent tells the user; a worker only stops


def _train_in_worker(index: int, folder: Path, seed: int, recipe: Recipe, tokenizer: Any) -> None:
    parent = multiprocessing.parent_process()

    def advance() -> None:
        _counts[index] += 1
        if parent is not None and not parent.is_alive():
            os._exit(1)  # killed: without this the orphan would train on, beside its successor in the same folder

    train_replica(folder, seed=seed, recipe=recipe, tokenizer=tokenizer, advance=advance)


def _train(folder: Path, *, seed: int, recipe: Recipe, tokenizer: Any, advance: Callable[[], None]) -> None:
    import torch

    paragraphs = read_corpus()
    train = cut_blocks(paragraphs.train, tokenizer, n_context=recipe.n_context)
    validation = cut_blocks(paragraphs.validation, tokenizer, n_context=recipe.n_context)
    model = _build_model(recipe, seed=seed)
    decayed = [weight for weight in model.parameters() if weight.dim() > 1]
    others = [weight for weight in model.parameters() if weight.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    batches = _batches(train, recipe.n_batch, seed=seed)
    losses: list[Loss] = []
    for step in range(recipe.steps[-1] + 1):
        if step:
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate_at(step)
            optimizer.zero_grad(set_to_none=True)
            _loss(model, next(batches)).backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            advance()
        if step in recipe.steps:
            n_tokens = step * recipe.n_batch * recipe.n_context
            losses.append(Loss(step, n_tokens, _validate(model, validation)))
            # Before the checkpoint: once the last one exists nothing is trained, so nothing would record its loss.
            _write_losses(folder, losses)
            _write_checkpoint(_checkpoint(folder, step), model, tokenizer)


def _build_model(recipe: Recipe, *, seed: int) -> Any:
    import torch
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config = GPTNeoXConfig(
        vocab_size=recipe.n_vocabulary,
        hidden_size=recipe.n_features,
        intermediate_size=4 * recipe.n_features,
        num_hidden_layers=recipe.n_layers,
        num_attention_heads=recipe.n_heads,
        max_position_embeddings=recipe.n_positions,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers go on as if nothing had been built
        torch.manual_seed(seed)
        return GPTNeoXForCausalLM(config).train()


def _batches(blocks: "Tensor", n_batch: int, *, seed: int) -> Iterator["Tensor"]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(blocks), generator=generator)
        for start in range(0, len(blocks) - n_batch + 1, n_batch):
            yield blocks[order[start : start + n_batch]]


def _loss(model: Any, ids: "Tensor") -> "Tensor":
    from torch.nn.functional import cross_entropy

    logits: Tensor = model(input_ids=ids[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def _validate(model: Any, blocks: "Tensor") -> float:
    import torch

    with torch.inference_mode():
        parts = [blocks[start : start + 32] for start in range(0, len(blocks), 32)]
        return math.fsum(_loss(model, part).item() * len(part) for part in parts) / len(blocks)


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"step{step}"


def _write_checkpoint(target: Path, model: Any, tokenizer: Any) -> None:
    # A folder named step<N> is either whole or not there, though the process be killed while it is written.
    if target.exists():
        return
    aside = target.with_name(f".{target.name}.part")
    shutil.rmtree(aside, ignore_errors=True)
    model.save_pretrained(aside)
    tokenizer.save_pretrained(aside)
    aside.rename(target)


def _write_losses(folder: Path, losses: list[Loss]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(Loss._fields)
    writer.writerows((loss.step, loss.tokens, f"{loss.validation:.4f}") for loss in losses)
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / ".losses.csv.part"
    aside.write_text(table.getvalue(), encoding="utf-8")
    aside.replace(folder / "losses.csv")


@contextmanager
def _one_quiet_thread() -> Iterator[None]:
    """Keep torch to one thread, by which sums are split, and transformers from a bar for every checkpoint."""
    import torch
    from transformers.utils import logging

    n_threads, bars = torch.get_num_threads(), logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
        if bars:
            logging.enable_progress_bar()
