"""Sizes and durations as people write them."""

import pytest

from replay.units import human_bytes, parse_bytes, parse_seconds
from store.errors import InvalidInput


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("20GB", 20 * 10**9), ("512 MiB", 512 * 2**20), ("1e9", 10**9), ("500MB", 5 * 10**8)]
)
def test_sizes_are_read(text: str, n_bytes: int) -> None:
    assert parse_bytes(text) == n_bytes


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1.5s", 1.5)])
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "much", "-5GB", "0", "inf", "5 parsecs"])
def test_what_is_no_size_is_one_line(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no size: expected one such as 20GB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "soon", "-3s", "0", "nan", "inf"])
def test_what_is_no_duration_is_one_line(text: str) -> None:
    with pytest.raises(InvalidInput, match="is no duration: expected one such as 90s"):
        parse_seconds(text)


def test_sizes_are_told_in_the_unit_that_suits_them() -> None:
    assert [human_bytes(n) for n in (0, 999, 1000, 375_000_000, 2e13)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "375.0 MB",
        "20.0 TB",
    ]
