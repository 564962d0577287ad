"""Merging operators: what each strategy is by definition, what none may see, and what all refuse."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import ot
import pytest
from scipy.linalg import expm, logm

from replay.geometry.gauge import DiffusionGauge, Operator
from replay.geometry.merging import DiffusionMerging, Strategy
from store.errors import InvalidInput, Unavailable

STRATEGIES: tuple[Strategy, ...] = get_args(Strategy)
WEIGHTED = [strategy for strategy in STRATEGIES if strategy != "alternating"]
WEIGHTS = {"a": 5.0, "b": 3.0, "c": 2.0}


def three_operators(n: int = 60, **gauge: Any) -> dict[str, Operator]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, 8)) * 3.0 * np.arange(1, 9) ** -0.6
    return {name: DiffusionGauge(**gauge)(X + 0.4 * rng.standard_normal(X.shape)) for name in "abc"}


def relabelled(operators: Mapping[str, Operator], order: npt.NDArray[np.intp]) -> dict[str, Operator]:
    return {
        name: replace(P, matrix=P.matrix[np.ix_(order, order)], degrees=P.degrees[order])
        for name, P in operators.items()
    }


def markov(P: npt.ArrayLike, degrees: npt.ArrayLike | None = None, *, reversible: bool = True) -> Operator:
    matrix = np.asarray(P, np.float32)
    D = np.ones(len(matrix)) if degrees is None else np.asarray(degrees, np.float64)
    return Operator(matrix, "markov", D, DiffusionGauge()(np.arange(3.0)[:, None]).quality, reversible)


def off(P: Operator, Q: npt.ArrayLike) -> float:
    return float(np.linalg.norm(P.matrix - np.asarray(Q, np.float64)) / np.linalg.norm(np.asarray(Q, np.float64)))


def conjugate(P: Operator) -> npt.NDArray[np.float64]:
    root = np.sqrt(P.degrees)
    S: npt.NDArray[np.float64] = P.matrix * root[:, None] / root
    return S


@pytest.mark.parametrize("strategy", ["frobenius_mean", "weighted_interpolation"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_frobenius_mean_is_the_weighted_arithmetic_mean(strategy: Strategy, symmetric: bool) -> None:
    # the older system's frobenius_mean ignores the weights
    operators = three_operators(symmetric=symmetric)
    merged = DiffusionMerging(strategy)(operators, WEIGHTS)
    mean = sum(w / 10 * operators[name].matrix.astype(np.float64) for name, w in WEIGHTS.items())
    assert merged.kind == operators["a"].kind
    assert off(merged, mean) < 2e-7
    assert off(merged, DiffusionMerging(strategy)(operators).matrix) > 1e-2


def test_no_operator_has_a_lower_weighted_sum_of_squared_distances_than_the_mean() -> None:
    operators = three_operators()
    mean = DiffusionMerging("frobenius_mean")(operators, WEIGHTS).matrix

    def objective(Q: npt.NDArray[Any]) -> float:
        return sum(w * float(np.linalg.norm(Q - operators[name].matrix) ** 2) for name, w in WEIGHTS.items())

    for other in operators.values():
        assert objective(mean) < objective(0.99 * mean + 0.01 * other.matrix)


@pytest.mark.parametrize("strategy", WEIGHTED)
@pytest.mark.parametrize("diagonal", ["zero", "keep"])
def test_merging_an_operator_with_itself_gives_it_back(strategy: Strategy, diagonal: str) -> None:
    # the older system's blurred barycenter of three equal operators is 28-45 % off
    P = three_operators(diagonal=diagonal)["a"]
    merged = DiffusionMerging(strategy)({"a": P, "b": P, "c": P}, WEIGHTS)
    assert off(merged, P.matrix) < 1e-5
    assert np.allclose(merged.degrees / merged.degrees.mean(), P.degrees / P.degrees.mean(), rtol=1e-4)
    assert merged.reversible == (strategy != "ot_barycenter")


@pytest.mark.parametrize("strategy", ["frobenius_mean", "log_euclidean"])
def test_merging_a_symmetric_operator_with_itself_gives_it_back(strategy: Strategy) -> None:
    S = three_operators(symmetric=True)["a"]
    merged = DiffusionMerging(strategy)({"a": S, "b": S, "c": S})
    assert merged.kind == "symmetric"
    assert merged.reversible
    assert off(merged, S.matrix) < 1e-5
    assert np.allclose(merged.degrees / merged.degrees.mean(), S.degrees / S.degrees.mean(), rtol=1e-4)


def test_alternating_diffusion_of_equal_operators_is_their_power() -> None:
    P = three_operators()["a"]
    assert (
        off(
            DiffusionMerging("alternating")({"a": P, "b": P, "c": P}), np.linalg.matrix_power(P.matrix.astype(float), 3)
        )
        < 1e-6
    )


def test_alternating_diffusion_is_the_product_in_the_order_given() -> None:
    operators = three_operators()
    a, b, c = (operators[name].matrix.astype(np.float64) for name in "abc")
    merged = DiffusionMerging("alternating")(operators)
    assert off(merged, a @ b @ c) < 1e-6
    assert off(merged, c @ b @ a) > 1e-3
    assert not merged.reversible


def test_alternating_diffusion_keeps_what_both_sensors_see_and_loses_what_one_sees() -> None:
    rng = np.random.default_rng(3)
    n = 240
    common, left, right = 2 * np.pi * rng.random((3, n))

    def circle(t: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.stack([np.cos(t), np.sin(t)], axis=1)

    def explained(P: Operator, t: npt.NDArray[np.float64]) -> float:
        """Share of the variance of a circle that the best six right eigenvectors explain."""
        values, vectors = np.linalg.eig(P.matrix.astype(np.float64))
        basis = np.linalg.qr(vectors[:, np.argsort(-values.real)[:7]].real)[0]
        target = circle(t) - circle(t).mean(axis=0)
        return float(np.linalg.norm(basis.T @ target) ** 2 / np.linalg.norm(target) ** 2)

    gauge = DiffusionGauge(knn=10)
    sensors = {
        "left": gauge(np.hstack([circle(common), 2 * circle(left)])),
        "right": gauge(np.hstack([circle(common), 2 * circle(right)])),
    }
    merged = DiffusionMerging("alternating")(sensors)
    assert explained(sensors["left"], left) > 0.9
    assert explained(merged, left) < 0.3
    assert explained(merged, common) > 0.8


def test_log_euclidean_of_positive_definite_operators_is_the_exponential_of_the_mean_logarithm() -> None:
    operators = three_operators(n=40, symmetric=True, diagonal="keep")
    lazy = {name: (S.matrix.astype(np.float64) + np.eye(40)) / 2 for name, S in operators.items()}
    mean = np.sum([w / 10 * logm(lazy[name]).real for name, w in WEIGHTS.items()], axis=0)
    expected = 2 * expm(mean) - np.eye(40)
    assert expected.min() > 0
    merged = DiffusionMerging("log_euclidean")(operators, WEIGHTS)
    assert off(merged, expected / np.linalg.eigvalsh(expected)[-1]) < 1e-5


def test_log_euclidean_of_commuting_operators_takes_geometric_means_of_lazy_eigenvalues() -> None:
    rng = np.random.default_rng(0)
    angles = 2 * np.pi * np.arange(16) / 16
    step = np.abs(np.angle(np.exp(1j * (angles[:, None] - angles))))
    rows = [np.exp(-((step / width) ** 2)) + 0.05 for width in (0.8, 1.0)]
    a, b = (K / K.sum(axis=1, keepdims=True) for K in rows)
    merged = DiffusionMerging("log_euclidean")({"a": markov(a), "b": markov(b)})
    order = rng.permutation(16)  # circulant matrices commute: their eigenvalues are the transforms of one row
    lazy = np.sqrt((1 + np.fft.fft(a[0]).real) / 2 * (1 + np.fft.fft(b[0]).real) / 2)
    assert np.allclose(
        np.sort(np.linalg.eigvalsh(merged.matrix[np.ix_(order, order)])), np.sort(2 * lazy - 1), atol=1e-6
    )


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("diagonal", ["zero", "keep"])
def test_log_euclidean_stays_reversible_with_a_top_eigenvalue_of_one(symmetric: bool, diagonal: str) -> None:
    operators = three_operators(symmetric=symmetric, diagonal=diagonal)
    merged = DiffusionMerging("log_euclidean")(operators, WEIGHTS)
    S = merged.matrix if symmetric else conjugate(merged)
    assert merged.reversible
    assert (merged.matrix >= 0).all()
    assert np.abs(S - S.T).max() < 1e-6 * S.max()
    assert abs(np.linalg.eigvalsh((S + S.T) / 2)[-1] - 1) < 1e-6
    if symmetric:  # its degrees make a Markov operator of it
        root = np.sqrt(merged.degrees)
        assert np.allclose((S / root[:, None] * root).sum(axis=1), 1, atol=1e-5)


def test_log_euclidean_needs_reversible_operators() -> None:
    operators = three_operators()
    mean = DiffusionMerging("frobenius_mean")(operators)
    with pytest.raises(Unavailable, match="log_euclidean merges reversible operators only, and mean is not"):
        DiffusionMerging("log_euclidean")({"a": operators["a"], "mean": mean})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_markov_operators_stay_markov_and_know_their_stationary_distribution(strategy: Strategy) -> None:
    # the older system takes any mean for reversible: eigenvalues of it are complex
    merged = DiffusionMerging(strategy)(three_operators(n=120))
    P = merged.matrix.astype(np.float64)
    assert merged.kind == "markov"
    assert (P >= 0).all()
    assert np.abs(P.sum(axis=1) - 1).max() < 1e-6
    assert np.allclose(merged.degrees @ P, merged.degrees, rtol=1e-5)
    assert np.isclose(merged.degrees.sum(), 120)
    flow = merged.degrees[:, None] * P
    assert merged.reversible == bool(np.abs(flow - flow.T).max() < 1e-6 * flow.max())
    assert merged.reversible == (strategy == "log_euclidean")


def test_a_mean_of_reversible_operators_can_have_complex_eigenvalues_and_says_it_is_not_reversible() -> None:
    # each chain moves along one edge of a triangle, 0.9 one way and 0.3 back; their mean goes round
    edge = np.array([[0.1, 0.9, 0.0], [0.3, 0.7, 0.0], [0.0, 0.0, 1.0]])
    chains = {str(i): markov(np.roll(edge, (i, i), axis=(0, 1)), np.roll([1.0, 3.0, 1.0], i)) for i in range(3)}
    merged = DiffusionMerging("frobenius_mean")(chains)
    turn = np.exp(2j * np.pi / 3)
    expected = 0.6 + 0.3 * turn + 0.1 / turn
    assert not merged.reversible
    assert np.abs(np.linalg.eigvals(merged.matrix) - expected).min() < 1e-6
    assert np.allclose(merged.degrees, 1)


def test_a_mean_of_operators_with_one_stationary_distribution_stays_reversible() -> None:
    rng = np.random.default_rng(0)

    def doubly_stochastic() -> npt.NDArray[np.float64]:
        K = rng.random((8, 8))
        K = K + K.T
        for _ in range(200):
            scale = 1 / np.sqrt(K.sum(axis=1))
            K *= scale[:, None] * scale
        return K

    merged = DiffusionMerging("frobenius_mean")({"a": markov(doubly_stochastic()), "b": markov(doubly_stochastic())})
    assert merged.reversible
    assert np.abs(merged.matrix - merged.matrix.T).max() < 1e-6


def test_a_mean_of_symmetric_operators_stays_symmetric_with_a_top_eigenvalue_below_one() -> None:
    # the older system scales its rows to one, which destroys the symmetry
    merged = DiffusionMerging("frobenius_mean")(three_operators(symmetric=True))
    S = merged.matrix.astype(np.float64)
    assert np.array_equal(S, S.T)
    top = np.linalg.eigvalsh(S)[-1]
    assert top < 1 - 1e-6
    root = np.sqrt(merged.degrees)
    assert np.allclose((S / root[:, None] * root).sum(axis=1), top, rtol=1e-5)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("symmetric", [False, True])
def test_relabelling_all_probes_relabels_the_merged_operator(strategy: Strategy, symmetric: bool) -> None:
    # the older system's barycenter changes by 12-22 %, since its ground cost is (i-j)² over the indices of the probes
    operators = three_operators(n=50, symmetric=symmetric)
    order = np.random.default_rng(1).permutation(50)
    weights = None if strategy == "alternating" else WEIGHTS
    merged = DiffusionMerging(strategy)(operators, weights)
    again = DiffusionMerging(strategy)(relabelled(operators, order), weights)
    expected = merged.matrix[np.ix_(order, order)]
    assert np.abs(again.matrix - expected).max() < 1e-7 * expected.max() + 1e-10
    assert np.allclose(again.degrees, merged.degrees[order], rtol=1e-6)


@pytest.mark.parametrize("debiased", [False, True])
def test_a_barycenter_with_a_given_cost_agrees_with_pot_row_by_row(debiased: bool) -> None:
    operators = three_operators(n=30)
    X = np.random.default_rng(2).standard_normal((30, 6))
    cost = ((X[:, None] - X) ** 2).sum(axis=2)
    merged = DiffusionMerging("ot_barycenter", cost=cost, reg=0.1, debiased=debiased)(operators, WEIGHTS)
    reg = 0.1 * np.median(cost[~np.eye(30, dtype=bool)])
    solve: Callable[..., npt.NDArray[np.float64]] = (
        ot.bregman.barycenter_debiased if debiased else ot.bregman.barycenter
    )
    for i in (0, 11, 29):
        A = np.stack([P.matrix[i].astype(np.float64) for P in operators.values()], axis=1)
        oracle = solve(
            A / A.sum(axis=0),
            cost,
            reg,
            weights=np.array([0.5, 0.3, 0.2]),
            method="sinkhorn_log",
            stopThr=1e-8,
            numItermax=1000,
            warn=False,
        )
        # the hole at i, which no row covers, closes slowly in the oracle's debiased iteration
        assert np.abs(merged.matrix[i] - oracle).sum() < (2e-4 if debiased else 1e-5)


def test_the_default_cost_is_the_mean_squared_diffusion_distance() -> None:
    operators = three_operators(n=30)
    cost = np.zeros((30, 30))
    for P in operators.values():
        coordinates = P.matrix / np.sqrt(P.degrees / P.degrees.sum())
        cost += ((coordinates[:, None] - coordinates) ** 2).sum(axis=2)
    given = DiffusionMerging("ot_barycenter", cost=cost)(operators)
    assert off(DiffusionMerging("ot_barycenter")(operators), given.matrix) < 1e-5
    assert off(DiffusionMerging("ot_barycenter", reg=0.2)(operators), given.matrix) > 1e-3


def test_symmetric_operators_enter_a_barycenter_and_a_product_as_their_markov_conjugates() -> None:
    chains, conjugates = three_operators(n=40), three_operators(n=40, symmetric=True)
    for strategy in ("ot_barycenter", "alternating"):
        merged = DiffusionMerging(strategy)(conjugates)
        assert merged.kind == "markov"
        assert not merged.reversible
        assert off(merged, DiffusionMerging(strategy)(chains).matrix) < 1e-4


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_separate_clusters_and_an_isolated_probe_stay_separate_and_finite(strategy: Strategy) -> None:
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.standard_normal((20, 3)), 200 + rng.standard_normal((30, 3)), [[1e9, 0, 0]]])
    operators = {name: DiffusionGauge(knn=5)(X + 0.1 * rng.standard_normal(X.shape)) for name in "abc"}
    assert operators["a"].quality.isolated == (50,)
    merged = DiffusionMerging(strategy)(operators)
    assert merged.quality.n_components == 3
    assert merged.quality.isolated == (50,)
    assert np.isfinite(merged.matrix).all()
    assert merged.matrix[50, 50] == 1
    assert np.allclose(merged.matrix.sum(axis=1), 1, atol=1e-5)
    assert np.allclose([merged.degrees[part].sum() for part in (slice(20), slice(20, 50), 50)], [20, 30, 1], rtol=1e-6)


def test_a_probe_isolated_in_one_operator_only_is_linked_in_the_merged_one() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 3))
    apart = X.copy()
    apart[7] = 1e9
    operators = {"a": DiffusionGauge(knn=5)(X), "b": DiffusionGauge(knn=5)(apart)}
    assert operators["b"].quality.isolated == (7,)
    merged = DiffusionMerging("frobenius_mean")(operators)
    assert merged.quality.isolated == ()
    assert merged.quality.n_components == 1


def test_degrees_of_a_chain_that_leaves_some_probes_for_good_are_where_all_walks_end() -> None:
    # from 0 a third of the walks goes to 1 for good and two thirds to the pair 2, 3
    chain = np.array([[0, 1 / 3, 2 / 3, 0], [0, 1, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 1, 0]])
    P = markov(chain, [0, 1, 1, 1], reversible=False)
    merged = DiffusionMerging("frobenius_mean")({"a": P, "b": P})
    pair = 2 + 2 / 3
    assert np.allclose(merged.degrees, [0, 1 + 1 / 3, pair * 2 / 3, pair / 3], atol=1e-6)
    assert merged.quality.n_components == 2
    with pytest.raises(Unavailable, match="diffusion distance is undefined"):
        DiffusionMerging("ot_barycenter")({"a": merged, "b": merged})


def test_weights_are_matched_by_name_in_any_order_and_any_unit() -> None:
    operators = three_operators()
    merged = DiffusionMerging("frobenius_mean")(operators, WEIGHTS)
    again = DiffusionMerging("frobenius_mean")(operators, {"c": 0.2, "a": 0.5, "b": 0.3})
    assert off(again, merged.matrix) < 1e-7
    without = DiffusionMerging("log_euclidean")(operators, {"a": 1, "b": 0, "c": 1})
    assert off(without, DiffusionMerging("log_euclidean")({"a": operators["a"], "c": operators["c"]}).matrix) < 1e-6


def test_weights_that_do_not_fit_the_names_are_refused() -> None:
    # the older system ignores unknown names and takes missing weights for 1
    operators, merge = three_operators(n=20), DiffusionMerging("weighted_interpolation")
    with pytest.raises(InvalidInput, match=r"name each operator once \(a, b, c\); missing: c"):
        merge(operators, {"a": 1, "b": 1})
    with pytest.raises(InvalidInput, match=r"unknown: d"):
        merge(operators, {**WEIGHTS, "d": 1})
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(InvalidInput, match="finite, not negative and not all zero"):
            merge(operators, {**WEIGHTS, "a": bad})
    with pytest.raises(InvalidInput, match="not all zero"):
        merge(operators, dict.fromkeys("abc", 0.0))
    with pytest.raises(InvalidInput, match="alternating diffusion takes one step of each"):
        DiffusionMerging("alternating")(operators, WEIGHTS)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_operators_that_do_not_belong_together_are_refused(strategy: Strategy) -> None:
    merge = DiffusionMerging(strategy)
    P = three_operators(n=20)["a"]
    assert merge({"only": P}) is P
    with pytest.raises(InvalidInput, match="no operator to merge"):
        merge({})
    with pytest.raises(InvalidInput, match="different kinds cannot be merged: markov and symmetric"):
        merge({"a": P, "b": three_operators(n=20, symmetric=True)["a"]})
    with pytest.raises(InvalidInput, match=r"\(20, 20\), \(21, 21\)"):
        merge({"a": P, "b": three_operators(n=21)["a"]})
    with pytest.raises(InvalidInput, match="must be finite, and 'b' is not"):
        merge({"a": P, "b": replace(P, matrix=P.matrix * np.float32(np.nan))})
    with pytest.raises(InvalidInput, match="'b' is no markov operator"):
        merge({"a": P, "b": replace(P, matrix=P.matrix * np.float32(1.01))})
    with pytest.raises(InvalidInput, match="positive degree for each probe, and 'b'"):
        merge({"a": P, "b": replace(P, degrees=0 * P.degrees)})


def test_parameters_belong_to_their_strategy_and_are_plain_json() -> None:
    assert DiffusionMerging("log_euclidean").parameters() == {"merging": "log_euclidean"}
    default = DiffusionMerging("ot_barycenter").parameters()
    assert default == {"merging": "ot_barycenter", "cost": "diffusion", "reg": 0.05, "debiased": True}
    costs = [np.eye(3), 2 * np.eye(3)]
    keys = {json.dumps(DiffusionMerging("ot_barycenter", cost=cost).parameters()) for cost in costs}
    assert len(keys) == 2
    with pytest.raises(InvalidInput, match="frobenius_mean has no reg: only ot_barycenter has"):
        DiffusionMerging("frobenius_mean", reg=0.1)
    with pytest.raises(InvalidInput, match="strategy must be one of"):
        DiffusionMerging("mean")  # type: ignore[arg-type]  # the point is to refuse it
    for reg in (0, -1.0, np.nan, True):
        with pytest.raises(InvalidInput, match="reg must be a positive number"):
            DiffusionMerging("ot_barycenter", reg=reg)
    with pytest.raises(InvalidInput, match="finite symmetric matrix"):
        DiffusionMerging("ot_barycenter", cost=np.triu(np.ones((3, 3))))
    with pytest.raises(InvalidInput, match=r"over the 20 probes of the operators, not \(3, 3\)"):
        DiffusionMerging("ot_barycenter", cost=np.eye(3))(three_operators(n=20))


def test_probes_all_at_one_place_have_no_geometry_to_transport_in() -> None:
    P = markov(np.full((5, 5), 0.2))
    with pytest.raises(Unavailable, match="no geometry to transport in"):
        DiffusionMerging("ot_barycenter")({"a": P, "b": P})
