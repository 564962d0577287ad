"""What a user would write instead of the geometry, the recipe and the same done with care; and activations to do it on.

Needs nothing of replay. Each recipe follows the definition, mostly in float64; its careful version is what someone
writes who knows the libraries well. ``geometry.py`` times both beside ours.
"""

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import ot
import torch
from scipy.sparse.linalg import eigsh
from scipy.spatial.distance import jensenshannon, pdist, squareform
from sklearn.metrics import euclidean_distances

__all__ = [
    "careful_barycenters",
    "careful_cka",
    "careful_distances",
    "careful_operator",
    "careful_spectrum",
    "careful_torch_operator",
    "debiased_barycenters",
    "graphtools_operator",
    "index_cost",
    "power_law",
    "recipe_barycenters",
    "recipe_cka",
    "recipe_distances",
    "recipe_jensen_shannon",
    "recipe_operator",
    "recipe_spectrum",
    "recipe_torch_operator",
]

KNN, FEATURES = 15, 768

Matrix = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]


def power_law(n: int, *, offset: float = 30.0) -> npt.NDArray[np.float32]:
    """Make activations like a transformer's, in a random basis but for the massive dimensions."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((FEATURES, FEATURES)))[0]
    X: Floats = (rng.standard_normal((n, FEATURES)) * 3.0 * np.arange(1, FEATURES + 1) ** -0.6) @ basis
    X += offset * basis[0]
    X[:, 3] += 60 * (1 + 0.02 * rng.standard_normal(n))
    X[:, FEATURES // 2] -= 40 * (1 + 0.02 * rng.standard_normal(n))
    return X.astype(np.float32)


def recipe_operator(X: Matrix, alpha: float) -> Matrix:
    """Compute all distances with pdist, sort them for the k-th neighbour, normalise; float64."""
    D = squareform(pdist(X))
    sigma = np.maximum(np.sort(D, axis=1)[:, KNN], 1e-10)
    return _normalised(np.exp(-(D**2) / (sigma[:, None] * sigma[None, :])), alpha)


def careful_operator(X: Matrix, alpha: float) -> Matrix:
    """Do as a careful scikit-learn user would: distances from a product, a partition, float32."""
    D2 = euclidean_distances(X, squared=True)
    np.fill_diagonal(D2, 0)
    sigma = np.maximum(np.sqrt(np.partition(D2, KNN, axis=1)[:, KNN]), 1e-10)
    return _normalised(np.exp(-D2 / (sigma[:, None] * sigma[None, :])), alpha)


def _normalised(K: Matrix, alpha: float) -> Matrix:
    np.fill_diagonal(K, 0)
    if alpha:
        q = K.sum(axis=1)
        K = K / np.outer(q, q) ** alpha
    P: Matrix = K / K.sum(axis=1, keepdims=True)
    return P


def graphtools_operator(X: Matrix) -> Any:
    """Compute the sparse operator of nearest neighbours with the library that PHATE takes."""
    import graphtools

    with warnings.catch_warnings():  # it advises a PCA first, which would be another operator
        warnings.simplefilter("ignore")
        return graphtools.Graph(X, n_pca=None, knn=5, decay=40, thresh=1e-4, verbose=0, random_state=0).P


def recipe_torch_operator(X: torch.Tensor) -> torch.Tensor:
    """Compute the operator from distances whose gradient is right, as torch offers them."""
    return _torch_operator(X, "donot_use_mm_for_euclid_dist")


def careful_torch_operator(X: torch.Tensor) -> torch.Tensor:
    """Let torch take its fast distances, from a product."""
    return _torch_operator(X, "use_mm_for_euclid_dist")


def _torch_operator(X: torch.Tensor, compute_mode: str) -> torch.Tensor:
    D = torch.cdist(X, X, compute_mode=compute_mode)
    sigma = D.kthvalue(KNN + 1, dim=1).values
    K = torch.exp(-(D**2) / torch.outer(sigma, sigma)) * (1 - torch.eye(len(X)))
    return K / K.sum(dim=1, keepdim=True)


def recipe_distances(operators: Sequence[Matrix]) -> Floats:
    """Compute Frobenius distances as scipy offers them."""
    distances: Floats = squareform(pdist([P.flatten() for P in operators]))
    return distances


def careful_distances(operators: Sequence[Matrix]) -> Floats:
    """Compute them from one float64 product of the centred operators."""
    flat = np.stack([P.ravel() for P in operators], dtype=np.float64)
    flat -= flat.mean(axis=0)
    products = flat @ flat.T
    norms = np.diagonal(products)
    return np.sqrt(np.maximum(norms[:, None] + norms - 2 * products, 0))


def recipe_jensen_shannon(operators: Sequence[Matrix]) -> Floats:
    """Compute the root mean square Jensen-Shannon distance of rows, one pair of operators at a time."""
    flat = [P.astype(np.float64) for P in operators]
    values = np.zeros((len(flat), len(flat)))
    for i, P in enumerate(flat):
        for j in range(i):
            rows = jensenshannon(P, flat[j], base=2, axis=1)
            values[i, j] = values[j, i] = np.sqrt(np.mean(rows**2))
    return values


def recipe_spectrum(S: Floats, k: int) -> Floats:
    """Compute all eigenvalues of a symmetric matrix, and keep the k largest, descending."""
    return np.linalg.eigvalsh(S)[::-1][:k].astype(np.float64)


def careful_spectrum(S: Floats, k: int) -> Floats:
    """Compute the k largest by scipy's Lanczos iteration, to machine precision as it does unless told otherwise."""
    values: Floats = np.sort(eigsh(S, k, which="LA", v0=np.ones(len(S)), return_eigenvectors=False))
    return values[::-1]


def index_cost(n: int) -> Floats:
    """Take the squared difference of indices for a cost, over the largest."""
    cost: Floats = np.subtract.outer(np.arange(n), np.arange(n)).astype(np.float64) ** 2
    cost /= cost.max()
    return cost


def recipe_barycenters(operators: Sequence[Floats], probes: Iterable[int], *, reg: float) -> Floats:
    """Compute the barycenter of each row with POT, the cost made again for each."""
    return np.array([_barycenter(operators, index_cost(len(operators[0])), i, reg=reg) for i in probes])


def careful_barycenters(
    operators: Sequence[Floats], cost: Floats, probes: Iterable[int], *, reg: float, **options: Any
) -> Floats:
    """Make the cost once; still a call a row."""
    return np.array([_barycenter(operators, cost, i, reg=reg, **options) for i in probes])


def debiased_barycenters(
    operators: Sequence[Floats], cost: Floats, probes: Iterable[int], *, reg: float, **options: Any
) -> Floats:
    """Compute the debiased ones, a call a row."""
    options["method"] = "sinkhorn"
    return np.array(
        [_barycenter(operators, cost, i, reg=reg, solver=ot.bregman.barycenter_debiased, **options) for i in probes]
    )


def _barycenter(
    operators: Sequence[Floats],
    cost: Floats,
    probe: int,
    *,
    solver: Callable[..., Floats] = ot.bregman.barycenter,
    **options: Any,
) -> Floats:
    q = solver(np.stack([P[probe] for P in operators], axis=1), cost, warn=False, **options)
    q /= q.sum()
    return q


def recipe_cka(layers: Sequence[Matrix]) -> Floats:
    """Compute debiased CKA of each pair of layers from their two Gram matrices, as the papers write it down."""
    values = np.empty((len(layers), len(layers)))
    for i, X in enumerate(layers):
        for j, Y in enumerate(layers):
            K, L = _gram(X), _gram(Y)
            values[i, j] = _unbiased_hsic(K, L) / np.sqrt(_unbiased_hsic(K, K) * _unbiased_hsic(L, L))
    return values


def careful_cka(layers: Sequence[Matrix]) -> Floats:
    """Make each Gram matrix and its norm once, and each pair once."""
    grams = [_gram(X) for X in layers]
    norms = [_unbiased_hsic(K, K) for K in grams]
    values = np.eye(len(layers))
    for i, K in enumerate(grams):
        for j in range(i):
            values[i, j] = values[j, i] = _unbiased_hsic(K, grams[j]) / np.sqrt(norms[i] * norms[j])
    return values


def _gram(X: Matrix) -> Floats:
    """Float64 inner products of the centred rows, without those of a row with itself."""
    Y = X.astype(np.float64)
    Y -= Y.mean(axis=0)
    K: Floats = Y @ Y.T
    np.fill_diagonal(K, 0)
    return K


def _unbiased_hsic(K: Floats, L: Floats) -> float:
    """Song et al. (2012), equation 5, for matrices with a zero diagonal."""
    n = len(K)
    second = K.sum() * L.sum() / ((n - 1) * (n - 2))
    third = 2 * (K.sum(axis=0) @ L.sum(axis=0)) / (n - 2)
    return float((np.vdot(K, L) + second - third) / (n * (n - 3)))
