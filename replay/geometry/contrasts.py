"""Contrasts: neighbouring windows of a series compared at several scales, each in units of its own robust spread."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import genpareto

__all__ = ["Scan", "chance", "scan"]

SCALES = (1, 2, 4, 8, 16)
"""Values on each side that are compared, where there are `PER_SCALE` times as many."""

PER_SCALE = 10

NEIGHBOURHOOD = 101
"""Comparisons around one that its drift and spread are taken from: this many, or 16 w where that is more."""

TRENDING = 5 * NEIGHBOURHOOD
"""In a series of so many values or fewer, spreads may have a trend within a neighbourhood."""

UNEVEN = 2.0
"""A grid is uneven when its largest gap is more than this many times its smallest."""

SHARES = ((0.5, 0.6745), (0.8, 1.2816))
"""Quantiles of absolute deviations whose larger one is the spread, and those of a standard normal law."""

N_SIMULATED = 500
"""Simulated series of each kind; the tail beyond them is that of a generalised Pareto law."""

FALL = 0.1
"""What a spread may fall to over a series, or rise from, as a share, geometrically."""

CLIPPED = (0.1, 0.9)
"""Quantiles that the logarithms of moduli are clipped to before their trend is taken."""

TAIL = 0.1
"""Share of the simulated maxima that the law is fitted to."""

LEAST_P = 1e-6
"""The smallest p-value that is told: so many simulations say nothing of smaller ones."""

Floats = npt.NDArray[np.float64]


class Scan(NamedTuple):
    """Comparisons at one scale, for several series at once."""

    w: int
    excess: Floats
    """(series, interval) change beyond drift, of the intervals ``w`` - 1 on."""
    spread: Floats
    """(series, interval) robust standard deviation of it."""
    z: Floats
    """(series, interval) its modulus over its spread; 0 where the change is not concentrated there."""
    spreads: list[Floats]
    """The spreads by the axis that drift is measured on."""


def scan(x: Floats, Y: Floats, resolution: float, *, first: list[Scan] | None = None) -> list[Scan]:
    """Compare all neighbouring windows of several series at every scale.

    Parameters
    ----------
    x
        (n,) ascending training steps.
    Y
        (series, n) values.
    resolution
        Of the values: no spread is below it.
    first
        Another scan whose spreads are taken; made anew if not given.
    """
    gaps = np.diff(x)
    even = gaps.max() <= UNEVEN * gaps.min()
    axes = [x] if even else [x, np.log1p(x - min(x[0], 0))]
    least = _least_spread(Y, resolution)
    ways = _trends if len(x) <= TRENDING else lambda _, growths: growths
    scans = []
    for number, w in enumerate(_scales(len(x))):
        D, width = _contrast(Y - np.median(Y, axis=1, keepdims=True), w), max(NEIGHBOURHOOD, 16 * w)
        rests = [D - _around(D / X, width, (0.5,))[0] * X for X in (_contrast(axis[None], w) for axis in axes)]
        if first is None:
            growths = [np.ones(D.shape[1])] if even else [np.ones(D.shape[1]), _growth(axes[-1], w)]
            spreads = [
                np.maximum.reduce(
                    [
                        least * np.ones_like(rest),
                        *(_spread(np.abs(rest) / growth, width) * growth for growth in ways(rest, growths)),
                    ]
                )
                for rest in rests
            ]
        else:
            spreads = first[number].spreads
        ratios = [rest / spread for rest, spread in zip(rests, spreads, strict=True)]
        smaller = np.abs(ratios).argmin(axis=0)[None]
        same = np.abs(np.sign(rests).sum(axis=0)) == len(rests)
        excess, spread, ratio = (np.take_along_axis(np.array(a), smaller, axis=0)[0] for a in (rests, spreads, ratios))
        z = np.where(same & _concentrated(excess, max(w, 2)), np.abs(ratio), 0.0)
        scans.append(Scan(w, excess, spread, z, spreads))
    return scans


def _trends(rest: Floats, growths: Sequence[Floats]) -> Iterator[Floats]:
    """Give each way for a spread to grow, and the same times the geometric trend that the remainders have on it.

    The trend is twice the slope of their logarithms clipped to `CLIPPED`: clipping takes up to half of it, and too much
    is safe, since the larger spread counts. It goes to `FALL` at most.
    """
    place = np.linspace(-0.5, 0.5, rest.shape[1])
    for growth in growths:
        yield growth
        logs = np.log(np.maximum(np.abs(rest) / growth, np.finfo(float).tiny))
        slope = 2 * np.clip(logs, *np.quantile(logs, CLIPPED, axis=1)[..., None]) @ place / (place @ place)
        yield growth * np.exp(np.outer(np.clip(slope, np.log(FALL), -np.log(FALL)), place))


def _growth(axis: Floats, w: int) -> Floats:
    """Give the standard deviation of a contrast of a random walk with unit variance per unit of ``axis``."""
    triangle = np.concatenate([np.arange(1, w + 1), np.arange(w - 1, 0, -1)]) / w
    growth: Floats = np.sqrt(np.convolve(np.diff(axis), triangle**2, mode="valid"))
    return growth


def _scales(n: int) -> Iterator[int]:
    return (w for w in SCALES if w == 1 or n >= PER_SCALE * w)


def _contrast(Y: Floats, w: int) -> Floats:
    """Mean of ``w`` values after each interval minus that of ``w`` before it, (series, interval)."""
    sums = np.concatenate([np.zeros((len(Y), 1)), np.cumsum(Y, axis=1)], axis=1)
    means = (sums[:, w:] - sums[:, :-w]) / w
    contrast: Floats = means[:, w:] - means[:, :-w]
    return contrast


def _around(V: Floats, width: int, shares: tuple[float, ...]) -> list[Floats]:
    """Give quantiles of the values around each one, (series, interval) each; of all if they are ``width`` at most."""
    m = V.shape[1]
    width = min(width, m) - 1 | 1  # odd: the median of -V is that of V, negated
    starts = np.unique(np.append(np.arange(0, m - width + 1, max(width // 4, 1)), m - width))
    nearest = np.abs(np.arange(m)[:, None] - (starts + width // 2)).argmin(axis=1)
    ranks = [round(share * (width - 1)) for share in shares]
    ordered = np.partition(sliding_window_view(V, width, axis=1)[:, starts], ranks, axis=2)
    return [ordered[:, :, rank][:, nearest] for rank in ranks]


def _spread(moduli: Floats, width: int) -> Floats:
    """Robust standard deviation around each modulus, (series, interval)."""
    quantiles = _around(moduli, width, tuple(share for share, _ in SHARES))
    spread: Floats = np.max([q / normal for q, (_, normal) in zip(quantiles, SHARES, strict=True)], axis=0)
    return spread


def _least_spread(Y: Floats, resolution: float) -> Floats:
    """Give the least spread, (series, 1): rounding, or the unit of counted values, which often repeat the last one."""
    least = np.full((len(Y), 1), max(resolution, np.finfo(float).tiny))
    moves = np.abs(np.diff(Y, axis=1))
    changing = moves >= least
    several = changing.sum(axis=1) > 3 + 0.01 * moves.shape[1]
    for row in np.flatnonzero(several & (changing.mean(axis=1) < 0.5)):
        least[row] = moves[row][changing[row]].min() / SHARES[0][1]
    return least


def _concentrated(excess: Floats, distance: int) -> npt.NDArray[np.bool_]:
    """Whether a change is at least twice the mean of those at ``distance`` on either side; of one side four times."""
    m = excess.shape[1]
    total, count = np.zeros_like(excess), np.ones(m)
    if distance < m:
        total[:, distance:] += excess[:, :-distance]
        total[:, :-distance] += excess[:, distance:]
        count = np.add(np.arange(m) >= distance, np.arange(m) < m - distance, dtype=float)
    mean = total * 2 / np.maximum(count, 1) ** 2
    return np.asarray(np.sign(excess) * mean <= 0.5 * np.abs(excess))


def chance(z: float, grid: tuple[float, ...]) -> float:
    """Return the chance that the largest z of a series without jumps on a grid of steps is ``z`` or more.

    It is the largest one of independent noise and of a random walk, each simulated `N_SIMULATED` times; of a series of
    up to `TRENDING` values also of both where they shrink to `FALL` over the series, or grow from it.
    """
    return max(law.tail(z) for law in _simulated(grid))


class _Law(NamedTuple):
    """Of maxima of z: counted, and beyond the most of them a generalised Pareto law."""

    maxima: Floats
    threshold: float
    shape: float
    scale: float

    def tail(self, z: float) -> float:
        """Chance of a maximum of ``z`` or more."""
        n = len(self.maxima)
        if z <= self.threshold:
            return float((1 + n - np.searchsorted(self.maxima, z)) / (n + 1))
        return max(TAIL * float(genpareto.sf(z - self.threshold, self.shape, scale=self.scale)), LEAST_P)


def _law(maxima: Floats) -> _Law:
    maxima = np.sort(maxima)
    n_tail = int(TAIL * len(maxima))
    threshold = float(maxima[-n_tail - 1])
    over = maxima[-n_tail:] - threshold
    shape, _, scale = genpareto.fit(over, floc=0)
    if shape < 0:  # no end to the tail: an exponential one is the shortest allowed
        shape, scale = 0.0, over.mean()
    return _Law(maxima, threshold, float(shape), float(scale))


@lru_cache(maxsize=16)
def _simulated(grid: tuple[float, ...]) -> tuple[_Law, ...]:
    """Laws of the largest z in series of independent noise, and in random walks, on a grid; steady and not."""
    x = np.array(grid)
    rng = np.random.default_rng(0)
    gaps = np.diff(x)
    clock = x if gaps.max() <= UNEVEN * gaps.min() else np.log1p(x - min(x[0], 0))
    noise = rng.standard_normal((N_SIMULATED, len(x)))
    moves = rng.standard_normal((N_SIMULATED, len(x) - 1)) * np.sqrt(np.diff(clock))
    fall = np.geomspace(1, FALL, len(x))
    shapes = (np.ones(len(x)), fall, fall[::-1])[: 3 if len(x) <= TRENDING else 1]
    walks = [np.cumsum(np.pad(moves * shape[1:], ((0, 0), (1, 0))), axis=1) for shape in shapes]
    return tuple(
        _law(np.max([one.z.max(axis=1) for one in scan(x, Y, 0.0)], axis=0))
        for Y in (*(noise * shape for shape in shapes), *walks)
    )
