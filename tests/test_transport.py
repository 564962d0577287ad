"""Wasserstein barycenters: closed forms, what they must not see, and POT in the log domain."""

import numpy as np
import numpy.typing as npt
import ot
import pytest

from replay.geometry import transport
from replay.geometry.transport import barycenters
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]
WEIGHTS = np.array([0.5, 0.3, 0.2])


def probes_on_a_line(n: int = 120) -> tuple[Floats, Floats]:
    x = np.linspace(-3, 3, n)
    return x, (x[:, None] - x) ** 2


def gaussian(x: Floats, mean: float, sigma: float) -> Floats:
    density = np.exp(-((x - mean) ** 2) / (2 * sigma**2))
    total: Floats = density / density.sum()
    return total


def scattered_rows(n: int = 40, r: int = 5, *, holes: bool = False) -> tuple[Floats, Floats]:
    """Three noisy versions of Gaussian rows over points in eight dimensions; squared distances over their median."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 8))
    cost = ((X[:, None] - X) ** 2).sum(axis=2)
    moved = [X + 0.3 * rng.standard_normal(X.shape) for _ in range(3)]
    rows = np.stack([np.exp(-((Y[:r, None] - Y) ** 2).sum(axis=2) / 6) for Y in moved])
    if holes:
        rows[:, np.arange(r), np.arange(r)] = 0
    return rows / rows.sum(axis=2, keepdims=True), cost / np.median(cost)


def l1(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    return float(np.abs(np.asarray(p) - np.asarray(q)).sum(axis=-1).max())


def test_barycenter_of_gaussians_on_a_line_has_the_mean_of_means_and_the_mean_of_deviations() -> None:
    x, cost = probes_on_a_line()
    means, sigmas = np.array([-1.0, 0.2, 1.2]), np.array([0.3, 0.4, 0.6])
    rows = np.stack([gaussian(x, m, s)[None] for m, s in zip(means, sigmas, strict=True)])
    q = barycenters(rows, cost, WEIGHTS, reg=0.02).rows[0]
    assert abs(q @ x - WEIGHTS @ means) < 1e-3
    assert abs(np.sqrt(q @ x**2 - (q @ x) ** 2) - WEIGHTS @ sigmas) < 5e-3
    assert l1(q, gaussian(x, WEIGHTS @ means, WEIGHTS @ sigmas)) < 0.02


def test_entropic_blur_adds_to_the_variance_unless_it_is_undone() -> None:  # the older system returns the blurred one
    x, cost = probes_on_a_line()
    p = gaussian(x, 0.3, 0.4)
    rows = np.stack([p[None]] * 3)
    blurred = barycenters(rows, cost, WEIGHTS, reg=0.2, debiased=False).rows[0]
    # a Gaussian of variance s² has an entropic barycenter of variance s² + reg / 2 for the cost |x - y|²
    assert abs(blurred @ x**2 - (blurred @ x) ** 2 - (0.4**2 + 0.2 / 2)) < 1e-3
    assert l1(blurred, p) > 0.1
    assert l1(barycenters(rows, cost, WEIGHTS, reg=0.2).rows[0], p) < 1e-5


def test_mass_between_point_masses_comes_out_where_no_input_has_any() -> None:
    cost = probes_on_a_line(41)[1]
    rows = np.zeros((2, 1, 41))
    rows[0, 0, 8] = rows[1, 0, 32] = 1
    q = barycenters(rows, cost, [1 / 3, 2 / 3], reg=0.05).rows[0]
    assert np.argmax(q) == 24
    assert q[23:26].sum() > 0.99


@pytest.mark.parametrize("reg", [0.3, 0.1])
def test_unequal_weights_agree_with_pot_in_the_log_domain(reg: float) -> None:
    # the default method of the same function starts outside its constraint: off by 1e-3 or more (PythonOT/POT#870)
    rows, cost = scattered_rows()
    ours = barycenters(rows, cost, WEIGHTS, reg=reg, debiased=False).rows
    for i, q in enumerate(ours):
        A = np.ascontiguousarray(rows[:, i].T)
        oracle = ot.bregman.barycenter(
            A, cost, reg, weights=WEIGHTS, method="sinkhorn_log", stopThr=1e-9, numItermax=5000
        )
        default = ot.bregman.barycenter(A, cost, reg, weights=WEIGHTS, stopThr=1e-9, numItermax=5000, warn=False)
        assert l1(q, oracle) < 1e-5
        assert l1(q, default) > 1e-3


@pytest.mark.parametrize("reg", [0.1, 0.05])
def test_debiased_barycenters_agree_with_pot_in_the_log_domain(reg: float) -> None:
    rows, cost = scattered_rows(r=3)
    ours = barycenters(rows, cost, WEIGHTS, reg=reg, tol=1e-8).rows
    for i, q in enumerate(ours):
        oracle = ot.bregman.barycenter_debiased(
            np.ascontiguousarray(rows[:, i].T),
            cost,
            reg,
            weights=WEIGHTS,
            method="sinkhorn_log",
            stopThr=1e-9,
            numItermax=2000,
        )
        assert l1(q, oracle) < 1e-5


@pytest.mark.parametrize("holes", [False, True])
def test_no_mass_moved_to_any_probe_lowers_the_mean_sinkhorn_divergence(holes: bool) -> None:
    rows, cost = scattered_rows(n=20, r=1, holes=holes)
    reg = 0.2

    def entropic_cost(a: Floats, b: Floats) -> float:
        kept = np.ix_(a > 1e-12, b > 1e-12)
        plan = ot.sinkhorn(a[a > 1e-12], b[b > 1e-12], cost[kept], reg, stopThr=1e-10, numItermax=20_000)
        return float((plan * (cost[kept] + reg * np.log(plan / np.outer(a, b)[kept]))).sum())

    def objective(q: Floats) -> float:
        pairs = zip(WEIGHTS, rows[:, 0], strict=True)
        return float(sum(w * (entropic_cost(a, q) - entropic_cost(q, q) / 2) for w, a in pairs))

    q = barycenters(rows, cost, WEIGHTS, reg=reg, tol=1e-9).rows[0]
    least = objective(q)
    for probe in range(len(q)):
        nudged = 0.995 * q
        nudged[probe] += 0.005
        assert objective(nudged) > least


def test_equal_rows_are_given_back_holes_included() -> None:
    rows, cost = scattered_rows(holes=True)
    found = barycenters(np.stack([rows[0]] * 3), cost, WEIGHTS, reg=0.05)
    assert l1(found.rows, rows[0]) < 1e-5
    assert (found.residual <= 1e-6).all()
    assert (found.iterations > 0).all()


@pytest.mark.parametrize("debiased", [False, True])
def test_relabelling_the_probes_relabels_the_barycenter(debiased: bool) -> None:
    # the older system's ground cost is (i-j)² over indices: relabelling changes its result by 12 % and more
    rows, cost = scattered_rows(holes=True)
    order = np.random.default_rng(1).permutation(cost.shape[0])
    q = barycenters(rows, cost, WEIGHTS, reg=0.1, debiased=debiased, tol=1e-12).rows
    relabelled = barycenters(
        rows[:, :, order], cost[np.ix_(order, order)], WEIGHTS, reg=0.1, debiased=debiased, tol=1e-12
    ).rows
    assert np.abs(q[:, order] - relabelled).max() < 1e-10


def test_order_of_inputs_scale_of_weights_and_inputs_without_weight_change_nothing() -> None:
    rows, cost = scattered_rows()
    q = barycenters(rows, cost, WEIGHTS, reg=0.1, tol=1e-9).rows
    assert l1(q, barycenters(rows[::-1], cost, 7 * WEIGHTS[::-1], reg=0.1, tol=1e-9).rows) < 1e-7
    assert l1(q, barycenters([*rows, rows[0, ::-1]], cost, [*WEIGHTS, 0], reg=0.1, tol=1e-9).rows) < 1e-7
    assert l1(q, barycenters(rows, cost + 5, WEIGHTS, reg=0.1, tol=1e-9).rows) < 1e-7


def test_each_row_is_found_as_if_it_were_alone() -> None:
    rows, cost = scattered_rows(r=40)
    together = barycenters(rows, cost, WEIGHTS, reg=0.1).rows
    assert np.allclose(together.sum(axis=1), 1)
    for i in (0, 17, 39):
        assert l1(together[i], barycenters(rows[:, [i]], cost, WEIGHTS, reg=0.1).rows[0]) < 1e-5


def test_single_precision_is_within_a_hundred_thousandth() -> None:
    rows, cost = scattered_rows(n=80, r=80)
    for reg, debiased in ((0.05, False), (0.2, True)):
        single = barycenters(rows.astype(np.float32), cost, WEIGHTS, reg=reg, debiased=debiased)
        assert single.rows.dtype == np.float32
        assert l1(single.rows, barycenters(rows, cost, WEIGHTS, reg=reg, debiased=debiased).rows) < 1e-5


def test_what_underflows_is_computed_in_the_log_domain() -> None:
    # exp(-cost / reg) between the two parts is 1e-869, and still half of the mass has to get across
    x = np.concatenate([np.linspace(0, 1, 6), np.linspace(21, 22, 6)])
    cost = np.abs(x[:, None] - x)
    rows = np.zeros((2, 1, 12))
    rows[0, 0, :6] = rows[1, 0, 6:] = 1 / 6
    A = np.ascontiguousarray(rows[:, 0].T)
    kernel = np.exp(-cost / 0.01)
    assert kernel[0, 6] == 0
    oracle = ot.bregman.barycenter(
        A, cost, 0.01, weights=np.array([0.5, 0.5]), method="sinkhorn_log", stopThr=1e-9, numItermax=5000
    )
    for dtype in (np.float32, np.float64):
        found = barycenters(rows.astype(dtype), cost, [0.5, 0.5], reg=0.01, debiased=False)
        assert l1(found.rows[0], oracle) < 1e-5


def test_rows_that_do_not_converge_are_an_error_and_never_numbers() -> None:
    rows, cost = scattered_rows()
    with pytest.raises(Unavailable, match=r"5 of 5 barycenters did not converge: after 3 iterations .* raise reg"):
        barycenters(rows, cost, WEIGHTS, reg=0.05, max_iter=3)


def test_malformed_input_is_refused_with_a_line() -> None:
    rows, cost = scattered_rows()
    nan, negative, empty = rows.copy(), rows.copy(), rows.copy()
    nan[0, 0, 0], negative[0, 0, 0], empty[0, 0] = np.nan, -1e-3, 0
    for bad in (nan, negative, empty):
        with pytest.raises(InvalidInput, match="rows must be distributions"):
            barycenters(bad, cost, WEIGHTS, reg=0.1)
    with pytest.raises(InvalidInput, match=r"\(3, 5, 40\) and \(2,\)"):
        barycenters(rows, cost, [0.5, 0.5], reg=0.1)
    for weights in ([1, 1, -1], [0, 0, 0], [1, np.inf, 1]):
        with pytest.raises(InvalidInput, match="weights must be finite, not negative and not all zero"):
            barycenters(rows, cost, weights, reg=0.1)
    for bad in (cost[:5], cost + np.arange(40), np.full((40, 40), np.nan)):
        with pytest.raises(InvalidInput, match="cost must be a finite symmetric matrix over 40 probes"):
            barycenters(rows, bad, WEIGHTS, reg=0.1)
    with pytest.raises(InvalidInput, match="reg must be a positive number, not 0"):
        barycenters(rows, cost, WEIGHTS, reg=0)


def test_extrapolation_saves_iterations(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, cost = scattered_rows()
    quick = barycenters(rows, cost, WEIGHTS, reg=0.05)
    monkeypatch.setattr(transport, "REACH", 0.0)
    plain = barycenters(rows, cost, WEIGHTS, reg=0.05)
    assert quick.iterations.sum() < plain.iterations.sum() / 2
    assert l1(quick.rows, plain.rows) < 1e-3
