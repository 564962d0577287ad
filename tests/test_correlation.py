"""Correlation over training: equal to independent references, and not deceived by what only drifts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import stats
from synthetic import histories, write_store

import cli
from replay.analyses import correlation as analysis
from replay.analyses.correlation import analyze_correlation
from replay.analyses.dimension import analyze_dimension
from replay.analyses.selection import Choice
from replay.analyses.series import read_series
from replay.geometry.correlation import METHODS, VARIANTS, correlate, mean_correlation, trend_degree
from replay.opening import open_store
from store.catalog import Store
from store.commits import put_scalars
from store.errors import InvalidInput, Unavailable

Floats = npt.NDArray[np.float64]

LOG_GRID = np.array([0, *(2**i for i in range(10)), *range(768, 2305, 256)], np.int64)
LINEAR = 100 * np.arange(40, dtype=np.int64)
PAIRS = np.triu_indices(30, k=1)


def walks(n: int = 30, steps: npt.NDArray[np.int64] = LINEAR, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(size=(n, len(steps))).cumsum(axis=1)


def naive_share(values: Floats) -> float:
    """Share of pairs that the usual test, for independent observations, finds at 0.05."""
    return float(np.mean([stats.pearsonr(values[i], values[j]).pvalue <= 0.05 for i, j in np.transpose(PAIRS)]))


def shares(values: Floats, steps: npt.NDArray[np.int64] = LINEAR) -> dict[str, float]:
    """Share of pairs of unrelated series that are found at 0.05, by variant."""
    p = correlate(values, steps, n_surrogates=199).p
    return {variant: float(np.mean(p[v][PAIRS] <= 0.05)) for v, variant in enumerate(VARIANTS)}


@pytest.mark.parametrize("method", METHODS)
def test_coefficients_are_those_of_scipy_and_of_residuals_by_least_squares(method: str) -> None:
    X = walks(4, LOG_GRID)
    x = np.log1p(LOG_GRID)
    residuals = np.array([row - np.polyval(np.polyfit(x, row, 3), x) for row in X])
    reference: Any = stats.pearsonr if method == "pearson" else stats.spearmanr
    found = correlate(X, LOG_GRID, method=method, n_surrogates=19).correlation
    for matrix, series in zip(found, (X, np.diff(X), residuals), strict=True):
        for i in range(4):
            for j in range(4):
                assert matrix[i, j] == pytest.approx(reference(series[i], series[j]).statistic, abs=1e-9)


def test_scale_and_origin_do_not_matter_and_a_mirror_changes_the_sign_alone() -> None:
    X = walks(2, LOG_GRID)
    plain = correlate(X, LOG_GRID, n_surrogates=199)
    moved = correlate(X * [[3], [0.01]] + [[5], [-2]], LOG_GRID, n_surrogates=199)
    mirrored = correlate(X * [[1], [-1]], LOG_GRID, n_surrogates=199)
    for name in ("correlation", "low", "high", "p", "n_effective"):
        np.testing.assert_allclose(getattr(moved, name), getattr(plain, name), atol=1e-9)
    np.testing.assert_allclose(mirrored.correlation[:, 0, 1], -plain.correlation[:, 0, 1])
    np.testing.assert_allclose(mirrored.low[:, 0, 1], -plain.high[:, 0, 1], atol=1e-9)
    np.testing.assert_allclose(mirrored.p[:, 0, 1], plain.p[:, 0, 1])


def test_matrices_are_symmetric_and_a_series_is_not_tested_against_itself() -> None:
    found = correlate(walks(5, LOG_GRID), LOG_GRID, n_surrogates=19)
    for name in ("correlation", "low", "high", "p", "n_effective"):
        values = getattr(found, name)
        np.testing.assert_array_equal(values, values.transpose(0, 2, 1))
        diagonal = values[:, np.arange(5), np.arange(5)]
        assert (diagonal == 1).all() if name == "correlation" else np.isnan(diagonal).all()
    inside = (found.low <= found.correlation) & (found.correlation <= found.high)
    assert (inside | np.isnan(found.p)).all()
    assert not found.undefined


def test_random_walks_deceive_the_usual_test_but_none_of_the_three() -> None:
    X = walks()
    assert naive_share(X) > 0.5
    assert all(share <= 0.08 for share in shares(X).values())


def test_walks_that_all_rise_deceive_neither() -> None:
    X = walks() + 0.5 * np.arange(len(LINEAR))
    assert naive_share(X) > 0.95
    assert all(share <= 0.08 for share in shares(X).values())


def test_changes_that_are_all_large_early_do_not_make_series_related() -> None:
    rng = np.random.default_rng(3)
    sizes = np.sqrt(np.diff(np.log1p(LINEAR)))
    X = np.cumsum(np.c_[np.zeros(30), rng.normal(size=(30, len(LINEAR) - 1)) * sizes], axis=1)
    assert naive_share(np.diff(X)) > 0.15
    assert all(share <= 0.08 for share in shares(X).values())


def test_changes_that_drift_themselves_deceive_the_differenced_variant_and_not_the_level() -> None:
    rng = np.random.default_rng(7)
    changes = np.zeros((30, 90))
    for t in range(1, 90):
        changes[:, t] = 0.8 * changes[:, t - 1] + rng.normal(size=30)
    found = shares(changes[:, -len(LINEAR) :].cumsum(axis=1))
    assert found["level"] <= 0.08
    assert found["differenced"] > 0.1


def test_for_independent_values_the_level_of_the_test_is_near_its_nominal_one() -> None:
    found = shares(np.random.default_rng(1).normal(size=(30, len(LINEAR))))
    assert all(0.01 <= share <= 0.1 for share in found.values())  # their changes are no longer independent
    assert max(found["level"], found["detrended"]) <= 0.07


def test_series_that_change_together_are_found_by_their_changes() -> None:
    rng = np.random.default_rng(2)
    a, noise = rng.normal(size=(2, len(LOG_GRID)))
    X = np.cumsum([a, 0.8 * a + 0.6 * noise, rng.normal(size=len(LOG_GRID))], axis=1)
    p = correlate(X, LOG_GRID).p[VARIANTS.index("differenced")]
    assert p[0, 1] <= 0.002
    assert p[0, 2] > 0.05


def test_noise_that_two_curves_share_beside_their_trends_is_found_and_the_trends_alone_are_not() -> None:
    rng = np.random.default_rng(4)
    x = np.log1p(LINEAR) / np.log1p(LINEAR[-1])
    falls = np.array([3 * np.exp(-2 * x), -2 * x + x**2, -x])
    shared, *noise = 0.1 * rng.normal(size=(4, len(x)))
    related = falls + [shared, shared, 0 * shared] + 0.3 * np.array(noise)
    found = correlate(related, LINEAR)
    detrended = VARIANTS.index("detrended")
    assert (found.correlation[0][np.triu_indices(3, k=1)] > 0.7).all()
    assert found.p[detrended, 0, 1] <= 0.02
    assert min(found.p[detrended, 0, 2], found.p[detrended, 1, 2]) > 0.05


def test_intervals_hold_the_true_coefficient() -> None:
    rng = np.random.default_rng(5)
    held = np.zeros(3)
    for _ in range(60):
        a, b = rng.normal(size=(2, len(LOG_GRID)))
        found = correlate(np.array([a, 0.6 * a + 0.8 * b]), LOG_GRID, n_surrogates=99)
        held += (found.low[:, 0, 1] <= 0.6) & (found.high[:, 0, 1] >= 0.6)
    assert (held / 60 >= 0.88).all()


def test_independent_steps_count_fully_and_walks_count_for_few() -> None:
    noise = correlate(np.random.default_rng(6).normal(size=(10, 40)), LINEAR, n_surrogates=199).n_effective[0]
    drifting = correlate(walks(10), LINEAR, n_surrogates=199).n_effective[0]
    assert 30 <= np.nanmedian(noise) <= 40
    assert 3 <= np.nanmedian(drifting) <= 10


@pytest.mark.parametrize("method", METHODS)
def test_what_does_not_vary_is_undefined_with_its_reason(method: str) -> None:
    straight = 0.1 * np.arange(40)  # its changes differ by rounding
    X = np.array([walks(1)[0], np.full(40, 0.3), straight, 0.3 * np.log1p(LINEAR) ** 2])
    found = correlate(X, LINEAR, method=method, n_surrogates=19)
    level, differenced, detrended = range(3)
    assert found.undefined == {
        (level, 1): "it is constant",
        (differenced, 1): "it is constant",
        (detrended, 1): "it is constant",
        (differenced, 2): "it changes by the same amount at every step",
        (detrended, 3): "nothing is left of it beside its trend",
    }
    for variant, row in found.undefined:
        assert np.isnan(found.correlation[variant, row]).all()
        assert np.isnan(found.p[variant, :, row]).all()
    assert found.p[level, 0, 2] > 0.05  # every order of the same changes is the same line
    assert np.isfinite(found.correlation[level, 0, [0, 2, 3]]).all()


def test_too_few_steps_are_unavailable_and_a_trend_needs_more() -> None:
    with pytest.raises(Unavailable, match="needs 4 common steps or more, and there are 3"):
        correlate(walks(2)[:, :3], LINEAR[:3])
    few = correlate(walks(2)[:, :5], LINEAR[:5], n_surrogates=19)
    assert {reason for (variant, _), reason in few.undefined.items() if variant == 2} == {
        "a trend needs 6 steps or more, and there are 5"
    }
    assert np.isfinite(few.p[:2, 0, 1]).all()
    assert [trend_degree(n) for n in (5, 6, 9, 10, 14, 100)] == [0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize(
    ("values", "steps", "how", "said"),
    [
        (walks(2), LINEAR[:-1], {}, r"not \(2, 40\) at \(39,\) steps"),
        (np.full((2, 40), np.nan), LINEAR, {}, "finite values"),
        (walks(2), LINEAR[::-1], {}, "steps must ascend"),
        (walks(2), LINEAR, {"n_surrogates": 5}, "19 or more, not 5"),
        (walks(2), LINEAR, {"method": "kendall"}, "one of pearson, spearman, not 'kendall'"),
    ],
)
def test_malformed_series_are_refused(values: Floats, steps: Any, how: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        correlate(values, steps, **how)


def test_the_mean_over_runs_is_that_of_fishers_z_over_the_runs_that_have_one() -> None:
    runs = np.array([[0.5, np.nan, 1.0], [0.9, 0.3, 1.0], [np.nan, np.nan, 1.0]])
    found = mean_correlation(np.c_[runs, np.full(3, np.nan)])
    assert found[:3] == pytest.approx([np.tanh((np.arctanh(0.5) + np.arctanh(0.9)) / 2), 0.3, 1.0])
    assert np.isnan(found[3])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three made-up runs of nine steps, two with scalars: a walking loss, a constant, and one known at few steps."""
    root = tmp_path_factory.mktemp("correlation") / "store"
    store = write_store(root, histories(steps=9, n_probes=20, width=6))
    for run, seed in (("run0", 0), ("run1", 1)):
        loss = np.random.default_rng(seed).normal(size=9).cumsum()
        scalars = {f"step{100 * i}": {"loss": float(value), "batch": 32.0} for i, value in enumerate(loss)}
        scalars["step0"]["rare"] = scalars["step800"]["rare"] = 1.0
        scalars["step300"].pop("loss")
        put_scalars(store, run, scalars)
    read_series(store, ["stable_rank", "participation_ratio"])  # measured once for all tests
    return root


@pytest.fixture
def store(made: Path, root: Path) -> Store:
    shutil.copytree(made, root)
    return open_store(root, write=True)


def test_series_of_a_run_are_correlated_over_the_steps_they_share(store: Store) -> None:
    found = analyze_correlation(store)
    labels = list(found["series_a"].to_numpy())
    layers = [f"blocks[{i}]:output:mean" for i in (0, 1)]
    metrics = [f"{metric} {layer}" for metric in analysis.DEFAULT_METRICS for layer in layers]
    assert labels == ["batch", "loss", "rare", *metrics]
    assert list(found["variant"].to_numpy()) == list(VARIANTS)
    at = {"run": "run0", "series_a": "loss", "series_b": metrics[0]}
    assert found["n_steps"].sel(at) == 8  # the loss lacks one
    assert found["n_steps"].sel(at | {"series_a": metrics[1]}) == 9
    rank = analyze_dimension(store, metrics=["stable_rank"])["stable_rank"].sel(run="run0", layer=layers[0])
    scalars = store.revisions("run0").set_index("step")["scalars"]
    shared = [step for step in rank["step"].to_numpy() if "loss" in scalars[step]]
    loss = [scalars[step]["loss"] for step in shared]
    expected = stats.pearsonr(loss, rank.sel(step=shared).to_numpy()).statistic
    assert float(found["correlation"].sel(at | {"variant": "level"})) == pytest.approx(expected, abs=1e-9)


def test_q_is_that_of_all_pairs_and_runs_of_a_variant(store: Store) -> None:
    found = analyze_correlation(store)
    for variant in VARIANTS:
        p, q = (
            found[name].sel(variant=variant).to_numpy()[:, *np.triu_indices(found.sizes["series_a"], k=1)].ravel()
            for name in ("p", "q")
        )
        known = np.isfinite(p)
        np.testing.assert_array_equal(np.isfinite(q), known)
        np.testing.assert_allclose(q[known], stats.false_discovery_control(p[known]))
    np.testing.assert_array_equal(found["q"], found["q"].transpose("run", "variant", "series_b", "series_a"))


def test_what_is_undefined_has_its_reason_and_what_a_run_lacks_is_left_open(store: Store) -> None:
    found = analyze_correlation(store)
    reasons = {tuple(reason[:3]): reason[3] for reason in found.attrs["unavailable"]}
    assert reasons["run0", "level", "batch"] == "it is constant"
    assert reasons["run1", "loss", "rare"] == "a correlation needs 4 common steps or more, and there are 2"
    assert not [reason for reason in reasons if reason[0] == "run2"]
    loss = found["correlation"].sel(series_a="loss", run="run2")
    assert np.isnan(loss).all()
    assert np.isnan(found["correlation"].sel(series_a="batch", series_b="loss")).all()
    between = {"series_a": "loss", "series_b": "stable_rank blocks[0]:output:mean"}
    z = np.arctanh(found["correlation"].sel(between).to_numpy()[:2])
    np.testing.assert_allclose(found["mean"].sel(between), np.tanh(z.mean(axis=0)))


def test_a_result_is_kept_until_a_scalar_changes(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = analyze_correlation(store, metrics=["loss", "stable_rank"])
    computed: list[int] = []

    def counting(*given: Any, **how: Any) -> Any:
        computed.append(1)
        return correlate(*given, **how)

    monkeypatch.setattr(analysis, "correlate", counting)
    again = analyze_correlation(store, metrics=["loss", "stable_rank"])
    assert not computed
    assert again.identical(first)
    assert store.result("correlation").identical(first)
    put_scalars(store, "run0", {"step300": {"loss": 7.0}})
    changed = analyze_correlation(store, metrics=["loss", "stable_rank"])
    assert computed
    assert int(changed["n_steps"].sel(run="run0", series_a="loss")[1]) == 9


def test_metrics_and_runs_can_be_chosen_and_one_series_alone_is_refused(store: Store) -> None:
    choice = Choice(runs=["run0"], layers=["blocks[1]"])
    found = analyze_correlation(store, choice=choice, metrics=["loss", "participation_ratio"], method="spearman")
    assert found.attrs["series"] == [["loss", ""], ["participation_ratio", "blocks[1]:output:mean"]]
    assert found.attrs["method"] == "spearman"
    with pytest.raises(Unavailable, match="needs two series, and there is loss: name more with --metric"):
        analyze_correlation(store, metrics=["loss"])
    with pytest.raises(InvalidInput, match="no series 'los'"):
        analyze_correlation(store, metrics=["los"])
    with pytest.raises(InvalidInput, match="one of pearson, spearman"):
        analyze_correlation(store, method="kendall")


def test_the_command_prints_the_clearest_pairs_and_writes_all(store: Store, tmp_path: Path) -> None:
    command = ["--store", str(store.root), "analyze", "correlation", "--metric", "loss", "--metric", "stable_rank"]
    done = CliRunner().invoke(cli.main, [*command, "--csv", str(tmp_path / "c.csv")])
    assert done.exit_code == 0, done.output
    assert "mean over 3 runs" in done.stdout
    assert len(done.stdout.splitlines()) == 2 + 2  # the loss with each layer; two layers are no pair with a scalar
    table = pd.read_csv(tmp_path / "c.csv")
    assert len(table) == 3 * (3 + 3 + 1)  # run2 has no loss
    assert set(table["variant"]) == set(VARIANTS)
    document = json.loads(CliRunner().invoke(cli.main, [*command, "--runs", "run0", "--json"]).stdout)
    assert len(document["rows"]) == 9
    assert document["rows"][0].keys() >= {"correlation", "low", "high", "p", "q", "n_steps", "n_effective"}
    one = CliRunner().invoke(cli.main, [*command, "--runs", "run0"])
    assert "95 % interval, q" in one.stdout
