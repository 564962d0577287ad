"""Phases of a path: stretches of checkpoints that straight lines follow better than any smooth curve."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput, Unavailable

__all__ = [
    "SHORTEST",
    "VERSION",
    "Boundary",
    "boundary_support",
    "broken_line_ratio",
    "critical_ratio",
    "probe_replicates",
    "segment_path",
]

VERSION = 1
"""Raised when numbers change."""

SHORTEST = 3
"""Checkpoints of a phase at least: two lie on a line whatever they are."""

MOST_PARTS = 4
"""Parts that one stretch is broken into at once; each part is then looked at in turn."""

STRAIGHT = 1e-12
"""A path whose smooth curve leaves less than this share of its sum of squares is that curve but for rounding."""

Floats = npt.NDArray[np.float64]


class Boundary(NamedTuple):
    """Where a phase begins, and how far that depends on the probes."""

    start: int
    """Position of the first checkpoint of the phase."""
    confidence: float
    """Share of replicates that have a boundary at most one checkpoint away."""
    low: int
    """Position of the 2.5 % quantile of the nearest boundary over the replicates that have any."""
    high: int
    """The same of the 97.5 % quantile."""


def segment_path(K: npt.ArrayLike) -> list[int]:
    """Return where the phases of a path begin, the first one left out; an empty list is one phase.

    The path is looked at in the feature space of a kernel (Harchaoui and Cappé, 2007), so that only inner products
    enter. A stretch of T checkpoints is broken into m = 2, 3 or 4 parts of three checkpoints or more, each followed by
    a straight line, so that the squared distance left is the least of all ways (dynamic programming). The m lines and
    m - 1 breaks have 3m - 1 parameters. The stretch falls into phases if what they leave is less than
    `critical_ratio` times what the polynomial with as many coefficients leaves; the smallest such m stands, and its
    parts are looked at in turn. The clock is the checkpoint, not the step.

    In simulation (10, 18 and 40 checkpoints, 1, 3 and 10 dimensions, 200 paths each) 0 to 5 % of paths without a phase
    were broken: white noise, random walks with and without drift, autoregressions, straight drifts, exponentials,
    sigmoids and arcs. A jump of ten times the noise in each dimension was found alone and within one checkpoint in 94
    to 100 % at 18 and 40 checkpoints (24 to 87 % at 10), two of them in 60 to 100 %, one there and back in 20 to 99 %.
    A turn without a jump is a smooth curve to this rule, and begins no phase.

    Parameters
    ----------
    K
        (T, T) inner products of the checkpoints in the order of training, such as their centred kernel alignment.
        Adding a constant to all of it changes nothing, nor does scaling it.

    Returns
    -------
    list of int
        Ascending positions of the first checkpoint of every phase but the first.

    Raises
    ------
    InvalidInput
        If K is not a finite symmetric matrix.
    Unavailable
        If there are fewer than 6 checkpoints.
    """
    K = np.asarray(K, np.float64)
    if K.ndim != 2 or K.shape[0] != K.shape[1] or not np.isfinite(K).all():
        raise InvalidInput(f"inner products of checkpoints must be a finite square matrix, not of shape {K.shape}")
    if np.abs(K - K.T).max(initial=0) > 1e-9 * np.abs(K).max(initial=0):
        raise InvalidInput("inner products of checkpoints must be symmetric")
    if len(K) < 2 * SHORTEST:
        raise Unavailable(
            f"two phases need {2 * SHORTEST} checkpoints or more, and there are {len(K)}: ingest more revisions"
        )
    floor = STRAIGHT * float(np.trace(_centred(K)))
    found: list[int] = []
    stretches = [(0, len(K))]
    while stretches:
        start, stop = stretches.pop()
        breaks = [start + b for b in _split(_centred(K[start:stop, start:stop]), floor)]
        found += breaks
        ends = [start, *breaks, stop]
        stretches += [(a, b) for a, b in pairwise(ends) if breaks]
    return sorted(found)


def boundary_support(boundaries: list[int], replicates: list[list[int]]) -> list[Boundary]:
    """Say how far boundaries depend on the probes.

    Parameters
    ----------
    boundaries
        From `segment_path`.
    replicates
        The same of paths over other probes (`probe_replicates`), each from `segment_path`.

    Returns
    -------
    list of Boundary
        One a boundary.
    """
    told = []
    for start in boundaries:
        nearest = [min(other, key=lambda b: (abs(b - start), b)) for other in replicates if other]
        low, high = (int(q) for q in np.quantile(nearest or [start], [0.025, 0.975], method="nearest"))
        near = sum(abs(b - start) <= 1 for b in nearest)
        told.append(Boundary(start, near / len(replicates), min(low, start), max(high, start)))
    return told


def probe_replicates(K: Floats, without: Floats, *, n_replicates: int = 100, seed: int = 0) -> Floats:
    """Draw inner products over fresh probes from the same population, to first order.

    K + √((G-1)/G) Σ_g ξ_g (K_(g) - mean K_(·)) with standard normal ξ: a multiplier bootstrap whose covariance over all
    entries is that of the delete-group jackknife.

    Parameters
    ----------
    K
        (T, T) inner products over all probes.
    without
        (T, T, G) the same without each group of probes.
    n_replicates
        How many.
    seed
        Of ξ.

    Returns
    -------
    ndarray
        (n_replicates, T, T).
    """
    n_groups = without.shape[-1]
    deviations = (without - without.mean(axis=-1, keepdims=True)) * np.sqrt((n_groups - 1) / n_groups)
    draws = np.random.default_rng(seed).standard_normal((n_replicates, n_groups))
    replicates: Floats = K + np.einsum("rg,ijg->rij", draws, deviations)
    return replicates


def broken_line_ratio(K: npt.ArrayLike, n_parts: int) -> float:
    """Return what the best broken line leaves of a path, divided by what a polynomial with as many parameters leaves.

    Parameters
    ----------
    K
        (T, T) inner products of the checkpoints.
    n_parts
        Straight parts m of three checkpoints or more each; breaks may jump. The polynomial has degree 3m - 2.

    Raises
    ------
    Unavailable
        If the path is too short, or a polynomial but for rounding.
    """
    K = _centred(np.asarray(K, np.float64))
    if len(K) < SHORTEST * n_parts:
        raise Unavailable(f"{n_parts} parts need {SHORTEST * n_parts} checkpoints or more, and there are {len(K)}")
    smooth = _left_by_polynomial(K, n_parts)
    if smooth <= STRAIGHT * float(np.trace(K)):
        raise Unavailable("the path is a smooth curve but for rounding")
    return _best_breaks(_line_costs(K), n_parts)[0] / smooth


def critical_ratio(n_checkpoints: int, n_dimensions: float, n_parts: int) -> float:
    """Return the `broken_line_ratio` below which a path is held for broken.

    The 5 % / 3 quantile (for 2, 3 and 4 parts are tried) of simulated paths of T checkpoints in D dimensions, the least
    of four kinds: white noise, random walk, random walk with drift, autoregression of 0.7. Between the simulated T and
    D it is interpolated in their logarithms.

    Parameters
    ----------
    n_checkpoints
        T.
    n_dimensions
        D, at least 1: effective dimension (Σλ)² / Σλ² of the moves between successive checkpoints.
    n_parts
        2, 3 or 4.
    """
    table = np.array(_CRITICAL[n_parts])
    along = [np.interp(np.log(n_dimensions), np.log(_DIMENSIONS), row) for row in table]
    return float(np.interp(np.log(n_checkpoints), np.log(_CHECKPOINTS), along))


def _split(K: Floats, floor: float) -> list[int]:
    """Return the breaks of one stretch; none if it is one phase."""
    T = len(K)
    if T < 2 * SHORTEST:
        return []
    moves = np.diff(np.diff(K, axis=0), axis=1)
    squares = float(np.sum(moves * moves))
    if squares <= 0:
        return []
    D = max(1.0, float(np.trace(moves)) ** 2 / squares)
    costs = _line_costs(K)
    for m in range(2, min(MOST_PARTS, T // SHORTEST) + 1):
        left, breaks = _best_breaks(costs, m)
        smooth = _left_by_polynomial(K, m)
        if smooth > floor and left < critical_ratio(T, D, m) * smooth:
            return breaks
    return []


def _centred(K: Floats) -> Floats:
    centred: Floats = K - K.mean(axis=0) - K.mean(axis=1)[:, None] + K.mean()
    return centred


def _line_costs(K: Floats) -> Floats:
    """Return the squared distance from the checkpoints a to b - 1 to their straight line, infinite for short parts."""
    T = len(K)
    t = np.arange(T) - (T - 1) / 2
    of_one, of_clock, of_both = (_summed(M) for M in (K, t[:, None] * K, t[:, None] * K * t))
    diagonal = np.concatenate([[0.0], np.diagonal(K).cumsum()])
    a, b = np.triu_indices(T + 1, SHORTEST)
    length, middle = b - a, (a + b - 1) / 2 - (T - 1) / 2
    one, clock, both = (S[b, b] - S[a, b] - S[b, a] + S[a, a] for S in (of_one, of_clock, of_both))
    slope = both - 2 * middle * clock + middle**2 * one
    costs = np.full((T + 1, T + 1), np.inf)
    costs[a, b] = np.maximum(diagonal[b] - diagonal[a] - one / length - slope / (length * (length**2.0 - 1) / 12), 0)
    return costs


def _summed(M: Floats) -> Floats:
    sums = np.zeros((len(M) + 1, len(M) + 1))
    sums[1:, 1:] = M.cumsum(axis=0).cumsum(axis=1)
    # The clock multiplies one side only: its rectangles are read from both triangles.
    return (sums + sums.T) / 2


def _best_breaks(costs: Floats, n_parts: int) -> tuple[float, list[int]]:
    """Return the least cost of so many parts and where all but the first begin (Bellman, 1961)."""
    best, came = costs[0], []
    for _ in range(n_parts - 1):
        reached = best[:, None] + costs
        came.append(reached.argmin(axis=0))
        best = reached.min(axis=0)
    breaks, at = [], len(costs) - 1
    for origin in reversed(came):
        at = int(origin[at])
        breaks.append(at)
    return float(best[-1]), breaks[::-1]


def _left_by_polynomial(K: Floats, n_parts: int) -> float:
    t = np.linspace(-1, 1, len(K))
    Q = np.linalg.qr(np.polynomial.legendre.legvander(t, min(3 * n_parts - 2, len(K) - 2)))[0]
    return max(float(np.trace(K) - np.einsum("ip,ij,jp->", Q, K, Q)), 0.0)


_CHECKPOINTS = (6, 8, 10, 12, 15, 18, 24, 32, 48, 72, 108, 160)
_DIMENSIONS = (1, 2, 4, 8, 16)
_CRITICAL: dict[int, tuple[tuple[float, ...], ...]] = {
    2: (
        (0.06, 0.24, 0.51, 0.79, 1.05),
        (0.18, 0.42, 0.64, 0.83, 0.96),
        (0.29, 0.53, 0.74, 0.87, 0.97),
        (0.36, 0.58, 0.75, 0.89, 0.96),
        (0.42, 0.63, 0.77, 0.90, 0.96),
        (0.47, 0.65, 0.81, 0.91, 0.96),
        (0.51, 0.68, 0.82, 0.93, 0.97),
        (0.51, 0.68, 0.84, 0.93, 0.98),
        (0.53, 0.69, 0.84, 0.92, 0.98),
        (0.56, 0.69, 0.83, 0.94, 0.98),
        (0.56, 0.70, 0.83, 0.95, 0.98),
        (0.55, 0.70, 0.82, 0.96, 0.99),
    ),
    3: (
        (0.00, 0.00, 0.00, 0.00, 0.00),
        (0.00, 0.00, 0.00, 0.00, 0.00),
        (0.20, 0.49, 0.79, 1.01, 1.23),
        (0.22, 0.50, 0.71, 0.89, 1.05),
        (0.31, 0.56, 0.73, 0.89, 0.99),
        (0.37, 0.60, 0.78, 0.89, 0.97),
        (0.44, 0.64, 0.82, 0.91, 0.97),
        (0.49, 0.67, 0.84, 0.92, 0.97),
        (0.52, 0.72, 0.85, 0.94, 0.97),
        (0.54, 0.73, 0.86, 0.95, 0.98),
        (0.54, 0.74, 0.89, 0.94, 0.98),
        (0.54, 0.72, 0.89, 0.95, 0.99),
    ),
    4: (
        (0.00, 0.00, 0.00, 0.00, 0.00),
        (0.00, 0.00, 0.00, 0.00, 0.00),
        (0.00, 0.00, 0.00, 0.00, 0.00),
        (0.57, 0.98, 1.41, 1.84, 2.20),
        (0.27, 0.55, 0.80, 1.02, 1.17),
        (0.29, 0.55, 0.77, 0.93, 1.06),
        (0.39, 0.61, 0.78, 0.91, 0.99),
        (0.45, 0.67, 0.83, 0.91, 0.98),
        (0.51, 0.72, 0.87, 0.93, 0.98),
        (0.53, 0.71, 0.87, 0.95, 0.98),
        (0.56, 0.72, 0.87, 0.95, 0.98),
        (0.56, 0.75, 0.88, 0.95, 0.99),
    ),
}
"""Rows for `_CHECKPOINTS`, columns for `_DIMENSIONS`; 0 where there are too few checkpoints."""
