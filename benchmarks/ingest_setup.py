"""What the rows of ``ingest.py`` share: models on disk, clocks, and an ingest in this process or in a fresh one."""

import importlib
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import click

ROOT = Path(__file__).parents[1]
THREADS = 2
N_WARM = 32
"""Probes of the replays that are not timed."""

SHAPE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048}
TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
N_POSITIONS, VOCABULARY, SMALL_VOCABULARY = 2048, 50304, 4096
HEAD = "embed_out."

_T = TypeVar("_T")


class Seconds(NamedTuple):
    """What a piece of work took, of wall clock and of CPU time."""

    wall: float
    cpu: float


class Ratios(NamedTuple):
    """How many times longer one thing took than another, repetition by repetition."""

    wall: list[float]
    cpu: list[float]

    def __str__(self) -> str:
        """Return the medians with their ranges."""
        return f"{spread(self.wall)} x, CPU time {spread(self.cpu)} x"


class Ingested(NamedTuple):
    """What an ingest took."""

    planning: Seconds
    replaying: Seconds
    peak_bytes: int
    """Peak resident memory of the process so far."""


class Line(NamedTuple):
    """A line of the final table."""

    row: int
    what: str
    measured: str
    target: str
    met: bool


@dataclass
class Bench:
    """What the rows share: sizes, checkpoints on disk, the emulator, the lines of the final table."""

    folder: Path
    hub: Any
    environments: Path
    repeats: int
    n_probes: int
    n_overlapped: int
    """Revisions of row 5."""
    n_present: int
    """Revisions of row 8."""
    lines: list[Line] = field(default_factory=list)

    @cached_property
    def texts(self) -> list[str]:
        from replay.probes import builtin_probes

        return list(builtin_probes().texts[: self.n_probes])

    @cached_property
    def tokenizer(self) -> Any:
        from replay.demo.corpus import build_tokenizer, read_corpus

        paragraphs = [text for part in read_corpus() for text in part]
        return build_tokenizer(paragraphs, n_vocabulary=SMALL_VOCABULARY, max_length=N_POSITIONS)

    @cached_property
    def full(self) -> Path:
        return self.write_run("full", SHAPE, n_vocabulary=VOCABULARY, n_steps=2)

    @cached_property
    def half(self) -> Path:
        return self.write_run("half", SHAPE, n_vocabulary=VOCABULARY, n_steps=1, dtype="float16")

    @cached_property
    def small(self) -> Path:
        return self.write_run("small", SMALL, n_vocabulary=SMALL_VOCABULARY, n_steps=self.n_overlapped)

    @cached_property
    def tiny(self) -> Path:
        return self.write_run("tiny", TINY, n_vocabulary=SMALL_VOCABULARY, n_steps=self.n_present)

    def write_run(
        self, name: str, shape: Mapping[str, int], *, n_vocabulary: int, n_steps: int, dtype: str = "float32"
    ) -> Path:
        """Write ``step0``, ``step1`` … of one random model whose weights grow a little with each step."""
        import torch
        from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.manual_seed(0)
        config = GPTNeoXConfig(
            vocab_size=n_vocabulary,
            max_position_embeddings=N_POSITIONS,
            rotary_pct=0.25,
            use_parallel_residual=True,
            bos_token_id=0,
            eos_token_id=0,
            **shape,
        )
        model = GPTNeoXForCausalLM(config).to(getattr(torch, dtype))
        for step in range(n_steps):
            model.save_pretrained(self.folder / name / f"step{step}")
            self.tokenizer.save_pretrained(self.folder / name / f"step{step}")
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(1.001)
        os.sync()  # or the disk would still be busy with it while the first row is timed
        return self.folder / name

    def scratch(self) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def publish(self, run: Path) -> str:
        """Serve each step of a run as a branch of a repository."""
        repo = f"bench/{run.name}"
        for step in run.iterdir():
            self.hub.commit(repo, step.name, folder=step)
        return repo

    def add(self, row: int, what: str, measured: str, target: str, *, met: bool) -> None:
        """Print a result and keep it for the final table."""
        print(f"  {what}: {measured}", flush=True)
        self.lines.append(Line(row, what, measured, target, met))


def timed(call: Callable[[], _T]) -> tuple[_T, Seconds]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return result, Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def in_child(call: Callable[..., _T], *args: Any, **options: Any) -> _T:
    """Call a function in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(call, *args, **options).result()


def run(*command: object) -> str:
    """Run a program in the root of the repository and return what it prints."""
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, check=False)  # noqa: S603 (our own commands)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise click.ClickException(f"{Path(str(command[0])).name} exited with {done.returncode}: {last}")
    return done.stdout


def peak_bytes() -> int:
    """Return the peak resident memory of this process; ``ru_maxrss`` would be the parent's if that was larger."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def spread(values: Sequence[float]) -> str:
    """Write a median and its range."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def walls(seconds: Sequence[Seconds]) -> list[float]:
    return [each.wall for each in seconds]


def ratios(theirs: Sequence[Seconds], ours: Sequence[Seconds]) -> Ratios:
    pairs = list(zip(theirs, ours, strict=True))
    return Ratios([a.wall / b.wall for a, b in pairs], [a.cpu / b.cpu for a, b in pairs])


def rotated(names: Sequence[_T], by: int) -> list[_T]:
    """Return the names from another one on, so that none always comes first."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def make_bench_plan(
    root: Path, *, n_probes: int, repo: str | None, path: Path | None, **request: Any
) -> tuple[Any, Any]:
    from replay.opening import open_store
    from replay.plan import IngestRequest, make_plan
    from replay.probes import ProbeSet, builtin_probes
    from replay.sources import open_sources

    store = open_store(root, write=True)
    probes = ProbeSet("bench", builtin_probes().probes[:n_probes])
    sources = open_sources(store, repos=[repo] if repo else [], paths=[path] if path else [])
    return store, make_plan(store, sources, IngestRequest(probes=probes, device="cpu", **request))


def ingest_once(
    root: Path,
    *,
    n_probes: int,
    repo: str | None = None,
    path: Path | None = None,
    revision: str = "all",
    warm: Path | None = None,
    **request: Any,
) -> Ingested:
    """Ingest into a new store; with ``warm``, after an ingest of a checkpoint from there that is not timed."""
    from replay.ingest import ingest

    if warm is not None:
        ingest_once(root / "warm", n_probes=N_WARM, path=warm, revision="step0", **request)
    options = {"n_probes": n_probes, "repo": repo, "path": path, "revisions": (revision,), **request}
    (store, plan), planning = timed(lambda: make_bench_plan(root / "store", **options))
    outcomes, replaying = timed(lambda: list(ingest(store, plan)))
    reasons = [outcome.error for outcome in outcomes if outcome.error]
    reasons += [record.error for run in plan.runs for record in run.failed]
    if reasons or not outcomes:
        raise RuntimeError(f"{len(outcomes)} checkpoints were ingested, {len(reasons)} not: {reasons[:1]}")
    return Ingested(planning, replaying, peak_bytes())


def fetch_once(root: Path, *, repo: str, n_probes: int) -> Seconds:
    """Fetch the checkpoints of a repository one after another, as an ingest would, and replay none."""
    _, plan = make_bench_plan(root / "store", n_probes=n_probes, repo=repo, path=None, revisions=("all",))

    def fetch_all() -> None:
        for job in plan.jobs:
            with job.source.fetch(job.record, job.names, root / "fetched"):
                pass

    return timed(fetch_all)[1]


def interpreter_bytes() -> int:
    """Return the peak memory of a process that has imported what an ingest imports."""
    for name in ("torch", "transformers.models.gpt_neox.modeling_gpt_neox", "zarr", "replay.ingest"):
        importlib.import_module(name)
    return peak_bytes()


def stored(root: Path) -> Any:
    """Read what `ingest_once` stored of one revision: (block, probe, feature)."""
    from replay.opening import open_store

    store = open_store(root / "store")
    return store.activations(store.runs()["run"][0])["activations"].isel(revision=0).to_numpy()
