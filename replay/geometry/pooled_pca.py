"""Principal components of many sets of activations in one basis, reading one set at a time."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "PooledBasis", "VarianceSplit", "dense_bytes", "pooled_basis", "split_variance"]

VERSION = 1
"""Raised when numbers change."""

OVERSAMPLING = 10
"""Directions beyond those asked for, of a basis that is iterated."""

TOLERANCE = 1e-6
"""A basis is iterated until its residual falls below this."""

MOST_PASSES = 40
"""Passes over the activations at most; the residual says how far they came."""

Floats = npt.NDArray[np.float64]
Activations = npt.NDArray[np.floating[Any]]
Read = Callable[[], Iterable[Activations]]
"""Gives the sets of activations, one by one, each time it is called."""


class PooledBasis(NamedTuple):
    """Directions of the largest variance of all sets together."""

    mean: Floats
    """(d,) mean over all sets; zero if they were not centred."""
    components: Floats
    """(k, d) orthonormal; the largest loading of each is positive."""
    variance: Floats
    """(k,) variance along each, over all rows, divided by their number; descending."""
    total: float
    """Variance along all directions."""
    residual: float
    """Largest ‖Cv - λv‖ / λ₁ over the components: an eigenvalue of C lies this near to each, in units of λ₁."""

    @property
    def explained(self) -> Floats:
        """(k,) share of the total variance."""
        shares: Floats = self.variance / self.total
        return shares

    def scores(self, X: Activations) -> Floats:
        """Return the (n, k) coordinates of (n, d) activations."""
        coordinates: Floats = (X.astype(np.float64) - self.mean) @ self.components.T
        return coordinates


class VarianceSplit(NamedTuple):
    """How the sum of squares about the grand mean divides, as shares that add up to 1."""

    step: float
    """Movement of all probes together: the mean of each checkpoint."""
    probe: float
    """What the probes keep apart at all checkpoints: the mean of each probe."""
    interaction: float
    """The rest: probes that move differently."""


def dense_bytes(width: int) -> int:
    """Return the memory that a basis takes whose covariance is held, for so many features."""
    return 3 * 8 * width**2


def pooled_basis(read: Read, n_components: int, *, centred: bool = True, dense: bool = True) -> PooledBasis:
    """Find the principal components of all sets together.

    With ``dense`` the (d, d) covariance is gathered set by set, in float64 about the mean of each (Chan, Golub and
    LeVeque, 1983), and the result is that of one decomposition of all rows; the order of the sets does not matter but
    for rounding. Without it nothing of size (d, d) is held: a block of directions is multiplied by the covariance, one
    pass over the sets a time, until the residual is below 1e-6 or 40 passes are done (Halko, Martinsson and Tropp,
    2011).

    Parameters
    ----------
    read
        Gives sets of (n, d) activations; they may differ in n.
    n_components
        At most d and the number of rows.
    centred
        Whether the mean over all sets is taken off; without it the first component is mostly that mean.
    dense
        Whether the covariance is held.

    Raises
    ------
    InvalidInput
        If there is no row, widths differ, a value is not finite or there are fewer features than components.
    Unavailable
        If nothing varies.
    """
    n_rows, mean, squares, scatter = 0, np.zeros(0), 0.0, np.zeros((0, 0))
    for number, given in enumerate(read()):
        X = _checked(given)
        if number == 0:
            mean = np.zeros(X.shape[1])
            scatter = np.zeros((len(mean), len(mean))) if dense else scatter
        if X.shape[1] != len(mean):
            raise InvalidInput(f"one basis needs sets of one width, not of {len(mean)} and {X.shape[1]} features")
        centre = X.mean(axis=0) if centred else mean
        X -= centre
        shift = centre - mean
        weight = n_rows * len(X) / (n_rows + len(X))
        squares += float(np.vdot(X, X)) + weight * float(shift @ shift)
        if dense:
            scatter += X.T @ X
            scatter += weight * np.outer(shift, shift)
        n_rows += len(X)
        mean = mean + shift * (len(X) / n_rows)
    if n_rows == 0 or not 1 <= n_components <= min(n_rows, len(mean)):
        raise InvalidInput(
            f"{n_components} components of {n_rows} rows with {len(mean)} features: expected 1 to "
            f"{min(n_rows, len(mean))}"
        )
    if squares <= 0:
        raise Unavailable("nothing varies: all activations are equal")
    if dense:
        C = scatter / n_rows
        d = len(mean)
        values, vectors = eigh(C, subset_by_index=[d - n_components, d - 1])
        values, vectors = values[::-1], vectors[:, ::-1]
        residual = float(np.linalg.norm(C @ vectors - vectors * values, axis=0).max() / values[0])
    else:
        values, vectors, residual = _iterate(read, mean, n_rows, n_components)
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(n_components)] < 0, -1.0, 1.0)
    return PooledBasis(mean, (vectors * signs).T, np.maximum(values, 0), squares / n_rows, residual)


def split_variance(read: Read) -> tuple[VarianceSplit, float]:
    """Divide the sum of squares of one run's checkpoints as an analysis of variance without replication does.

    ‖x_ti - m‖² summed = n Σ_t ‖m_t - m‖² + T Σ_i ‖p_i - m‖² + Σ ‖x_ti - m_t - p_i + m‖² with m_t the mean of checkpoint
    t, p_i that of probe i over the T checkpoints.

    Parameters
    ----------
    read
        Gives the (n, d) activations of each checkpoint, over the same probes in one order.

    Returns
    -------
    VarianceSplit, float
        The shares, and the sum of squares itself.

    Raises
    ------
    InvalidInput
        If shapes differ, or a value is not finite.
    Unavailable
        If nothing varies.
    """
    T, probes, within, of_means = 0, np.zeros((0, 0)), 0.0, 0.0
    for given in read():
        X = _checked(given)
        if T == 0:
            probes = np.zeros(X.shape)
            mean = np.zeros(X.shape[1])
        if X.shape != probes.shape:
            raise InvalidInput(f"checkpoints must share one shape, not {probes.shape} and {X.shape}")
        centre = X.mean(axis=0)
        X -= centre
        within += float(np.vdot(X, X))
        shift = centre - mean
        of_means += float(shift @ shift) * T / (T + 1)
        T += 1
        mean = mean + shift / T
        probes += (X - probes) / T
    movement, kept = len(probes) * of_means, T * float(np.vdot(probes, probes))
    total = movement + within
    if total <= 0:
        raise Unavailable("nothing varies: all activations are equal")
    return VarianceSplit(movement / total, kept / total, max(within - kept, 0.0) / total), total


def _checked(given: Activations) -> Floats:
    X = np.array(given, np.float64)
    if X.ndim != 2 or not X.size:
        raise InvalidInput(f"activations must have shape (probe, feature), not {X.shape}")
    if not np.isfinite(X).all():
        raise InvalidInput("activations must be finite")
    return X


def _iterate(read: Read, mean: Floats, n_rows: int, n_components: int) -> tuple[Floats, Floats, float]:
    """Iterate a block of directions; return values, vectors (d, k) and the residual."""
    block = min(n_components + OVERSAMPLING, len(mean))
    V = np.linalg.qr(np.random.default_rng(0).standard_normal((len(mean), block)))[0]
    for _ in range(MOST_PASSES):
        CV = np.zeros_like(V)
        for given in read():
            X = np.asarray(given, np.float64) - mean
            CV += X.T @ (X @ V)
        CV /= n_rows
        values, turn = np.linalg.eigh(V.T @ CV)
        values, turn = values[::-1][:n_components], turn[:, ::-1]
        vectors = V @ turn[:, :n_components]
        residual = float(np.linalg.norm(CV @ turn[:, :n_components] - vectors * values, axis=0).max() / values[0])
        if residual < TOLERANCE:
            break
        V = np.linalg.qr(CV)[0]
    return values, vectors, residual
