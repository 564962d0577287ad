"""The jackknife against closed forms and the ceiling against sampled permutations."""

from itertools import combinations

import numpy as np
import pytest
from scipy.special import gammaln
from scipy.stats import t as student

from replay.geometry.distances import frobenius_distance, normalized_frobenius_distance
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.statistics import jackknife_interval, moments, permutation_ceiling, probe_groups, runs_interval
from store.errors import InvalidInput, Unavailable


def test_groups_are_balanced_and_repeatable() -> None:
    groups = probe_groups(103, n_groups=10, seed=4)
    assert sorted(np.bincount(groups)) == [10] * 7 + [11] * 3
    assert np.array_equal(groups, probe_groups(103, n_groups=10, seed=4))
    assert not np.array_equal(groups, probe_groups(103, n_groups=10, seed=5))
    assert len(np.unique(probe_groups(7, n_groups=10))) == 7


@pytest.mark.parametrize(("n_probes", "n_groups"), [(2, 10), (50, 1)])
def test_too_few_probes_or_groups_are_refused(n_probes: int, n_groups: int) -> None:
    with pytest.raises(InvalidInput, match="3 probes and 2 groups"):
        probe_groups(n_probes, n_groups=n_groups)


def test_jackknife_interval_of_a_mean_is_the_student_interval_of_the_group_means() -> None:
    means = np.random.default_rng(0).standard_normal(12)
    replicates = (means.sum() - means) / 11
    reach = student.ppf(0.975, 11) * means.std(ddof=1) / np.sqrt(12)
    interval = jackknife_interval(float(means.mean()), replicates)
    assert np.allclose(interval, (means.mean() - reach, means.mean() + reach), rtol=1e-10)


def test_runs_interval_of_sums_of_two_terms_is_the_student_interval_of_twice_the_mean() -> None:
    terms = np.random.default_rng(0).standard_normal(6)  # a distance d_ij = a_i + a_j has the mean 2ā over pairs
    distances = {(i, j): float(terms[i] + terms[j]) for i, j in combinations(range(6), 2)}
    reach = student.ppf(0.975, 5) * 2 * terms.std(ddof=1) / np.sqrt(6)
    assert np.allclose(runs_interval(distances, 6), (2 * terms.mean() - reach, 2 * terms.mean() + reach), rtol=1e-10)


@pytest.mark.parametrize("n_runs", [4, 9])
def test_runs_interval_holds_the_expected_distance_as_often_as_it_says(n_runs: int) -> None:
    rng, held = np.random.default_rng(0), []
    for _ in range(400):
        X = rng.standard_normal((n_runs, 30)) / np.sqrt(30)  # E |x - y| = √2 Γ(31/2)/Γ(15) · √2 / √30 in 30 dimensions
        distances = {(i, j): float(np.linalg.norm(X[i] - X[j])) for i, j in combinations(range(n_runs), 2)}
        low, high = runs_interval(distances, n_runs)
        held.append(low <= 2 * np.exp(gammaln(15.5) - gammaln(15)) / np.sqrt(30) <= high)
    assert 0.9 < np.mean(held) < 1


def test_runs_interval_needs_four_runs_and_all_pairs() -> None:
    with pytest.raises(Unavailable, match="4 runs or more, and there are 3"):
        runs_interval({(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}, 3)
    with pytest.raises(InvalidInput, match=r"needs all pairs, and \(0, 2\) is missing"):
        runs_interval({(0, 1): 1.0}, 4)


@pytest.mark.parametrize("diagonal", ["zero", "keep"])
def test_ceiling_is_the_root_mean_square_over_relabellings(diagonal: str) -> None:
    rng = np.random.default_rng(0)
    gauge = DiffusionGauge(knn=5, diagonal=diagonal)  # type: ignore[arg-type]
    X = rng.standard_normal((40, 4))
    P, Q = gauge(X).matrix, gauge(X + 0.2 * rng.standard_normal(X.shape)).matrix
    raw, normalized = [], []
    for _ in range(2000):
        order = rng.permutation(40)
        relabelled = Q[np.ix_(order, order)]
        raw.append(frobenius_distance(P, relabelled) ** 2)
        normalized.append(normalized_frobenius_distance(P, relabelled) ** 2)
    assert np.isclose(permutation_ceiling(moments(P), moments(Q)) ** 2, np.mean(raw), rtol=2e-3)
    assert np.isclose(permutation_ceiling(moments(P), moments(Q), normalized=True) ** 2, np.mean(normalized), rtol=2e-3)
