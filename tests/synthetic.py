"""Stores of made-up activations, written without any model."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

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
from store.keys import content_key, replay_key

Histories = dict[str, dict[int, dict[str, npt.NDArray[np.float32]]]]
"""Activations (probe, feature) by run, step and block name."""


def write_store(root: Path, histories: Histories) -> Store:
    """Write, or add to, a store of these activations; probes have two labels in turn."""
    store = open_store(root, write=True)
    n_probes = len(next(iter(next(iter(next(iter(histories.values())).values())).values())))
    digest = content_key("made up", n=n_probes)
    probes = [(f"probe {i}", "odd" if i % 2 else "even", f"p{i}") for i in range(n_probes)]
    put_probe_set(store, f"made-up-{n_probes}", digest=digest, probes=probes)
    capture = put_capture(store, probe_set=digest, max_length=128, dtype="float32")
    tokens = commit_tokens(store, tokenizer="t", capture=capture, token_ids=[[i] for i in range(n_probes)])
    for run, steps in histories.items():
        records = [
            RevisionRecord(f"step{step}", step=step, weights=f"{run}-{step}", tokenizer="t") for step in sorted(steps)
        ]
        put_run(store, run, source="folder", location=run, records=records)
        for step, layers in steps.items():
            arrays = [LayerArray(f"{name}:output:mean", name, "probe", X) for name, X in layers.items()]
            identity: dict[str, Any] = {"weights": f"{run}-{step}", "tokens": tokens, "dtype": "float32"}
            claim = replay_key(**identity)
            if not store.index.claim(claim):
                continue
            staged = stage_activations(root, layers=arrays, attrs={}, **identity)
            commit_activations(store, staged, layers=[array.row for array in arrays], claim=claim, **identity)
            store.index.release(claim)
    return store


def histories(
    *, runs: int = 3, steps: int = 5, layers: int = 2, n_probes: int = 40, width: int = 12, seed: int = 0
) -> Histories:
    """Return runs that move from a shared noise towards shared clusters, each with a little noise of its own."""
    rng = np.random.default_rng(seed)
    start = [rng.normal(size=(n_probes, width)) for _ in range(layers)]
    end = [3 * rng.normal(size=(4, width))[np.arange(n_probes) % 4] for _ in range(layers)]
    made: Histories = {}
    for run in range(runs):
        noise = rng.normal(size=(layers, n_probes, width))
        made[f"run{run}"] = {}
        for number in range(steps):
            share = number / (steps - 1)
            made[f"run{run}"][number * 100] = {
                f"blocks[{layer}]": (
                    (1 - share) * start[layer] + share * end[layer] + 0.5 * noise[layer] * (1.2 - share)
                ).astype(np.float32)
                for layer in range(layers)
            }
    return made
