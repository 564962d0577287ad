"""Names: which stored layers an expression means, in which order they stand, which are nearest to a wrong one."""

import difflib
import fnmatch
import re
from collections.abc import Sequence

from store.errors import UnknownLayer

__all__ = ["layer_order", "match_layers", "suggest"]


def match_layers(wanted: str | Sequence[str] | None, there: set[str], *, n_blocks: int | None = None) -> set[str]:
    """Return the stored layers that names, globs or negative block numbers select.

    Parameters
    ----------
    wanted
        ``blocks[3]:output:mean``, ``blocks[3]`` for short, ``blocks[*]``, ``blocks[-1]``; everything if None.
    there
        Names of the stored layers.
    n_blocks
        How many blocks the model has, stored or not: what negative numbers count from.

    Raises
    ------
    UnknownLayer
        If one of them selects nothing, the nearest stored ones are named; or if a negative number cannot be counted.
    """
    if wanted is None:
        return there
    kept: set[str] = set()
    for pattern in [wanted] if isinstance(wanted, str) else wanted:
        name = pattern
        if negative := re.match(r"blocks\[-(\d+)\]", pattern):
            if n_blocks is None:
                raise UnknownLayer(f"{pattern!r} needs one number of blocks for all, and there is none: name the block")
            name = f"blocks[{n_blocks - int(negative[1])}]{pattern[negative.end() :]}"
        for full in (name, f"{name}:output:mean"):
            # fnmatch would read the brackets of blocks[3] as a set of characters
            glob = full.replace("[", "[[]")
            found = {layer for layer in there if fnmatch.fnmatchcase(layer, glob)}
            if found:
                break
        if not found:
            raise UnknownLayer(f"no stored layer {pattern!r}; {suggest(pattern, sorted(there, key=layer_order))}")
        kept |= found
    return kept


def layer_order(name: str) -> tuple[int, list[tuple[bool, int, str]]]:
    """Return a sort key that puts layers in the order of the forward pass as far as their names tell."""
    place = 0 if name.startswith("embed") else 1 if name.startswith("blocks[") else 3
    place = 2 if name.startswith("final_norm") else place
    return place, [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def suggest(name: str, there: Sequence[str], *, limit: int = 8) -> str:
    """Return "there is …" with the names nearest to ``name`` first, for the end of an error's line."""
    if not there:
        return "there is none yet"
    ranked = sorted(there, key=lambda other: -difflib.SequenceMatcher(None, name, other).ratio())
    more = f" and {len(ranked) - limit} more" if len(ranked) > limit else ""
    return f"there is {', '.join(ranked[:limit])}{more}"
