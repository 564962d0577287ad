"""How units change between two checkpoints over the same probes, and how well they tell labels apart."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtr, stdtrit

from replay.geometry.neurons import FEWEST_PROBES, ROUNDING, check_units
from replay.geometry.statistics import jackknife_error, probe_groups
from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "UnitChanges", "label_selectivity", "unit_changes"]

VERSION = 1
"""Of the numbers: raised when they change."""

Floats = npt.NDArray[np.float64]
Matrix = npt.NDArray[np.floating[Any]]


class UnitChanges(NamedTuple):
    """How each unit of a layer changed, each (unit,)."""

    movement: Floats
    """Root mean square change in pooled stds; NaN where the unit varies at neither checkpoint."""
    movement_low: Floats
    movement_high: Floats
    """95 % over probes; NaN where fifteenths of the probes hold all that varies."""
    shift: Floats
    """Change of the mean in pooled stds; NaN like ``movement``."""
    correlation: Floats
    """Between the checkpoints over probes; NaN where the unit does not vary at one of them."""
    p: Floats
    """Of a paired t-test against no shift; NaN like ``movement``."""


def unit_changes(X: Matrix, Y: Matrix, *, n_groups: int = 15) -> UnitChanges:
    """Return how each unit changes from X to Y.

    With d = y - x and s² = (var x + var y) / 2 over the probes (variances over n), movement is √(mean d²) / s and shift
    is mean(d) / s, so that movement² = shift² + 2 - 2 r · 2 sd(x) sd(y) / (var x + var y), r the correlation. A unit
    that does not change moves by 0, one that comes to respond to other probes as strongly by √2. The interval is
    symmetric in log(movement²), by a delete-group jackknife: in simulation (90 probes) it held the true movement in 94
    to 95 % of draws from Gaussians, and in 86 % of heavy-tailed ones (squared exponentials).

    Changes within the rounding of stored float32 are none, and neither is a std that is mere rounding.

    Parameters
    ----------
    X, Y
        (probe, unit) activations of the same probes and units, before and after; 3 probes at least.
    n_groups
        Groups of the jackknife.

    Raises
    ------
    InvalidInput
        If they are not two finite matrices of one shape.
    Unavailable
        If there are fewer than 3 probes.
    """
    X, Y = check_units(X), check_units(Y)
    if X.shape != Y.shape:
        raise InvalidInput(f"units change over the same probes: {X.shape} before and {Y.shape} after do not match")
    n = len(X)
    if n < FEWEST_PROBES:
        raise Unavailable(f"changes of units need {FEWEST_PROBES} probes or more, and there are {n}")
    x, y = _centred(X), _centred(Y)
    d = np.subtract(Y, X, dtype=np.float64)
    d[:, np.abs(d).max(axis=0) <= ROUNDING * np.maximum(np.abs(X).max(axis=0), np.abs(Y).max(axis=0))] = 0
    others = 1 - np.eye(min(n_groups, n))[:, probe_groups(n, n_groups=n_groups)]  # (group, probe)
    pooled, pooled_left = (_variance(x, w) / 2 + _variance(y, w) / 2 for w in (np.ones((1, n)), others))
    with np.errstate(divide="ignore", invalid="ignore"):
        squares = np.mean(d**2, axis=0)
        movement = np.sqrt(squares / pooled[0])
        shift = d.mean(axis=0) / np.sqrt(pooled[0])
        correlation = np.mean(x * y, axis=0) / np.sqrt(np.mean(x**2, axis=0) * np.mean(y**2, axis=0))
        replicates = np.log(others @ d**2 / others.sum(axis=1, keepdims=True) / pooled_left)
        reach = stdtrit(len(others) - 1, 0.975) * jackknife_error(replicates.T) / 2
        t = d.mean(axis=0) / (d.std(axis=0, ddof=1) / np.sqrt(n))
        p = 2 * stdtr(n - 1, -np.abs(t))
    still = squares == 0
    reach[still], p[still] = 0, 1
    movement, shift, correlation, p, reach = (
        np.where(np.isfinite(movement), values, np.nan) for values in (movement, shift, correlation, p, reach)
    )
    low, high = movement * np.exp(-reach), movement * np.exp(reach)
    return UnitChanges(movement, low, high, shift, correlation, p)


def label_selectivity(X: Matrix, labels: Sequence[str | None]) -> Floats:
    """Return which share of each unit's variance over probes is between their labels, corrected for chance.

    Epsilon squared (Kelley, 1935), 1 - (W / (n - k)) / (T / (n - 1)), with W the sum of squares within k labels and T
    that of all n probes that have one: 1 where the label tells all, 0 on average where it tells nothing.

    Parameters
    ----------
    X
        (probe, unit) activations.
    labels
        Of each probe; None or an empty one leaves it out.

    Returns
    -------
    ndarray
        (unit,) at most 1, a little below 0 by chance; NaN for a unit that does not vary.

    Raises
    ------
    Unavailable
        If there are fewer than two labels, or as many as probes.
    """
    X = check_units(X)
    kept = np.array([label not in (None, "") for label in labels], bool)
    names, of_probe = np.unique(
        [str(label) for label, keep in zip(labels, kept, strict=True) if keep], return_inverse=True
    )
    n, k = int(kept.sum()), len(names)
    if k < 2 or n <= k:
        raise Unavailable(f"selectivity needs two labels or more, with several probes each: {n} probes have {k} labels")
    x = _centred(X[kept])
    members = np.eye(k)[:, of_probe]
    between = np.sum((members @ x) ** 2 / members.sum(axis=1, keepdims=True), axis=0)
    total = np.sum(x**2, axis=0)
    within = np.full(X.shape[1], np.nan)
    np.divide((total - between) * (n - 1), total * (n - k), out=within, where=total > 0)
    selectivity: Floats = 1 - within
    return selectivity


def _centred(X: Matrix) -> Floats:
    """Deviations from each unit's mean; 0 where they are mere rounding."""
    x: Floats = np.subtract(X, X.mean(axis=0, dtype=np.float64), dtype=np.float64)
    x[:, np.sqrt(np.mean(x**2, axis=0)) <= ROUNDING * np.abs(X).max(axis=0)] = 0
    return x


def _variance(x: Floats, weights: Floats) -> Floats:
    """Variance (row, unit) of deviations over the probes that each row of ``weights`` keeps."""
    n = weights.sum(axis=1, keepdims=True)
    squares, means = weights @ x**2 / n, weights @ x / n
    variance: Floats = np.where(squares - means**2 > 1e-12 * squares, squares - means**2, 0)
    return variance
