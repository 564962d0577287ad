"""The intrinsic dimension of activations from the two nearest neighbours of each probe."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.pairwise import row_blocks
from store.errors import Unavailable

__all__ = ["DISCARDED", "FEWEST_PROBES", "NeighbourRatios", "neighbour_ratios", "two_nn"]

DISCARDED = 0.1
"""Share of the probes, those with the largest ratios, that is left out of the fit."""

FEWEST_PROBES = 20
"""The fit takes this many different probes or more."""

NEAR = 1e-6
"""Squared distances below this share of the squared lengths are computed again, as sums of squared differences."""

Floats = npt.NDArray[np.float64]


class NeighbourRatios(NamedTuple):
    """The ratio of two distances of each of the probes that differ from one another."""

    probes: npt.NDArray[np.intp]
    """(n,) their positions among all probes; of equal ones the first."""
    logarithms: Floats
    """(n,) ln of the distance to the second nearest neighbour over that to the nearest, 0 or more."""


def neighbour_ratios(X: Floats) -> NeighbourRatios:
    """Compare the distances from each distinct row of X (n, d) to its two nearest neighbours.

    Raises
    ------
    Unavailable
        If fewer than `FEWEST_PROBES` rows differ.
    """
    probes = np.sort(np.unique(X, axis=0, return_index=True)[1])
    n = len(probes)
    if n < FEWEST_PROBES:
        raise Unavailable(f"two_nn needs {FEWEST_PROBES} probes or more that differ from one another, and {n} do")
    Y = X[probes] - X[probes].mean(axis=0)
    norms = np.vecdot(Y, Y)
    logarithms = np.empty(n)
    for rows in row_blocks(n):
        here = np.arange(n)[rows]
        squared = norms[rows, None] + norms - 2 * Y[rows] @ Y.T
        i, j = np.nonzero(squared < NEAR * (norms[rows, None] + norms))
        squared[i, j] = np.vecdot(Y[here[i]] - Y[j], Y[here[i]] - Y[j])
        squared[here - here[0], here] = np.inf
        near, far = np.partition(squared, 1, axis=1)[:, :2].T
        logarithms[rows] = np.log(far / near) / 2
    return NeighbourRatios(probes, logarithms)


def two_nn(logarithms: Floats) -> float:
    """Estimate the dimension d of the manifold that probes lie on, from the law of the ratio of two distances.

    The ratio μ of a probe's distances to its second and its first neighbour has P(μ ≤ x) = 1 - x^-d wherever density is
    even at that scale: d is the slope through the origin of -ln(1 - i/n) on ln μ_(i), without the tenth of the probes
    that have the largest ratios (Facco et al., 2017). Probes with equal activations count once. With few probes it is
    far too low for a large dimension: compare with its null.

    Parameters
    ----------
    logarithms
        (n,) of `neighbour_ratios`, in any order.

    Returns
    -------
    float
        Above 0; unchanged by rotation, translation and scale of the activations.

    Raises
    ------
    Unavailable
        If all probes have their two neighbours at one distance.
    """
    n = len(logarithms)
    n_fitted = int(n * (1 - DISCARDED))
    x = np.sort(logarithms)[:n_fitted]
    if x[-1] <= 0:
        raise Unavailable("two_nn is undefined where the two nearest neighbours of each probe are equally far")
    return float(x @ -np.log1p(-np.arange(1, n_fitted + 1) / n) / (x @ x))
