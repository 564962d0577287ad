"""Wasserstein barycenters of many rows of distributions at once, by entropic optimal transport."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput, Unavailable

__all__ = ["Barycenters", "barycenters"]

NEGLIGIBLE = 1e-12
"""Shares of a row below this one are taken for zero: no product has to reach a far probe for them."""

START_MASS = 1e-7
"""Mass spread over all probes at the start, so that its logarithm exists."""

START_STEPS = 30
"""Iterations that find the start of a debiased barycenter."""

MEMORY = 4
"""Earlier steps that an extrapolation looks back on."""

RIDGE = 1e-8
"""Ridge of the extrapolation, as a share of the trace, so that rounding is not extrapolated."""

REACH = 3.0
"""How far, as a logarithm, an extrapolation may go beyond the iteration it starts from."""

SETBACK = 16.0
"""Growth of the squared residual in one iteration after which a row forgets its earlier steps."""

SINGLE_ITER = 300
"""Iterations that float32 is given before a row is taken to be too hard for it."""

CHECK = 5
"""Iterations between looks at which rows have converged."""

BLOCK = 1 << 15
"""Elements of a block of rows, so that its iterates and their history stay in the cache."""

TRUST = 0.75
"""Share of the range of exponents, counted from the largest number of a row, that a product is trusted in."""

Floats = npt.NDArray[np.floating[Any]]
Flags = npt.NDArray[np.bool_]


class Barycenters(NamedTuple):
    """Barycenters, and how they were reached."""

    rows: Floats
    """(r, n) distributions, each sums to one."""
    residual: npt.NDArray[np.float64]
    """(r,) L1 distance from the conditions of optimality, at most the tolerance."""
    iterations: npt.NDArray[np.intp]
    """(r,) iterations each row took."""


def barycenters(
    rows: npt.ArrayLike,
    cost: npt.ArrayLike,
    weights: npt.ArrayLike,
    *,
    reg: float,
    debiased: bool = True,
    tol: float = 1e-6,
    max_iter: int = 3000,
) -> Barycenters:
    """Entropic Wasserstein barycenter of m distributions, for each of r rows.

    With K = exp(-cost / reg), the barycenter q of a_1 ... a_m is the fixed point of::

        v_k = a_k / K u_k,   q = d ∏ (K v_k)^{w_k},   u_k = q / K v_k

    with d = 1 for the entropic barycenter, which is blurred (Benamou et al., 2015), and d · Kd = q for the debiased
    one, which is a where all a_k = a (Janati, Cuturi and Gramfort, 2020): it minimises Σ w_k S(a_k, q) over q, with the
    Sinkhorn divergence S, and is unique where K is positive definite, as for squared Euclidean costs.

    All rows go through one matrix product, and those that have converged leave. Iterates are logarithms, extrapolated
    row by row (Anderson, 1965). Rows whose product underflows where there is mass are computed again, in float64 and
    then as a log-sum-exp, which cannot underflow and takes n² exponentials an input and iteration.

    Parameters
    ----------
    rows
        (m, r, n) distributions: not negative, each with a positive sum, which is scaled to one. float32 is computed as
        float32 unless debiased, since undoing a blur enlarges rounding; anything else as float64.
    cost
        (n, n) symmetric cost of moving mass between probes.
    weights
        (m,) weights, not negative, scaled to sum 1; an input of weight 0 is left out.
    reg
        Entropic regularisation, positive, in the unit of ``cost``. Small ones take many iterations; so do debiased
        barycenters with a blur wide enough to reach many probes, which there is more than one way to undo.
    debiased
        Whether to undo the blur that the regularisation causes.
    tol
        Residual at which a row has converged. At 1e-6 the rows of simulated operators were within 2e-5 of their
        limit in L1.
    max_iter
        Iterations before giving up.

    Returns
    -------
    Barycenters
        In the precision of ``rows``; float32 differs from float64 by less than 1e-5 in L1.

    Raises
    ------
    InvalidInput
        If shapes disagree, or a value is out of its range.
    Unavailable
        If a row has not converged after ``max_iter`` iterations.
    """
    A, w = _checked_rows(rows, weights)
    C = _checked_cost(cost, A.shape[2])
    for name, value in (("reg", reg), ("tol", tol), ("max_iter", max_iter)):
        if not 0 < value < np.inf:
            raise InvalidInput(f"{name} must be a positive number, not {value!r}")
    exponent = (C.min() - C) / reg
    A = np.ascontiguousarray(A[w > 0].transpose(1, 0, 2))
    w = w[w > 0]
    done = Barycenters(np.empty_like(A[:, 0]), np.full(len(A), np.inf), np.zeros(len(A), np.intp))
    todo = np.arange(len(A))
    for product in _products(exponent, single=A.dtype == np.float32 and not debiased):
        if not len(todo):
            break
        limit = int(max_iter) if product.dtype == np.float64 else min(int(max_iter), SINGLE_ITER)
        size = max(1, BLOCK // A[0].size)
        again = [todo[:0]]
        for start in range(0, len(todo), size):
            block = todo[start : start + size]
            found, wrong = _iterate(
                A[block].astype(product.dtype),
                w.astype(product.dtype),
                product,
                debiased=debiased,
                tol=tol,
                max_iter=limit,
            )
            for whole, part in zip(done, found, strict=True):
                whole[block] = part
            again.append(block[wrong])
        todo = np.concatenate(again)
    late = ~(done.residual <= tol)
    if late.any():
        raise Unavailable(
            f"{np.count_nonzero(late)} of {len(A)} barycenters did not converge: after {max_iter} iterations the worst "
            f"residual is {done.residual.max():.1g}, not {tol:g}; raise reg, tol or max_iter"
        )
    return done


class _Product:
    """log(K exp(x)) for the rows x of an array, by one matrix product."""

    def __init__(self, exponent: Floats, dtype: type[np.floating[Any]]) -> None:
        self.dtype: type[np.floating[Any]] = dtype
        self.tiny = np.finfo(dtype).tiny
        self.floor = dtype(0.9 * np.log(self.tiny))
        K = np.exp(exponent).astype(dtype)
        K[np.less(K, self.tiny)] = 0  # products of subnormal numbers are slow
        self.K = K

    def log(self, x: Floats) -> Floats:
        """Compute the logarithms, finite even where the product underflows."""
        largest = x.max(axis=-1, keepdims=True)
        y = x - largest
        np.exp(np.maximum(y, self.floor, out=y), out=y)
        product: Floats = y.reshape(-1, y.shape[-1]) @ self.K
        np.log(np.maximum(product, self.tiny, out=product), out=product)
        product = product.reshape(x.shape)
        product += largest
        return product

    def untrusted(self, x: Floats, log_Kx: Floats) -> Flags:
        """Mark where what underflowed may be a share of the product."""
        faint: Flags = log_Kx < x.max(axis=-1, keepdims=True) + self.dtype(TRUST) * self.floor
        return faint


class _LogSumExp:
    """The same with n² exponentials a row: nothing underflows."""

    dtype = np.float64

    def __init__(self, exponent: Floats) -> None:
        self.exponent = exponent

    def log(self, x: Floats) -> Floats:
        y = np.empty_like(x)
        for row in np.ndindex(x.shape[:-1]):
            terms = self.exponent + x[row]
            largest = terms.max(axis=1)
            terms -= largest[:, None]
            y[row] = largest + np.log(np.exp(terms, out=terms).sum(axis=1))
        return y

    def untrusted(self, x: Floats, log_Kx: Floats) -> Flags:
        return np.zeros(np.broadcast_shapes(x.shape, log_Kx.shape), np.bool_)


def _products(exponent: Floats, *, single: bool) -> Iterator[_Product | _LogSumExp]:
    """Offer ways to compute log(K exp(x)), from the fastest to the one that cannot underflow."""
    if single:
        yield _Product(exponent, np.float32)
    yield _Product(exponent, np.float64)
    yield _LogSumExp(exponent)


class _History:
    """The last steps of a block of rows, and where they lead (Anderson, 1965, type II)."""

    def __init__(self, x: Floats) -> None:
        rows, size = len(x), x[0].size
        self.n_steps = 0
        self.changes = np.zeros((rows, MEMORY, size), x.dtype)
        self.moves = np.zeros((rows, MEMORY, size), x.dtype)
        self.residual = np.zeros((rows, size), x.dtype)
        self.y = np.zeros((rows, size), x.dtype)
        self.norm = np.full(rows, np.inf)

    def keep(self, rows: Flags) -> None:
        """Forget the other rows."""
        for name in ("changes", "moves", "residual", "y", "norm"):
            setattr(self, name, getattr(self, name)[rows])

    def extrapolate(self, x: Floats, y: Floats, mass: Floats) -> Floats:
        """Go from ``y``, the iteration after ``x``, to where the residual would be least were it linear.

        A residual counts by the root of the mass of its probe, and nothing moves by more than `REACH`.
        """
        residual = ((y - x) * np.sqrt(mass)[:, None]).reshape(self.residual.shape)
        norm = np.einsum("ri,ri->r", residual, residual).astype(np.float64)
        y_rows = y.reshape(self.y.shape)
        if self.n_steps:
            slot = self.n_steps % MEMORY
            np.subtract(residual, self.residual, out=self.changes[:, slot])
            np.subtract(y_rows, self.y, out=self.moves[:, slot])
            lost = ~(norm <= SETBACK * self.norm)
            self.changes[lost] = self.moves[lost] = 0
        self.n_steps += 1
        self.residual, self.y, self.norm = residual, y_rows, norm
        gram = (self.changes @ self.changes.transpose(0, 2, 1)).astype(np.float64)
        ridge = RIDGE * np.einsum("rii->r", gram) + np.finfo(np.float64).tiny
        gram += ridge[:, None, None] * np.eye(MEMORY)
        target = (self.changes @ residual[:, :, None]).astype(np.float64)
        shares = np.linalg.solve(gram, target).astype(x.dtype)
        back = (self.moves.transpose(0, 2, 1) @ shares)[:, :, 0]
        ahead: Floats = (y_rows - np.clip(back, -REACH, REACH)).reshape(x.shape)
        return ahead


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # a row that is not finite is found by its residual
def _iterate(
    A: Floats, w: Floats, product: _Product | _LogSumExp, *, debiased: bool, tol: float, max_iter: int
) -> tuple[Barycenters, Flags]:
    """Find the barycenters of a block of rows, (r, m, n), and which of them call for a finer product."""
    r, m, n = A.shape
    found = Barycenters(np.empty_like(A[:, 0]), np.full(r, np.inf), np.zeros(r, np.intp))
    wrong, left = np.zeros(r, np.bool_), np.arange(r)
    log_A = np.log(A)
    x = np.zeros((r, m + debiased, n), A.dtype)  # log u_1 ... log u_m, and log d
    if debiased:
        x[:] = _log_debias(np.einsum("rmn,m->rn", A, w), product)[:, None]
        gain = 1 / (2 * np.exp(product.log(np.zeros((1, n), A.dtype))))
    history = _History(x)
    for iteration in range(1, max_iter + 1):
        log_Kx = product.log(x)
        log_v = log_A - log_Kx[:, :m]
        log_Kv = product.log(log_v)
        log_g = np.einsum("rmn,m->rn", log_Kv, w)
        if debiased:
            q = np.exp(x[:, m] + log_g)
            log_d = _next_log_debias(x[:, m], log_g, log_Kx[:, m], gain)
            y = np.concatenate([(log_d + log_g)[:, None] - log_Kv, log_d[:, None]], axis=1)
        else:
            q = np.exp(log_g)
            y = log_g[:, None] - log_Kv
        if iteration % CHECK == 0 or iteration == max_iter:
            residual = np.einsum("rmn,m->r", np.abs(np.exp(x[:, :m] + log_Kv) - q[:, None]), w).astype(np.float64)
            if debiased:
                residual += _debias_residual(x[:, m], log_g, log_Kx[:, m])
            over = ~(residual > tol) | (iteration == max_iter)
            if over.any():
                faint = (A * product.untrusted(x[:, :m], log_Kx[:, :m])).sum(axis=2).max(axis=1)
                faint += (q * product.untrusted(log_v, log_Kv).any(axis=1)).sum(axis=1)
                rows, on = left[over], ~over
                found.rows[rows] = q[over] / q[over].sum(axis=1, keepdims=True)
                found.residual[rows], found.iterations[rows] = residual[over], iteration
                wrong[rows] = (faint[over] > tol) | ~np.isfinite(residual[over])
                if x.dtype == np.float32:
                    wrong[rows] |= residual[over] > tol
                if not on.any():
                    break
                left, A, log_A, x, y, q = (rows[on] for rows in (left, A, log_A, x, y, q))
                history.keep(on)
        x = history.extrapolate(x, y, q)
    return found, wrong


def _log_debias(q: Floats, product: _Product | _LogSumExp) -> Floats:
    """Find log d with d · Kd = q, about."""
    log_q = np.log(q + q.dtype.type(START_MASS / q.shape[1]))
    log_d: Floats = log_q / 2
    for _ in range(START_STEPS):
        log_d = (log_d + log_q - product.log(log_d)) / 2
    return log_d


def _next_log_debias(log_d: Floats, log_g: Floats, log_Kd: Floats, gain: Floats) -> Floats:
    """Take d (g / Kd)^½ for the next d, or d + gain (g - Kd) where that is more, as where d is next to nothing."""
    excess = log_g - log_Kd
    factor = log_d + excess / 2
    sum_ = np.exp(log_d - log_Kd) + gain * np.expm1(np.clip(excess, 0, 50))
    return np.where(excess > 0, np.maximum(factor, log_Kd + np.log(sum_)), factor)


def _debias_residual(log_d: Floats, log_g: Floats, log_Kd: Floats) -> npt.NDArray[np.float64]:
    """Say how far d is from fulfilling, at each probe, g = Kd, or g < Kd where d = 0."""
    d, g, Kd = np.exp(log_d), np.exp(log_g), np.exp(log_Kd)
    step = np.abs(d - np.maximum(d + g - Kd, 0))
    residual: npt.NDArray[np.float64] = np.einsum("rn,rn->r", step, np.maximum(d, g)).astype(np.float64)
    return residual


def _checked_rows(rows: npt.ArrayLike, weights: npt.ArrayLike) -> tuple[Floats, Floats]:
    A, w = np.asarray(rows), np.asarray(weights, np.float64)
    A = A if A.dtype == np.float32 else A.astype(np.float64)
    if A.ndim != 3 or w.shape != A.shape[:1] or not A.size:
        raise InvalidInput(f"expected rows (input, row, probe) and a weight an input, not {A.shape} and {w.shape}")
    if not np.isfinite(w).all() or (w < 0).any() or not w.any():
        raise InvalidInput("weights must be finite, not negative and not all zero")
    if not np.isfinite(A).all() or (A < 0).any() or not A.any(axis=2).all():
        raise InvalidInput("rows must be distributions: finite, not negative, each with a positive sum")
    A = A / A.sum(axis=2, keepdims=True)
    A *= A >= NEGLIGIBLE
    A /= A.sum(axis=2, keepdims=True)
    return A, w / w.sum()


def _checked_cost(cost: npt.ArrayLike, n: int) -> npt.NDArray[np.float64]:
    C = np.asarray(cost, np.float64)
    if C.shape != (n, n) or not np.isfinite(C).all() or not np.allclose(C, C.T, rtol=1e-6, atol=0):
        raise InvalidInput(f"cost must be a finite symmetric matrix over {n} probes, not {C.shape}")
    return C
