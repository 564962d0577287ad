"""How fast the spread of several runs changes over training, and where it falls, rises or stays."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr

from replay.geometry.statistics import jackknife_error, jackknife_interval
from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "Direction", "Phase", "Rate", "convergence_rate", "phases_of_convergence"]

VERSION = 2
"""Version of these computations, part of every cache key: raised whenever a result may change."""

RATE_STEPS = 1000
"""A convergence rate is per this many training steps."""

SMALLEST_CHANGE = 0.05
"""Changes and bends of ln(spread) below this, 5 % of the spread, are called flat however certain they are."""

DRAWS = 4000
"""Samples of the largest of many correlated t statistics."""

Direction = Literal["falls", "rises", "flat"]
Floats = npt.NDArray[np.float64]


class Rate(NamedTuple):
    """How fast the logarithm of the spread changes; negative while the runs converge."""

    slope: float
    """Change of ln(spread) per 1,000 steps."""
    low: float
    """Lower end of the 95 % interval over probes."""
    high: float
    """Upper end of the same."""
    n_steps: int
    """Steps the line was fitted to."""
    n_excluded: int
    """Steps left out because the spread is exactly zero there."""


class Phase(NamedTuple):
    """A stretch of training over which the spread falls, rises or stays."""

    start: int
    """First step."""
    end: int
    """Last step, where the next phase starts."""
    direction: Direction
    change: float
    """Change of ln(spread) from start to end, on the line fitted."""
    low: float
    """Lower end of its interval over probes."""
    high: float
    """Upper end of the same."""
    confidence: float
    """With which the change differs from none: one minus the p-value of a two-sided t test."""


def convergence_rate(steps: Sequence[int], spread: npt.ArrayLike, replicates: npt.ArrayLike) -> Rate:
    """Slope of ln(spread) against the training step, per 1,000 steps.

    Least squares in which each point weighs as much of the step axis as it stands for (trapezoid rule), so that the
    result belongs to the curve and not to the grid it was sampled on: an exponential gives its rate on any grid. The
    interval carries the jackknife replicates through the same fit; it holds for fresh probes (a nominal 95 % held the
    expected rate in 95 to 98 % of draws: `benchmarks/coverage.py`), and says nothing about other runs or about how
    straight the line is.

    Parameters
    ----------
    steps
        (T,) distinct training steps, in any order.
    spread
        (T,) spread at each step. Zeros have no logarithm: they are left out and counted.
    replicates
        (T, G) replicates of the spread, from the same groups of probes at all steps.

    Returns
    -------
    Rate
        Negative while the runs converge.

    Raises
    ------
    Unavailable
        If fewer than three steps have a positive spread.
    InvalidInput
        If the shapes disagree, a step occurs twice, or a value is negative or not finite.
    """
    t, y, r = _checked_curve(steps, spread, replicates, what="a convergence rate")
    slopes = RATE_STEPS * _slope_coefficients(t)
    slope = float(slopes @ y)
    low, high = jackknife_interval(slope, slopes @ r)
    return Rate(slope, low, high, n_steps=len(t), n_excluded=len(steps) - len(t))


def phases_of_convergence(
    steps: Sequence[int], spread: npt.ArrayLike, replicates: npt.ArrayLike, *, confidence: float = 0.95
) -> list[Phase]:
    """Divide training into stretches over which the spread falls, rises or stays.

    A broken line is fitted to ln(spread) over ln(1 + step), each point weighing as much of that axis as it stands for.
    It starts as one line; a line is broken at the step that leaves least residual, if the bend there is at least 5 %
    of the spread deep and larger than chance makes the largest of the bends it was chosen from (the maximum of their t
    statistics, correlated as the replicates say). A piece falls or rises if its change is at least 5 % and its interval
    leaves out zero; neighbours of one direction are joined, and a flat piece between two neighbouring steps joins the
    one beside it. The bends are sought among the steps sampled: another grid moves them by about its spacing.

    What is certain here is certain over fresh probes: the ups and downs of these runs are taken as they are.

    Parameters
    ----------
    steps
        (T,) distinct training steps, at least 0, in any order.
    spread
        (T,) spread at each step; steps where it is zero or NaN, which have no logarithm, are left out.
    replicates
        (T, G) replicates of the spread, from the same groups of probes at all steps.
    confidence
        That a spread which stays the same is called flat from end to end: half of the rest is spent on the bends, half
        on the intervals, which hold together.

    Returns
    -------
    list of Phase
        In order, each starting where the one before ends; from the first to the last step with a positive spread.

    Raises
    ------
    Unavailable
        If fewer than three steps have a positive spread.
    InvalidInput
        If the shapes disagree, a step occurs twice or is negative, or a value is negative or infinite.
    """
    y, r = np.array(spread, np.float64), np.array(replicates, np.float64)
    if y.ndim == 1 and r.ndim == 2 and len(y) == len(r):
        unknown = np.isnan(y)
        y[unknown] = r[unknown] = 0
    t, y, r = _checked_curve(steps, y, r, what="a phase of convergence")
    if t[0] < 0:
        raise InvalidInput(f"phases take steps of at least 0, and one is {t[0]:.0f}")
    x = np.log1p(t)
    knots = [0, *_breaks(x, y, r, (1 + confidence) / 2), len(t) - 1]
    while True:
        pieces = _pieces(t, knots, y, r, (1 + confidence) / 2)
        short = [k for k, p in enumerate(pieces) if p.direction == "flat" and knots[k + 1] - knots[k] == 1]
        if not short or len(pieces) == 1:
            break
        del knots[max(short[0], 1)]
    ends = list(range(len(knots)))
    while True:
        pieces = _pieces(t, knots, y, r, (1 + confidence) / 2, ends=ends)
        same = [k for k in range(1, len(pieces)) if pieces[k - 1].direction == pieces[k].direction]
        if not same:
            return pieces
        del ends[same[0]]


def _pieces(
    t: Floats, knots: Sequence[int], y: Floats, r: Floats, confidence: float, *, ends: Sequence[int] | None = None
) -> list[Phase]:
    """Describe the pieces of a broken line, or what is left of them between some of its knots, ``ends``."""
    x = np.log1p(t)
    fit = _broken_line(x, x[list(knots)])
    heights, parts = fit @ y, fit @ r
    pieces = []
    each = 1 - (1 - confidence) / (len(knots) - 1)
    for start, end in pairwise(range(len(knots)) if ends is None else ends):
        change, replicates = float(heights[end] - heights[start]), parts[end] - parts[start]
        low, high = jackknife_interval(change, replicates, confidence=each)
        direction: Direction = "flat"
        if abs(change) >= SMALLEST_CHANGE and not low <= 0 <= high:
            direction = "falls" if change < 0 else "rises"
        error = float(jackknife_error(replicates))
        ratio = abs(change) / error if error else float(np.inf) if change else 0.0
        certain = 2 * float(stdtr(len(replicates) - 1, ratio)) - 1
        pieces.append(Phase(int(t[knots[start]]), int(t[knots[end]]), direction, change, low, high, certain))
    return pieces


def _checked_curve(
    steps: Sequence[int], spread: npt.ArrayLike, replicates: npt.ArrayLike, *, what: str
) -> tuple[Floats, Floats, Floats]:
    """Return steps in order, ln(spread) and the logarithms of its replicates, where the spread is positive.

    A replicate of zero beside a positive spread has no logarithm: it counts as 1 less than the spread's, which is what
    it would be to first order.
    """
    t = np.asarray(steps, np.float64)
    y, r = np.asarray(spread, np.float64), np.asarray(replicates, np.float64)
    if t.ndim != 1 or y.shape != t.shape or r.ndim != 2 or len(r) != len(t) or r.shape[1] < 2:
        raise InvalidInput(f"expected (step,), (step,) and (step, group), not {t.shape}, {y.shape} and {r.shape}")
    if len(np.unique(t)) < len(t):
        raise InvalidInput(f"{what} needs distinct steps, and one occurs twice")
    if not all(np.isfinite(a).all() and (a >= 0).all() for a in (y, r)):
        raise InvalidInput("a spread must be finite and not negative")
    kept = y > 0
    if kept.sum() < 3:
        raise Unavailable(f"{what} needs 3 steps with a positive spread: {kept.sum()} of {len(t)} have one")
    order = np.nonzero(kept)[0][np.argsort(t[kept])]
    heights, parts = y[order], r[order]
    return t[order], np.log(heights), np.log(np.where(parts > 0, parts, heights[:, None] / np.e))


def _shares(t: Floats) -> Floats:
    """How much of an ascending axis each point stands for (trapezoid rule), in sum 1."""
    gaps = np.diff(t)
    shares = np.concatenate([[gaps[0]], gaps[1:] + gaps[:-1], [gaps[-1]]])
    total: Floats = shares / shares.sum()
    return total


def _slope_coefficients(t: Floats) -> Floats:
    """Coefficients c of the weighted least-squares slope c·y on an ascending axis."""
    weights = _shares(t)
    centred = t - weights @ t
    coefficients: Floats = weights * centred / (weights @ centred**2)
    return coefficients


def _broken_line(x: Floats, knots: Floats) -> Floats:
    """Coefficients (knot, point) of the heights at the knots of the broken line that fits best."""
    hats = np.stack([np.interp(x, knots, row) for row in np.eye(len(knots))], axis=1)
    root: Floats = np.sqrt(_shares(x))
    coefficients: Floats = np.linalg.pinv(root[:, None] * hats) * root
    return coefficients


def _breaks(x: Floats, y: Floats, replicates: Floats, confidence: float, start: int = 0) -> list[int]:
    """Positions, counted from ``start``, at which one line after another has to be broken."""
    if len(x) < 3:
        return []
    fits = [_broken_line(x, x[[0, knot, -1]]) for knot in range(1, len(x) - 1)]
    over = [(x[knot] - x[0]) / (x[-1] - x[0]) for knot in range(1, len(x) - 1)]
    bends = np.stack([fit[1] - (1 - q) * fit[0] - q * fit[2] for fit, q in zip(fits, over, strict=True)])
    shares = _shares(x)
    residuals = [shares @ (y - np.interp(x, x[[0, k + 1, -1]], fit @ y)) ** 2 for k, fit in enumerate(fits)]
    best = int(np.argmin(residuals))
    depths, parts = bends @ y, bends @ replicates
    error = jackknife_error(parts)
    if abs(depths[best]) < SMALLEST_CHANGE or abs(depths[best]) <= error[best] * _largest_by_chance(parts, confidence):
        return []
    knot = best + 1
    left = _breaks(x[: knot + 1], y[: knot + 1], replicates[: knot + 1], confidence, start)
    right = _breaks(x[knot:], y[knot:], replicates[knot:], confidence, start + knot)
    return [*left, start + knot, *right]


def _largest_by_chance(replicates: Floats, confidence: float) -> float:
    """Quantile of the largest of the t statistics that go with several estimates, of which (estimate, G) replicates."""
    n_groups = replicates.shape[1]
    deviations = replicates - replicates.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.sum(deviations**2, axis=1, keepdims=True))
    directions = np.divide(deviations, lengths, out=np.zeros_like(deviations), where=lengths > 0)
    rng = np.random.default_rng(0)
    largest = np.abs(rng.standard_normal((DRAWS, n_groups)) @ directions.T).max(axis=1)
    scale = np.sqrt(rng.chisquare(n_groups - 1, DRAWS) / (n_groups - 1))
    return float(np.quantile(largest / scale, confidence))
