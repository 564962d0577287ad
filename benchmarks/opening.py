"""Opening a long history and reading one layer of one revision, beside a folder of .npy files that a user would keep.

Run with ``python benchmarks/opening.py``; it needs about 1 GB of disk for a minute.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from replay.opening import open_store
from store.catalog import Store
from store.commits import (
    LayerArray,
    RevisionRecord,
    commit_activations,
    commit_tokens,
    put_capture,
    put_probe_set,
    put_run,
    stage_activations,
)
from store.keys import replay_key

N_REVISIONS, N_LAYERS, N_PROBES, WIDTH = 154, 13, 512, 128
REPEATS = 9


def fill(root: Path, plain: Path) -> None:
    """Write the same history as a store and as one .npy file a revision."""
    store = open_store(root, write=True)
    put_probe_set(store, "bench", digest="d" * 64, probes=[(f"probe {i}", None, None) for i in range(N_PROBES)])
    capture = put_capture(store, probe_set="d" * 64, max_length=128, dtype="float32")
    tokens = commit_tokens(store, tokenizer="t", capture=capture, token_ids=[[1]] * N_PROBES)
    records = [RevisionRecord(f"step{i}", step=i, weights=f"w{i}", tokenizer="t") for i in range(N_REVISIONS)]
    put_run(store, "bench/run", source="hub", location="bench/run", records=records)
    rng = np.random.default_rng(0)
    plain.mkdir()
    for number in range(N_REVISIONS):
        values = rng.normal(size=(N_LAYERS, N_PROBES, WIDTH)).astype(np.float32)
        np.save(plain / f"step{number}.npy", values)
        layers = [LayerArray(f"blocks[{i}]:output:mean", f"layers.{i}", "probe", values[i]) for i in range(N_LAYERS)]
        identity: dict[str, Any] = {"weights": f"w{number}", "tokens": tokens, "dtype": "float32"}
        claim = replay_key(**identity)
        store.index.claim(claim)
        staged = stage_activations(root, layers=layers, attrs={}, **identity)
        commit_activations(store, staged, layers=[layer.row for layer in layers], claim=claim, **identity)
        store.index.release(claim)


def median(task: Callable[[int], object]) -> float:
    """Return the median seconds of a task, after one unmeasured call."""
    task(0)
    seconds = []
    for repeat in range(REPEATS):
        start = time.perf_counter()
        task(repeat)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def main() -> None:
    """Print the medians."""
    with tempfile.TemporaryDirectory() as folder:
        root, plain = Path(folder) / "store", Path(folder) / "plain"
        start = time.perf_counter()
        fill(root, plain)
        written = time.perf_counter() - start
        print(f"{N_REVISIONS} revisions x {N_LAYERS} layers x {N_PROBES} probes x {WIDTH}: written in {written:.1f} s")

        def select(repeat: int) -> object:
            run = Store(root).activations("bench/run")["activations"]
            return run.sel(revision=f"step{repeat * 7}", layer=f"blocks[{repeat}]:output:mean").to_numpy()

        def by_hand(repeat: int) -> object:
            return np.array(np.load(plain / f"step{repeat * 7}.npy", mmap_mode="r")[repeat])

        opening = median(lambda _: Store(root).activations("bench/run"))
        ours, theirs = median(select), median(by_hand)
        print(f"open the run, lazily                    {opening * 1e3:7.1f} ms")
        print(f"open and read one revision and layer    {ours * 1e3:7.1f} ms")
        print(f"the same from a .npy file by its name   {theirs * 1e3:7.1f} ms")


if __name__ == "__main__":
    main()
