"""The grid on which a run was saved, found from its steps alone, and what is missing on it."""

from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

__all__ = ["Grid", "find_grids"]

LEAST_JUMPS = 3
"""Equal jumps in a row that show a grid."""

LEAST_LINEAR, LEAST_DOUBLING = 6, 5
"""Steps that a grid needs before one of it can be missed."""

LONGEST_JUMP = 3
"""Spacings of a jump, with two steps missing in a row, that still belongs to a grid which goes on behind it."""

MISSING_SHARE, OUTLIER_SHARE = 0.25, 0.2
"""With more than this share of its steps missing, or of others in between, a grid is none."""

PLACED_SHARE = 0.7
"""With less than this share of its steps on a grid, a run has none."""


class Grid(NamedTuple):
    """A stretch of steps that keep to one rule."""

    rule: str
    """What the rule is, in words."""
    missing: list[int]
    """Steps that it asks for and that are not there."""
    outliers: list[int]
    """Steps between its own that do not follow it."""


class _Stretch(NamedTuple):
    """Equal jumps in a row: the steps number ``first`` to ``last``, ``spacing`` apart, or each twice the one before."""

    first: int
    last: int
    spacing: int | None
    """None where steps double."""


def find_grids(steps: Sequence[int]) -> list[Grid]:
    """Find where a run's steps double or follow one another at one distance, and what is missing there.

    Several equal jumps in a row show such a grid. From there it goes on over jumps of two or three spacings as long as
    single ones follow, so that a last step anywhere, another spacing and steps chosen by hand are no gaps.

    Parameters
    ----------
    steps
        Different training steps, ascending.
    """
    stretches = _stretches(steps)
    inside = {jump: stretch for stretch in stretches for jump in range(stretch.first, stretch.last)}
    grids, end, n_placed = [], -1, 0
    for stretch in stretches:
        if stretch.last <= end:
            continue  # the grid before reaches over it
        first, last = _reach(steps, stretch, inside, -1), _reach(steps, stretch, inside, 1)
        n_placed += last - max(first, end) + (first > end)
        end = last
        outliers = [s for s in steps[first : last + 1] if _jumps(steps[first], s, stretch.spacing) is None]
        there = [s for s in steps[first : last + 1] if s not in outliers]
        before = _before_first(steps, first, stretch.spacing, inside)
        # Counted first: two stretches of one grid may lie a thousand million steps apart.
        n_missing = len(before) + sum((_jumps(low, high, stretch.spacing) or 1) - 1 for low, high in pairwise(there))
        least = LEAST_DOUBLING if stretch.spacing is None else LEAST_LINEAR
        if len(there) >= max(least, n_missing / MISSING_SHARE, len(outliers) / OUTLIER_SHARE):
            missing = [*before, *(s for low, high in pairwise(there) for s in _between(low, high, stretch.spacing))]
            rule = "steps double" if stretch.spacing is None else f"there is one every {stretch.spacing}"
            grids.append(Grid(f"{rule} from {min(missing + there)} to {there[-1]}", missing, outliers))
    return grids if n_placed >= PLACED_SHARE * len(steps) else []


def _stretches(steps: Sequence[int]) -> list[_Stretch]:
    spacings = [high - low for low, high in pairwise(steps)]
    doubling = [low > 0 and high == 2 * low for low, high in pairwise(steps)]
    found, at = [], 0
    for _, jumps in groupby(spacings):
        n_jumps = len(list(jumps))
        if n_jumps >= LEAST_JUMPS:
            found.append(_Stretch(at, at + n_jumps, spacings[at]))
        at += n_jumps
    at = 0
    for doubles, jumps in groupby(doubling):
        n_jumps = len(list(jumps))
        if doubles and n_jumps >= LEAST_JUMPS:
            found.append(_Stretch(at, at + n_jumps, None))
        at += n_jumps
    return sorted(found, key=lambda stretch: stretch.first)


def _reach(steps: Sequence[int], stretch: _Stretch, inside: Mapping[int, _Stretch], direction: int) -> int:
    """Return the number of the step to which a stretch goes on in one direction, past steps that are missing."""
    spacing, back = stretch.spacing, min(direction, 0)

    def of_same_grid(number: int) -> bool:
        """Whether the jump from a step on belongs to this grid for certain, to no other, or None."""
        other = inside.get(number + back)
        there = steps[stretch.first]
        return other is not None and other.spacing == spacing and _jumps(there, steps[other.first], spacing) is not None

    end = at = stretch.last if direction > 0 else stretch.first
    number = at
    while 0 <= number + direction < len(steps):
        if number + back in inside and not of_same_grid(number):
            break
        number += direction
        n_jumps = _jumps(steps[at], steps[number], spacing)
        if n_jumps == 1:
            end = at = number
        elif n_jumps is not None and (n_jumps <= LONGEST_JUMP or of_same_grid(number)):
            at = number
        elif n_jumps is not None or spacing is None:
            break
    beyond = end + direction
    if 0 <= beyond < len(steps) and end + back not in inside:
        n_jumps = _jumps(steps[end], steps[beyond], spacing)
        if n_jumps is not None and 1 < n_jumps <= _longest_at_end(steps, beyond, spacing, inside, direction):
            return beyond
    return end


def _longest_at_end(
    steps: Sequence[int], number: int, spacing: int | None, inside: Mapping[int, _Stretch], direction: int
) -> int:
    """Return how many spacings may lie before a grid's last step, where no single one follows that would tell."""
    back, following = min(direction, 0), number + direction
    if number + back in inside:
        return LONGEST_JUMP
    if following + back in inside or following == len(steps):
        return LONGEST_JUMP - 1
    if direction < 0:
        return (LONGEST_JUMP - 1) * (steps[number] == (1 if spacing is None else 0))
    goes_on = spacing is not None or _jumps(steps[number], steps[following], None) is not None
    return 0 if goes_on else LONGEST_JUMP - 1


def _before_first(steps: Sequence[int], first: int, spacing: int | None, inside: Mapping[int, _Stretch]) -> list[int]:
    """Return the multiples of the spacing that are missing between steps that double and a grid of multiples."""
    before = inside.get(first - 2)
    if spacing is None or before is None or before.spacing is not None or steps[first] % spacing:
        return []
    missing = range((steps[first - 1] // spacing + 1) * spacing, steps[first], spacing)
    return list(missing) if len(missing) < LONGEST_JUMP and steps[first - 1] % spacing else []


def _jumps(a: int, b: int, spacing: int | None) -> int | None:
    """Return how many spacings, or doublings, lie between two steps; None if that is no whole number."""
    low, high = sorted((a, b))
    if spacing is not None:
        return None if (high - low) % spacing else (high - low) // spacing
    ratio = 0 if low <= 0 or high % low else high // low
    return ratio.bit_length() - 1 if ratio.bit_count() == 1 else None


def _between(low: int, high: int, spacing: int | None) -> list[int]:
    if spacing is not None:
        return list(range(low + spacing, high, spacing))
    return [low << n for n in range(1, _jumps(low, high, None) or 1)]
