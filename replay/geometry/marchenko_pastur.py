"""Dimensions of activations without structure: all features independent, normal, of one variance."""

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.eigenspectrum import power_law
from replay.geometry.two_nn import neighbour_ratios, two_nn

__all__ = ["NullSpectrum", "null_two_nn"]

NODES = 20_000
"""Points of the midpoint rule over the density, which is smooth and periodic in the angle."""

DRAWS = 5
"""Sets of normal activations whose two_nn is averaged."""

Floats = npt.NDArray[np.float64]


class NullSpectrum(NamedTuple):
    """Dimensions of m rows and d columns of independent standard normal numbers; m is n - 1 where n rows are centred.

    Participation ratio and stable rank in closed form, the others by integrals over the law of Marchenko and Pastur
    (1967), exact for large m and d.
    """

    m: int
    d: int

    @property
    def rank(self) -> int:
        """How many eigenvalues are not zero."""
        return min(self.m, self.d)

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
    """Mean two_nn of five seeded draws of n normal activations with d features: there is no closed form at finite n.

    Raises
    ------
    Unavailable
        If there are too few probes.
    """
    rng = np.random.default_rng(0)
    return float(np.mean([two_nn(neighbour_ratios(rng.standard_normal((n, d))).logarithms) for _ in range(DRAWS)]))
