"""Doubt about numbers made from pairwise matrices: a delete-group jackknife over probes, and a permutation ceiling."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from store.errors import InvalidInput

__all__ = [
    "Interval",
    "Moments",
    "jackknife_interval",
    "leave_group_out",
    "moments",
    "permutation_ceiling",
    "probe_groups",
]

Floats = npt.NDArray[np.float64]


class Interval(NamedTuple):
    """A confidence interval."""

    low: float
    high: float


class Moments(NamedTuple):
    """What the permutation ceiling needs to know of an operator."""

    n_probes: int
    squares: float
    """‖P‖_F²."""
    off_diagonal: float
    """Σ_{i≠j} P_ij."""
    trace: float
    """Σ_i P_ii."""


def probe_groups(n_probes: int, *, n_groups: int = 15, seed: int = 0) -> npt.NDArray[np.intp]:
    """Deal the probes at random into groups whose sizes differ by one at most.

    Parameters
    ----------
    n_probes
        How many probes there are, at least 3.
    n_groups
        How many groups, at least 2; no more are made than there are probes.
    seed
        Of the shuffle: equal seeds give equal groups, so that replicates of several steps belong together.

    Returns
    -------
    ndarray
        (n_probes,) group of each probe, 0 to n_groups - 1.

    Raises
    ------
    InvalidInput
        If there are fewer than 3 probes or 2 groups.
    """
    if n_probes < 3 or n_groups < 2:
        raise InvalidInput(f"a jackknife needs 3 probes and 2 groups or more, not {n_probes} and {n_groups}")
    return np.random.default_rng(seed).permutation(n_probes) % min(n_groups, n_probes)


def leave_group_out(block_sums: Floats, sizes: npt.NDArray[np.integer[Any]]) -> Floats:
    """Σ_ij e_ij without the rows and columns of one group, for each group, scaled to all pairs of probes.

    Parameters
    ----------
    block_sums
        (..., G, G) sums of a pairwise quantity e over the rows of one group and the columns of another.
    sizes
        (G,) probes in each group.

    Returns
    -------
    ndarray
        (..., G); multiplied by n(n-1) / (m(m-1)) where m of n probes are left, so that all estimate the full sum.
    """
    kept = block_sums.sum(axis=(-2, -1))[..., None] - block_sums.sum(axis=-1) - block_sums.sum(axis=-2)
    kept = np.maximum(kept + np.einsum("...gg->...g", block_sums), 0)
    n, left = sizes.sum(), sizes.sum() - sizes
    scaled: Floats = kept * (n * (n - 1) / (left * (left - 1)))
    return scaled


def jackknife_interval(estimate: float, replicates: Floats, *, confidence: float = 0.95) -> Interval:
    """Delete-group jackknife interval of a statistic, over fresh probes from the same population.

    θ ± t_{G-1} · √((G-1)/G · Σ_g (θ_(g) - mean θ_(·))²), Student's t with one degree of freedom less than groups
    (Kott, 2001: The delete-a-group jackknife).
    """
    n_groups = len(replicates)
    deviations = replicates - replicates.mean()
    error = np.sqrt((n_groups - 1) / n_groups * np.sum(deviations**2))
    reach = float(stdtrit(n_groups - 1, (1 + confidence) / 2) * error)
    return Interval(estimate - reach, estimate + reach)


def moments(P: npt.NDArray[np.floating[Any]]) -> Moments:
    """Sum over an (n, n) operator what the permutation ceiling needs."""
    trace = float(np.trace(P, dtype=np.float64))
    return Moments(
        n_probes=len(P),
        squares=float(np.einsum("ij,ij->i", P, P).sum(dtype=np.float64)),
        off_diagonal=float(P.sum(axis=1).sum(dtype=np.float64)) - trace,
        trace=trace,
    )


def permutation_ceiling(P: Moments, Q: Moments, *, normalized: bool = False) -> float:
    """Distance between two operators whose probes have nothing to do with one another.

    The root mean square of ‖P - ΠQΠᵀ‖_F over all relabellings Π of the probes, exact and without sampling, since
    E⟨P, ΠQΠᵀ⟩ = (Σ_{i≠j} P_ij)(Σ_{i≠j} Q_ij) / (n(n-1)) + tr P · tr Q / n.

    Parameters
    ----------
    P, Q
        Moments of two operators over the same number of probes.
    normalized
        Whether to divide by √(‖P‖_F² + ‖Q‖_F²), which no relabelling changes.

    Returns
    -------
    float
        What a distance would be if the two operators agreed on the spectrum of neighbourhoods only, not on neighbours.
    """
    n = P.n_probes
    overlap = P.off_diagonal * Q.off_diagonal / (n * (n - 1)) + P.trace * Q.trace / n
    squares = P.squares + Q.squares
    squared = max(squares - 2 * overlap, 0.0)
    if normalized:
        return float(np.sqrt(squared / squares)) if squares else 0.0
    return float(np.sqrt(squared))
