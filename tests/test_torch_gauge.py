"""The gauge in torch: the definition, the numbers of numpy, derivatives against finite differences and float64."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from test_gauge import FIXTURES, activations, groups, reference, relative_error
from torch import Tensor

from replay.geometry.gauge import DiffusionGauge
from replay.geometry.torch_gauge import TorchOperator
from store.errors import InvalidInput, Unavailable

GAUGES = {
    "default": DiffusionGauge(),
    "alpha 0": DiffusionGauge(alpha=0),
    "symmetric": DiffusionGauge(symmetric=True, alpha=0.5),
    "median": DiffusionGauge(knn=None),
    "cosine": DiffusionGauge(metric="cosine", diagonal="keep"),
}
KINDS = list(product([2, None], ["euclidean", "cosine"], [0, 0.5, 1], [False, True], ["zero", "keep"]))


def leaf(X: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.from_numpy(np.array(X)).to(dtype).requires_grad_()


def slope(gauge: DiffusionGauge, X: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    """Gradient of a random linear function of the operator and its degrees."""
    X = leaf(X, dtype)
    gradient: Tensor = torch.autograd.grad(projection(gauge, X), X)[0]
    return gradient


def projection(gauge: DiffusionGauge, X: Tensor) -> Tensor:
    P = gauge(X)
    random = torch.Generator().manual_seed(0)
    A, d = (torch.randn(tensor.shape, generator=random).to(X.dtype) for tensor in (P.matrix, P.degrees))
    return torch.sum(A * P.matrix) + torch.sum(d * P.degrees)


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
@pytest.mark.parametrize("name", FIXTURES)
def test_torch_and_numpy_give_the_same_numbers_and_quality(name: str, gauge: DiffusionGauge) -> None:
    P = gauge(FIXTURES[name])
    for dtype in (torch.float32, torch.float64):
        T = gauge(leaf(FIXTURES[name], dtype))
        assert (T.matrix.dtype, T.degrees.dtype) == (dtype, dtype)
        assert relative_error(T.matrix.detach(), P.matrix) < 5e-6
        assert relative_error(T.degrees.detach(), P.degrees) < 5e-6
        assert (T.kind, T.quality, T.reversible) == (P.kind, P.quality, P.reversible)


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize(("alpha", "symmetric"), [(0.0, False), (0.5, True), (1.0, False)])
def test_float64_tensors_equal_the_definition_to_a_million_millionth(name: str, alpha: float, symmetric: bool) -> None:
    T = DiffusionGauge(alpha=alpha, symmetric=symmetric)(leaf(FIXTURES[name], torch.float64))
    exact = reference(FIXTURES[name], 15, alpha=alpha, symmetric=symmetric)
    assert relative_error(T.matrix.detach(), exact) < 1e-12


@pytest.mark.parametrize("n", [4, 5, 6])
def test_few_probes_have_the_median_of_the_definition(n: int) -> None:
    X = np.random.default_rng(n).standard_normal((n, 3))
    T = DiffusionGauge(knn=None)(leaf(X, torch.float64))
    assert relative_error(T.matrix.detach(), reference(X, None, alpha=1.0, symmetric=False)) < 1e-12


def test_the_faintest_links_of_an_isolated_probe_are_cut() -> None:
    X = activations()
    X[7] = X.mean(axis=0) + 125 * (X[7] - X.mean(axis=0))  # below 1e-30, and above the smallest float32
    for symmetric in (False, True):
        T = DiffusionGauge(symmetric=symmetric)(leaf(X))
        assert T.quality.isolated == (7,)
        assert np.array_equal(T.matrix.detach()[7], np.eye(300)[7])
        assert np.array_equal(T.matrix.detach()[:, 7], np.eye(300)[7])


@pytest.mark.parametrize(("knn", "metric", "alpha", "symmetric", "diagonal"), KINDS)
def test_first_and_second_derivatives_equal_finite_differences(
    knn: int | None, metric: Any, alpha: float, symmetric: bool, diagonal: Any
) -> None:
    gauge = DiffusionGauge(knn=knn, metric=metric, alpha=alpha, symmetric=symmetric, diagonal=diagonal)
    X = leaf(np.random.default_rng(0).standard_normal((4, 2)), torch.float64)
    assert torch.autograd.gradcheck(lambda X: projection(gauge, X), X)
    assert torch.autograd.gradgradcheck(lambda X: projection(gauge, X), X)


def test_derivatives_between_duplicates_equal_finite_differences() -> None:
    X = np.random.default_rng(1).standard_normal((7, 2))
    X[3] = X[1]
    gauge = DiffusionGauge(knn=3)
    assert torch.autograd.gradcheck(lambda X: projection(gauge, X), leaf(X, torch.float64))
    assert torch.autograd.gradgradcheck(lambda X: projection(gauge, X), leaf(X, torch.float64))


def test_derivatives_through_the_floor_equal_finite_differences() -> None:
    X = np.array([[0, 0], [0.03, 0], [0.35, 0], [0.35, 0.3], [3, 0], [3, 1], [4.1, 0.3], [6, 0], [6, 1.2]])
    gauge = DiffusionGauge(knn=1)
    assert gauge(X).quality.floored == 2
    assert gauge(X).matrix[0, 2] > 0.01
    assert torch.autograd.gradcheck(lambda X: projection(gauge, X), leaf(X, torch.float64))
    assert torch.autograd.gradgradcheck(lambda X: projection(gauge, X), leaf(X, torch.float64))


@pytest.mark.parametrize("gauge", GAUGES.values(), ids=GAUGES)
@pytest.mark.parametrize("name", FIXTURES)
def test_float32_gradients_are_right_to_a_hundred_thousandth(name: str, gauge: DiffusionGauge) -> None:
    # the same through torch's default cdist is 7 to 9 % off
    assert relative_error(slope(gauge, FIXTURES[name]), slope(gauge, FIXTURES[name], torch.float64)) < 1e-5


def test_the_float64_gradient_is_that_of_the_definition_written_down() -> None:
    X = activations(60)
    written = leaf(X, torch.float64)
    D = torch.cdist(written, written, compute_mode="donot_use_mm_for_euclid_dist")
    sigma = D.kthvalue(16, dim=1).values
    K = torch.exp(-(D**2) / torch.outer(sigma, sigma)) * (1 - torch.eye(60))
    q = K.sum(dim=1)
    K = K / torch.outer(q, q)
    (exact,) = torch.autograd.grad((K / K.sum(dim=1, keepdim=True))[3, 8], written)
    leaves = leaf(X, torch.float64)
    (ours,) = torch.autograd.grad(DiffusionGauge()(leaves).matrix[3, 8], leaves)
    assert relative_error(ours, exact) < 1e-10


def test_duplicates_and_isolated_probes_leave_every_gradient_finite() -> None:
    X = activations()
    X[:40] = X[0]
    X[50] = X[49]
    X[7] += 1e6
    for gauge, dtype in product(GAUGES.values(), (torch.float32, torch.float64)):
        assert slope(gauge, X, dtype).isfinite().all()
    P, T = DiffusionGauge()(X), DiffusionGauge()(leaf(X))
    assert (T.quality.isolated, T.quality.duplicates, T.quality.floored) == ((7,), 39, 39)
    assert T.quality == P.quality
    assert relative_error(T.degrees.detach(), P.degrees) < 1e-6
    assert np.array_equal(T.matrix.detach()[7], np.eye(300)[7])
    assert (slope(DiffusionGauge(), X)[7] == 0).all()


def test_probes_whose_links_are_almost_too_faint_leave_every_gradient_finite_and_right() -> None:
    X = activations()  # written with powers of the density, the gradient is NaN in float32
    X[7] = X.mean(axis=0) + 90 * (X[7] - X.mean(axis=0))
    assert DiffusionGauge()(X).quality.isolated == ()
    assert DiffusionGauge(alpha=0)(X).degrees[7] < 1e-20
    assert relative_error(slope(DiffusionGauge(), X), slope(DiffusionGauge(), X, torch.float64)) < 1e-4


def test_all_bandwidths_zero_still_gives_an_operator_with_gradients() -> None:
    X = np.repeat(np.eye(3, dtype=np.float32), 30, axis=0)
    assert relative_error(DiffusionGauge()(leaf(X)).numpy(), DiffusionGauge()(X)) < 1e-6
    assert slope(DiffusionGauge(), X).isfinite().all()


def test_the_symmetric_operator_is_symmetric_to_the_bit_and_rows_of_the_other_sum_to_one() -> None:
    S = DiffusionGauge(symmetric=True)(leaf(activations())).matrix
    assert torch.equal(S, S.mT)
    assert torch.allclose(DiffusionGauge()(leaf(activations())).matrix.sum(dim=1), torch.ones(300), atol=1e-6)


def test_the_same_tensor_gives_the_same_bytes_forward_and_backward() -> None:
    X = groups(0.01, 20)
    P, Q = (DiffusionGauge()(leaf(X)).matrix for _ in range(2))
    assert torch.equal(P, Q)
    assert torch.equal(slope(DiffusionGauge(), X), slope(DiffusionGauge(), X))


def test_half_precision_is_computed_in_float32() -> None:
    X = torch.from_numpy(activations(50))
    for dtype in (torch.float16, torch.bfloat16):
        T = DiffusionGauge()(X.to(dtype))
        assert T.matrix.dtype == torch.float32
        assert torch.equal(T.matrix, DiffusionGauge()(X.to(dtype).float()).matrix)
    assert DiffusionGauge()(X.long()).matrix.dtype == torch.float64


def test_autocast_and_reduced_products_do_not_reach_the_operator_or_its_gradient() -> None:
    X = groups(0.1, 20)
    exact, gradient = DiffusionGauge()(X), slope(DiffusionGauge(), X, torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert relative_error(DiffusionGauge()(leaf(X)).numpy(), exact) < 5e-6
        assert relative_error(slope(DiffusionGauge(), X), gradient) < 1e-5
    torch.set_float32_matmul_precision("medium")  # on processors with bfloat16 products, and TF32 on GPUs
    try:
        assert relative_error(DiffusionGauge()(leaf(X)).numpy(), exact) < 5e-6
        assert relative_error(slope(DiffusionGauge(), X), gradient) < 1e-5
    finally:
        torch.set_float32_matmul_precision("highest")


def test_descending_the_gradient_brings_one_operator_to_another() -> None:
    target = DiffusionGauge()(torch.from_numpy(activations(40, 8))).matrix
    X = leaf(np.random.default_rng(1).standard_normal((40, 8)))
    descent = torch.optim.Adam([X], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (DiffusionGauge()(X).matrix - target).square().sum()
        descent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not type it
        descent.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 3


def test_a_torch_operator_becomes_one_in_memory() -> None:
    X = activations(50)
    T = DiffusionGauge()(leaf(X, torch.float64))
    assert isinstance(T, TorchOperator)
    assert len(T) == 50
    assert T.numpy().matrix.dtype == np.float32
    assert T.numpy().degrees.dtype == np.float64
    assert (T.numpy().kind, T.numpy().quality) == (T.kind, T.quality)


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (torch.ones(5), InvalidInput, "shape"),
        (torch.ones(5, 0), InvalidInput, "shape"),
        (torch.ones(5, 3, dtype=torch.complex64), InvalidInput, "real"),
        (torch.ones(5, 3, dtype=torch.bool), InvalidInput, "real"),
        (torch.where(torch.arange(15).reshape(5, 3) == 7, torch.nan, 1.0), InvalidInput, "1 of 5 .* first probe 2"),
        (torch.ones(2, 3), Unavailable, "at least 3 probes, and there are 2"),
        (torch.ones(20, 3), Unavailable, "all 20 probes have the same activations"),
    ],
)
def test_unusable_tensors_are_refused(X: Tensor, error: type[Exception], match: str) -> None:
    for knn in (15, None):
        with pytest.raises(error, match=match):
            DiffusionGauge(knn=knn)(X)


def test_the_cosine_of_a_zero_tensor_is_unavailable() -> None:
    with pytest.raises(Unavailable, match="zero activations: 1 probes, first 2"):
        DiffusionGauge(metric="cosine")(torch.eye(5)[:, [0, 1, 3, 4]])
