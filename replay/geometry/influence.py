"""How much each group of probes moves ‖P - Q‖_F between two operators of one gauge, to first order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import DiffusionGauge, Operator, count_parts

__all__ = ["Influence", "Pair", "ResponsiveOperator", "pair_influences", "respond"]

CLOSE = 1e-4
"""Below this ratio of ‖P - Q‖² to ‖P‖² + ‖Q‖² influences nearly cancel, and are computed in float64."""

SAMPLE = 256
"""Columns that the part of the bandwidths is computed from; a quarter of all, where that is more."""

FAINTEST = 1e-38
"""Kernel values are not taken smaller where their logarithm is."""

NARROWEST = 0.1
"""Smallest ratio of two neighbour distances that a bandwidth's slope is read from; duplicates have none."""

BLOCK_ROWS = 64
"""Rows of a block: with 1,000 probes, successive passes over a few of them stay in the second-level cache."""

BLOCK = 1 << 18
"""Elements in the row blocks of all operators together, so that comparing each with each stays in the same cache."""

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]
Precision = type[np.float32] | type[np.float64]
Singles = npt.NDArray[np.float32]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ResponsiveOperator:
    """An operator with what its derivatives with respect to the weights of the probes are made from.

    P = diag(``left``) K diag(``right``), where K is the kernel, symmetric; U = -ln K. With U one goes from a relative
    change of the bandwidths to that of the kernel: d ln K_ij = U_ij (d ln σ_i + d ln σ_j).
    """

    matrix: Singles
    """(n, n) P."""
    left: Floats
    right: Floats
    density: Floats
    """(n,) row sums of the kernel."""
    reach: Floats
    """(n,) row sums of the kernel after density correction of its columns."""
    gauge: DiffusionGauge
    groups: Indices
    """(n,) group of each probe."""
    columns: Indices
    """(m,) probes drawn at random, all up to `SAMPLE`; sums over U are made from their columns."""
    drawn: Singles
    """(n, m) these columns of P."""
    weighted: Singles
    """(n, m) these columns of P ∘ U, times n/m."""
    narrowing: Floats
    """(n,) how much the logarithm of a bandwidth falls for one neighbour more within it."""
    isolated: Indices
    """Probes without a link."""
    n_parts: int
    """Parts that the graph falls into."""
    excess: Floats
    """(n, G) neighbours within the bandwidth of each probe from each group, less those expected by the group's size."""


class Influence(NamedTuple):
    """Sums of squares for a pair of operators, and their derivatives with respect to the weight of each group."""

    difference: float
    """‖P - Q‖_F²."""
    squares: float
    """‖P‖_F² + ‖Q‖_F²."""
    of_difference: Floats
    """(G,) first-order change of ``difference`` for one unit of weight more on each probe of the group."""
    of_squares: Floats
    """(G,) the same of ``squares``."""


class _Sums(NamedTuple):
    """Sums of products of two operators' entries."""

    difference: float
    """Of (P - Q)²."""
    by_row: Floats
    """(n,) of P∘Q."""
    by_column: Floats
    left_log: Floats
    """(n,) of P∘Q∘U_P, by row and by column together."""
    right_log: Floats
    """(n,) of P∘Q∘U_Q, by row and by column together."""


def respond(
    gauge: DiffusionGauge,
    X: npt.ArrayLike,
    groups: Indices,
    *,
    operator: Operator | npt.NDArray[np.floating[Any]] | None = None,
    out: Singles | None = None,
) -> ResponsiveOperator:
    """Compute the operator of activations with what its response to the weights of the probes is made from.

    Parameters
    ----------
    gauge
        From activations to operators.
    X
        (n, d) activations.
    groups
        (n,) group of each probe, 0 to G-1.
    operator
        What ``gauge`` makes of ``X``, where that is at hand.
    out
        (n, n) contiguous room for the operator.

    Returns
    -------
    ResponsiveOperator
        4n² + 8mn bytes, m the larger of 256 and n/4.

    Raises
    ------
    InvalidInput, Unavailable
        As for a call of the gauge.
    """
    kernel = gauge.kernel(X, out=out)
    K, n = kernel.matrix, len(kernel.matrix)
    weights = kernel.density**-gauge.alpha
    reach = (K @ weights.astype(np.float32)).astype(np.float64) if gauge.alpha else kernel.density
    left, right = (np.sqrt(weights / reach),) * 2 if gauge.symmetric else (1 / reach, weights)
    row, column = left.astype(np.float32), right.astype(np.float32)
    excess = _excess(kernel.within, groups)
    columns = np.sort(np.random.default_rng(0).permutation(n)[: max(SAMPLE, n // 4)])
    drawn = np.take(K, columns, axis=1)
    weighted, narrowing = _narrowing(drawn, columns, kernel.sigma, gauge)
    drawn *= row[:, None]
    drawn *= column[columns]
    weighted *= drawn
    weighted *= np.float32(n / len(columns))
    if operator is None:
        matrix = K
        for rows in _blocks(n):
            K[rows] *= row[rows, None]
            K[rows] *= column
    else:
        matrix = np.asarray(operator.matrix if isinstance(operator, Operator) else operator, np.float32)
    return ResponsiveOperator(
        matrix=matrix,
        left=left,
        right=right,
        density=kernel.density,
        reach=reach,
        gauge=gauge,
        groups=groups,
        columns=columns,
        drawn=drawn,
        weighted=weighted,
        narrowing=narrowing,
        isolated=kernel.isolated,
        n_parts=count_parts(matrix, weights * reach, symmetric=gauge.symmetric),
        excess=excess,
    )


def pair_influences(points: Mapping[int, ResponsiveOperator], pairs: Sequence[Pair]) -> list[Influence]:
    """Compare pairs of operators, and say how each group of probes weighs in the result.

    The distance is a function of the weights ω of the probes: sums over probes carry them, Σ_ij ω_i ω_j (P_ij - Q_ij)²,
    density Σ_j ω_j K_ij and row sums alike, and a bandwidth is the distance within which k of n neighbours lie, by
    weight. The derivative at ω = 1 comes from differentiating backwards through that definition, at the cost of a few
    products of a matrix and a vector (infinitesimal jackknife: Jaeckel, 1972). A bandwidth, which jumps from neighbour
    to neighbour, is smoothed: its slope is that between the neighbours of half and of twice the rank. Beyond 256
    probes, what goes through the bandwidths is estimated from a sample of the columns.

    Parameters
    ----------
    points
        Operators of one gauge over the same probes, with the same groups, by name.
    pairs
        Names of two points each.

    Returns
    -------
    list of Influence
        One a pair; zero where the operators are equal.
    """
    sums = _product_sums(points, _with_themselves(pairs), np.float32)
    inner = {pair: float(part.by_row.sum()) for pair, part in sums.items()}
    squares = {(i, j): inner[i, i] + inner[j, j] for i, j in pairs}
    differences = {pair: sums[pair].difference for pair in pairs}
    close = [pair for pair in pairs if 0 < differences[pair] < CLOSE * squares[pair]]
    of_inner = _of_inner_products(points, sums, np.float32)
    of_precise = _of_inner_products(points, _product_sums(points, _with_themselves(close), np.float64), np.float64)
    influences = []
    for i, j in pairs:
        of = of_precise if (i, j) in of_precise else of_inner
        of_squares = of[i, i] + of[j, j]
        difference = differences[i, j]
        of_difference = of_squares - 2 * of[i, j] if difference else np.zeros_like(of_squares)
        influences.append(Influence(difference, squares[i, j], of_difference, of_squares))
    return influences


def _with_themselves(pairs: Sequence[Pair]) -> list[Pair]:
    return list(dict.fromkeys([*((i, i) for pair in pairs for i in pair), *pairs]))


def _blocks(n: int) -> list[slice]:
    return [slice(start, min(start + BLOCK_ROWS, n)) for start in range(0, n, BLOCK_ROWS)]


def _excess(within: npt.NDArray[np.bool_], groups: Indices) -> Floats:
    """Count each probe's neighbours within its bandwidth by group (n, G), less those expected by the group's size."""
    sizes = np.bincount(groups)
    member = np.eye(len(sizes), dtype=np.float32)[groups]
    counts = np.concatenate([within[rows].astype(np.float32) @ member for rows in _blocks(len(within))]) - member
    excess: Floats = counts - counts.sum(axis=1, keepdims=True) * (sizes / len(groups))
    return excess


def _narrowing(sample: Singles, columns: Indices, sigma: Floats, gauge: DiffusionGauge) -> tuple[Singles, Floats]:
    """Return U of the columns drawn, zero between a probe and itself, and the slopes of the bandwidths among them."""
    n, m = sample.shape
    itself = columns, np.arange(m)
    U = np.maximum(sample, np.float32(FAINTEST))
    np.log(U, out=U)
    np.negative(U, out=U)
    U[itself] = np.inf
    if gauge.knn is None:  # one bandwidth, and its slope between the quartiles of all pairs
        nearer, farther = (np.full(n, np.quantile(U[np.isfinite(U)], q)) for q in (0.25, 0.75))
        neighbours = n / 4
    else:
        rank = min(gauge.knn, n - 1) * m / n
        low = max(1, round(rank / 2))
        high = min(max(low + 1, round(2 * rank)), m - 1)
        squares = U * (sigma[columns] / sigma.max()).astype(np.float32)
        squares.partition(high - 1, axis=1)
        nearest = squares[:, :high]
        farther = nearest[:, high - 1]
        nearer = np.partition(nearest, low - 1, axis=1)[:, low - 1]
        neighbours = (high - low) * n / m
    U[itself] = 0
    ratios = np.divide(nearer, farther, out=np.ones(n), where=farther > 0)
    narrowing: Floats = -0.5 * np.log(np.maximum(ratios, NARROWEST**2)) / neighbours
    return U, narrowing


def _product_sums(
    points: Mapping[int, ResponsiveOperator], pairs: Sequence[Pair], dtype: Precision
) -> dict[Pair, _Sums]:
    """Sum products over columns; over rows by the symmetry of the kernels, A_ji turn_i = A_ij turn_j for A = P∘Q."""
    used = {i: points[i] for pair in pairs for i in pair}
    if not used:
        return {}
    columns = next(iter(used.values())).columns
    turns = {(i, j): used[i].left * used[j].left / (used[i].right * used[j].right) for i, j in pairs}
    turns = {pair: turn / turn.max() for pair, turn in turns.items()}
    over = {pair: np.stack([np.ones_like(turn), turn], axis=1).astype(dtype) for pair, turn in turns.items()}
    over_drawn = {pair: sides[columns] for pair, sides in over.items()}
    n = len(over[pairs[0]])
    sums = {pair: np.zeros((4, n, 2)) for pair in pairs}
    height = min(n, max(1, BLOCK // (n * len(used))))
    wide, narrow = np.empty((height, n), dtype), np.empty((height, len(columns)), dtype)
    for start in range(0, n, height):
        rows = slice(start, min(start + height, n))
        whole, drawn, weighted = (
            {i: getattr(P, name)[rows].astype(dtype, copy=False) for i, P in used.items()}
            for name in ("matrix", "drawn", "weighted")
        )
        block, part = wide[: rows.stop - start], narrow[: rows.stop - start]
        for (i, j), out in sums.items():
            out[0, rows] = np.dot(np.multiply(whole[i], whole[j], out=block), over[i, j])
            out[1, rows] = np.dot(np.multiply(weighted[i], drawn[j], out=part), over_drawn[i, j])
            if i != j:
                out[2, rows] = np.dot(np.multiply(drawn[i], weighted[j], out=part), over_drawn[i, j])
                np.subtract(whole[i], whole[j], out=block)
                out[3, rows, 0] = np.vecdot(block, block)
    made = {}
    for pair, (both, left_log, right_log, apart) in sums.items():
        by_row, by_column = both[:, 0], both[:, 1] / turns[pair]
        logs = (log[:, 0] + log[:, 1] / turns[pair] for log in (left_log, right_log))
        made[pair] = _Sums(float(apart.sum()), by_row, by_column, *logs)
    return made


def _of_inner_products(
    points: Mapping[int, ResponsiveOperator], sums: dict[Pair, _Sums], dtype: Precision
) -> dict[Pair, Floats]:
    """Differentiate ⟨P, Q⟩ with respect to the weights of the groups, (G,) a pair."""
    of: dict[Pair, Floats] = {}
    for (i, j), part in sums.items():
        of[i, j] = np.bincount(points[i].groups, weights=part.by_row + part.by_column).astype(np.float64)
    for i in {i for pair in sums for i in pair}:
        mine = [pair for pair in sums if i in pair]
        by_row = np.stack([sums[pair].by_row for pair in mine], axis=1)
        by_column = np.stack([sums[pair].by_column for pair in mine], axis=1)
        logs = np.stack([sums[p].left_log if p[0] == i else sums[p].right_log for p in mine], axis=1)
        through = _through_definition(points[i], by_row, by_column, logs, dtype)
        for pair, part in zip(mine, through.T, strict=True):
            of[pair] += 2 * part if pair[0] == pair[1] else part
    return of


def _through_definition(
    P: ResponsiveOperator, by_row: Floats, by_column: Floats, logs: Floats, dtype: Precision
) -> Floats:
    """Carry derivatives with respect to ln P back to the weights of the groups.

    ``by_row`` and ``by_column`` (n, c) are their sums, ``logs`` both sums after multiplication by U; each of the c
    columns is a problem of its own. Names say which derivative a variable holds.
    """
    left, right, weights = P.left[:, None], P.right[:, None], (P.density**-P.gauge.alpha)[:, None]

    def times(A: Singles, x: Floats) -> Floats:
        """Multiply K or K∘U, for A = P or P∘U."""
        largest = np.maximum(np.abs(x).max(axis=0), np.finfo(np.float64).tiny)
        product: Floats = (A.astype(dtype, copy=False) @ (x / largest).astype(dtype)) * (largest / left)
        return product

    both = (by_row + by_column) / 2
    of_weights, of_reach = (both, -both) if P.gauge.symmetric else (by_column, -by_row)
    of_reach = of_reach / P.reach[:, None]
    through_reach = weights * times(P.matrix, of_reach / right)
    of_density = -P.gauge.alpha * (of_weights + through_reach) / P.density[:, None]
    of_probe = through_reach + times(P.matrix, of_density / right)
    inputs = np.concatenate([of_reach, of_density, weights, np.ones_like(weights)], axis=1) / right
    reach, density, weights_sum, sum_ = np.split(
        times(P.weighted, inputs[P.columns]),
        np.cumsum([by_row.shape[1], by_row.shape[1], 1]),
        axis=1,
    )
    of_bandwidth = logs + of_reach * weights_sum + weights * reach + of_density * sum_ + density
    if P.gauge.knn is None:
        of_bandwidth = np.broadcast_to(of_bandwidth.mean(axis=0), of_bandwidth.shape)
    of_group = np.stack([np.bincount(P.groups, weights=column) for column in of_probe.T], axis=1)
    total: Floats = of_group - P.excess.T @ (P.narrowing[:, None] * of_bandwidth)
    return total
