"""Jumps: changes of a series that belong neither to its noise, nor to its random walk, nor to its drift.

At each interval between two checkpoints and at several scales w, the mean of the w values after it is compared with
that of the w before it. What a steady drift explains is taken off. What remains is measured in units of the robust
spread that the *same* comparison has elsewhere in the series, so that white noise, autocorrelated noise and a random
walk each set their own measure. The largest of all has a p-value by simulation.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.contrasts import Scan, chance, scan
from store.errors import InvalidInput, Unavailable

__all__ = ["FEWEST_POINTS", "VERSION", "Change", "Detection", "detect_jumps"]

VERSION = 2
"""Raised when the numbers change."""

FEWEST_POINTS = 8
"""With fewer values than this, no spread of the others can be told from the change itself."""

PRECISION = 1e-6
"""Spread below this share of the largest value is taken for rounding."""

LEVEL, LEVEL_PER_POINT = 0.05, 0.0005
"""Chance of a false change that is accepted in a series: at most the first, and half a one in 1,000 values."""

ALONGSIDE = 0.1
"""A neighbouring interval belongs to a change if it changed by this share of the steepest one, the same way,"""

BEYOND_NOISE = 2.0
"""and by so many spreads."""

SIDE = 3
"""Values on each side whose medians a single checkpoint departs from."""

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


class Change(NamedTuple):
    """One change of a series."""

    kind: str
    """``jump``; ``single checkpoint`` where the next value is back where the last one was; ``edge`` where only the
    first or the last value lies beyond it."""
    start: int
    """Position of the last value before it; of a single checkpoint, the value before that one."""
    end: int
    """Position of the first value after it; of a single checkpoint, that one."""
    before: float
    """Mean of the values compared, before it."""
    after: float
    """And after it."""
    effect: float
    """After - before, in robust standard deviations of a change from one value to the next around there."""
    p: float
    """Chance of one as large or larger anywhere in a series without jumps."""


class Detection(NamedTuple):
    """What was found in a series."""

    changes: list[Change]
    """In order."""
    p: float
    """The smallest p, also where it is no change."""


def detect_jumps(steps: npt.ArrayLike, values: npt.ArrayLike, *, resolution: float = 0) -> Detection:
    """Find the changes of a series that its noise, its random walk and its drift do not explain.

    For w = 1, 2, 4, 8, 16 (as long as there are 10 w values) and each interval, D = mean of the w values after it -
    mean of the w before it. From D the local median rate is taken off, per step and, on an uneven grid, also per
    ln(1 + step); the remainder that is smaller in units of its spread counts, and none where they differ in sign. The
    spread is the larger of median / 0.67 and 80 % quantile / 1.28 of the remainders' moduli around there, so that up to
    a fifth of them may be jumps. On an uneven grid it is also the larger of one that is the same for all intervals, as
    of noise, and one that grows with √Δln(1 + step), as of a random walk: for any mixture of the two, one of them is no
    smaller than right. In up to 505 values it is likewise the larger of these as they are and with a geometric trend
    over the series, estimated from the remainders and to a tenth at most. A change counts
    only where the remainder is at least twice the mean of those at a distance w on either side: a curve that w resolves
    is no jump. One that is done within about a dozen of 154 checkpoints (logistic, exponential, a ramp) is, and the
    start of a decay such as 1 / (1 + i / c) can be an ``edge``.

    The p-value is the chance that the largest of all z = remainder / spread is as large or larger in a series on the
    same grid of independent noise, or of a random walk, steady or shrinking to a tenth or growing from it, whichever is
    largest: 500 simulations of each with all the estimates made anew, with a generalised Pareto tail, and none below
    1e-6. It is a change where p is at most 0.0005 n
    (half a false one in 1,000 values) and 0.05. The laws are normal: a series whose moves have heavy tails has jumps by
    this account. Each change found is taken off and the rest looked at again.

    Parameters
    ----------
    steps
        (n,) training steps, ascending.
    values
        (n,) finite values.
    resolution
        Unit that values are told in, 1 where they are counts; no spread is below it.

    Raises
    ------
    Unavailable
        If there are fewer than `FEWEST_POINTS` values.
    InvalidInput
        If steps do not ascend, or values are not finite or not as many.
    """
    x, y = np.asarray(steps, np.float64), np.array(values, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not np.isfinite(y).all() or not (np.diff(x) > 0).all():
        raise InvalidInput(
            f"a series has ascending steps and a finite value at each, not {x.shape} steps and {y.shape} values"
        )
    if len(y) < FEWEST_POINTS:
        raise Unavailable(
            f"a jump is told from what else changes in {FEWEST_POINTS} checkpoints or more, and there are {len(y)}"
        )
    level = min(LEVEL, LEVEL_PER_POINT * len(y))
    given = y.copy()
    resolution = max(resolution, PRECISION * float(np.abs(y).max()))
    changes: list[Change] = []
    closed = np.zeros(len(y) - 1, bool)
    smallest = 1.0
    first = scan(x, y[None], resolution)
    while True:
        scans = scan(x, y[None], resolution, first=first)
        w, i = _largest(scans, closed)
        z = scans[w].z[0, i - scans[w].w + 1]
        p = chance(float(z), tuple(x)) if z else 1.0
        smallest = min(smallest, p)
        if p > level or closed.all():
            return Detection(_joined(changes), smallest)
        change = _take_off(given, y, scans[0], scans[w], i, p, closed)
        if change:
            changes.append(change)


def _largest(scans: list[Scan], closed: npt.NDArray[np.bool_]) -> tuple[int, int]:
    """Return the number of the scan and the interval of the largest z."""
    best, place = -1.0, (0, 0)
    for number, one in enumerate(scans):
        z = np.where(closed[one.w - 1 : len(closed) - one.w + 1], -1.0, one.z[0])
        at = int(z.argmax())
        if z[at] > best:
            best, place = float(z[at]), (number, at + one.w - 1)
    return place


def _take_off(
    given: Floats, y: Floats, unit: Scan, scale: Scan, i: int, p: float, closed: npt.NDArray[np.bool_]
) -> Change | None:
    """Describe the change at interval ``i`` seen at a scale, and remove it from ``y``; None if it is seen again.

    What was removed before, the difference to the values ``given``, is added to the levels that are told.
    """
    w, removed = scale.w, given - y
    drift = float(_means(y, i, i + 1, w) @ (-1, 1) - scale.excess[0, i - w + 1])
    alone = next((k for k in (i, i + 1) if _departs(y, k)), None)
    if alone is not None:
        closed[alone - 1 : alone + 1] = True
        before, after = float((y[alone - 1] + y[alone + 1]) / 2), float(y[alone])
        y[alone] = before
        effect = (after - before) / float(unit.spread[0, alone - 1])
        before, after = before + float(removed[alone - 1]), after + float(removed[alone])
        return Change("single checkpoint", alone - 1, alone, before, after, effect, p)
    if w > 1:
        seen, i = i, _split(y, i, w)
        if closed[i]:
            closed[seen] = True
            return None
    start, end = _extent(unit.excess[0], unit.spread[0], i)
    before, after = map(float, _means(y, start, end, w))
    effect = (after - before) / float(unit.spread[0, i])
    rise = float(unit.excess[0, start:end].sum()) if w == 1 else after - before - drift
    y[end:] -= rise
    y[start : end + 1] = np.linspace(y[start], y[end], end - start + 1)
    closed[max(start - w + 1, 0) : end + w - 1] = True
    before, after = before + float(removed[start]), after + float(removed[end])
    return Change("edge" if start == 0 or end == len(y) - 1 else "jump", start, end, before, after, effect, p)


def _means(y: Floats, start: int, end: int, w: int) -> Floats:
    return np.array([y[max(start - w + 1, 0) : start + 1].mean(), y[end : end + w].mean()])


def _joined(changes: list[Change]) -> list[Change]:
    """Bring changes into order, and make one of those that go on from one another in the same direction."""
    joined: list[Change] = []
    for change in sorted(changes, key=lambda change: change.start):
        last = joined[-1] if joined else None
        if (
            last
            and last.end == change.start
            and last.effect * change.effect > 0
            and "single checkpoint" not in (last.kind, change.kind)
        ):
            kind = "edge" if "edge" in (last.kind, change.kind) else "jump"
            both = last.effect + change.effect, min(last.p, change.p)
            joined[-1] = Change(kind, last.start, change.end, last.before, change.after, *both)
        else:
            joined.append(change)
    return joined


def _departs(y: Floats, k: int) -> bool:
    """Return whether value ``k`` lies off its neighbours on one side, by twice what those before and after differ."""
    if not 0 < k < len(y) - 1:
        return False
    off = y[k] - np.array([np.median(y[max(k - SIDE, 0) : k]), np.median(y[k + 1 : k + 1 + SIDE])])
    return bool(off[0] * off[1] > 0 and abs(off[0] - off[1]) <= 0.5 * np.abs(off).min())


def _split(y: Floats, i: int, w: int) -> int:
    """Return the interval around ``i`` that divides its neighbourhood into two means with the least squares."""
    low, high = max(i + 1 - 2 * w, 0), min(i + 1 + 2 * w, len(y))
    part = y[low:high] - y[low:high].mean()
    n = np.arange(1, len(part))
    gain = np.cumsum(part)[:-1] ** 2 * len(part) / (n * (len(part) - n))
    inside = np.abs(low + n - 1 - i) < w
    return low + int(np.where(inside, gain, -1.0).argmax())


def _extent(excess: Floats, spread: Floats, i: int) -> tuple[int, int]:
    """Return the positions of the last value before and the first after a change whose steepest interval is ``i``."""
    start, end = i, i + 1
    along = np.sign(excess[i]) * excess >= np.maximum(ALONGSIDE * abs(excess[i]), BEYOND_NOISE * spread)
    while start > 0 and along[start - 1]:
        start -= 1
    while end < len(excess) and along[end]:
        end += 1
    return start, end
