"""Clusters of probes in one basis, and how far they agree with labels."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "Agreement", "Clusters", "cluster_points", "divide_points", "label_agreement"]

VERSION = 1
"""Raised when numbers change."""

MOST_CLUSTERS = 8
"""Numbers of clusters from 2 to this are tried where none is given."""

JUDGED = 2000
"""Points from which the number of clusters is chosen, evenly taken."""

N_STARTS = 5
"""Starts of k-means, of which the best stands."""

N_PERMUTATIONS = 199
"""Relabellings of the probes behind a p-value; the smallest is 1 / 200."""

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.intp]


class Clusters(NamedTuple):
    """A partition of points."""

    labels: Labels
    """(n,) cluster of each point, 0 to k - 1."""
    centres: Floats
    """(k, d) mean of each cluster."""
    silhouette: float
    """Mean silhouette of a sample of the points, -1 to 1."""
    silhouette_null: float
    """The same for as many clusters of points from one Gaussian with their covariance."""


class Agreement(NamedTuple):
    """How far two partitions of the same probes agree."""

    rand: float
    """Adjusted Rand index (Hubert and Arabie, 1985): 1 for equal partitions, 0 on average by chance."""
    information: float
    """Normalised mutual information, divided by the mean of both entropies: 0 to 1, above 0 by chance."""
    information_null: float
    """Its mean over relabellings of the probes."""
    p: float
    """Share of relabellings, the given one among them, whose adjusted Rand index is as large."""


def cluster_points(X: Floats, order: npt.ArrayLike, *, n_clusters: int | None = None, seed: int = 0) -> Clusters:
    """Divide points by k-means (Lloyd's, from k-means++).

    Parameters
    ----------
    X
        (n, d) points.
    order
        (n,) a number a point, such as the position of its checkpoint; clusters are counted in the order of its mean.
    n_clusters
        How many; by default that of 2 to 8 whose mean silhouette over an even sample of 2,000 points is the largest
        (Rousseeuw, 1987). A silhouette cannot say that there is one cluster only: compare ``silhouette_null``.
    seed
        Of the starts and the Gaussian.

    Raises
    ------
    InvalidInput
        If there are fewer points than clusters, or fewer than 2 clusters.
    Unavailable
        If there are fewer different points than clusters.
    """
    if n_clusters is not None and not 2 <= n_clusters <= len(X):
        raise InvalidInput(f"{n_clusters} clusters of {len(X)} points: expected 2 or more, and a point for each")
    sample = X[np.unique(np.linspace(0, len(X) - 1, JUDGED).round().astype(int))]
    n_different = len(np.unique(sample, axis=0))
    if n_different < (n_clusters or 2) + 1:
        raise Unavailable(f"{n_clusters or 2} clusters need more different points than the {n_different} there are")
    tried = [n_clusters] if n_clusters else range(2, min(MOST_CLUSTERS, n_different - 1) + 1)
    judged = {k: _silhouette(sample, k, seed) for k in tried}
    k = max(judged, key=lambda number: (judged[number], -number))
    spread = np.cov(sample.T).reshape(X.shape[1], X.shape[1])
    gaussian = np.random.default_rng(seed).multivariate_normal(sample.mean(axis=0), spread, len(sample), method="eigh")
    labels, centres = divide_points(X, k, seed=seed)
    numbers = np.bincount(labels, weights=np.asarray(order, np.float64), minlength=k) / np.bincount(labels, minlength=k)
    rank = np.argsort(np.argsort(numbers, kind="stable"))
    ordered = np.empty_like(centres)
    ordered[rank] = centres
    return Clusters(rank[labels], ordered, judged[k], _silhouette(gaussian, k, seed))


def divide_points(X: Floats, k: int, *, seed: int = 0) -> tuple[Labels, Floats]:
    """Divide (n, d) points by k-means, the best of five starts from k-means++; return clusters (n,) and centres (k, d).

    Raises
    ------
    Unavailable
        If there are fewer different points than clusters.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    if len(np.unique(X, axis=0)) < k:
        raise Unavailable(f"{k} clusters need as many different points, and there are {len(np.unique(X, axis=0))}")
    with threadpool_limits(1, user_api="openmp"):  # several threads add up centres in any order: other bits each time
        fitted = KMeans(k, n_init=N_STARTS, random_state=seed).fit(X)
    return fitted.labels_.astype(np.intp), fitted.cluster_centers_


def label_agreement(clusters: Labels, labels: Sequence[str], *, seed: int = 0) -> Agreement:
    """Say how far clusters agree with the labels of the probes.

    Parameters
    ----------
    clusters
        (n,) cluster of each probe.
    labels
        Label of each probe.
    seed
        Of the relabellings.

    Raises
    ------
    Unavailable
        If all probes share one cluster or one label, or each has its own.
    """
    kinds, given = np.unique(np.asarray(labels, dtype=str), return_inverse=True)
    found, there = np.unique(clusters, return_inverse=True)
    n = len(given)
    for what, count in (("cluster", len(found)), ("label", len(kinds))):
        if count in (1, n):
            raise Unavailable(f"agreement is undefined: the {n} probes have {count} different {what}s")
    rng = np.random.default_rng(seed)
    orders = [np.arange(n), *(rng.permutation(n) for _ in range(N_PERMUTATIONS))]
    one_hot = np.eye(len(kinds))[given[np.array(orders)]]  # (permutation, probe, label)
    tables = np.einsum("nc,pnl->pcl", np.eye(len(found))[there], one_hot, optimize=True)
    rands, informations = _adjusted_rand(tables), _mutual_information(tables)
    return Agreement(
        float(rands[0]),
        float(informations[0]),
        float(informations[1:].mean()),
        float((rands >= rands[0] - 1e-12).mean()),
    )


def _silhouette(X: Floats, k: int, seed: int) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(X, divide_points(X, k, seed=seed)[0]))


def _adjusted_rand(tables: Floats) -> Floats:
    """Return the index of each (cluster, label) table of counts."""
    n = tables[0].sum()
    both, rows, columns = (_pairs(part).sum(axis=-1) for part in (
        tables.reshape(len(tables), -1), tables.sum(axis=2), tables.sum(axis=1)
    ))  # fmt: skip
    expected = rows * columns / _pairs(n)
    index: Floats = (both - expected) / ((rows + columns) / 2 - expected)
    return index


def _pairs(counts: Floats) -> Floats:
    return counts * (counts - 1) / 2


def _mutual_information(tables: Floats) -> Floats:
    """Return 2 I / (H + H') of each (cluster, label) table of counts."""
    shares = tables / tables[0].sum()
    joint, rows, columns = (_entropy(part) for part in (
        shares.reshape(len(shares), -1), shares.sum(axis=2), shares.sum(axis=1)
    ))  # fmt: skip
    information: Floats = np.maximum(rows + columns - joint, 0) * 2 / (rows + columns)
    return information


def _entropy(p: Floats) -> Floats:
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    entropy: Floats = -(p * logs).sum(axis=-1)
    return entropy
