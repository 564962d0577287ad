"""All probes at all steps in one picture: the multislice kernel of M-PHATE, kept as dense blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.embedding import Embedding, phate_of_operator
from replay.geometry.gauge import SIGMA_FLOOR, Operator, Quality
from replay.geometry.pairwise import squared_distances
from store.errors import InvalidInput, Unavailable

__all__ = [
    "VERSION",
    "MultisliceKernel",
    "MultisliceMap",
    "MultislicePhate",
    "multislice_diffusion_map",
    "multislice_kernel",
    "multislice_phate",
]

VERSION = 1
"""Version of these computations, part of every cache key: raised whenever a result may change."""

TOLERANCE = 1e-5
"""Relative residual of an eigenvector; the blocks are float32."""

RESTARTS = 300
"""Restarts of the Lanczos iteration before it is given up."""

N_CLUSTER_AXES = 10
"""Diffusion coordinates by which nodes are gathered into landmarks."""

Blocks = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class MultisliceMap(NamedTuple):
    """Diffusion coordinates of all nodes."""

    points: Floats
    """(T, n, c) λ_j^t ψ_j at each step and probe, Σ π ψ_j² = 1; the constant ψ_0 is left out."""
    eigenvalues: Floats
    """(c,) descending; one at 1 to rounding means that the graph falls into parts."""


class MultislicePhate(NamedTuple):
    """A PHATE embedding of all nodes by way of landmarks."""

    points: Floats
    """(T, n, c) mean position of the landmarks that a step of the walk from the node leads to."""
    landmarks: Embedding
    """Of the landmarks themselves, with its trustworthiness; that of the nodes is not known."""
    nodes_per_landmark: npt.NDArray[np.int64]
    """(L,) how many nodes each landmark stands for."""


@dataclass(frozen=True, eq=False)
class MultisliceKernel:
    """The kernel between the T·n nodes (step, probe), whose entries vanish unless nodes share a step or a probe."""

    within: Blocks
    """(T, n, n) between the probes of each step, 1 on the diagonal."""
    across: Blocks
    """(n, T, T) between the steps of each probe, 0 on the diagonal, which ``within`` has."""
    bandwidth: float
    """ε of ``across``, in units of the activations as they were compared."""
    degrees: Floats
    """(T, n) row sums."""

    def apply(self, V: npt.NDArray[np.floating]) -> Blocks:
        """Multiply the kernel with c vectors over its nodes, (T, n, c), in float32."""
        V = V.astype(np.float32, copy=False)
        product: Blocks = np.matmul(self.within, V)
        product += np.matmul(self.across, V.transpose(1, 0, 2)).transpose(1, 0, 2)
        return product

    def diffuse(self, V: npt.NDArray[np.floating]) -> Blocks:
        """Take one step of the walk P = D⁻¹ K: the mean of V, (T, n, c), over the neighbours of each node."""
        product = self.apply(V)
        product /= self.degrees.astype(np.float32)[..., None]
        return product


def multislice_kernel(
    X: Sequence[npt.ArrayLike] | npt.NDArray[np.floating],
    *,
    knn: int = 5,
    decay: float = 5.0,
    across_knn: int = 25,
    standardize: bool = True,
) -> MultisliceKernel:
    """Compute the multislice kernel of one layer along a run (Gigante et al., 2019).

    With x_τi the activation of probe i at step τ::

        K(τi, τj) = ½ (exp(-(|x_τi - x_τj| / σ_τi)^decay) + exp(-(|x_τi - x_τj| / σ_τj)^decay))
        K(τi, υi) = exp(-|x_τi - x_υi|² / ε²)                       all else 0

    σ_τi is the distance to the knn-th other probe of that step, at least a tenth of the step's median positive one; ε
    is the mean, over probes and steps, of the distance to the across_knn-th other step of the same probe. In the paper
    units are the nodes and inputs the features; here probes are the nodes, and the activations are standardised as
    there: each unit to mean 0 and variance 1 over the probes of a step.

    Parameters
    ----------
    X
        (T, n, d) finite activations in one basis, or T matrices of (n, d): steps ascending, the same probes at each.
    knn
        Neighbour that sets σ, at least 1; at most n - 1 is used.
    decay
        Exponent, positive.
    across_knn
        Neighbour in time that sets ε, at least 1; at most T - 1 is used.
    standardize
        Whether to standardise; units that do not vary at a step become 0 there.

    Returns
    -------
    MultisliceKernel
        4(Tn² + nT²) bytes instead of 4T²n². While it is made, 4Tnd bytes more.

    Raises
    ------
    InvalidInput
        If X is not finite (T, n, d), or an option is out of range.
    Unavailable
        If there are fewer than 2 steps or 3 probes, all probes coincide at a step, or no probe ever moves.
    """
    if min(knn, across_knn) < 1 or not 0 < decay < np.inf:
        raise InvalidInput(f"knn, across_knn and decay must be positive, not {knn}, {across_knn} and {decay}")
    Z = _slices(X, standardize=standardize)
    T, n, _ = Z.shape
    within = np.empty((T, n, n), np.float32)
    for step, slice_ in enumerate(Z):
        within[step] = _alpha_decay(squared_distances(slice_).matrix, min(knn, n - 1), decay, step)
    across, bandwidth = _gaussians(Z, min(across_knn, T - 1))
    degrees = within.sum(axis=2, dtype=np.float64) + across.sum(axis=2, dtype=np.float64).T
    return MultisliceKernel(within, across, bandwidth, degrees)


def multislice_diffusion_map(kernel: MultisliceKernel, *, n_components: int = 2, t: int = 1) -> MultisliceMap:
    """Compute diffusion coordinates of all T·n nodes without a matrix between them.

    Lanczos iteration on D^-½ K D^-½, whose first eigenvector, √D, is known and taken out beforehand: what is left out
    is the constant, even where the graph falls into parts.

    Parameters
    ----------
    kernel
        Of `multislice_kernel`.
    n_components
        Coordinates c, at least 1 and below T·n - 1.
    t
        Diffusion time, at least 1.

    Returns
    -------
    MultisliceMap
        Eigenvalues to about 1e-6, the same on every call; each axis has its largest coordinate positive. Memory beyond
        the kernel: about 16Tn(4c + 30) bytes.

    Raises
    ------
    InvalidInput
        If n_components or t is out of range.
    Unavailable
        If the iteration does not converge.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

    shape, size = kernel.degrees.shape, kernel.degrees.size
    if not 1 <= n_components < size - 1 or t < 1:
        raise InvalidInput(
            f"a map of {size} nodes needs 1 to {size - 2} components and t from 1, not {n_components} and {t}"
        )
    root = np.sqrt(kernel.degrees)
    first = (root / np.linalg.norm(root)).ravel()

    def conjugate(v: Floats) -> Floats:
        v = v.ravel()
        product = kernel.apply((v.reshape(shape) / root)[..., None])[..., 0] / root
        deflated: Floats = product.ravel() - 2 * first * (first @ v)  # to -1, below all others that matter
        return deflated

    try:
        values, U = eigsh(
            LinearOperator((size, size), matvec=conjugate, dtype=np.float64),
            n_components,
            which="LA",
            v0=np.random.default_rng(0).standard_normal(size),
            ncv=min(size, 4 * n_components + 20),
            maxiter=RESTARTS,
            tol=TOLERANCE,
        )
    except ArpackNoConvergence as error:
        raise Unavailable(f"the {n_components} largest eigenvalues of {size} nodes did not converge") from error
    values, U = values[::-1], U[:, ::-1]
    psi = U / first[:, None]
    psi *= np.where(psi[np.abs(psi).argmax(axis=0), np.arange(n_components)] < 0, -1.0, 1.0)
    return MultisliceMap((psi * values**t).reshape(*shape, n_components), values)


def multislice_phate(
    kernel: MultisliceKernel,
    *,
    n_components: int = 2,
    n_landmarks: int = 500,
    seed: int = 0,
    t: int | Literal["auto"] = "auto",
) -> MultislicePhate:
    """Embed all T·n nodes with PHATE by way of landmarks: M-PHATE at bounded memory.

    Nodes are gathered into landmarks by k-means on their diffusion coordinates. With C their membership, the walk from
    landmark to nodes to landmark has the symmetric kernel A = (K C)ᵀ D⁻¹ (K C), accumulated step by step; PHATE embeds
    A, and each node takes the mean of the landmarks that one step of its own walk leads to.

    Parameters
    ----------
    kernel
        Of `multislice_kernel`.
    n_components, seed, t
        As for `replay.geometry.embedding.embed`; a step here is two steps of the multislice walk.
    n_landmarks
        At most how many, at least 4.

    Returns
    -------
    MultislicePhate
        The same on every call. Memory beyond the kernel: about 2 kB a node and 500 L² bytes.

    Raises
    ------
    InvalidInput
        If there are fewer than 4 landmarks, or more than nodes.
    Unavailable
        As for `multislice_diffusion_map` and for `replay.geometry.embedding.embed`.
    """
    if not 4 <= n_landmarks <= kernel.degrees.size:
        raise InvalidInput(f"{kernel.degrees.size} nodes need from 4 to as many landmarks, not {n_landmarks}")
    labels = _gathered(kernel, n_landmarks, seed)
    landmarks = phate_of_operator(_walk(_landmark_kernel(kernel, labels)), n_components=n_components, seed=seed, t=t)
    return MultislicePhate(_extended(kernel, labels, landmarks.points), landmarks, np.bincount(labels.ravel()))


def _slices(X: Sequence[npt.ArrayLike] | npt.NDArray[np.floating], *, standardize: bool) -> Blocks:
    slices = [np.asarray(slice_) for slice_ in X]
    shapes = {slice_.shape for slice_ in slices}
    if len(slices) < 2:
        raise Unavailable(f"a multislice kernel needs 2 steps or more, and there are {len(slices)}")
    shape = slices[0].shape
    if len(shapes) > 1 or len(shape) != 2 or shape[1] == 0:
        raise InvalidInput(f"activations must have one shape (probe, feature) at all steps, not {sorted(shapes)}")
    if shape[0] < 3:
        raise Unavailable(f"a multislice kernel needs at least 3 probes, and there are {shape[0]}")
    Z = np.empty((len(slices), *shape), np.float32)
    for step, slice_ in enumerate(slices):
        if slice_.dtype.kind not in "fiu" or not np.isfinite(slice_).all():
            raise InvalidInput(f"activations must be finite real numbers, and those at step number {step} are not")
        if standardize:
            centred = slice_ - slice_.mean(axis=0, dtype=np.float64)
            deviation = np.sqrt(np.mean(centred**2, axis=0))
            varies = deviation > np.finfo(np.float32).eps * np.abs(slice_).max(axis=0)
            Z[step] = np.divide(centred, deviation, out=np.zeros_like(centred), where=varies)
        else:
            Z[step] = slice_
    return Z


def _alpha_decay(squares: Blocks, k: int, decay: float, step: int) -> Blocks:
    sigma = np.sqrt(np.partition(squares, k, axis=1)[:, k])
    if not squares.any():
        raise Unavailable(
            f"all probes have the same activations at step number {step}: there is no geometry to measure"
        )
    positive = sigma[sigma > 0]
    scale = np.median(positive) if len(positive) else np.sqrt(squares.mean(dtype=np.float64))
    sigma = np.maximum(sigma, np.float32(SIGMA_FLOOR * scale))
    with np.errstate(over="ignore"):  # far beyond σ the power is infinite and the kernel zero
        W: Blocks = np.exp(-((np.sqrt(squares) / sigma[:, None]) ** np.float32(decay)))
    return (W + W.T) / np.float32(2)


def _gaussians(Z: Blocks, k: int) -> tuple[Blocks, float]:
    """exp(-d² / ε²) between the steps of each probe, and ε."""
    T, n, _ = Z.shape
    across, units = np.empty((n, T, T), np.float32), np.empty(n)
    for probe in range(n):
        distances = squared_distances(np.ascontiguousarray(Z[:, probe]))
        across[probe], units[probe] = distances.matrix, distances.unit
    neighbours = np.stack([np.partition(squares, k, axis=1)[:, k].copy() for squares in across])
    bandwidth = float(np.mean(units[:, None] * np.sqrt(neighbours, dtype=np.float64)))
    if bandwidth == 0:
        raise Unavailable(f"no probe is more than {k} steps from where it was before: no bandwidth across steps")
    for probe, squares in enumerate(across):
        np.exp(squares * np.float32(-((units[probe] / bandwidth) ** 2)), out=squares)
        np.fill_diagonal(squares, 0)
    return across, bandwidth


def _gathered(kernel: MultisliceKernel, n_landmarks: int, seed: int) -> npt.NDArray[np.intp]:
    """(T, n) landmark of each node."""
    from sklearn.cluster import MiniBatchKMeans

    shape, size = kernel.degrees.shape, kernel.degrees.size
    if n_landmarks == size:
        return np.arange(size).reshape(shape)
    axes = multislice_diffusion_map(kernel, n_components=min(N_CLUSTER_AXES, size - 2)).points.reshape(size, -1)
    model = MiniBatchKMeans(n_landmarks, random_state=seed, n_init=1, batch_size=max(1024, 3 * n_landmarks))
    labels = np.unique(model.fit_predict(axes), return_inverse=True)[1]
    return np.asarray(labels, np.intp).reshape(shape)


def _reach(kernel: MultisliceKernel, labels: npt.NDArray[np.intp], step: int, n_landmarks: int) -> Floats:
    """(n, L) rows of K C at one step: the kernel from each node to the nodes of each landmark."""
    n = labels.shape[1]
    here = np.zeros((n, n_landmarks), np.float32)
    here[np.arange(n), labels[step]] = 1
    cells = np.arange(n)[:, None] * n_landmarks + labels.T
    elsewhere = np.bincount(cells.ravel(), kernel.across[:, step].ravel(), minlength=n * n_landmarks)
    reach: Floats = kernel.within[step] @ here + elsewhere.reshape(n, n_landmarks)
    return reach


def _landmark_kernel(kernel: MultisliceKernel, labels: npt.NDArray[np.intp]) -> Floats:
    """(K C)ᵀ D⁻¹ (K C), one step at a time."""
    n_landmarks = int(labels.max()) + 1
    A = np.zeros((n_landmarks, n_landmarks))
    for step, degrees in enumerate(kernel.degrees):
        reach = _reach(kernel, labels, step, n_landmarks)
        A += reach.T @ (reach / degrees[:, None])
    return A


def _extended(kernel: MultisliceKernel, labels: npt.NDArray[np.intp], Y: Floats) -> Floats:
    """D⁻¹ K C Y, (T, n, c): what each node makes of the positions of the landmarks."""
    steps = enumerate(kernel.degrees)
    return np.stack([_reach(kernel, labels, step, len(Y)) @ Y / degrees[:, None] for step, degrees in steps])


def _walk(A: Floats) -> Operator:
    from scipy.sparse.csgraph import connected_components

    degrees = A.sum(axis=1)
    parts, _ = connected_components(A > 0, directed=False)
    return Operator((A / degrees[:, None]).astype(np.float32), "markov", degrees, Quality(parts, (), 0, 0))
