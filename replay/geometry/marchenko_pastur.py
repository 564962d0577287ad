"""Dimensions of activations without structure: all features independent, normal, of one variance."""

from collections.abc import Callable
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.eigenspectrum import Gram, power_law
from replay.geometry.two_nn import neighbour_ratios, two_nn

__all__ = ["FEW", "NullSpectrum", "null_two_nn"]

NODES = 20_000
"""Points of the midpoint rule over the density, which is smooth and periodic in the angle."""

DRAWS = 5
"""Fewest sets of normal activations whose two_nn is averaged."""

DRAWN = 20_000
"""Probes in all sets, if there are more: the mean is off by 1 % or so."""

FEW = 100
"""Ranks below this are simulated; from it on the mean largest eigenvalue is at most 5 % below the edge of its law."""

SIMULATED = 200
"""Seeded draws of activations of such a rank; their means are off by 2 % or less."""

Floats = npt.NDArray[np.float64]


class NullSpectrum(NamedTuple):
    """Dimensions of m rows and d columns of independent standard normal numbers; m is n - 1 where n rows are centred.

    Participation ratio and stable rank in closed form, the others by integrals over the law of Marchenko and Pastur
    (1967), exact for large m and d; for a rank below `FEW` take `simulated`.
    """

    m: int
    d: int

    @property
    def rank(self) -> int:
        """How many eigenvalues are not zero."""
        return min(self.m, self.d)

    def simulated(self, measure: Callable[[Gram], float]) -> float:
        """Give the mean of a measure over `SIMULATED` draws.

        Raises
        ------
        Unavailable
            If the measure is undefined for this rank.
        """
        return float(np.mean([measure(gram) for gram in _grams(self)]))

    def stable_rank(self) -> float:
        """Give m d / (√m + √d)²: a few per cent low, for the largest eigenvalue stays below the edge of its law."""
        return float(self.m * self.d / (np.sqrt(self.m) + np.sqrt(self.d)) ** 2)

    def participation_ratio(self) -> float:
        """Give m d / (m + d + 1): E(tr S)² / E tr S² but for terms of 1 / (m d)."""
        return self.m * self.d / (self.m + self.d + 1)

    def participation_ratio_singular(self) -> float:
        """Give rank · (E√λ)² / Eλ."""
        eigenvalues, weights = self.law()
        return float(self.rank * (weights @ np.sqrt(eigenvalues)) ** 2 / (weights @ eigenvalues))

    def effective_rank(self) -> float:
        """Give the exponential of the entropy ln(rank · E√λ) - E(√λ ln √λ) / E√λ."""
        eigenvalues, weights = self.law()
        roots = np.sqrt(eigenvalues)
        mean = weights @ roots
        return float(self.rank * mean * np.exp(-(weights @ (roots * np.log(roots))) / mean))

    def nuclear_norm_ratio(self) -> float:
        """Give rank · E√λ over the root of the upper edge."""
        eigenvalues, weights = self.law()
        return float(self.rank * (weights @ np.sqrt(eigenvalues)) / (1 + np.sqrt(self.rank / max(self.m, self.d))))

    def energy_rank(self, share: float) -> float:
        """Give rank · P(λ > q) with q such that eigenvalues above it have that share of the energy; between ranks."""
        eigenvalues, weights = self.law()
        energy = np.cumsum(weights * eigenvalues)
        return float(self.rank * np.interp(share, energy / energy[-1], np.cumsum(weights)))

    def alpha_req(self) -> float:
        """Fit the quantiles of the law at (j - ½) / rank.

        Raises
        ------
        Unavailable
            If the rank is below what is fitted.
        """
        eigenvalues, weights = self.law()
        return power_law(np.interp((np.arange(self.rank) + 0.5) / self.rank, np.cumsum(weights), eigenvalues))

    def law(self) -> tuple[Floats, Floats]:
        """Non-zero eigenvalues over max(m, d), descending, and their weights, which sum to 1.

        With y = rank / max(m, d) and λ = 1 + y + 2√y cos θ, the density √((λ₊ - λ)(λ - λ₋)) / (2π y λ) dλ is
        2 sin²θ / (π λ) dθ.
        """
        theta = np.pi * (np.arange(NODES) + 0.5) / NODES
        y = self.rank / max(self.m, self.d)
        eigenvalues: Floats = 1 + y + 2 * np.sqrt(y) * np.cos(theta)
        weights = np.sin(theta) ** 2 / eigenvalues
        return eigenvalues, weights / weights.sum()


@cache
def null_two_nn(n: int, d: int) -> float:
    """Mean two_nn of seeded draws of n normal activations with d features: there is no closed form at finite n.

    No more than n features are drawn, whatever d is, see `_draw`.

    Raises
    ------
    Unavailable
        If there are too few probes.
    """
    rng, n_draws = np.random.default_rng(0), max(DRAWS, DRAWN // n)
    return float(np.mean([two_nn(neighbour_ratios(_draw(rng, n, d)).logarithms) for _ in range(n_draws)]))


@lru_cache(maxsize=2)
def _grams(null: NullSpectrum) -> list[Gram]:
    rng, larger = np.random.default_rng(0), max(null.m, null.d)
    return [Gram(_draw(rng, null.rank, larger), centred=False) for _ in range(SIMULATED)]


def _draw(rng: np.random.Generator, n: int, d: int) -> Floats:
    """Return (n, min(n, d)) numbers whose rows have distances and a spectrum like n rows of d standard normal ones.

    If d > n, the triangular factor of their Gram matrix is drawn instead, which has the same law exactly (Bartlett,
    1933): normal below the diagonal, the roots of χ² with d, d - 1, ... degrees of freedom on it.
    """
    if d <= n:
        return rng.standard_normal((n, d))
    factor: Floats = np.tril(rng.standard_normal((n, n)), -1)
    np.fill_diagonal(factor, np.sqrt(rng.chisquare(d - np.arange(n))))
    return factor
