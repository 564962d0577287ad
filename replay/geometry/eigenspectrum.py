"""Eigenvalues of activations from the smaller of their two Gram matrices, and the dimensions that follow from them."""

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.sparse.linalg import ArpackError, eigsh

from store.errors import Unavailable

__all__ = [
    "ALPHA_RANKS",
    "FEWEST_ALPHA",
    "Gram",
    "alpha_req",
    "effective_rank",
    "energy_rank",
    "nuclear_norm_ratio",
    "participation_ratio",
    "participation_ratio_singular",
    "participation_ratio_unbiased",
    "power_law",
    "stable_rank",
]

ALPHA_RANKS = (11, 100)
"""First and last rank of the eigenvalues that a power law is fitted to; the last is that of the smallest if sooner."""

FEWEST_ALPHA = 20
"""A power law is fitted to this many eigenvalues or more."""

ACCURACY = 1e-7
"""Largest relative error that squaring the activations may cause; where it may be larger they are not squared."""

DENSE_BELOW = 100
"""Rows of a Gram matrix below which all its eigenvalues are computed, which is then as fast as one."""

TIE = 1e-10
"""Relative difference below which a share of the energy counts as reached."""

Floats = npt.NDArray[np.float64]


class Gram:
    """The smaller of X Xᵀ and Xᵀ X in float64, where X is (n, d), centred over its rows or as it is.

    It has all non-zero eigenvalues of the scatter of X, and leaving out rows costs little more than a copy of it.
    """

    n: int
    """Rows."""
    d: int
    """Columns."""

    def __init__(self, X: npt.NDArray[np.floating[Any]], *, centred: bool) -> None:
        self.n, self.d = X.shape
        self.centred = centred
        digits, X = np.finfo(X.dtype).eps, X.astype(np.float64)
        self.rounding = float(digits * (np.sqrt(self.n) + np.sqrt(self.d)) * np.sqrt(np.mean(X**2)))
        """About the largest singular value of the rounding of the activations."""
        self.rows = X - X.mean(axis=0) if centred else X
        self.matrix: Floats = self.rows @ self.rows.T if self.n <= self.d else self.rows.T @ self.rows
        self.norms: Floats = np.vecdot(self.rows, self.rows)
        """(n,) squared length of each row."""
        if self.norms.sum() <= (self.n * np.finfo(np.float64).eps) ** 2 * np.vecdot(X, X).sum():
            raise Unavailable(
                "a dimension is undefined where all probes have the same activations"
                if centred
                else "a dimension is undefined where all activations are zero"
            )

    def without(self, dropped: npt.NDArray[np.bool_]) -> "Gram":
        """Return that of the rows that are not ``dropped``, centred over those."""
        part = object.__new__(Gram)
        part.n, part.d, part.centred, part.rounding = int((~dropped).sum()), self.d, self.centred, self.rounding
        part.rows = self.rows[~dropped]
        if self.n <= self.d:
            part.matrix = self.matrix[np.ix_(~dropped, ~dropped)]
            if self.centred:
                means = part.matrix.mean(axis=0)
                part.matrix = part.matrix - means - means[:, None] + means.mean()
            part.norms = part.matrix.diagonal().clip(min=0)
        else:
            gone = self.rows[dropped]
            part.matrix = self.matrix - gone.T @ gone
            if self.centred:
                mean = part.rows.mean(axis=0)
                part.rows = part.rows - mean
                part.matrix -= part.n * np.outer(mean, mean)
            part.norms = np.vecdot(part.rows, part.rows)
        if part.norms.sum() <= 1e-12 * self.norms.sum():
            raise Unavailable("without some probes all others have the same activations")
        return part

    @property
    def rank(self) -> int:
        """The largest rank that such activations can have."""
        return self.n - 1 if self.centred and self.n <= self.d else min(self.n, self.d)

    @property
    def total(self) -> float:
        """Sum of the eigenvalues."""
        return float(self.matrix.trace())

    @cached_property
    def squares(self) -> float:
        """Sum of the squared eigenvalues."""
        return float(np.vecdot(self.matrix, self.matrix).sum())

    @cached_property
    def largest(self) -> float:
        """The largest eigenvalue, by a Lanczos iteration unless all are known or few."""
        if "eigenvalues" in self.__dict__ or len(self.matrix) < DENSE_BELOW:
            return float(self.eigenvalues[0])
        start = np.random.default_rng(0).standard_normal(len(self.matrix))
        try:
            return float(eigsh(self.matrix, 1, which="LA", v0=start, tol=1e-6, return_eigenvectors=False)[0])
        except ArpackError:
            return float(self.eigenvalues[0])

    @cached_property
    def eigenvalues(self) -> Floats:
        """(rank,) descending; off by no more than `squaring_error`."""
        values: Floats = np.linalg.eigvalsh(self.matrix)[::-1][: self.rank].clip(min=0)
        return values

    @property
    def squaring_error(self) -> float:
        """Largest error of an eigenvalue: sums of k products are off by k ε ‖X‖_F² at most, k = max(n, d)."""
        return float(max(self.n, self.d) * np.finfo(np.float64).eps * self.total)

    @cached_property
    def singular_values(self) -> Floats:
        """(rank,) of the activations, descending; roots of the eigenvalues wherever these are exact enough.

        An error δ of λ = s² is one of s of at most min(√δ, δ / s). Where, summed as the entropy of s takes them, these
        errors are above `ACCURACY`, or that of an eigenvalue in the range of a power law is, the activations are
        decomposed themselves.
        """
        s, error = np.sqrt(self.eigenvalues), self.squaring_error
        errors = error / np.maximum(s, np.sqrt(error))
        share = s / s.sum()
        logs = -np.log(share.clip(min=np.finfo(np.float64).tiny))
        sure = errors @ (1 + logs + share @ logs) <= ACCURACY * s.sum()
        last = self.eigenvalues[: ALPHA_RANKS[1]][-1]
        if sure and error <= ACCURACY * last:
            return s
        # Rows that others were left out of are centred over all of them.
        rows = self.rows - self.rows.mean(axis=0) if self.centred else self.rows
        return np.asarray(np.linalg.svd(rows, compute_uv=False)[: self.rank], np.float64)


def stable_rank(gram: Gram) -> float:
    """‖X‖_F² / σ₁², from 1 to the rank (Rudelson and Vershynin, 2007)."""
    return gram.total / gram.largest


def participation_ratio(gram: Gram) -> float:
    """(Σλ)² / Σλ² with λ = σ², from 1 to the rank."""
    return gram.total**2 / gram.squares


def participation_ratio_unbiased(gram: Gram) -> float:
    """Ratio of unbiased estimates of (tr Σ)² and tr Σ², Σ the covariance of the population of probes.

    With S = Yᵀ Y / (n - 1) of centred Y, Q = Σ‖y_i‖⁴ / (n - 1) and a factor common to both, (tr Σ)² is estimated by
    2 tr S² + (n² - 3n + 1)(tr S)² - nQ and tr Σ² by (n - 1)(n - 2) tr S² + (tr S)² - nQ, without assuming a normal
    distribution (Himeno and Yamada, 2014). It does not sink with the number of probes as `participation_ratio` does;
    it may exceed the number of features. It takes the features as given.

    Raises
    ------
    Unavailable
        If there are fewer than 4 probes, or tr Σ² is estimated as zero or less.
    """
    n = gram.n
    if n < 4:
        raise Unavailable(f"an unbiased participation ratio needs 4 probes or more, and there are {n}")
    total, squares, fourth = gram.total / (n - 1), gram.squares / (n - 1) ** 2, gram.norms @ gram.norms / (n - 1)
    above = 2 * squares + (n**2 - 3 * n + 1) * total**2 - n * fourth
    below = (n - 1) * (n - 2) * squares + total**2 - n * fourth
    if below <= 1e-9 * n**2 * squares:
        raise Unavailable(
            f"{n} probes are too few for an unbiased participation ratio: tr Σ² is estimated as 0 or less"
        )
    return float(above / below)


def participation_ratio_singular(gram: Gram) -> float:
    """(Σσ)² / Σσ², of singular values and not of their squares: larger than `participation_ratio`, up to the rank."""
    s = gram.singular_values
    return float(s.sum() ** 2 / (s @ s))


def effective_rank(gram: Gram) -> float:
    """Exponential of the entropy of σ / Σσ, from 1 to the rank (Roy and Vetterli, 2007)."""
    p = gram.singular_values / gram.singular_values.sum()
    p = p[p > 0]
    return float(np.exp(-(p @ np.log(p))))


def nuclear_norm_ratio(gram: Gram) -> float:
    """Σσ / σ₁, from 1 to the rank."""
    return float(gram.singular_values.sum() / gram.singular_values[0])


def energy_rank(gram: Gram, share: float) -> float:
    """Rank of the eigenvalue with which the sum of the largest ones reaches a share of the energy Σλ, between ranks.

    Its ceiling is the smallest k with λ₁ + … + λ_k ≥ share · Σλ; the fraction is linear within the k-th eigenvalue.
    """
    reached = np.cumsum(gram.eigenvalues)
    wanted = share * reached[-1]
    k = int(np.searchsorted(reached, wanted * (1 - TIE)))
    before = reached[k - 1] if k else 0.0
    return float(k + np.clip((wanted - before) / gram.eigenvalues[k], TIE, 1))


def alpha_req(gram: Gram) -> float:
    """Exponent α of λ_j ∝ j^-α (Agrawal et al., 2022: α-ReQ), fitted by `power_law`; rounding is not fitted.

    Raises
    ------
    Unavailable
        If fewer than `FEWEST_ALPHA` eigenvalues are there to be fitted.
    """
    s = gram.singular_values
    return power_law(s[s > max(gram.rounding, s[0] * max(gram.n, gram.d) * np.finfo(np.float64).eps)] ** 2)


def power_law(eigenvalues: Floats) -> float:
    """Minus the slope of ln λ_j on ln j at the ranks `ALPHA_RANKS`, with weights 1/j (Stringer et al., 2019).

    Raises
    ------
    Unavailable
        If fewer than `FEWEST_ALPHA` eigenvalues are in that range.
    """
    first, last = ALPHA_RANKS
    ranks = np.arange(first, min(last, len(eigenvalues)) + 1)
    if len(ranks) < FEWEST_ALPHA:
        raise Unavailable(
            f"a power law is fitted to {FEWEST_ALPHA} eigenvalues or more from rank {first} on, and there are "
            f"{len(eigenvalues)} above rounding in all"
        )
    x, y, w = np.log(ranks), np.log(eigenvalues[first - 1 : last]), 1 / ranks
    x = x - x @ w / w.sum()
    return float(-(w * x) @ y / (w * x @ x))
