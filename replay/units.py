"""Sizes and durations as people write them."""

from collections.abc import Callable

from store.errors import InvalidInput

__all__ = ["human_bytes", "parse_bytes", "parse_seconds"]


def human_bytes(n_bytes: float) -> str:
    """Return a size in the largest unit that leaves a whole part, in powers of 1,000."""
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} TB"


def parse_bytes(text: str) -> int:
    """Return the size that ``20GB``, ``512 MiB`` or ``1e9`` stands for.

    Raises
    ------
    InvalidInput
        If it is no size above zero.
    """
    from dask.utils import parse_bytes as parse

    return int(_positive(text, parse, "size: expected one such as 20GB or 500MB"))


def parse_seconds(text: str) -> float:
    """Return the seconds that ``90``, ``10m``, ``2h`` or ``1d`` stands for.

    Raises
    ------
    InvalidInput
        If it is no duration above zero.
    """
    from dask.utils import parse_timedelta

    return _positive(text, parse_timedelta, "duration: expected one such as 90s, 10m, 2h or 1d")


def _positive(text: str, parse: Callable[[str], float], what: str) -> float:
    try:
        value = float(parse(text)) if text.strip() else 0.0
    except (ValueError, KeyError, OverflowError):
        value = 0.0
    if not 0 < value < float("inf"):
        raise InvalidInput(f"{text!r} is no {what}")
    return value
