"""Which files of a checkpoint matter: one weight set, the config, the tokenizer; and the digests made of them."""

import hashlib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from store.commits import RevisionRecord
from store.errors import MissingWeights
from store.keys import content_key, weights_digest

__all__ = [
    "CONFIG",
    "Wanted",
    "choose_weights",
    "describe_files",
    "is_of_a_set",
    "is_weight_file",
    "sha256",
    "tokenizer_files",
]

CONFIG = "config.json"

Wanted = Callable[[str], bool]
"""Tells of a tensor's name in a checkpoint whether it is needed."""

_FORMATS = (("model", "safetensors"), ("pytorch_model", "bin"))
_PLAIN = (".bin", ".ckpt", ".pt", ".pth", ".safetensors")
# what trainers keep beside the weights in files of the same formats
_OTHERS = re.compile(
    r"(^|[._-])(optim|optimizer|scheduler|lr_scheduler|rng_state|random_states|training_args|scaler)([._-]|\d|$)"
)
_TOKENIZER = {
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
}


def choose_weights(names: Collection[str]) -> list[str]:
    """Return the one weight set to load: single safetensors, sharded safetensors, single bin, sharded bin.

    Of a sharded set every shard there is counts, also those of another count beside it: which ones are loaded only the
    index says, and a digest has to cover them all.

    Raises
    ------
    MissingWeights
        If no set is complete; the first missing shard is named.
    """
    missing: list[str] = []
    for stem, suffix in _FORMATS:
        single, index = f"{stem}.{suffix}", f"{stem}.{suffix}.index.json"
        if single in names:
            return [single]
        shards = {name: m[2] for name in names if (m := re.fullmatch(rf"{stem}-(\d+)-of-(\d+)\.{suffix}", name))}
        if index not in names or not shards:
            continue
        lacking = {
            total: [
                name
                for i in range(1, int(total) + 1)
                if (name := f"{stem}-{i:0{len(total)}d}-of-{total}.{suffix}") not in names
            ]
            for total in sorted(set(shards.values()))
        }
        if not all(lacking.values()):
            return [index, *sorted(shards)]
        nearest = min(lacking.values(), key=len)
        missing += nearest
    if missing:
        raise MissingWeights(f"{len(missing)} weight shards are missing, the first is {missing[0]}")
    raise MissingWeights(
        "no weights that can be loaded: expected model.safetensors, pytorch_model.bin or their shards with an index; "
        f"there is {', '.join(sorted(names)[:8]) or 'no file'}"
    )


def is_weight_file(name: str) -> bool:
    """Return whether ``name`` is a file of weights: one of a set of a transformers model, or a plain one."""
    return name.endswith(_PLAIN) and not _OTHERS.search(name)


def is_of_a_set(name: str) -> bool:
    """Return whether ``name`` is a large file of a weight set, known by its sha256 and not by its git blob id."""
    return any(name.startswith(stem) and name.endswith(suffix) for stem, suffix in _FORMATS)


def tokenizer_files(names: Collection[str]) -> list[str]:
    """Return the files among ``names`` that a tokenizer is loaded from; empty if there is no tokenizer."""
    found = sorted(_TOKENIZER.intersection(names))
    return found if set(found) - {"special_tokens_map.json", "added_tokens.json", "tokenizer_config.json"} else []


def describe_files(record: RevisionRecord, files: Mapping[str, tuple[str, int]]) -> RevisionRecord:
    """Return ``record`` with the identity of what it holds.

    Parameters
    ----------
    record
        A revision.
    files
        (digest, bytes) of each of its files: sha256 for weights, the git blob id for small files.
    """
    tokenizer = tokenizer_files(files)
    digest = content_key("tokenizer", files=[(name, files[name][0]) for name in tokenizer]) if tokenizer else None
    try:
        if CONFIG not in files:
            raise MissingWeights(f"there is no {CONFIG} beside the weights")
        weights = choose_weights(files)
    except MissingWeights as error:
        return replace(record, tokenizer=digest, error=str(error))
    config = files[CONFIG][0]
    return replace(
        record,
        config=config,
        weights=weights_digest({name: files[name][0] for name in weights}, config=config),
        tokenizer=digest,
        n_bytes=sum(files[name][1] for name in weights),
        files={name: list(files[name]) for name in [CONFIG, *weights, *tokenizer]},
    )


def sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
