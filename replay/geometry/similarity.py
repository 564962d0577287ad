"""Similarity of activations over the same probes, whatever their widths."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from replay.geometry.contract import Floats, Measure, Point, all_pairs
from replay.geometry.gauge import Operator
from replay.geometry.pairwise import row_blocks, squared_distances
from replay.geometry.products import inner_products
from store.errors import InvalidInput, Unavailable

__all__ = [
    "CKA",
    "SVCCA",
    "BiasedCKA",
    "KendallRSA",
    "MutualKNN",
    "PearsonRSA",
    "Procrustes",
    "SpearmanRSA",
    "linear_cka",
    "procrustes_distance",
]

FLAT = 1e-10
"""Share of its Gram matrix below which a centred one is rounding only."""

N_RELABELLINGS = 4
"""Random relabellings of the probes behind a null value that has no closed form."""

MUTUAL_METRICS = Literal["euclidean", "cosine"]


class PairsView(NamedTuple):
    """One number a pair of probes, as a vector, mostly of length one."""

    n_probes: int
    vector: Floats
    trace: float
    """Of the matrix that the vector holds."""


class ShapeView(NamedTuple):
    """Activations, or an orthonormal basis of them, of the n probes."""

    n_probes: int
    basis: Floats
    """(n, r)."""


class NeighboursView(NamedTuple):
    """The nearest probes of each probe."""

    n_probes: int
    neighbours: npt.NDArray[np.intp]
    """(n, k) in no order."""


@dataclass(frozen=True)
class _PairsMeasure(Measure[PairsView]):
    """A cosine between two matrices over pairs of probes, so that all comparisons are one product."""

    of = "activations"
    sense = "similarity"

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (pairs of probes are all that is kept)
        """Eight bytes a pair of probes."""
        return 4 * n_probes * (n_probes + 1)

    def _compare(self, left: Sequence[PairsView], right: Sequence[PairsView] | None) -> Floats:
        found = inner_products([a.vector for a in left], None if right is None else [b.vector for b in right])
        return np.clip(found.products, -1, 1)

    def _null(self, left: Sequence[PairsView], right: Sequence[PairsView] | None) -> Floats:
        return np.zeros((len(left), len(left if right is None else right)))


@dataclass(frozen=True)
class CKA(_PairsMeasure):
    """Debiased linear centred kernel alignment, HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)) with K = XXᵀ, L = YYᵀ.

    HSIC is the unbiased estimate of Song et al. (2012), the inner product of the U-centred matrices, so that
    independent activations have 0, exactly so on average over relabellings of the probes. -1 to 1; negative values are
    chance. Unchanged by rotating, translating and scaling either side. As a distance: the angle, arccos, in radians.
    Kornblith et al. (2019); Nguyen et al. (2021).
    """

    name = "cka"
    title = "debiased linear CKA"

    def view(self, point: Point) -> PairsView:
        """Compute the U-centred Gram matrix, of length one; `Unavailable` with fewer than 4 probes."""
        K = _centred_gram(_activations(point, self.name, least=4))
        n, scale = len(K), np.linalg.norm(K)
        np.fill_diagonal(K, 0)
        sums = K.sum(axis=1)
        K -= (sums / (n - 2))[:, None]
        K -= sums / (n - 2)
        K += sums.sum() / ((n - 1) * (n - 2))
        np.fill_diagonal(K, 0)
        if np.linalg.norm(K) <= FLAT * scale:
            raise Unavailable("cka is undefined: all probes are equally far from one another")
        return _packed(K)

    def to_distance(self, values: Floats) -> Floats:
        """Give the angle in radians."""
        return np.arccos(np.clip(values, -1, 1))


@dataclass(frozen=True)
class BiasedCKA(CKA):
    """Linear centred kernel alignment as first defined, ‖XᵀY‖_F² / (‖XᵀX‖_F ‖YᵀY‖_F) of centred activations.

    0 to 1, and far from 0 for independent activations of few probes: √(d₁d₂ / ((n+d₁)(n+d₂))) for Gaussians. The null
    value tr K tr L / ((n-1) ‖K‖_F ‖L‖_F) is exact. As a distance: the angle, arccos, in radians.
    """

    name = "cka_biased"
    title = "biased linear CKA"

    def view(self, point: Point) -> PairsView:
        """Compute the centred Gram matrix, of length one."""
        return _packed(_centred_gram(_activations(point, self.name, least=2)))

    def _null(self, left: Sequence[PairsView], right: Sequence[PairsView] | None) -> Floats:
        others = left if right is None else right
        traces: Floats = np.multiply.outer([a.trace for a in left], [b.trace for b in others])
        return traces / (left[0].n_probes - 1)


@dataclass(frozen=True)
class PearsonRSA(_PairsMeasure):
    """Representational similarity: Pearson correlation of squared Euclidean distances between probes.

    -1 to 1; its mean over relabellings of the probes is exactly 0. Unchanged by rotating, translating and scaling
    either side. As a distance: 1 - r. Kriegeskorte et al. (2008).
    """

    name = "rsa_pearson"
    title = "RSA (Pearson)"

    def view(self, point: Point) -> PairsView:
        """Compute the distances of all pairs, centred and of length one; `Unavailable` if all are equal."""
        return _correlated(_dissimilarities(_activations(point, self.name, least=3)), point)


@dataclass(frozen=True)
class SpearmanRSA(PearsonRSA):
    """Representational similarity: Spearman's rank correlation of Euclidean distances between probes.

    -1 to 1, ties at their mean rank; its mean over relabellings of the probes is exactly 0. As a distance: 1 - ρ.
    """

    name = "rsa_spearman"
    title = "RSA (Spearman)"

    def view(self, point: Point) -> PairsView:
        """Rank the distances of all pairs; `Unavailable` if all are equal."""
        from scipy.stats import rankdata

        D = _dissimilarities(_activations(point, self.name, least=3))
        _correlated(D, point)
        return _correlated(np.asarray(rankdata(_tied(D)), np.float64), point)


@dataclass(frozen=True)
class KendallRSA(Measure[PairsView]):
    """Representational similarity: Kendall's τ_b of Euclidean distances between probes.

    -1 to 1; its mean over relabellings of the probes is exactly 0. One pair of 512 probes takes some 50 ms, where other
    variants take less than one. As a distance: 1 - τ.
    """

    name = "rsa_kendall"
    of = "activations"
    sense = "similarity"
    title = "RSA (Kendall)"

    def view(self, point: Point) -> PairsView:
        """Compute the distances of all pairs; `Unavailable` if all are equal."""
        D = _dissimilarities(_activations(point, self.name, least=3))
        _correlated(D, point)
        return PairsView(_n_rows(point), _tied(D), 0.0)

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (pairs of probes are all that is kept)
        """Eight bytes a pair of probes."""
        return 4 * n_probes * (n_probes - 1)

    def _compare(self, left: Sequence[PairsView], right: Sequence[PairsView] | None) -> Floats:
        from scipy.stats import kendalltau

        return all_pairs(lambda a, b: float(kendalltau(a.vector, b.vector).statistic), left, right)

    def _null(self, left: Sequence[PairsView], right: Sequence[PairsView] | None) -> Floats:
        return np.zeros((len(left), len(left if right is None else right)))


@dataclass(frozen=True)
class Procrustes(Measure[ShapeView]):
    """Angular Procrustes distance arccos(‖XᵀY‖_* / (‖X‖_F ‖Y‖_F)) of centred activations, in radians.

    0 to π/2; widths may differ. Unchanged by rotating, translating and scaling either side. Good to about 1e-7 near 0.
    The null value is the root mean square over 4 fixed relabellings, and costs four comparisons.
    Williams et al. (2021).
    """

    name = "procrustes"
    of = "activations"
    sense = "distance"
    title = "angular Procrustes distance"

    def view(self, point: Point) -> ShapeView:
        """Centre, scale to length one and turn the activations into at most n columns."""
        X = _centred(_activations(point, self.name, least=2))
        X /= np.linalg.norm(X)
        if X.shape[1] > len(X):
            R: Floats = np.linalg.qr(X.T, mode="reduced").R
            X = R.T
        return ShapeView(len(X), X)

    def view_bytes(self, n_probes: int, n_features: int) -> int:
        """Eight bytes a probe and column."""
        return 8 * n_probes * min(n_probes, n_features)

    def _compare(self, left: Sequence[ShapeView], right: Sequence[ShapeView] | None) -> Floats:
        return all_pairs(lambda a, b: _angle(a.basis, b.basis), left, right)

    def _null(self, left: Sequence[ShapeView], right: Sequence[ShapeView] | None) -> Floats:
        squares = _relabelled(lambda X, Y: _angle(X, Y) ** 2, left, right)
        return np.sqrt(squares)


@dataclass(frozen=True)
class SVCCA(Measure[ShapeView]):
    """Mean canonical correlation of the leading principal components of centred activations.

    0 to 1. Of each side as many components as hold ``share`` of its variance; the mean is over the fewer of them.
    Unchanged by rotating, translating and scaling either side. With many components for the number of probes it is
    high for independent activations: see the null value, the mean over 4 fixed relabellings. As a distance: arccos.
    Raghu et al. (2017).
    """

    share: float = 0.99
    """Of the variance, above 0 and up to 1."""

    name = "svcca"
    of = "activations"
    sense = "similarity"
    title = "SVCCA"

    def __post_init__(self) -> None:
        """Refuse an impossible share."""
        if isinstance(self.share, bool) or not isinstance(self.share, int | float) or not 0 < self.share <= 1:
            raise InvalidInput(f"share must be a number above 0 and up to 1, not {self.share!r}")

    def view(self, point: Point) -> ShapeView:
        """Compute an orthonormal basis of the components; `Unavailable` if they span all that n probes can."""
        X = _centred(_activations(point, self.name, least=3))
        U, s, _ = np.linalg.svd(X, full_matrices=False)
        s = s[s > s[0] * max(X.shape) * np.finfo(np.float64).eps]
        held = np.cumsum(s**2) / np.sum(s**2)
        r = min(int(np.searchsorted(held, self.share - 1e-12)) + 1, len(s))
        if r >= len(X) - 1:
            raise Unavailable(
                f"svcca is 1 for any activations: {self.share:g} of the variance takes {r} components, all that "
                f"{len(X)} probes can have; use more probes or a smaller share"
            )
        return ShapeView(len(X), U[:, :r].astype(np.float64))

    def view_bytes(self, n_probes: int, n_features: int) -> int:
        """Eight bytes a probe and component."""
        return 8 * n_probes * min(n_probes, n_features)

    def to_distance(self, values: Floats) -> Floats:
        """Give the angle in radians."""
        return np.arccos(np.clip(values, 0, 1))

    def _compare(self, left: Sequence[ShapeView], right: Sequence[ShapeView] | None) -> Floats:
        return all_pairs(lambda a, b: _mean_correlation(a.basis, b.basis), left, right)

    def _null(self, left: Sequence[ShapeView], right: Sequence[ShapeView] | None) -> Floats:
        return _relabelled(_mean_correlation, left, right)


@dataclass(frozen=True)
class MutualKNN(Measure[NeighboursView]):
    """Mean share of the k nearest probes that two sets of activations have in common.

    0 to 1; k / (n-1) on average over relabellings of the probes, exactly. Unchanged by rotating and scaling either
    side, and, for Euclidean neighbours, by translating. Ties are broken anyhow. Huh et al. (2024), who
    take cosine neighbours.
    """

    k: int = 10
    """How many neighbours, itself not among them."""
    metric: MUTUAL_METRICS = "euclidean"
    """``euclidean``, or ``cosine``."""

    name = "mutual_knn"
    of = "activations"
    sense = "similarity"
    title = "mutual nearest neighbours"

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 1:
            raise InvalidInput(f"k must be a whole number of at least 1, not {self.k!r}")
        if self.metric not in get_args(MUTUAL_METRICS):
            raise InvalidInput(f"metric must be one of {', '.join(get_args(MUTUAL_METRICS))}, not {self.metric!r}")

    def view(self, point: Point) -> NeighboursView:
        """Find the neighbours; `Unavailable` with fewer than k + 2 probes."""
        X = _activations(point, self.name, least=self.k + 2)
        if self.metric == "cosine":
            norms = np.linalg.norm(X, axis=1, keepdims=True)
            if not norms.all():
                raise Unavailable(f"cosine neighbours of a zero vector are undefined: probe {int(norms.argmin())}")
            X = X / norms
        D = squared_distances(X).matrix
        np.fill_diagonal(D, np.inf)
        neighbours = np.empty((len(D), self.k), np.intp)
        for rows in row_blocks(len(D)):
            neighbours[rows] = np.argpartition(D[rows], self.k - 1, axis=1)[:, : self.k]
        return NeighboursView(len(D), neighbours)

    def view_bytes(self, n_probes: int, n_features: int) -> int:  # noqa: ARG002 (neighbours are all that is kept)
        """Eight bytes a neighbour."""
        return 8 * n_probes * self.k

    def _compare(self, left: Sequence[NeighboursView], right: Sequence[NeighboursView] | None) -> Floats:
        others = left if right is None else right
        n = left[0].n_probes
        values = np.empty((len(left), len(others)))
        rows = np.arange(n)[:, None]
        for i, a in enumerate(left):
            member = np.zeros((n, n), np.bool_)
            member[rows, a.neighbours] = True
            for j, b in enumerate(others):
                values[i, j] = np.count_nonzero(member[rows, b.neighbours]) / (n * self.k)
        return values

    def _null(self, left: Sequence[NeighboursView], right: Sequence[NeighboursView] | None) -> Floats:
        shape = len(left), len(left if right is None else right)
        return np.full(shape, self.k / (left[0].n_probes - 1))


def linear_cka(X: npt.ArrayLike, Y: npt.ArrayLike, *, debiased: bool = True) -> float:
    """Linear CKA of (n, d₁) and (n, d₂) activations of the same probes, see `CKA` and `BiasedCKA`."""
    measure = CKA() if debiased else BiasedCKA()
    return float(measure.compare([measure.view(np.asarray(X))], [measure.view(np.asarray(Y))])[0, 0])


def procrustes_distance(X: npt.ArrayLike, Y: npt.ArrayLike) -> float:
    """Angular Procrustes distance of (n, d₁) and (n, d₂) activations in radians, see `Procrustes`."""
    measure = Procrustes()
    return float(measure.compare([measure.view(np.asarray(X))], [measure.view(np.asarray(Y))])[0, 0])


def _activations(point: Point, name: str, *, least: int) -> Floats:
    if isinstance(point, Operator):
        raise InvalidInput(f"{name} compares activations, (probe, feature), and was given an operator")
    X = np.asarray(point)
    if X.ndim != 2 or X.shape[1] == 0 or X.dtype.kind not in "fiu":
        raise InvalidInput(f"{name} compares real matrices (probe, feature), not {X.dtype} of shape {X.shape}")
    if len(X) < least:
        raise Unavailable(f"{name} needs {least} probes or more, and there are {len(X)}")
    if not np.isfinite(X).all():
        row = int(np.nonzero(~np.isfinite(X).all(axis=1))[0][0])
        raise InvalidInput(f"activations must be finite, and those of probe {row} are not")
    if (X[0] == X).all():
        raise Unavailable(f"{name} is undefined: all {len(X)} probes have the same activations")
    return X.astype(np.float64)


def _n_rows(point: Point) -> int:
    return len(np.asarray(point))


def _centred(X: Floats) -> Floats:
    Y: Floats = X - X.mean(axis=0)
    Y /= np.abs(Y).max()  # so that no square leaves float64
    return Y


def _centred_gram(X: Floats) -> Floats:
    Y = _centred(X)
    K: Floats = np.dot(Y, Y.T)
    return K


def _packed(K: Floats) -> PairsView:
    """Write a symmetric matrix as a vector: products of vectors are traces of products of matrices."""
    n = len(K)
    vector = np.empty(n * (n + 1) // 2)
    vector[:n] = np.diagonal(K)
    _upper(K, out=vector[n:])
    vector[n:] *= np.sqrt(2)
    norm = np.linalg.norm(vector)
    return PairsView(n, vector / norm, float(np.trace(K) / norm))


def _upper(K: Floats, *, out: Floats) -> Floats:
    """Copy what is above the diagonal, row by row."""
    start = 0
    for i in range(len(K) - 1):
        row = K[i, i + 1 :]
        out[start : start + len(row)] = row
        start += len(row)
    return out


def _dissimilarities(X: Floats) -> Floats:
    """Squared distances of all pairs i < j."""
    D = _centred_gram(X)
    norms = np.diagonal(D).copy()
    D *= -2
    D += norms
    D += norms[:, None]
    n = len(D)
    return np.maximum(_upper(D, out=np.empty(n * (n - 1) // 2)), 0)


def _tied(D: Floats) -> Floats:
    """Round to twelve digits of the largest, since rounding errors must not rank equal distances."""
    rounded: Floats = np.round(D / D.max(), 12)
    return rounded


def _correlated(values: Floats, point: Point) -> PairsView:
    centred = values - values.mean()
    norm = np.linalg.norm(centred)
    if norm <= FLAT * np.linalg.norm(values):
        raise Unavailable("rsa is undefined: all probes are equally far from one another")
    return PairsView(_n_rows(point), centred / norm, 0.0)


def _angle(X: Floats, Y: Floats) -> float:
    return float(np.arccos(min(np.linalg.svd(X.T @ Y, compute_uv=False).sum(), 1.0)))


def _mean_correlation(U: Floats, V: Floats) -> float:
    return float(np.minimum(np.linalg.svd(U.T @ V, compute_uv=False), 1).mean())


def _relabelled(
    pair: Callable[[Floats, Floats], float], left: Sequence[ShapeView], right: Sequence[ShapeView] | None
) -> Floats:
    """Mean of a number over random relabellings of the second point, the same ones for all pairs.

    Each stands beside its inverse, so that it does not matter which point is the second.
    """
    n, rng = left[0].n_probes, np.random.default_rng(0)
    drawn = [rng.permutation(n) for _ in range(N_RELABELLINGS // 2)]
    orders = [order for forth in drawn for order in (forth, np.argsort(forth))]

    def mean(a: ShapeView, b: ShapeView) -> float:
        return float(np.mean([pair(a.basis, b.basis[order]) for order in orders]))

    return all_pairs(mean, left, right, itself=True)
