"""The spectrum of operators with known eigenvalues, and what must not change it."""

import numpy as np
import numpy.typing as npt
import phate
import pytest

from replay.geometry.gauge import DiffusionGauge, Operator, Quality
from replay.geometry.spectrum import spectral_entropy, spectrum, uniform_walk
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]


def walk(weights: Floats) -> Operator:
    """The simple random walk on a graph of symmetric weights."""
    degrees = weights.sum(axis=1)
    P = (weights / degrees[:, None]).astype(np.float32)
    return Operator(P, "markov", degrees, Quality(1, (), 0, 0))


def cycle(n: int) -> Floats:
    shifted: Floats = np.roll(np.eye(n), 1, axis=1)
    return shifted + shifted.T


def clique(n: int) -> Floats:
    return np.ones((n, n)) - np.eye(n)


def points(n: int = 60) -> Floats:
    return np.random.default_rng(0).standard_normal((n, 5))


@pytest.mark.parametrize("n", [9, 12])
def test_the_walk_on_a_cycle_has_the_cosines_and_the_gap_of_the_largest_modulus(n: int) -> None:
    found = spectrum(walk(cycle(n)), k=n)
    cosines = np.cos(2 * np.pi * np.arange(n) / n)
    assert np.allclose(found.eigenvalues, np.sort(cosines)[::-1], atol=1e-6)
    assert found.spectral_gap == pytest.approx(1 - np.sort(np.abs(cosines))[-2], abs=1e-6)
    assert np.allclose(found.stationary, 1 / n)
    assert found.stationary_entropy == pytest.approx(np.log(n))
    assert found.neighbourhood_mean == pytest.approx(2)
    assert found.neighbourhood_median == pytest.approx(2)


@pytest.mark.parametrize("t", [1, 4])
def test_the_walk_on_a_complete_graph_is_the_uniform_walk(t: int) -> None:
    found = spectrum(walk(clique(7)), t=t).scalars()
    expected = uniform_walk(7, t=t)
    assert found.keys() == expected.keys()
    assert [found[name] for name in found] == pytest.approx([expected[name] for name in found], abs=1e-6)
    assert spectrum(walk(clique(7))).eigenvalue_ratio == pytest.approx(6, rel=1e-5)


def test_two_cliques_have_the_eigenvalue_one_twice_and_no_gap() -> None:
    found = spectrum(walk(np.asarray(np.kron(np.eye(2), clique(5)), np.float64)))
    assert np.allclose(found.eigenvalues[:3], [1, 1, -1 / 4], atol=1e-6)
    assert found.spectral_gap == pytest.approx(0, abs=1e-6)
    assert found.eigenvalue_ratio == pytest.approx(1, abs=1e-6)


def test_a_walk_that_never_moves_has_the_largest_entropies() -> None:
    found = spectrum(walk(np.eye(8)))
    assert found.von_neumann_entropy == pytest.approx(np.log(8))
    assert found.diffusion_spectral_entropy == pytest.approx(3)
    assert (found.neighbourhood_mean, found.spectral_gap) == (1, 0)


def test_a_walk_that_forgets_at_once_has_no_spectral_entropy_and_no_ratio() -> None:
    found = spectrum(walk(np.ones((8, 8))))
    assert found.von_neumann_entropy == pytest.approx(0, abs=1e-4)
    assert found.spectral_gap == pytest.approx(1, abs=1e-6)
    with pytest.raises(Unavailable, match="ratio"):
        _ = found.eigenvalue_ratio


@pytest.mark.parametrize("t", [1, 2, 7])
def test_von_neumann_entropy_is_that_of_phate_for_the_same_eigenvalues(t: int) -> None:
    S = DiffusionGauge(symmetric=True)(points())
    theirs = phate.vne.compute_von_neumann_entropy(S.matrix.astype(np.float64), t_max=t)[t - 1]
    assert spectrum(S, t=t).von_neumann_entropy == pytest.approx(theirs, abs=1e-6)


def test_diffusion_spectral_entropy_is_in_bits_at_time_three_over_all_eigenvalues() -> None:
    S = DiffusionGauge(symmetric=True)(points())
    p = np.abs(np.linalg.eigvalsh(S.matrix.astype(np.float64))) ** 3
    p /= p.sum()
    assert spectrum(S, k=2).diffusion_spectral_entropy == pytest.approx(-np.sum(p * np.log2(p)), abs=1e-6)


@pytest.mark.parametrize("diagonal", ["zero", "keep"])
def test_both_kinds_of_one_operator_and_any_labels_give_one_spectrum(diagonal: str) -> None:
    X, order = points(), np.random.default_rng(1).permutation(60)
    P = spectrum(DiffusionGauge(diagonal=diagonal)(X))  # type: ignore[arg-type]
    others = (
        spectrum(DiffusionGauge(diagonal=diagonal, symmetric=True)(X)),  # type: ignore[arg-type]
        spectrum(DiffusionGauge(diagonal=diagonal)(X[order])),  # type: ignore[arg-type]
    )
    for other in others:
        assert np.allclose(other.eigenvalues, P.eigenvalues, atol=2e-6)
        assert list(other.scalars().values()) == pytest.approx(list(P.scalars().values()), rel=1e-5)
    assert np.allclose(others[1].stationary, P.stationary[order], rtol=1e-5)


def test_the_stationary_distribution_stays_and_its_entropy_is_at_most_that_of_equal_chances() -> None:
    P = DiffusionGauge()(points())
    found = spectrum(P)
    assert np.allclose(found.stationary @ P.matrix, found.stationary, rtol=1e-5)
    assert found.stationary_entropy == pytest.approx(-np.sum(found.stationary * np.log(found.stationary)))
    assert found.stationary_entropy < uniform_walk(60)["stationary_entropy"]


def test_effective_neighbourhood_sizes_are_those_of_the_rows() -> None:
    P = DiffusionGauge()(points())
    rows = P.matrix.astype(np.float64)
    sizes = rows.sum(axis=1) ** 2 / (rows**2).sum(axis=1)
    found = spectrum(P)
    assert found.neighbourhood_mean == pytest.approx(sizes.mean(), rel=1e-5)
    assert found.neighbourhood_median == pytest.approx(np.median(sizes), rel=1e-5)


def test_a_star_has_one_wide_neighbourhood_and_many_narrow_ones() -> None:
    weights = np.zeros((6, 6))
    weights[0, 1:] = weights[1:, 0] = 1
    found = spectrum(walk(weights))
    assert found.neighbourhood_mean == pytest.approx((5 + 5 * 1) / 6)
    assert found.neighbourhood_median == pytest.approx(1)
    assert np.allclose(found.stationary, [0.5, *[0.1] * 5])


def test_a_biased_walk_on_a_cycle_has_the_moduli_of_its_complex_eigenvalues() -> None:
    n, forward = 9, 0.8
    step = np.roll(np.eye(n), 1, axis=1)
    P = Operator(
        (forward * step + (1 - forward) * step.T).astype(np.float32), "markov", np.ones(n), Quality(1, (), 0, 0), False
    )
    angles = 2 * np.pi * np.arange(n) / n
    values = forward * np.exp(1j * angles) + (1 - forward) * np.exp(-1j * angles)
    found = spectrum(P)
    assert np.allclose(found.eigenvalues, np.sort(values.real)[::-1], atol=1e-6)
    assert found.spectral_gap == pytest.approx(1 - np.sort(np.abs(values))[-2], abs=1e-6)
    assert found.von_neumann_entropy == pytest.approx(spectral_entropy(values, t=1), abs=1e-6)


def test_a_high_power_of_small_eigenvalues_does_not_vanish() -> None:
    assert spectral_entropy([1e-9, 1e-9, 0], t=100) == pytest.approx(np.log(2))
    with pytest.raises(Unavailable, match="all eigenvalues are zero"):
        spectral_entropy([0, 0], t=1)


def test_only_as_many_eigenvalues_are_kept_as_asked_for() -> None:
    P = DiffusionGauge()(points())
    assert spectrum(P, k=3).eigenvalues.shape == (3,)
    assert spectrum(P, k=1000).eigenvalues.shape == (60,)
    assert spectrum(P, k=3).scalars() == spectrum(P, k=1000).scalars()


def test_impossible_parameters_are_refused() -> None:
    P = walk(clique(4))
    for k, t in ((0, 1), (5, 0)):
        with pytest.raises(InvalidInput, match=f"k={k} and t={t}"):
            spectrum(P, k=k, t=t)
    with pytest.raises(InvalidInput, match="2 or more, not 1"):
        uniform_walk(1)
