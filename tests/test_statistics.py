"""The jackknife against closed forms and the ceiling against sampled permutations."""

import numpy as np
import pytest
from scipy.stats import t as student

from replay.geometry.distances import frobenius_distance, normalized_frobenius_distance
from replay.geometry.gauge import DiffusionGauge
from replay.geometry.statistics import jackknife_interval, leave_group_out, moments, permutation_ceiling, probe_groups
from store.errors import InvalidInput


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


def test_leave_group_out_sums_equal_sums_over_the_probes_left() -> None:
    E = np.random.default_rng(0).random((23, 23))
    groups = probe_groups(23, n_groups=5)
    member = np.eye(5)[groups]
    expected = []
    for group in range(5):
        kept = groups != group
        m = kept.sum()
        expected.append(E[np.ix_(kept, kept)].sum() * 23 * 22 / (m * (m - 1)))
    assert np.allclose(leave_group_out(member.T @ E @ member, np.bincount(groups)), expected, rtol=1e-12)


def test_jackknife_interval_of_a_mean_is_the_student_interval_of_the_group_means() -> None:
    means = np.random.default_rng(0).standard_normal(12)
    replicates = (means.sum() - means) / 11
    reach = student.ppf(0.975, 11) * means.std(ddof=1) / np.sqrt(12)
    interval = jackknife_interval(float(means.mean()), replicates)
    assert np.allclose(interval, (means.mean() - reach, means.mean() + reach), rtol=1e-10)


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
