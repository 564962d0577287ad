"""Content keys: what a thing is computed from, as one sha256; equal inputs have equal keys on every machine."""

import hashlib
import json
from collections.abc import Mapping

__all__ = [
    "canonical",
    "content_key",
    "factory_key",
    "git_blob_id",
    "inputs_key",
    "n_blocks_key",
    "replay_key",
    "weights_digest",
]


def content_key(kind: str, **parts: object) -> str:
    """Return the sha256 of ``kind`` and ``parts`` as canonical JSON.

    Parameters
    ----------
    kind
        What the key stands for, so that equal parts of two kinds never share a key.
    **parts
        JSON-able values; mappings are sorted, tuples and lists are the same.

    Raises
    ------
    TypeError
        If a part cannot be written as JSON.
    """
    text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def git_blob_id(content: bytes) -> str:
    """Return the id git gives to a file with this content, as a hub lists it for every small file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def weights_digest(files: Mapping[str, str], *, config: str) -> str:
    """Return the identity of a checkpoint's weights.

    Parameters
    ----------
    files
        The sha256 of every weight file by its name. A sharded set includes its index file.
    config
        The blob id of ``config.json``: equal tensors under another architecture are another model.
    """
    return content_key("weights", files=sorted(files.items()), config=config)


def inputs_key(probe_set: str) -> str:
    """Return the segment in which the arrays of a probe set lie."""
    return content_key("inputs", probe_set=probe_set)


def factory_key(config: str) -> str:
    """Return the key of the fact which factory built the models that have its digest for a ``config.json``."""
    return content_key("factory", config=config)


def n_blocks_key(config: str) -> str:
    """Return the key of the fact how many blocks the models of a ``config.json`` have."""
    return content_key("n_blocks", config=config)


def replay_key(*, weights: str, tokens: str, dtype: str) -> str:
    """Return the identity of one checkpoint's replay: these weights on these token ids at this precision."""
    return content_key("replay", weights=weights, tokens=tokens, dtype=dtype)


def canonical(parameters: Mapping[str, object]) -> str:
    """Return parameters as the canonical JSON under which they are stored."""
    return json.dumps(parameters, sort_keys=True, separators=(",", ":"))
