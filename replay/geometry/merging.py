"""Several operators over the same probes to one: `DiffusionMerging`."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import Kind, Operator, Quality
from replay.geometry.pairwise import row_blocks
from replay.geometry.transport import barycenters
from store.errors import InvalidInput, Unavailable

__all__ = ["VERSION", "DiffusionMerging", "Strategy", "normalized_weights"]

VERSION = 1
"""Version of the computation, part of every cache key: raised whenever a merged operator's values may change."""

REG = 0.05
"""Regularisation of a barycenter, as a share of the median cost, unless told otherwise."""

EIGENVALUE_FLOOR = 1e-6
"""Smallest eigenvalue of a lazy operator that a logarithm is taken of."""

LINK = float(np.finfo(np.float32).eps)
"""Divided by n: the smallest entry that links two probes, as in `Quality.n_components`."""

ROW_SUM = 1e-4
"""How far the rows of a Markov operator may be from summing to one."""

SAME_DEGREES = 1e-5
"""Relative difference below which the degrees of two operators are the same."""

Strategy = Literal["weighted_interpolation", "frobenius_mean", "log_euclidean", "alternating", "ot_barycenter"]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class DiffusionMerging:
    """The recipe from several operators over the same probes to one.

    With weights w that sum to one:

    ``frobenius_mean``, ``weighted_interpolation``
        Two names of the arithmetic mean Σ w_k P_k, which minimises Σ w_k ‖P - P_k‖_F² over P. A mean of Markov
        operators is Markov, and reversible only if all have the same stationary distribution. A mean of symmetric ones
        is symmetric, and its top eigenvalue below 1 unless all have the same degrees.
    ``log_euclidean``
        exp(Σ w_k log L_k) of the lazy operators L_k = (I + S_k) / 2 (Arsigny et al., 2006), since S itself has negative
        eigenvalues, and no logarithm, where the kernel's diagonal is zero. Eigenvalues of L below 1e-6 are raised to
        it. The way back is S = 2L - I; negative entries, which zero diagonals turn into (up to 1 % of the mass), are
        set to zero; then the Doob transform P_ij = S_ij φ_j / (λ φ_i) with S φ = λ φ, φ > 0, in each connected part.
        Reversible; both kinds stay what they are, and the symmetric result is the conjugate of the Markov one.
    ``alternating``
        Alternating diffusion P_1 P_2 ... P_m (Lederman and Talmon, 2018), a step of each in the order they are given
        in: what only some operators know diffuses away. Unlike the others it takes m steps for one, so that
        m equal operators give P^m, it depends on the order, and has no weights.
    ``ot_barycenter``
        Row i is the Wasserstein barycenter of the rows i of all P_k (see `replay.geometry.transport`). Equal operators
        are given back to 1e-5.

    The last two are Markov whatever they are made of, and not reversible. A symmetric operator enters them as
    P = D^-½ S D^½. The ``degrees`` of what is not reversible are n times its stationary distribution: where random
    walks from all probes, one each, are in the long run. Those of a result of ``log_euclidean``, and of the mean of
    symmetric operators, are n φ². In a graph of several parts each part's sum to its number of probes.
    """

    strategy: Strategy
    """How to merge."""
    cost: npt.ArrayLike | None = None
    """``ot_barycenter``: (n, n) symmetric ground cost between probes; without one the weighted mean of the operators'
    squared diffusion distances Σ_x (P_ix - P_jx)² / π_x after one step."""
    reg: float | None = None
    """``ot_barycenter``: regularisation as a share of the median cost, 0.05 unless told otherwise."""
    debiased: bool | None = None
    """``ot_barycenter``: whether to undo the blur of the regularisation, as it is unless told otherwise."""

    def __post_init__(self) -> None:
        """Refuse impossible values, and parameters of other strategies."""
        if self.strategy not in get_args(Strategy):
            raise InvalidInput(f"strategy must be one of {', '.join(get_args(Strategy))}, not {self.strategy!r}")
        if self.strategy != "ot_barycenter":
            given = [name for name in ("cost", "reg", "debiased") if getattr(self, name) is not None]
            if given:
                raise InvalidInput(f"{self.strategy} has no {' and no '.join(given)}: only ot_barycenter has")
            return
        reg = REG if self.reg is None else self.reg
        if isinstance(reg, bool) or not isinstance(reg, int | float | np.number) or not 0 < reg < np.inf:
            raise InvalidInput(f"reg must be a positive number, not {reg!r}")
        debiased = True if self.debiased is None else self.debiased
        if not isinstance(debiased, bool):
            raise InvalidInput(f"debiased must be True or False, not {debiased!r}")
        object.__setattr__(self, "reg", float(reg))
        object.__setattr__(self, "debiased", debiased)
        if self.cost is not None:
            object.__setattr__(self, "cost", _checked_cost(self.cost))

    def parameters(self) -> dict[str, bool | float | str]:
        """Name the strategy and its parameters, in plain JSON types, for cache keys and records."""
        if self.strategy != "ot_barycenter":
            return {"merging": self.strategy}
        cost = "diffusion" if self.cost is None else "sha256:" + sha256(np.asarray(self.cost).tobytes()).hexdigest()
        return {"merging": self.strategy, "cost": cost, "reg": float(self.reg or REG), "debiased": bool(self.debiased)}

    def __call__(self, operators: Mapping[str, Operator], weights: Mapping[str, float] | None = None) -> Operator:
        """Merge operators, which may come from several runs, layers or steps.

        Parameters
        ----------
        operators
            By name; of one kind, over the same probes in the same order.
        weights
            One for each name, not negative, in any unit: they are scaled to sum 1, and an operator of weight 0 is left
            out. Equal ones by default.

        Returns
        -------
        Operator
            The operator itself where only one has a weight. Relabelling the probes of all operators relabels the
            result, to rounding; a barycenter of probes whose rows have equal lengths, to its tolerance. Of its quality,
            ``n_components`` counts its own parts that a random walk never leaves, ``isolated`` are the probes isolated
            in all operators, ``duplicates`` and ``floored`` are the most of any of them.

        Raises
        ------
        InvalidInput
            If there is no operator, their kinds or sizes differ, one is not finite or does not fit its kind, or weights
            are missing, unknown, not finite, negative, all zero, or unequal for a strategy without weights.
        Unavailable
            If a strategy is undefined for these operators, or a barycenter does not converge.
        """
        _check_operators(operators)
        w = np.array(list(normalized_weights(operators, weights).values()))
        if self.strategy == "alternating" and not np.allclose(w, w[0], rtol=1e-9):
            raise InvalidInput("alternating diffusion takes one step of each operator and has no weights: give none")
        operators = {name: P for (name, P), weight in zip(operators.items(), w, strict=True) if weight}
        w = w[w > 0]
        if len(operators) == 1:
            return next(iter(operators.values()))
        if self.strategy == "log_euclidean":
            merged = _log_euclidean(operators, w)
        elif self.strategy == "alternating":
            merged = _irreversible(_product(operators))
        elif self.strategy == "ot_barycenter":
            merged = _irreversible(self._barycenter(operators, w))
        else:
            merged = _mean(operators, w)
        matrix = merged.matrix.astype(np.float32)
        return Operator(matrix, merged.kind, merged.degrees, _quality(matrix, operators), merged.reversible)

    def _barycenter(self, operators: Mapping[str, Operator], w: Floats) -> Floats:
        order = _label_free_order(list(operators.values()), w)
        ordered = np.ix_(order, order)
        given = [replace(P, matrix=P.matrix[ordered], degrees=P.degrees[order]) for P in operators.values()]
        rows = np.stack([_markov(P) for P in given])
        if self.cost is None:
            cost = _diffusion_cost(rows, np.stack([P.degrees for P in given]), w)
        else:
            cost = np.asarray(self.cost)
            if cost.shape != rows.shape[1:]:
                raise InvalidInput(f"cost must be over the {len(order)} probes of the operators, not {cost.shape}")
            cost = cost[ordered]
        reg = float(self.reg or REG) * _median_cost(cost)
        merged = np.empty_like(cost)
        merged[ordered] = barycenters(rows, cost, w, reg=reg, debiased=bool(self.debiased)).rows
        return merged


def normalized_weights(names: Collection[str], weights: Mapping[str, float] | None) -> dict[str, float]:
    """Scale weights to sum 1; equal ones where none are given.

    Raises
    ------
    InvalidInput
        If weights are missing, unknown, not finite, negative, or all zero.
    """
    if weights is None:
        return dict.fromkeys(names, 1 / len(names))
    wrong = {"missing": sorted(set(names) - set(weights)), "unknown": sorted(set(weights) - set(names))}
    if any(wrong.values()):
        told = "; ".join(f"{what}: {', '.join(which)}" for what, which in wrong.items() if which)
        raise InvalidInput(f"weights must name each operator once ({', '.join(names)}); {told}")
    w = np.array([weights[name] for name in names], np.float64)
    if not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise InvalidInput(f"weights must be finite, not negative and not all zero, not {dict(weights)}")
    return dict(zip(names, (w / w.max() / (w / w.max()).sum()).tolist(), strict=True))


def _checked_cost(cost: npt.ArrayLike) -> Floats:
    try:
        C = np.array(cost, np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInput(f"cost must be a real matrix, not {type(cost).__name__} ({error})") from error
    if C.ndim != 2 or not np.isfinite(C).all() or C.shape != C.T.shape or not np.allclose(C, C.T, rtol=1e-6, atol=0):
        raise InvalidInput(f"cost must be a finite symmetric matrix, probe by probe, and this {C.shape} is none")
    C.flags.writeable = False
    return C


def _check_operators(operators: Mapping[str, Operator]) -> None:
    if not operators:
        raise InvalidInput("there is no operator to merge")
    bare = [name for name, P in operators.items() if not isinstance(P, Operator)]
    if bare:
        raise InvalidInput(f"operators to merge must be those of a gauge, which know their kind; {bare[0]!r} is not")
    kinds = {P.kind for P in operators.values()}
    if len(kinds) > 1:
        raise InvalidInput(f"operators of different kinds cannot be merged: {' and '.join(sorted(kinds))}")
    shapes = {P.matrix.shape for P in operators.values()}
    if len(shapes) > 1 or any(len(shape) != 2 or shape[0] != shape[1] for shape in shapes):
        raise InvalidInput(f"operators must be square and over the same probes, not {sorted(shapes)}")
    for name, P in operators.items():
        if not np.isfinite(P.matrix).all():
            raise InvalidInput(f"operators must be finite, and {name!r} is not")
        off = np.abs(P.matrix.sum(axis=1, dtype=np.float64) - 1 if P.kind == "markov" else P.matrix - P.matrix.T).max()
        if off > ROW_SUM or (P.matrix < 0).any():
            wanted = "rows that sum to one" if P.kind == "markov" else "a symmetric matrix"
            raise InvalidInput(f"{name!r} is no {P.kind} operator: that has {wanted} and no negative entry")
        least = np.min(P.degrees, initial=np.inf) if np.isfinite(P.degrees).all() else -np.inf
        if P.degrees.shape != (len(P),) or least < 0 or (least == 0 and P.reversible):
            raise InvalidInput(f"operators need a positive degree for each probe, and {name!r} does not have them")


class _Merged(NamedTuple):
    matrix: npt.NDArray[np.floating[Any]]
    kind: Kind
    degrees: Floats
    reversible: bool


def _mean(operators: Mapping[str, Operator], w: Floats) -> _Merged:
    given = list(operators.values())
    n, kind = len(given[0]), given[0].kind
    mean = np.empty((n, n))
    for rows in row_blocks(n):
        block = mean[rows]
        block[...] = 0
        for weight, P in zip(w, given, strict=True):
            block += weight * P.matrix[rows]
    if kind == "symmetric":
        return _Merged(mean, kind, n * _perron(mean).vector ** 2, reversible=True)
    mean /= mean.sum(axis=1, keepdims=True)
    degrees = np.stack([P.degrees / P.degrees.mean() for P in given])
    if all(P.reversible for P in given) and np.allclose(degrees, degrees[0], rtol=SAME_DEGREES, atol=0):
        return _Merged(mean, kind, degrees[0], reversible=True)
    return _irreversible(mean)


def _log_euclidean(operators: Mapping[str, Operator], w: Floats) -> _Merged:
    irreversible = [name for name, P in operators.items() if not P.reversible]
    if irreversible:
        raise Unavailable(f"log_euclidean merges reversible operators only, and {', '.join(irreversible)} is not")
    n, kind = len(next(iter(operators.values()))), next(iter(operators.values())).kind
    mean = np.zeros((n, n))
    for weight, P in zip(w, operators.values(), strict=True):
        values, vectors = np.linalg.eigh((_symmetric(P) + np.eye(n)) / 2)
        mean += (vectors * (weight * np.log(np.maximum(values, EIGENVALUE_FLOOR)))) @ vectors.T
    values, vectors = np.linalg.eigh(mean)
    S = (vectors * (2 * np.exp(values))) @ vectors.T - np.eye(n)
    S = np.maximum((S + S.T) / 2, 0)
    perron = _perron(S)
    if not (perron.value > 0).all():
        raise Unavailable(f"log_euclidean leaves {np.count_nonzero(perron.value <= 0)} probes without any link")
    scale = 1 / np.sqrt(perron.value)
    S *= scale[:, None] * scale
    degrees = n * perron.vector**2
    return _Merged(S if kind == "symmetric" else _conjugate(S, degrees), kind, degrees, reversible=True)


def _product(operators: Mapping[str, Operator]) -> Floats:
    first, *others = operators.values()
    product = _markov(first)
    for P in others:
        product = product @ _markov(P)
    return product


def _irreversible(P: Floats) -> _Merged:
    P = P / P.sum(axis=1, keepdims=True)
    return _Merged(P, "markov", len(P) * _stationary_distribution(P), reversible=False)


def _markov(operator: Operator) -> Floats:
    matrix = operator.matrix.astype(np.float64)
    return matrix if operator.kind == "markov" else _conjugate(matrix, operator.degrees)


def _symmetric(operator: Operator) -> Floats:
    matrix = operator.matrix.astype(np.float64)
    if operator.kind == "markov":
        root = np.sqrt(operator.degrees)
        matrix *= root[:, None] / root
    return (matrix + matrix.T) / 2


def _conjugate(S: Floats, degrees: Floats) -> Floats:
    """D^-½ S D^½, its rows scaled to sum to one."""
    P: Floats = S * np.sqrt(degrees)
    P /= P.sum(axis=1, keepdims=True)
    return P


class _Perron(NamedTuple):
    value: Floats
    """(n,) largest eigenvalue of the part that each probe is in."""
    vector: Floats
    """(n,) its eigenvector, positive; its squares sum to each part's share of the probes."""


def _perron(S: Floats) -> _Perron:
    """Find the top eigenpair of each part of a symmetric matrix without negative entries."""
    from scipy.linalg import eigh

    n_parts, part = _parts(S, directed=False)
    value, vector = np.empty(len(S)), np.empty(len(S))
    for number in range(n_parts):
        inside = np.nonzero(part == number)[0]
        block = S[np.ix_(inside, inside)]
        top, vectors = eigh(block, subset_by_index=[len(inside) - 1] * 2)
        phi = block @ np.abs(vectors[:, 0])  # once more, so that small entries are right to their own size too
        value[inside] = top[0]
        vector[inside] = phi / np.linalg.norm(phi) * np.sqrt(len(inside) / len(S)) if phi.any() else 1
    return _Perron(value, vector)


def _stationary_distribution(P: Floats) -> Floats:
    """Find where random walks from all probes are in the long run: a solution of πP = π, the only one in one part."""
    n = len(P)
    n_parts, part = _parts(P, directed=True)
    share, pi = np.full(n, 1 / n), np.zeros(n)
    closed = _closed(P, n_parts, part)
    passing = np.nonzero(~closed[part])[0]
    if len(passing):
        stays = np.eye(len(passing)) - P[np.ix_(passing, passing)]
        visits = np.linalg.solve(stays.T, share[passing])
        share[passing] = 0
        share += np.where(closed[part], visits @ P[passing], 0)
    for number in np.nonzero(closed)[0]:
        inside = np.nonzero(part == number)[0]
        block = P[np.ix_(inside, inside)]
        system = np.eye(len(inside)) - block.T + 1 / len(inside)
        x = np.maximum(np.linalg.solve(system, np.full(len(inside), 1 / len(inside))), 0) @ block
        pi[inside] = x / x.sum() * share[inside].sum()
    return pi


def _parts(matrix: npt.NDArray[np.floating[Any]], *, directed: bool) -> tuple[int, npt.NDArray[np.int32]]:
    """Label the parts of the graph in which each probe can be reached from each other one."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    links = csr_array((matrix > LINK / len(matrix)).astype(np.int8))
    n_parts, part = connected_components(links, directed=directed, connection="strong")
    return int(n_parts), part


def _closed(matrix: npt.NDArray[np.floating[Any]], n_parts: int, part: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Say of each part whether no link leaves it."""
    closed = np.ones(n_parts, np.bool_)
    i, j = np.nonzero(matrix > LINK / len(matrix))
    closed[part[i[part[i] != part[j]]]] = False
    return closed


def _quality(matrix: npt.NDArray[np.float32], operators: Mapping[str, Operator]) -> Quality:
    given = [P.quality for P in operators.values()]
    n_parts, part = _parts(matrix, directed=True)
    return Quality(
        n_components=int(np.count_nonzero(_closed(matrix, n_parts, part))),
        isolated=tuple(sorted(set.intersection(*(set(quality.isolated) for quality in given)))),
        duplicates=max(quality.duplicates for quality in given),
        floored=max(quality.floored for quality in given),
    )


def _label_free_order(operators: list[Operator], w: Floats) -> npt.NDArray[np.intp]:
    """Order probes by the squared length of their rows, to the last bit the same under any labels."""
    keys = np.zeros(len(operators[0]))
    for P, weight in zip(operators, w, strict=True):
        keys += weight * np.sort(P.matrix.astype(np.float64) ** 2, axis=1).sum(axis=1)
    return np.argsort(keys, kind="stable")


def _diffusion_cost(rows: Floats, degrees: Floats, w: Floats) -> Floats:
    """Σ_k w_k Σ_x (P_ix - P_jx)² / π_x: squared Euclidean, so that its kernel is positive definite."""
    cost = np.zeros(rows.shape[1:])
    for P, D, weight in zip(rows, degrees, w, strict=True):
        if weight:
            if not D.all():
                raise Unavailable(
                    "the diffusion distance is undefined: a walk never comes back to some probe; give cost"
                )
            Y = P / np.sqrt(D / D.sum())
            squares = np.einsum("ij,ij->i", Y, Y)
            cost += weight * np.maximum(squares[:, None] + squares - 2 * (Y @ Y.T), 0)
    cost = (cost + cost.T) / 2
    np.fill_diagonal(cost, 0)
    return cost


def _median_cost(cost: Floats) -> float:
    off_diagonal = cost[~np.eye(len(cost), dtype=np.bool_)]
    positive = off_diagonal[off_diagonal > 0]
    if not len(positive):
        raise Unavailable("all probes are at the same place by this cost: there is no geometry to transport in")
    return float(np.median(positive))
