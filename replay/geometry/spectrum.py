"""The spectrum of an operator and what it says of it: gap, entropies, stationary distribution, neighbourhoods."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from replay.geometry.eigen import top_eigenpairs
from replay.geometry.gauge import Operator
from replay.geometry.pairwise import row_blocks
from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "Spectrum", "spectral_entropy", "spectrum", "uniform_walk"]

VERSION = 1
"""Version of these computations, part of every cache key: raised whenever a result may change."""

SPECTRAL_ENTROPY_TIME = 3
"""Diffusion time at which the diffusion spectral entropy is taken."""

EIGENVALUE_ERROR = 1e-6
"""An eigenvalue nearer to zero than this may be zero: operators are kept in float32."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Spectrum:
    """What the spectrum and the weights of one operator say; entropies use all eigenvalues, not only those kept."""

    eigenvalues: Floats
    """(k,) largest eigenvalues, descending; real parts where the operator is not reversible."""
    spectral_gap: float
    """1 - |λ|₂, where |λ|₂ is the second largest modulus: 0 where the graph falls into parts or is bipartite."""
    stationary: Floats
    """(n,) stationary distribution, the degrees over their sum. One of several where the graph falls into parts."""
    stationary_entropy: float
    """-Σ π ln π in nats, at most ln n."""
    von_neumann_entropy: float
    """-Σ p ln p in nats, p = |λ|^t / Σ|λ|^t: 0 where one eigenvalue is left, ln n where nothing mixes."""
    diffusion_spectral_entropy: float
    """The same at t = 3 and in bits (Liao et al., 2023), at most log₂ n."""
    neighbourhood_mean: float
    """Mean over probes of the effective neighbourhood size (Σ_j w_ij)² / Σ_j w_ij², 1 to n."""
    neighbourhood_median: float
    """Median over probes of the same."""
    t: int
    """Diffusion time of the von Neumann entropy."""

    @property
    def eigenvalue_ratio(self) -> float:
        """1 / |λ|₂, at least 1; `Unavailable` where |λ|₂ is zero to rounding."""
        second = 1 - self.spectral_gap
        if second < EIGENVALUE_ERROR:
            raise Unavailable("the eigenvalue ratio 1 / |λ|₂ is undefined: all eigenvalues but the first are zero")
        return 1 / second

    def scalars(self) -> dict[str, float]:
        """Give the numbers by name, without the ratio, which is a function of the gap and may be undefined."""
        return {
            "spectral_gap": self.spectral_gap,
            "stationary_entropy": self.stationary_entropy,
            "von_neumann_entropy": self.von_neumann_entropy,
            "diffusion_spectral_entropy": self.diffusion_spectral_entropy,
            "neighbourhood_mean": self.neighbourhood_mean,
            "neighbourhood_median": self.neighbourhood_median,
        }


def spectrum(operator: Operator, *, k: int = 50, t: int = 1) -> Spectrum:
    """Compute the eigenvalues of an operator, and its gap, entropies and effective neighbourhoods.

    All n eigenvalues are computed, since both spectral entropies need them and the second largest modulus may belong to
    a negative one: O(n³) time. They are those of the symmetric conjugate; an operator that is not reversible has
    complex ones, whose moduli stand in for |λ|.

    Parameters
    ----------
    operator
        (n, n) operator of either kind.
    k
        How many eigenvalues to keep, at least 1; all where there are fewer.
    t
        Diffusion time of the von Neumann entropy, at least 1.

    Returns
    -------
    Spectrum
        Unchanged by relabelling the probes, and equal for P and its symmetric conjugate, to about 1e-6.
        `uniform_walk` is what to compare with.

    Raises
    ------
    InvalidInput
        If ``k`` or ``t`` is below 1.
    """
    if k < 1 or t < 1:
        raise InvalidInput(f"a spectrum needs k and t of at least 1, not k={k} and t={t}")
    values = _eigenvalues(operator)
    moduli = np.sort(np.abs(values))[::-1]
    stationary = operator.degrees / operator.degrees.sum()
    sizes = _effective_sizes(operator)
    return Spectrum(
        eigenvalues=values.real[:k].copy(),
        spectral_gap=float(1 - moduli[1]) if len(moduli) > 1 else 1.0,
        stationary=stationary,
        stationary_entropy=_entropy(stationary),
        von_neumann_entropy=spectral_entropy(moduli, t=t),
        diffusion_spectral_entropy=_in_bits(spectral_entropy(moduli, t=SPECTRAL_ENTROPY_TIME)),
        neighbourhood_mean=float(sizes.mean()),
        neighbourhood_median=float(np.median(sizes)),
        t=t,
    )


def spectral_entropy(eigenvalues: npt.ArrayLike, *, t: int) -> float:
    """Entropy -Σ p ln p of the distribution p_i = |λ_i|^t / Σ_j |λ_j|^t, in nats (Moon et al., 2019).

    Parameters
    ----------
    eigenvalues
        (n,) all eigenvalues of an operator, in any order; real or complex.
    t
        Diffusion time, at least 1.

    Returns
    -------
    float
        From 0 to ln n.

    Raises
    ------
    Unavailable
        If all eigenvalues are zero.
    """
    moduli = np.abs(np.asarray(eigenvalues))
    largest = moduli.max(initial=0)
    if largest == 0:
        raise Unavailable("the spectral entropy is undefined where all eigenvalues are zero")
    weights = (moduli / largest) ** t  # first by the largest, so that no power loses all of them
    return _entropy(weights / weights.sum())


def uniform_walk(n_probes: int, *, t: int = 1) -> dict[str, float]:
    """Give the `Spectrum.scalars` of the walk that goes to each other probe with equal chance, which sees no geometry.

    Parameters
    ----------
    n_probes
        At least 2.
    t
        Diffusion time of the von Neumann entropy, as for `spectrum`.

    Returns
    -------
    dict
        By name as in `Spectrum.scalars`; the eigenvalues are 1 and, n - 1 times, -1 / (n - 1).

    Raises
    ------
    InvalidInput
        If there are fewer than 2 probes.
    """
    if n_probes < 2:
        raise InvalidInput(f"a walk between probes needs 2 or more, not {n_probes}")
    others = n_probes - 1
    eigenvalues = np.full(n_probes, -1 / others)
    eigenvalues[0] = 1
    return {
        "spectral_gap": 1 - 1 / others,
        "stationary_entropy": float(np.log(n_probes)),
        "von_neumann_entropy": spectral_entropy(eigenvalues, t=t),
        "diffusion_spectral_entropy": _in_bits(spectral_entropy(eigenvalues, t=SPECTRAL_ENTROPY_TIME)),
        "neighbourhood_mean": float(others),
        "neighbourhood_median": float(others),
    }


def _eigenvalues(operator: Operator) -> npt.NDArray[np.complex128 | np.float64]:
    if operator.kind == "symmetric" or operator.reversible:
        return top_eigenpairs(operator, len(operator)).values
    values = np.linalg.eigvals(operator.matrix.astype(np.float64))
    return values[np.argsort(-values.real, kind="stable")]


def _entropy(p: Floats) -> float:
    positive = p[p > 0]
    return max(-float(positive @ np.log(positive)), 0.0)


def _in_bits(nats: float) -> float:
    return nats / float(np.log(2))


def _effective_sizes(operator: Operator) -> Floats:
    """(Σ_j w_ij)² / Σ_j w_ij² for each row; a row of S is one of P up to a factor once its columns weigh √D_j."""
    n = len(operator)
    columns = np.sqrt(operator.degrees) if operator.kind == "symmetric" else np.ones(n)
    sizes = np.empty(n)
    for rows in row_blocks(n):
        weights = operator.matrix[rows] * columns
        sizes[rows] = weights.sum(axis=1) ** 2 / np.einsum("ij,ij->i", weights, weights)
    return sizes
