"""Correlation of series over training: their levels, their changes, and what is left of them beside a smooth trend.

Two numbers that drift correlate whether or not they have to do with one another (Yule, 1926: Why do we sometimes get
nonsense-correlations between time-series?). A coefficient here is therefore held against the same series with its
changes from checkpoint to checkpoint dealt anew, which keeps a random walk a random walk.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.polynomial import legendre
from scipy.stats import rankdata

from store.errors import InvalidInput, Unavailable

__all__ = [
    "FEWEST_STEPS",
    "METHODS",
    "N_SURROGATES",
    "VARIANTS",
    "VERSION",
    "Correlations",
    "correlate",
    "mean_correlation",
    "trend_degree",
]

VERSION = 1
"""Raised when the numbers change."""

VARIANTS = ("level", "differenced", "detrended")
"""The values; their changes from one checkpoint to the next; their residuals beside a polynomial in ln(1 + step)."""

METHODS = ("pearson", "spearman")

FEWEST_STEPS = 4
"""Steps that a coefficient needs."""

N_SURROGATES = 1999
"""Surrogates of each kind, so that the smallest p-value is 0.001."""

HIGHEST_DEGREE = 3
"""Of the trend."""

NORMAL = 1.959964
"""Standard errors in half a 95 % interval."""

CONSTANT = 1e-10
"""What varies by less than this part of the values it is made of is rounding."""

LARGEST = 1 - 1e-15
"""Coefficients are cut here before Fisher's z is taken of them."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Correlations:
    """Coefficients of every pair of series, each (variant, series, series) in the order of `VARIANTS`.

    NaN is undefined. The diagonal has the coefficient 1 and nothing else.
    """

    correlation: Floats
    """-1 to 1."""
    low: Floats
    """Lower end of the 95 % interval."""
    high: Floats
    """Upper end."""
    p: Floats
    """Two-sided, under series whose changes have nothing to do with one another."""
    n_effective: Floats
    """Independent steps that would scatter as much, 3 to the number of steps."""
    undefined: dict[tuple[int, int], str]
    """Why a series has no coefficients in a variant, by the positions of both."""


def correlate(
    values: Floats, steps: npt.NDArray[np.int64], *, method: str = "pearson", n_surrogates: int = N_SURROGATES
) -> Correlations:
    """Correlate series over common steps, with doubt that respects that they drift.

    A surrogate of a series has its first value, and its changes from checkpoint to checkpoint either in another order
    (which keeps their sum, so that what rises still rises) or each mirrored at their mean by chance (which keeps large
    changes where they are). Of both kinds, and of either series against the other as it is, the largest p-value counts;
    so it stays near its level for white noise, for autocorrelated noise and for random walks with or without drift,
    also where all changes are larger early than late. In simulation (18 and 51 steps on a linear and a logarithmic
    grid), p ≤ 0.05 came in 0 to 4 % of such unrelated pairs for the level, 2 to 8 % for changes (the most for changes
    of white noise) and 0 to 5 % beside a trend, where the usual test finds 46 to 70 % of the levels of walks.

    Changes that depend on those before them deceive it, ``differenced`` most. In the same simulation p ≤ 0.05 came, for
    changes with an autocorrelation of 0.8, in 14 to 27 % of pairs (level 3 to 4 %); for walks whose changes are walks,
    in 35 to 63 % (level 8 to 25 %); for walks beside a large decay that both have, in 60 to 95 % (level 33 to
    65 %); for white noise that is larger early than late, in 5 to 9 % (level 4 to 10 %). So it does not know of a
    course that two numbers share because both are learnt early: two smooth curves that fall at the same time correlate,
    and no single run tells why.

    The interval is tanh(atanh r ± 1.96 s), with s the standard deviation of Fisher's z over surrogates, at least that
    of independent steps, 1/√(n - 3). The nominal 95 % held the true coefficient in 95 to 100 % of simulated
    pairs, and in 77 % where walks drift in a way that a polynomial in ln(1 + step) does not follow.

    Parameters
    ----------
    values
        (series, n) finite values at the same steps.
    steps
        (n,) training steps, ascending.
    method
        ``pearson``, or ``spearman`` of ranks; a trend is removed before ranks are taken.
    n_surrogates
        Surrogates of each kind, at least 19. They are the same whenever the same steps are given.

    Raises
    ------
    Unavailable
        If there are fewer than four steps.
    InvalidInput
        If shapes do not fit, values are not finite, steps do not ascend, or the method is another.
    """
    values = np.asarray(values, np.float64)
    if method not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    if values.ndim != 2 or values.shape[1:] != np.shape(steps) or not np.isfinite(values).all():
        raise InvalidInput(
            f"finite values (series, step) are correlated, not {values.shape} at {np.shape(steps)} steps"
        )
    if (np.diff(steps) <= 0).any() or n_surrogates < 19:
        raise InvalidInput(f"steps must ascend, and surrogates be 19 or more, not {n_surrogates}")
    n = len(steps)
    if n < FEWEST_STEPS:
        raise Unavailable(f"a correlation needs {FEWEST_STEPS} common steps or more, and there are {n}")
    trend, ranked = _trend(steps), method == "spearman"
    undefined = _undefined(values, trend)
    units = [_units(view, ranked=ranked) for view in _views(values, trend)]
    found = np.stack([unit @ unit.T for unit in units])
    p, spread = np.zeros_like(found), np.zeros_like(found)
    for deal in _deals(n - 1, n_surrogates):
        for row, series in enumerate(values):
            each = _against(deal.surrogates(series), units, trend, found[:, row], ranked=ranked)
            for variant, (p_row, spread_row) in enumerate(each):
                p[variant, row] = np.maximum(p[variant, row], p_row)
                spread[variant, row] = np.maximum(spread[variant, row], spread_row)
    p, spread = (np.maximum(part, part.transpose(0, 2, 1)) for part in (p, spread))
    return _bounded(np.clip(found, -1, 1), p, spread, n, undefined)


def mean_correlation(coefficients: Floats) -> Floats:
    """Return tanh(mean atanh r) over the first axis, the runs; of those that have one, and NaN where none has."""
    z = np.arctanh(np.clip(coefficients, -LARGEST, LARGEST))
    there = np.isfinite(z)
    n = there.sum(axis=0)
    mean: Floats = np.full(z.shape[1:], np.nan)
    np.divide(np.where(there, z, 0).sum(axis=0), n, out=mean, where=n > 0)
    return np.tanh(mean)


def trend_degree(n_steps: int) -> int:
    """Return the degree of the trend's polynomial in ln(1 + step): 1 from 6 steps on, 2 from 10, 3 from 14; else 0."""
    return min(HIGHEST_DEGREE, (n_steps - 2) // 4)


def _trend(steps: npt.NDArray[np.int64]) -> Floats:
    """Return an orthonormal basis (n, degree + 1) of the trends over ``steps``."""
    x = np.log1p(np.asarray(steps, np.float64))
    x = 2 * (x - x[0]) / (x[-1] - x[0]) - 1
    basis: Floats = np.linalg.qr(legendre.legvander(x, trend_degree(len(steps))))[0]
    return basis


def _views(values: Floats, trend: Floats) -> list[Floats]:
    """Return level, changes and residuals of series (..., n), each centred."""
    centred = values - values.mean(axis=-1, keepdims=True)
    changes = np.diff(values, axis=-1)
    return [centred, changes - changes.mean(axis=-1, keepdims=True), centred - (centred @ trend) @ trend.T]


def _undefined(values: Floats, trend: Floats) -> dict[tuple[int, int], str]:
    reasons: dict[tuple[int, int], str] = {}
    said = ("it is constant", "it changes by the same amount at every step", "nothing is left of it beside its trend")
    few = f"a trend needs 6 steps or more, and there are {values.shape[1]}" if trend.shape[1] < 2 else None
    for variant, view in enumerate(_views(values, trend)):
        for row, (series, part) in enumerate(zip(values, view, strict=True)):
            size = np.abs(series).max() if variant == 0 else np.ptp(series)
            if (0, row) in reasons:
                reasons[variant, row] = reasons[0, row]
            elif np.abs(part).max() <= CONSTANT * size:
                reasons[variant, row] = said[variant]
            elif variant == VARIANTS.index("detrended") and few:
                reasons[variant, row] = few
    return reasons


def _units(view: Floats, *, ranked: bool) -> Floats:
    """Return views (..., n) as unit vectors, or those of their centred ranks; 0 where they are constant."""
    if ranked:
        largest = np.abs(view).max(axis=-1, keepdims=True)
        # Changes that differ by rounding alone are ties.
        view = rankdata(np.round(np.divide(view, largest, out=np.zeros_like(view), where=largest > 0), 10), axis=-1)
        view = view - view.mean(axis=-1, keepdims=True)
    norms = np.linalg.norm(view, axis=-1, keepdims=True)
    unit: Floats = np.divide(view, norms, out=np.zeros_like(view), where=norms > 0)
    return unit


class _Deal(NamedTuple):
    """One kind of surrogates: in each, the order of the changes, and the sign of their part beside the mean."""

    order: npt.NDArray[np.intp]
    sign: Floats

    def surrogates(self, series: Floats) -> Floats:
        """Return (surrogate, step) series made of the changes of one, from 0."""
        changes = np.diff(series)
        dealt = changes.mean() + self.sign * (changes - changes.mean())[self.order]
        return np.concatenate([np.zeros((len(dealt), 1)), np.cumsum(dealt, axis=1)], axis=1)


def _deals(n_changes: int, n_surrogates: int) -> tuple[_Deal, _Deal]:
    rng = np.random.default_rng(0)
    order = np.tile(np.arange(n_changes), (n_surrogates, 1))
    mirrored = _Deal(order, rng.choice([-1.0, 1.0], size=order.shape))
    return _Deal(rng.permuted(order, axis=1), np.ones_like(mirrored.sign)), mirrored


def _against(
    surrogates: Floats, units: list[Floats], trend: Floats, found: Floats, *, ranked: bool
) -> Iterator[tuple[Floats, Floats]]:
    """Give for each variant the p-values of ``found`` (variant, series), and the scatter of z over surrogates."""
    for view, unit, coefficients in zip(_views(surrogates, trend), units, found, strict=True):
        r = _units(view, ranked=ranked) @ unit.T
        above = (r >= coefficients - CONSTANT).sum(axis=0)
        below = (r <= coefficients + CONSTANT).sum(axis=0)
        p = np.minimum(1, 2 * (1 + np.minimum(above, below)) / (1 + len(surrogates)))
        yield p, np.arctanh(np.clip(r, -LARGEST, LARGEST)).std(axis=0)


def _bounded(found: Floats, p: Floats, spread: Floats, n: int, undefined: dict[tuple[int, int], str]) -> Correlations:
    independent = np.array([n, n - 1, n - trend_degree(n)], np.float64)[:, None, None]
    spread = np.maximum(spread, 1 / np.sqrt(np.maximum(independent - 3, 1)))
    z = np.arctanh(np.clip(found, -LARGEST, LARGEST))
    low, high = np.tanh(z - NORMAL * spread), np.tanh(z + NORMAL * spread)
    n_effective = 3 + 1 / spread**2
    doubts = (low, high, p, n_effective)
    for part in doubts:
        part[:, np.arange(found.shape[1]), np.arange(found.shape[1])] = np.nan
    found[:, np.arange(found.shape[1]), np.arange(found.shape[1])] = 1
    for variant, row in undefined:
        for part in (found, *doubts):
            part[variant, row, :] = part[variant, :, row] = np.nan
    return Correlations(found, low, high, p, n_effective, undefined)
