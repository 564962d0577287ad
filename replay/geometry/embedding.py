"""Points in a plane from distances or from an operator, with how far their neighbourhoods can be trusted."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from replay.geometry.eigen import top_eigenpairs
from replay.geometry.gauge import Operator
from replay.geometry.pairwise import squared_distances
from replay.geometry.paths import checked_distances
from store.errors import InvalidInput, Unavailable

__all__ = [
    "VERSION",
    "DiffusionMap",
    "Embedding",
    "Method",
    "check_seed",
    "diffusion_map",
    "embed",
    "neighbourhood_agreement",
    "phate_of_operator",
    "random_agreement",
    "reversible_part",
]

VERSION = 1
"""Version of these computations, part of every cache key: raised whenever a result may change."""

SMALLEST = 4
"""Fewest points of which an embedding says anything: three lie in a plane whatever their distances."""

N_NEIGHBOURS = 5
"""Neighbours that trustworthiness and continuity look at; fewer where there are ten points or less."""

IN_PARTS = 1e-9
"""How near to 1 the second eigenvalue of a float64 diffusion kernel may come before it counts as in parts."""

Method = Literal["phate", "mds", "diffusion"]
Option = int | float | str
Floats = npt.NDArray[np.float64]

_DEFAULTS: dict[Method, dict[str, Option]] = {
    "phate": {"knn": 5, "decay": 40.0, "t": "auto"},
    "mds": {},
    "diffusion": {"bandwidth": "median", "t": 1},
}


@dataclass(frozen=True, eq=False)
class Embedding:
    """Points, how they were made, and how well they keep the distances they stand for."""

    points: Floats
    """(T, c) coordinates, centred; the unit is the method's own."""
    method: Method
    parameters: dict[str, Option]
    """The method's parameters as used, defaults and lowered values included."""
    facts: dict[str, float]
    """What the method found: ``t`` and ``n_parts`` (phate), ``negative_share`` (mds), ``bandwidth`` and ``lambda_1``,
    ``lambda_2``... (diffusion)."""
    trustworthiness: float
    """1 where no point gained a false neighbour (Venna and Kaski, 2001)."""
    continuity: float
    """1 where no point lost a true one: the same with the two sides exchanged."""
    random_agreement: float
    """Expected value of both if the points were dealt out at random."""
    n_neighbours: int
    """Neighbours both look at."""
    stress: float
    """Kruskal's √(Σ(d - cδ)² / Σd²) after the best common scale c of the embedded distances δ, 0 to 1."""


class DiffusionMap(NamedTuple):
    """Diffusion coordinates of the probes of one operator."""

    points: Floats
    """(n, k) λ_j^t ψ_j, where P ψ_j = λ_j ψ_j and Σ_i π_i ψ_j(i)² = 1; the constant ψ_0 is left out."""
    eigenvalues: Floats
    """(k,) λ_1 and those after it, descending."""


def embed(
    D: npt.ArrayLike,
    *,
    method: Method = "phate",
    n_components: int = 2,
    seed: int = 0,
    knn: int | None = None,
    decay: float | None = None,
    t: int | Literal["auto"] | None = None,
    bandwidth: float | None = None,
) -> Embedding:
    """Embed points known by their distances.

    ``phate`` is the phate package on precomputed distances, with SMACOF (Moon et al., 2019). ``mds`` is classical
    scaling, the top eigenvectors of -½ J D² J times the roots of their eigenvalues (Torgerson, 1952). ``diffusion`` is
    the diffusion map of exp(-d² / ε²), density-corrected with α = 1 (Coifman and Lafon, 2006). Only phate is under the
    GPL, and it is imported for its own method only.

    Parameters
    ----------
    D
        (T, T) distances.
    method
        One of the three.
    n_components
        Coordinates c of a point, at least 1.
    seed
        Of phate; nothing else is random.
    knn
        phate: which neighbour sets a point's bandwidth (5); at most T - 2 is used.
    decay
        phate: exponent of its kernel (40).
    t
        phate, diffusion: diffusion time, at least 1; ``auto`` (phate only, its default) takes the knee of the von
        Neumann entropy. 1 for diffusion.
    bandwidth
        diffusion: ε in units of D; the median positive distance if not given.

    Returns
    -------
    Embedding
        The same on every call. Signs are fixed: the largest coordinate of each axis is positive, except in phate, which
        fixes its own. Relabelling points relabels ``mds`` and ``diffusion``. O(T³) time, O(T²) memory.

    Raises
    ------
    InvalidInput
        If D holds no distances, or an option is impossible or belongs to another method.
    Unavailable
        If there are fewer than 4 points or than n_components + 2, all points coincide, or the diffusion kernel falls
        into parts.
    """
    D = checked_distances(D)
    given = {"knn": knn, "decay": decay, "t": t, "bandwidth": bandwidth}
    parameters = _checked_parameters(method, {name: value for name, value in given.items() if value is not None})
    if n_components < 1:
        raise InvalidInput(f"an embedding needs 1 component or more, not {n_components}")
    check_seed(seed)
    fewest = max(SMALLEST, n_components + 2)
    if len(D) < fewest:
        raise Unavailable(f"an embedding in {n_components} dimensions needs {fewest} points, and there are {len(D)}")
    if not D.any():
        raise Unavailable(f"all {len(D)} points coincide: there is no geometry to embed")
    if method == "mds":
        points, facts = _classical_scaling(D, n_components)
    elif method == "diffusion":
        points, facts = _diffusion_of_distances(D, n_components, parameters)
    else:
        parameters |= {"knn": min(int(parameters["knn"]), len(D) - 2), "seed": seed}
        points, facts, _ = _phate(D, "distance", n_components, parameters)
    return _judged(D, points, method, parameters, facts)


def check_seed(seed: int) -> None:
    """Refuse what is no seed of phate: a whole number from 0 to 2³² - 1."""
    if not 0 <= seed < 2**32:
        raise InvalidInput(f"seed must be a whole number from 0 to {2**32 - 1}, not {seed}")


def diffusion_map(operator: Operator, *, k: int = 2, t: int = 1) -> DiffusionMap:
    """Compute diffusion coordinates of an operator's probes (Coifman and Lafon, 2006).

    With all n - 1 of them, the Euclidean distance between two probes is their diffusion distance
    √Σ_j (P^t_ij - P^t_i'j)² / π_j.

    Parameters
    ----------
    operator
        (n, n) operator of either kind; one that is not reversible is replaced by its `reversible_part`.
    k
        How many coordinates, 1 to n - 1.
    t
        Diffusion time, at least 1.

    Raises
    ------
    InvalidInput
        If ``k`` or ``t`` is out of range.
    Unavailable
        If the operator falls into parts and so has no trivial eigenvector to leave out, or has no `reversible_part`.
    """
    operator = reversible_part(operator)
    if not 1 <= k < len(operator) or t < 1:
        raise InvalidInput(f"a diffusion map needs k from 1 to {len(operator) - 1} and t from 1, not k={k} and t={t}")
    if operator.quality.disconnected:
        raise Unavailable(
            f"a diffusion map is undefined for a graph in {operator.quality.n_components} parts: raise knn"
        )
    values, vectors = top_eigenpairs(operator, k + 1, vectors=True)
    assert vectors is not None  # noqa: S101 (they were asked for)
    points = _diffusion_coordinates(values, vectors, operator.degrees, t)
    return DiffusionMap(points[:, :k], values[1:])


def reversible_part(operator: Operator) -> Operator:
    """Give ½ (P + P*), the mean of P and of P run backwards, which has the same stationary distribution.

    The additive reversibilisation (Fill, 1991); an operator that is reversible is given back as it is.

    Raises
    ------
    Unavailable
        If a walk never comes back to some probe, which has then no place in the long run.
    """
    if operator.reversible:
        return operator
    if not operator.degrees.all():
        n_lost = np.count_nonzero(operator.degrees == 0)
        raise Unavailable(f"walks never come back to {n_lost} of {len(operator)} probes, which have no reversible part")
    K = _kernel(operator)
    degrees = K.sum(axis=1)
    matrix = (K / degrees[:, None]).astype(np.float32)
    return Operator(matrix, "markov", degrees, operator.quality)


def phate_of_operator(
    operator: Operator, *, n_components: int = 2, seed: int = 0, t: int | Literal["auto"] = "auto"
) -> Embedding:
    """Embed the probes of an operator with PHATE, from its kernel and not from its rows as if they were features.

    The affinity is ½ (D P + (D P)ᵀ), D the degrees. Where P is reversible that is its kernel, so that PHATE diffuses
    with P itself. Where a merge made P irreversible, PHATE diffuses with its `reversible_part`. Small affinities
    are kept; phate alone would drop those below 1e-4.

    Parameters
    ----------
    operator
        (n, n) operator of either kind.
    n_components, seed, t
        As for `embed`.

    Returns
    -------
    Embedding
        Judged against the diffusion distances at the ``t`` that PHATE used. O(n³) time: about ten seconds for 1,000
        probes.

    Raises
    ------
    InvalidInput, Unavailable
        As for `embed`.
    """
    parameters = _checked_parameters("phate", {"t": t}) | {"seed": seed}
    del parameters["knn"], parameters["decay"]
    fewest = max(SMALLEST, n_components + 2)
    if n_components < 1 or len(operator) < fewest:
        raise Unavailable(
            f"an embedding in {n_components} dimensions needs {fewest} probes, and there are {len(operator)}"
        )
    K = _kernel(operator)
    points, facts, P = _phate(K, "affinity", n_components, parameters)
    stationary = K.sum(axis=1) / K.sum()
    rows = np.linalg.matrix_power(P, int(facts["t"])) / np.sqrt(stationary)
    squares = squared_distances(rows)
    return _judged(squares.unit * np.sqrt(squares.matrix, dtype=np.float64), points, "phate", parameters, facts)


def neighbourhood_agreement(true: Floats, shown: Floats, *, n_neighbours: int) -> float:
    """Trustworthiness of the distances ``shown`` as a picture of those that are ``true`` (Venna and Kaski, 2001).

    1 - 2 / (nk(2n - 3k - 1)) Σ_i Σ_j max(0, r_ij - k), over the k nearest j of each i as shown, r_ij being the true
    rank of j among the neighbours of i. Equal distances rank by position.

    Parameters
    ----------
    true, shown
        (n, n) distances. Exchanged, they give the continuity.
    n_neighbours
        k, at least 1 and below n / 2.

    Returns
    -------
    float
        0 to 1; `random_agreement` for points dealt out at random.

    Raises
    ------
    InvalidInput
        If k is out of range.
    """
    n, k = len(true), n_neighbours
    if not 1 <= k < n / 2:
        raise InvalidInput(f"trustworthiness of {n} points needs from 1 to fewer than {n / 2:g} neighbours, not {k}")
    ranks = np.empty((n, n), np.intp)
    np.put_along_axis(ranks, _neighbours(true), np.arange(1, n)[None, :], axis=1)
    excess = np.take_along_axis(ranks, _neighbours(shown)[:, :k], axis=1) - k
    return float(1 - 2 * excess[excess > 0].sum() / (n * k * (2 * n - 3 * k - 1)))


def random_agreement(n_points: int, *, n_neighbours: int) -> float:
    """Give the expected `neighbourhood_agreement` of points dealt out at random, exact and without sampling.

    Each shown neighbour then has any true rank with equal chance: 1 - (n-k)(n-k-1) / ((n-1)(2n-3k-1)), a half for many
    points and few neighbours.
    """
    n, k = n_points, n_neighbours
    return 1 - (n - k) * (n - k - 1) / ((n - 1) * (2 * n - 3 * k - 1))


def _checked_parameters(method: Method, given: dict[str, Any]) -> dict[str, Option]:
    if method not in get_args(Method):
        raise InvalidInput(f"the method must be one of {', '.join(get_args(Method))}, not {method!r}")
    foreign = set(given) - set(_DEFAULTS[method])
    if foreign:
        takes = ", ".join(_DEFAULTS[method]) or "no option"
        raise InvalidInput(f"{method} takes {takes}, not {', '.join(sorted(foreign))}")
    parameters = _DEFAULTS[method] | given
    whole = {name: value for name, value in parameters.items() if name in ("knn", "t") and value != "auto"}
    if any(isinstance(value, bool) or not isinstance(value, int) or value < 1 for value in whole.values()):
        raise InvalidInput(f"knn and t must be whole numbers of at least 1, not {whole}")
    if method != "phate" and parameters.get("t") == "auto":
        raise InvalidInput("only phate chooses t by itself: give a whole number")
    for name in ("decay", "bandwidth"):
        value = parameters.get(name, 1)
        if not isinstance(value, str) and not 0 < value < np.inf:
            raise InvalidInput(f"{name} must be positive and finite, not {value}")
    return parameters


def _classical_scaling(D: Floats, n_components: int) -> tuple[Floats, dict[str, float]]:
    B = -0.5 * D**2
    B -= B.mean(axis=0)
    B -= B.mean(axis=1, keepdims=True)
    values, U = np.linalg.eigh((B + B.T) / 2)
    values, U = values[::-1], _signed(U[:, ::-1])
    negative = float(-values[values < 0].sum() / np.abs(values).sum())
    return U[:, :n_components] * np.sqrt(np.maximum(values[:n_components], 0)), {"negative_share": negative}


def _diffusion_of_distances(
    D: Floats, n_components: int, parameters: dict[str, Option]
) -> tuple[Floats, dict[str, float]]:
    given = parameters["bandwidth"]
    epsilon = float(np.median(D[D > 0])) if given == "median" else float(given)
    K = np.exp(-((D / epsilon) ** 2))
    density = K.sum(axis=1)
    K /= density[:, None] * density
    degrees = K.sum(axis=1)
    root = np.sqrt(degrees)
    values, U = np.linalg.eigh(K / (root[:, None] * root))
    values, U = values[::-1][: n_components + 1], U[:, ::-1][:, : n_components + 1]
    if values[1] > 1 - IN_PARTS:
        raise Unavailable(f"at bandwidth {epsilon:g} the diffusion kernel falls into parts: give a larger bandwidth")
    points = _diffusion_coordinates(values, U, degrees, int(parameters["t"]))
    facts = {f"lambda_{number}": float(value) for number, value in enumerate(values[1:], start=1)}
    return _signed(points), {"bandwidth": epsilon} | facts


def _diffusion_coordinates(values: Floats, vectors: Floats, degrees: Floats, t: int) -> Floats:
    """λ^t ψ without the trivial one, from eigenvectors of the symmetric conjugate."""
    psi = vectors[:, 1:] / np.sqrt(degrees / degrees.sum())[:, None]
    points: Floats = psi * values[1:] ** t
    return points


def _kernel(operator: Operator) -> Floats:
    left = operator.degrees if operator.kind == "markov" else np.sqrt(operator.degrees)
    K = operator.matrix * left[:, None]
    if operator.kind == "symmetric":
        K *= left
    K += K.T.copy()
    symmetric: Floats = K / K.max()
    return symmetric


def _phate(
    matrix: Floats, precomputed: Literal["distance", "affinity"], n_components: int, parameters: dict[str, Option]
) -> tuple[Floats, dict[str, float], Floats]:
    """Run the phate package in silence; give the points, what it found and its diffusion operator."""
    kernel = {name: parameters[name] for name in ("knn", "decay") if name in parameters}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Coincident points divide by a bandwidth of zero, which graphtools mends; parts are counted below.
        warnings.simplefilter("ignore")
        import phate

        model = phate.PHATE(
            n_components=n_components,
            knn_dist=f"precomputed_{precomputed}",
            mds_solver="smacof",
            n_landmark=None,
            n_jobs=1,
            random_state=parameters["seed"],
            t=parameters["t"],
            verbose=0,
            **kernel,
            **({"thresh": 0} if precomputed == "affinity" else {}),
        )
        points = np.asarray(model.fit_transform(matrix), np.float64)
    t = model.optimal_t if parameters["t"] == "auto" else parameters["t"]
    facts = {"t": float(t), "n_parts": float(model.graph.n_connected_components)}
    return points - points.mean(axis=0), facts, np.asarray(model.diff_op)


def _judged(
    D: Floats, points: Floats, method: Method, parameters: dict[str, Option], facts: dict[str, float]
) -> Embedding:
    from scipy.spatial.distance import pdist, squareform

    shown = squareform(pdist(points))
    k = min(N_NEIGHBOURS, (len(D) - 1) // 2)
    squares = float(np.sum(shown**2))
    explained = float(np.sum(D * shown)) ** 2 / (squares * float(np.sum(D**2))) if squares else 0.0
    return Embedding(
        points=points,
        method=method,
        parameters=parameters,
        facts=facts,
        trustworthiness=neighbourhood_agreement(D, shown, n_neighbours=k),
        continuity=neighbourhood_agreement(shown, D, n_neighbours=k),
        random_agreement=random_agreement(len(D), n_neighbours=k),
        n_neighbours=k,
        stress=float(np.sqrt(max(1 - explained, 0.0))),
    )


def _neighbours(D: Floats) -> npt.NDArray[np.intp]:
    """(n, n-1) all other points of each point, nearest first."""
    apart = D.astype(np.float64)
    np.fill_diagonal(apart, -1)
    return np.argsort(apart, axis=1, kind="stable")[:, 1:]


def _signed(axes: Floats) -> Floats:
    largest = np.abs(axes).argmax(axis=0)
    signed: Floats = axes * np.where(axes[largest, np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return signed
