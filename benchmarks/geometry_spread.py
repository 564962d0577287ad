"""Spread between runs, from stored activations to a stored result, beside what a user would write: medians of CPU time.

Run with ``OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 python benchmarks/geometry_spread.py [--quick]``. Every repeat has
activations and a store of its own, so that nothing is kept from one to the next. What is ours reads them from the store
and ends with intervals over probes and over runs in it; the others have them in memory and end with the mean distance
of each step. They take every step alike, and are timed on a few, scaled.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from baselines_geometry import careful_operator as careful
from baselines_geometry import power_law as activations
from baselines_geometry import recipe_operator as recipe

from replay.analyses.spread import analyze_spread
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

N_PROBES, N_RUNS, N_STEPS, REPEATS = 1000, 5, 20, 3
TIMED_STEPS = 3
DIGEST = "d" * 64

Matrix = npt.NDArray[np.floating[Any]]
Runs = list[list[npt.NDArray[np.float32]]]
"""Activations of each run at each step."""


def converging_runs(n_probes: int, n_runs: int, n_steps: int, seed: int) -> Runs:
    """Make runs that share what they see and differ by noise, which falls as they are trained."""
    rng, common = np.random.default_rng(seed), activations(n_probes)
    levels = 0.2 + 2.0 * np.exp(-np.arange(n_steps) * 20 / n_steps / 6)
    return [
        [common + np.float32(level) * rng.standard_normal(common.shape, np.float32) for level in levels]
        for _ in range(n_runs)
    ]


def fill(root: Path, runs: Runs) -> Store:
    """Commit the activations of runs as an ingest of one layer does."""
    store = open_store(root, write=True)
    n_probes = len(runs[0][0])
    put_probe_set(store, "probes", digest=DIGEST, probes=[(f"probe {i}", None, None) for i in range(n_probes)])
    capture = put_capture(store, probe_set=DIGEST, max_length=128, dtype="float32")
    tokens = commit_tokens(store, tokenizer="t", capture=capture, token_ids=[[1]] * n_probes)
    for run, history in enumerate(runs):
        weights = [f"weights {run} {step}" for step in range(len(history))]
        revisions = [
            RevisionRecord(f"step{step}", step=step, weights=digest, tokenizer="t")
            for step, digest in enumerate(weights)
        ]
        put_run(store, f"run{run}", source="hub", location=f"run{run}", records=revisions)
        for digest, X in zip(weights, history, strict=True):
            layer = LayerArray("blocks[0]:output:mean", "blocks.0", "probe", X)
            claim = replay_key(weights=digest, tokens=tokens, dtype="float32")
            store.index.claim(claim)
            staged = stage_activations(root, weights=digest, tokens=tokens, dtype="float32", layers=[layer], attrs={})
            commit_activations(
                store, staged, weights=digest, tokens=tokens, dtype="float32", layers=[layer.row], claim=claim
            )
            store.index.release(claim)
    return store


def older(X: Matrix) -> Matrix:
    return recipe(X.astype(np.float64), 0.0)


def users(X: Matrix) -> Matrix:
    return careful(X, 1.0)


def mean_distances(gauge: Callable[[Matrix], Matrix], runs: Runs, steps: Sequence[int]) -> list[float]:
    """Write the definition of the spread down, step by step."""
    spreads = []
    for step in steps:
        operators = [gauge(history[step]) for history in runs]
        spreads.append(float(np.mean([np.linalg.norm(P - Q, "fro") for P, Q in combinations(operators, 2)])))
    return spreads


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call, those of all its threads."""
    start = time.process_time()
    call()
    return time.process_time() - start


def measure(n_probes: int, n_runs: int, n_steps: int, *, repeats: int) -> npt.NDArray[np.float64]:
    """Time the same spread in turns: CPU seconds (repeat, way), ways being recipe, careful and ours."""
    every = -(-n_steps // TIMED_STEPS)
    steps = range(every // 2, n_steps, every)
    seconds = []
    for repeat in range(repeats):
        runs = converging_runs(n_probes, n_runs, n_steps, seed=repeat)
        with tempfile.TemporaryDirectory() as folder:
            ours = cpu_seconds(partial(analyze_spread, fill(Path(folder) / "store", runs)))
        others = [cpu_seconds(partial(mean_distances, gauge, runs, steps)) for gauge in (older, users)]
        seconds.append([other * n_steps / len(steps) for other in others] + [ours])
    return np.array(seconds)


def headline(sizes: Sequence[int], n_runs: int, n_steps: int, repeats: int) -> None:
    print("probes, runs, steps   recipe s  careful s  ours s   x recipe (range)     x careful (range)")
    for n in sizes:
        seconds = measure(n, n_runs, n_steps, repeats=repeats)
        ratios = (seconds[:, :2] / seconds[:, 2:]).T
        spans = "  ".join(f"{np.median(r):6.1f} ({min(r):.1f} to {max(r):.1f})" for r in ratios)
        a, b, c = np.median(seconds, axis=0)
        print(f"{n:>6}, {n_runs}, {n_steps:<9} {a:>8.2f} {b:>10.2f} {c:>7.2f}   {spans}", flush=True)


def growth(axis: str, values: Sequence[int], size: dict[str, int], theory: str) -> None:
    """Fit the exponent with which the time grows along one axis, the others held."""
    found = [np.median(measure(**{**size, axis: v}, repeats=2), axis=0) for v in values]
    slopes = np.polyfit(np.log(values), np.log(found), 1)[0]
    last = np.log(found[-1] / found[-2]) / np.log(values[-1] / values[-2])
    columns = "  ".join(f"{slope:.2f} ({end:.2f})" for slope, end in zip(slopes, last, strict=True))
    print(f"{axis[2:]:7} {list(values)!s:24} {columns}   {theory}", flush=True)


def main() -> None:
    measure(30, 3, 3, repeats=1)  # imports
    if "--quick" in sys.argv[1:]:
        headline([N_PROBES], N_RUNS, TIMED_STEPS, 3)
        return
    headline([N_PROBES], N_RUNS, N_STEPS, REPEATS)
    headline([500, 1000, 2000], N_RUNS, TIMED_STEPS, REPEATS)
    size = {"n_probes": 500, "n_runs": 3, "n_steps": TIMED_STEPS}
    print("exponents of growth (between the last two): recipe, careful, ours; in theory")
    growth("n_probes", [250, 500, 1000, 2000], size, "2: n²d for the distances, n² for the rest")
    growth("n_steps", [3, 6, 12], size, "1")
    growth("n_runs", [2, 4, 8], size, "1 for operators, 2 for pairs")


if __name__ == "__main__":
    main()
