"""The dimension of activations: closed forms, a float64 decomposition, what must not change it, and a store's."""

import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from synthetic import histories, write_store
from test_analysis import run

from replay.analyses import dimension as analysis
from replay.analyses.dimension import analyze_dimension
from replay.analyses.selection import Choice, select_layers
from replay.geometry.dimension import METRICS, Estimate, dimension, dimension_null, dimension_with_doubt
from replay.geometry.eigenspectrum import Gram, effective_rank
from replay.geometry.traces import quick_traces
from replay.opening import open_store
from replay.weight_ranks import RECIPE, WEIGHTS
from store.catalog import Store
from store.errors import InvalidInput
from store.keys import canonical
from store.measurements import point_ids, put_measurements

Floats = npt.NDArray[np.float64]

CENTRED = [name for name in METRICS if not name.endswith("_uncentred")]
SPECTRAL = [name for name in METRICS if name not in ("two_nn", "participation_ratio_unbiased")]


def by_svd(X: Floats) -> dict[str, float]:
    """All metrics of a spectrum from the singular values of the activations, written out."""
    found: dict[str, float] = {}
    for end, Y in (("", X - X.mean(axis=0)), ("_uncentred", X)):
        s = np.linalg.svd(Y, compute_uv=False)
        p, energy = s[s > 0] / s.sum(), s**2
        reached = np.cumsum(energy) / energy.sum()
        of_spectrum = {
            f"stable_rank{end}": np.linalg.norm(Y) ** 2 / np.linalg.norm(Y, 2) ** 2,
            f"participation_ratio{end}": energy.sum() ** 2 / np.sum(energy**2),
            f"participation_ratio_singular{end}": 1 / np.sum(p**2),
            f"effective_rank{end}": np.exp(-np.sum(p * np.log(p))),
            f"cumulative_energy_90{end}": np.flatnonzero(reached >= 0.9)[0] + 1,
            f"nuclear_norm_ratio{end}": np.linalg.norm(Y, "nuc") / s[0],
        }
        found |= {name: float(value) for name, value in of_spectrum.items()}
        there = min(100, int(np.sum(s > 1e-10 * s[0])))
        if there >= 30:
            ranks = np.arange(11, there + 1)
            fitted = np.polyfit(np.log(ranks), np.log(energy[10:there]), 1, w=1 / np.sqrt(ranks))
            found[f"alpha_req{end}"] = float(-fitted[0])
    return found


def fixtures(n: int, d: int) -> dict[str, Floats]:
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((d, d)))[0]
    power: Floats = (rng.standard_normal((n, d)) * np.arange(1, d + 1) ** -0.8) @ basis
    massive = power.copy()
    massive[:, 1] *= 1e3
    return {
        "power law": power,
        "offset": power + 50,
        "independent": rng.standard_normal((n, d)),
        "ill-conditioned": (rng.standard_normal((n, d)) * 10.0 ** np.linspace(0, -9, d)) @ basis,
        "collapsed": rng.standard_normal((n, 5)) @ rng.standard_normal((5, d)),
        "massive feature": massive,
    }


def orthonormal(n: int, d: int) -> Floats:
    """Centred columns of equal length at right angles."""
    X = np.random.default_rng(0).standard_normal((n, d))
    return np.linalg.qr(X - X.mean(axis=0))[0]


def values(X: npt.ArrayLike, *names: str) -> list[float]:
    found = dimension(X, metrics=names)
    assert not [one for one in found.values() if isinstance(one, str)]
    return [float(one) for one in found.values()]


@pytest.mark.parametrize(("n", "d"), [(60, 150), (300, 60), (151, 150), (150, 151)])
@pytest.mark.parametrize("kind", list(fixtures(3, 5)))
def test_every_metric_equals_that_of_a_float64_decomposition(kind: str, n: int, d: int) -> None:
    X = fixtures(n, d)[kind]
    expected, found = by_svd(X), dimension(X, metrics=SPECTRAL)
    for name in SPECTRAL:
        if name in expected:
            assert found[name] == pytest.approx(expected[name], rel=1e-6), name
        else:
            assert "power law" in str(found[name])


def test_small_singular_values_are_not_lost_to_squaring() -> None:
    X = fixtures(200, 300)["independent"]
    U, _, V = np.linalg.svd(X, full_matrices=False)
    s = np.r_[np.ones(2), np.full(197, 1e-8)]
    Y = (np.linalg.qr(U[:, :199] - U[:, :199].mean(axis=0))[0] * s) @ V[:199]
    found = dimension(Y, metrics=["nuclear_norm_ratio", "effective_rank"])
    p = s / s.sum()
    expected = [s.sum(), np.exp(-np.sum(p * np.log(p)))]
    assert list(found.values()) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("shape", [(300, 400), (600, 300)])
def test_the_quick_way_for_two_metrics_equals_a_float64_decomposition_too(shape: tuple[int, int]) -> None:
    for kind, X in fixtures(*shape).items():
        single = X.astype(np.float32)
        expected = by_svd(single.astype(np.float64))
        assert values(single, "stable_rank", "participation_ratio") == pytest.approx(
            [expected["stable_rank"], expected["participation_ratio"]], rel=1e-6
        ), kind


def test_a_product_in_single_precision_is_used_only_where_it_will_do() -> None:
    X = np.random.default_rng(0).standard_normal((4000, 260)).astype(np.float32)
    assert quick_traces(X) is not None
    X[0] *= 1e4
    assert quick_traces(X) is None
    expected = by_svd(X.astype(np.float64))
    assert values(X, "participation_ratio") == pytest.approx([expected["participation_ratio"]], rel=1e-9)


@pytest.mark.parametrize(("n", "d"), [(60, 8), (40, 30)])
def test_equal_columns_at_right_angles_have_the_dimension_of_their_number(n: int, d: int) -> None:
    names = [name for name in SPECTRAL if "energy" not in name and "alpha" not in name]
    assert values(orthonormal(n, d), *names) == pytest.approx([d] * len(names), rel=1e-9)
    # A share that an eigenvalue reaches exactly is reached.
    assert values(orthonormal(n, 10), "cumulative_energy_90", "cumulative_energy_50.5") == [9, 6]


def test_an_offset_changes_only_the_uncentred_variants() -> None:
    X = np.random.default_rng(0).standard_normal((200, 30))
    there, moved = dimension(X), dimension(X + 50)
    for name in CENTRED:
        if name != "alpha_req":
            assert moved[name] == pytest.approx(there[name], rel=1e-6), name
    assert float(there["stable_rank_uncentred"]) > 15
    assert float(moved["stable_rank_uncentred"]) == pytest.approx(1, abs=0.01)


def test_the_participation_ratio_is_of_eigenvalues_and_that_of_singular_values_is_another() -> None:
    X = orthonormal(50, 3) * [3.0, 2.0, 1.0]
    ratio, singular = values(X, "participation_ratio", "participation_ratio_singular")
    assert ratio == pytest.approx((9 + 4 + 1) ** 2 / (81 + 16 + 1))
    assert singular == pytest.approx((3 + 2 + 1) ** 2 / (9 + 4 + 1))


def test_rotation_scale_and_the_order_of_probes_change_nothing() -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((120, 40)) * np.arange(1, 41) ** -0.5
    turned = 3 * X[rng.permutation(120)] @ np.linalg.qr(rng.standard_normal((40, 40)))[0]
    before, after = dimension(X), dimension(turned)
    assert list(before) == list(METRICS)
    assert [after[name] for name in METRICS] == pytest.approx([before[name] for name in METRICS], rel=1e-9)


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_found(exponent: float) -> None:
    X = orthonormal(150, 120) * np.arange(1, 121) ** (-exponent / 2)
    assert values(X, "alpha_req") == pytest.approx([exponent], rel=1e-9)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_two_nn_finds_the_dimension_of_a_cube_bent_into_more_features(d: int) -> None:
    rng = np.random.default_rng(0)
    cube = rng.uniform(size=(2000, d))
    X = np.hstack([np.sin(cube), np.cos(cube), cube**2]) @ np.linalg.qr(rng.standard_normal((20, 20)))[0][: 3 * d]
    assert values(X, "two_nn") == pytest.approx([d], rel=0.08)


def test_two_nn_is_the_slope_of_the_law_of_ratios() -> None:
    X = np.random.default_rng(0).standard_normal((100, 6))
    D = np.sort(np.sqrt(((X[:, None] - X) ** 2).sum(axis=2)), axis=1)
    ratios = np.sort(D[:, 2] / D[:, 1])[:90]
    x, y = np.log(ratios), -np.log(1 - np.arange(1, 91) / 100)
    expected = np.linalg.lstsq(x[:, None], y, rcond=None)[0]
    assert values(X, "two_nn") == pytest.approx(expected, rel=1e-9)


def test_two_nn_counts_probes_with_equal_activations_once_and_sees_tiny_distances() -> None:
    X = np.random.default_rng(0).standard_normal((100, 6))
    once = values(X, "two_nn")
    assert values(np.concatenate([X, X[:30]]), "two_nn") == pytest.approx(once, rel=1e-9)
    # Three to a place, 1e-8 apart: each has its two neighbours there, whatever the place.
    rng = np.random.default_rng(1)
    apart = rng.standard_normal((90, 6))
    places = 2.0 ** rng.integers(0, 3, size=(30, 6)).repeat(3, axis=0)
    alone = values(apart + 1e6 * np.arange(30).repeat(3)[:, None], "two_nn")
    assert values(places * np.arange(1, 31).repeat(3)[:, None] + 1e-8 * apart, "two_nn") == pytest.approx(
        alone, rel=1e-4
    )


@pytest.mark.parametrize(("n", "d"), [(150, 250), (300, 110), (120, 120)])
def test_nulls_are_what_independent_features_give(n: int, d: int) -> None:
    rng = np.random.default_rng(1)
    found = [dimension(rng.standard_normal((n, d))) for _ in range(8)]
    null = dimension_null(n, d)
    for name in METRICS:
        near = {"stable_rank": 0.07, "nuclear_norm_ratio": 0.04, "two_nn": 0.1, "alpha_req": 0.03}
        simulated = np.mean([float(one[name]) for one in found])
        assert null[name] == pytest.approx(simulated, rel=near.get(name.removesuffix("_uncentred"), 0.015)), name
    assert null["participation_ratio"] == pytest.approx(d * (n - 1) / (n - 1 + d + 1))
    assert null["stable_rank"] == pytest.approx((n - 1) * d / (np.sqrt(n - 1) + np.sqrt(d)) ** 2)


@pytest.mark.parametrize(("n", "d"), [(100, 1), (2, 5), (8, 8), (5, 300), (60, 50)])
def test_nulls_of_small_shapes_are_what_independent_features_give_and_possible(n: int, d: int) -> None:
    rng = np.random.default_rng(1)
    found = [dimension(rng.standard_normal((n, d)), metrics=SPECTRAL) for _ in range(250)]
    for name, null in dimension_null(n, d, metrics=SPECTRAL).items():
        if isinstance(null, str):
            assert null == found[0][name]
            continue
        assert null == pytest.approx(np.mean([float(one[name]) for one in found]), rel=0.05), name
        if "alpha" not in name:
            assert 1 - 1e-9 <= null <= min(n - (not name.endswith("_uncentred")), d) + 1e-9, name


def test_the_null_of_two_nn_needs_no_more_features_than_probes() -> None:
    rng = np.random.default_rng(1)
    simulated = np.mean([values(rng.standard_normal((200, 2000)), "two_nn") for _ in range(30)])
    assert dimension_null(200, 2000, metrics=["two_nn"])["two_nn"] == pytest.approx(simulated, rel=0.05)
    # Squared distances become jointly normal, scattered by some √d about 2 d.
    large = [float(dimension_null(200, d, metrics=["two_nn"])["two_nn"]) for d in (30_000, 300_000)]
    assert large[1] / large[0] == pytest.approx(np.sqrt(10), rel=0.02)


def test_the_unbiased_participation_ratio_is_that_of_the_population_with_far_fewer_probes() -> None:
    rng, scale = np.random.default_rng(0), np.arange(1, 401) ** -0.5
    truth = np.sum(scale**2) ** 2 / np.sum(scale**4)
    skewed = (rng.exponential(size=(150, 50, 400)) - 1) * scale
    found = np.array([values(X, "participation_ratio", "participation_ratio_unbiased") for X in skewed])
    biased, unbiased = np.median(found, axis=0)
    assert biased < 0.7 * truth
    assert unbiased == pytest.approx(truth, rel=0.1)


@pytest.mark.parametrize(("n", "d"), [(90, 30), (40, 70)])
def test_the_interval_is_the_jackknife_of_values_without_each_group(n: int, d: int) -> None:
    X = np.random.default_rng(0).standard_normal((n, d)) * np.arange(1, d + 1) ** -0.5
    names = [name for name in METRICS if name != "two_nn" and "energy" not in name]
    groups = np.random.default_rng(0).permutation(n) % 15
    parts = np.array([values(X[groups != group], *names) for group in range(15)])
    error = np.sqrt(14 / 15 * np.sum((parts - parts.mean(axis=0)) ** 2, axis=0))
    for (name, found), reach in zip(dimension_with_doubt(X, metrics=names).items(), 2.1447866879 * error, strict=True):
        assert isinstance(found, Estimate)
        assert not isinstance(found.interval, str)
        assert [found.value - found.interval.low, found.interval.high - found.value] == pytest.approx(
            [reach, reach], rel=1e-5
        ), name


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(("n", "d"), [(100, 256), (256, 100)])
def test_small_singular_values_without_some_probes_are_those_of_the_others(n: int, d: int, centred: bool) -> None:
    X = fixtures(n, d)["ill-conditioned"]
    dropped = np.arange(n) % 15 == 0
    rest = X[~dropped] - (X[~dropped].mean(axis=0) if centred else 0)
    part = Gram(X, centred=centred).without(dropped)
    s = np.linalg.svd(rest, compute_uv=False)[: part.rank]
    np.testing.assert_allclose(part.singular_values, s, rtol=1e-5, atol=1e-13 * s[0])
    p = s / s.sum()
    assert effective_rank(part) == pytest.approx(np.exp(-np.sum(p * np.log(p))), rel=1e-9)


def test_intervals_hold_the_mean_of_fresh_probes() -> None:
    rng = np.random.default_rng(3)
    names = [name for name in CENTRED if name != "alpha_req"]

    def draw() -> Floats:
        X: Floats = rng.standard_normal((60, 20)) * np.arange(1, 21) ** -0.7
        return X

    expected = np.mean([values(draw(), *names) for _ in range(150)], axis=0)
    held = np.zeros(len(names))
    for _ in range(100):
        for k, found in enumerate(dimension_with_doubt(draw(), metrics=names).values()):
            assert isinstance(found, Estimate)
            assert not isinstance(found.interval, str)
            held[k] += found.interval.low <= expected[k] <= found.interval.high
    assert (held >= 85).all(), dict(zip(names, held, strict=True))


def test_intervals_stay_within_what_is_possible() -> None:
    X = np.random.default_rng(0).standard_normal((40, 3))
    for name, found in dimension_with_doubt(
        X, metrics=["stable_rank", "effective_rank", "cumulative_energy_90"]
    ).items():
        assert isinstance(found, Estimate)
        assert not isinstance(found.interval, str)
        assert 1 <= found.interval.low <= found.value <= found.interval.high <= 3, name


def test_what_is_undefined_has_a_reason_and_the_rest_its_value() -> None:
    same = dimension(np.full((30, 40), 0.1))
    assert "same activations" in str(same["stable_rank"])
    assert same["stable_rank_uncentred"] == pytest.approx(1)
    assert "differ" in str(same["two_nn"])
    few = dimension_with_doubt(np.random.default_rng(0).standard_normal((3, 40)))
    assert isinstance(few["stable_rank"], Estimate)
    assert "4 probes" in str(few["participation_ratio_unbiased"])
    assert "power law" in str(few["alpha_req"])
    two = dimension_with_doubt(np.eye(2, 5), metrics=["stable_rank"])["stable_rank"]
    assert isinstance(two, Estimate)
    assert two.value == pytest.approx(1)
    assert "3" in str(two.interval)
    grid = np.stack(np.meshgrid(np.arange(6.0), np.arange(6.0)), axis=-1).reshape(36, 2)
    assert "equally far" in str(dimension(grid, metrics=["two_nn"])["two_nn"])
    assert "zero" in str(dimension(np.zeros((5, 4)), metrics=["stable_rank_uncentred"])["stable_rank_uncentred"])
    lone = np.zeros((20, 6))
    lone[0] = 1
    found = dimension_with_doubt(lone, metrics=["stable_rank"])["stable_rank"]
    assert isinstance(found, Estimate)
    assert "same activations" in str(found.interval)


@pytest.mark.parametrize(
    ("X", "options", "says"),
    [
        (np.ones((5, 4, 3)), {}, "(probe, feature)"),
        (np.ones((1, 4)), {}, "at least 2"),
        (np.array([["a", "b"], ["c", "d"]]), {}, "numbers"),
        (np.array([[1.0, np.nan], [2.0, 3.0]]), {}, "finite"),
        (np.eye(4), {"metrics": ["stable_rnk"]}, "did you mean 'stable_rank'"),
        (np.eye(4), {"metrics": ["cumulative_energy_100"]}, "no metric"),
        (np.eye(4), {"energy": 1.5}, "not 1.5"),
    ],
)
def test_wrong_input_is_refused(X: npt.NDArray[np.float64], options: dict[str, object], says: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        dimension(X, **options)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_the_share_of_the_energy_is_in_the_name() -> None:
    X = np.random.default_rng(0).standard_normal((50, 20))
    assert "cumulative_energy_95" in dimension(X, energy=0.95)
    found = dimension(X, metrics=["cumulative_energy", "cumulative_energy_99.5", "cumulative_energy_uncentred"])
    assert list(found) == ["cumulative_energy_90", "cumulative_energy_99.5", "cumulative_energy_90_uncentred"]
    assert float(found["cumulative_energy_90"]) < float(found["cumulative_energy_99.5"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two made-up runs with three steps and two layers; one layer of one step has all probes equal."""
    root = tmp_path_factory.mktemp("dimension") / "store"
    runs = histories(runs=2, steps=3, width=10)
    runs["run1"][100]["blocks[1]"][:] = 1
    write_store(root, runs)
    return root


@pytest.fixture
def store(made: Path, root: Path) -> Store:
    shutil.copytree(made, root)
    return open_store(root, write=True)


def test_a_store_has_the_dimension_of_each_of_its_points(store: Store) -> None:
    found = analyze_dimension(store, metrics=["stable_rank", "two_nn", "effective_rank_uncentred"])
    assert found.attrs["metrics"] == ["stable_rank", "two_nn", "effective_rank_uncentred"]
    for name, step, layer in (("run0", 0, 0), ("run1", 200, 1)):
        X = histories(runs=2, steps=3, width=10)[name][step][f"blocks[{layer}]"]
        at = found.sel(run=name, step=step, layer=f"blocks[{layer}]:output:mean")
        for metric, one in dimension_with_doubt(X, metrics=found.attrs["metrics"]).items():
            assert isinstance(one, Estimate)
            assert [float(at[metric + end]) for end in ("", "_low", "_high")] == pytest.approx(
                [one.value, *one.interval], rel=1e-9
            )
    assert float(found["stable_rank_null"][0, 0, 0]) == pytest.approx(dimension_null(40, 10)["stable_rank"])
    reasons = {(*row[:3], row[3]): row[4] for row in found.attrs["unavailable"]}
    assert "same activations" in reasons["run1", 100, "blocks[1]:output:mean", "stable_rank"]
    assert np.isnan(found["stable_rank"].sel(run="run1", step=100, layer="blocks[1]:output:mean"))
    assert found["effective_rank_uncentred"].notnull().all()


def test_each_point_is_measured_once_whatever_is_asked_for(store: Store) -> None:
    told: list[str] = []

    def advance(what: str, done: int, _: int) -> None:
        told.append(f"{what} {done}")

    analyze_dimension(store, metrics=["stable_rank"], advance=advance)
    assert len(told) == 6
    analyze_dimension(store, metrics=["participation_ratio"], choice=Choice(runs=["run0"]), advance=advance)
    assert len(told) == 6
    analyze_dimension(store, advance=advance)
    assert len(told) == 18


def test_a_reason_is_kept_with_the_numbers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first = analyze_dimension(store, metrics=["stable_rank"]).attrs["unavailable"]

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(analysis, "read_point", refuse)
    monkeypatch.setattr(analysis, "dimension_with_doubt", refuse)
    again = analyze_dimension(store, metrics=["participation_ratio", "stable_rank"]).attrs["unavailable"]
    assert [row for row in again if row[3] == "stable_rank"] == first
    X = histories(runs=2, steps=3, width=10)["run1"][100]["blocks[1]"]
    expected = dimension(np.ones_like(X), metrics=["participation_ratio"])["participation_ratio"]
    assert [row[4] for row in again if row[3] == "participation_ratio"] == [expected]


def test_the_command_prints_a_table_writes_all_steps_and_says_what_is_undefined(store: Store, tmp_path: Path) -> None:
    csv, png = tmp_path / "dimension.csv", tmp_path / "dimension.png"
    asked = (
        "--store",
        store.root,
        "analyze",
        "dimension",
        "--metric",
        "stable_rank",
        "--metric",
        "cumulative_energy",
        "--energy",
        "0.8",
    )
    done = run(*asked, "--csv", csv, "--plot", png)
    lines = done.stdout.splitlines()
    assert "independent features" in lines[-1]
    assert len([line for line in lines if line.startswith(("run0", "run1"))]) == 4
    assert "0 -> 200" in lines[2]
    assert "unavailable: run1, step 100, blocks[1]:output:mean, stable_rank: " in done.stderr
    header, *rows = csv.read_text().splitlines()
    assert header.startswith(
        "run,step,layer,stable_rank,stable_rank_low,stable_rank_high,stable_rank_null,cumulative_energy_80"
    )
    assert len(rows) == 11
    assert png.stat().st_size > 10_000
    told = json.loads(run(*asked, "--json").stdout)
    assert len(told["rows"]) == 11


def test_the_ranks_of_weights_have_a_table_of_their_own(store: Store, tmp_path: Path) -> None:
    asked = ("--store", store.root, "analyze", "dimension", "--weights")
    assert "replay ingest --weight-ranks" in run(*asked, code=1).stderr
    slices = select_layers(store, Choice(runs=["run0"])).histories["run0"].slices
    replays = {step: piece.replay for (step, _), piece in slices.items()}
    for step, replay in replays.items():
        ids = point_ids(store, [(replay, WEIGHTS), (replay, f"{WEIGHTS}:embed.weight")])
        numbers = [np.array([1.0]), np.array([8.0 - step / 100, 30, 12])]
        found = {(number, number): one for number, one in zip(ids.values(), numbers, strict=True)}
        put_measurements(store, canonical(RECIPE), found)
    csv, png = tmp_path / "weights.csv", tmp_path / "weights.png"
    done = run(*asked, "--csv", csv, "--plot", png)
    assert "run0  embed.weight  30 x 12  0 -> 200  8 -> 6" in done.stdout
    assert "left out: run1" in done.stderr
    rows = [f"run0,{step},embed.weight,{8 - step / 100}" for step in (0, 100, 200)]
    assert csv.read_text().splitlines() == ["run,step,tensor,stable_rank", *rows]
    assert png.stat().st_size > 10_000
    assert [row["stable_rank"] for row in json.loads(run(*asked, "--json").stdout)["rows"]] == [8, 7, 6]
    assert "leave out --metric" in run(*asked, "--metric", "two_nn", code=1).stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--metric", "stable_rnk"), "no metric of dimension 'stable_rnk'; did you mean 'stable_rank'?"),
        (("--energy", "0"), "above 0 and below 1, not 0.0"),
        (("--layers", "blocks[7]"), "blocks[7]"),
        (("--runs", "nothing"), "nothing"),
    ],
)
def test_a_wrong_question_is_one_line(store: Store, options: tuple[str, ...], says: str) -> None:
    done = run("--store", store.root, "analyze", "dimension", *options, code=1)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
