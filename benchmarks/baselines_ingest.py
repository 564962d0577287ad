"""What a user would write instead of an ingest: one checkpoint, its blocks pooled over the tokens, one .npy file.

Needs nothing of replay, so that the tools of others can be timed in an environment of their own. As a program::

    python benchmarks/baselines_ingest.py TOOL FOLDER TEXTS.json TARGET.npy

runs the loop once over a few texts, then over all of them, and prints the wall and CPU seconds of the second as JSON.
It takes as many threads as ``OMP_NUM_THREADS`` says.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["LOOPS", "transformers_loop"]

N_WARM = 32
"""Texts of the run that is not timed."""


def transformers_loop(folder: str, texts: list[str], target: Path, *, n_texts: int = 16) -> None:
    """Replay ``texts`` in their order with transformers alone and save (block, probe, feature).

    The last block is what ``hidden_states`` calls so: the output of the final norm.
    """
    model = AutoModelForCausalLM.from_pretrained(folder)
    pooled = []
    with torch.no_grad():
        for batch in _batches(folder, texts, n_texts):
            states = model(**batch, output_hidden_states=True).hidden_states[1:]
            pooled.append(_pool(states, batch["attention_mask"]))
    np.save(target, torch.cat(pooled, dim=1).numpy())


def lens_loop(folder: str, texts: list[str], target: Path, *, n_texts: int = 16) -> None:
    """Do the same with TransformerLens, which captures the residual stream after each block and makes no logits."""
    from transformer_lens.model_bridge import TransformerBridge  # type: ignore[import-not-found] # has its own place

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = TransformerBridge.boot_transformers(
        folder, hf_model=AutoModelForCausalLM.from_pretrained(folder), tokenizer=tokenizer
    )
    names = [f"blocks.{block}.hook_resid_post" for block in range(model.cfg.n_layers)]
    pooled = []
    with torch.no_grad():
        for batch in _batches(folder, texts, n_texts):
            mask = batch["attention_mask"]
            _, cache = model.run_with_cache(
                batch["input_ids"], attention_mask=mask, names_filter=names, return_type=None
            )
            pooled.append(_pool([cache[name] for name in names], mask))
    np.save(target, torch.cat(pooled, dim=1).numpy())


def nnsight_loop(folder: str, texts: list[str], target: Path, *, n_texts: int = 16) -> None:
    """Do the same with nnsight, which saves the output of each block in a trace."""
    from nnsight import TransformersModel  # type: ignore[import-not-found] # has its own place

    model = TransformersModel(folder, task="text-generation", dispatch=True)
    pooled = []
    with torch.no_grad():
        for batch in _batches(folder, texts, n_texts):
            with model.trace(batch):
                outputs: Any = [layer.output for layer in model.gpt_neox.layers]
                states = outputs.save()
            pooled.append(_pool(states, batch["attention_mask"]))
    np.save(target, torch.cat(pooled, dim=1).numpy())


LOOPS: dict[str, Callable[..., None]] = {
    "transformers": transformers_loop,
    "transformer-lens": lens_loop,
    "nnsight": nnsight_loop,
}


def _batches(folder: str, texts: list[str], n_texts: int) -> Iterator[dict[str, torch.Tensor]]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for start in range(0, len(texts), n_texts):
        batch = tokenizer(texts[start : start + n_texts], padding=True, return_tensors="pt")
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}


def _pool(states: Any, mask: torch.Tensor) -> torch.Tensor:
    weights = mask.unsqueeze(-1)
    return torch.stack([(state * weights).sum(dim=1) / weights.sum(dim=1) for state in states])


def main() -> None:
    """Time one loop."""
    tool, folder, texts_file, target = sys.argv[1:]
    texts = json.loads(Path(texts_file).read_text())
    loop = LOOPS[tool]
    loop(folder, texts[:N_WARM], Path(target))
    wall, cpu = time.perf_counter(), time.process_time()
    loop(folder, texts, Path(target))
    print(json.dumps({"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}))


if __name__ == "__main__":
    main()
