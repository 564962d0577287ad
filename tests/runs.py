"""Small training runs written to disk as a trainer would, and the probes that are replayed through them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small_models import small_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 300
_WORDS = ("river", "stone", "light", "winter", "market", "garden", "engine", "letter", "music", "harbour", "silver")


def write_probes(path: Path, n_probes: int) -> Path:
    """Write distinct short texts of varied length with two labels."""
    rng = np.random.default_rng(0)
    lines = []
    for number in range(n_probes):
        text = " ".join([*rng.choice(_WORDS, size=1 + number % 7), str(number)])
        lines.append(json.dumps({"text": text, "label": "odd" if number % 2 else "even", "id": f"p{number}"}))
    path.write_text("\n".join(lines) + "\n")
    return path


def tokenizer(padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer, one token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<end>": 0} | {character: number + 1 for number, character in enumerate(alphabet)}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, eos_token="<end>", pad_token="<end>", padding_side=padding_side, model_max_length=64
    )


def write_model(folder: Path, *, seed: int, step: int, family: str = "gpt_neox", **saving: Any) -> Path:
    """Write one checkpoint: weights that move from a shared start towards a place of the seed's own."""
    model = small_model(family, head=True, vocab_size=VOCABULARY)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * (1 + step) ** 0.5 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder, **saving)
    tokenizer().save_pretrained(folder)
    return folder


def write_run(folder: Path, *, seed: int, steps: Sequence[int], family: str = "gpt_neox") -> Path:
    """Write a run as a folder of ``step*/`` folders."""
    for step in steps:
        write_model(folder / f"step{step}", seed=seed, step=step, family=family)
    return folder


def write_bin(folder: Path, target: Path) -> Path:
    """Write the checkpoint of ``folder`` as ``pytorch_model.bin``."""
    from safetensors.torch import load_file

    shutil.copytree(folder, target)
    torch.save(load_file(target / "model.safetensors"), target / "pytorch_model.bin")
    (target / "model.safetensors").unlink()
    return target
