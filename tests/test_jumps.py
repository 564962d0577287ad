"""Jumps: planted ones are found once, at their step; noise, walks, drifts, rounding and constants have none."""

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result
from synthetic import Histories, write_store
from test_analysis import run

from replay.analyses.jumps import COUNTED, _paired_error, analyze_jumps, find_jumps
from replay.analyses.selection import Choice, select_layers
from replay.analyses.series import Series, read_series
from replay.geometry.jumps import FEWEST_POINTS, Change, _joined, detect_jumps
from replay.geometry.planted import FIXTURES, MEDIUM, SHORT, Planted, plant, score
from replay.geometry.rolling_z import rolling_z_jumps
from replay.geometry.statistics import probe_groups
from store.errors import InvalidInput, Unavailable

NONE: dict[tuple[str, str, str], float] = {}

COLLAPSE = [47.0, 47.0, 47.0, 47.0, 47.0, 39.4, 6.5, 1.6, 1.4, 1.4, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2, 1.2]
"""Stable rank of an input embedding at the steps of `SHORT`."""


def noisy_step(n: int = 200, place: int = 120, size: float = 8.0, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(n)
    values[place:] += size
    return values


def detector(steps: np.ndarray, values: np.ndarray) -> list[int]:
    return [change.end for change in detect_jumps(steps, values).changes if change.kind != "single checkpoint"]


def series(values: np.ndarray, *, metric: str = "m", error: np.ndarray | None = None) -> Series:
    return Series(metric, "r", "l", np.arange(len(values)) * 10, values, error)


def test_one_step_is_one_jump_at_its_place_with_its_levels() -> None:
    found = detect_jumps(np.arange(200), noisy_step()).changes
    assert [(change.kind, change.start, change.end) for change in found] == [("jump", 119, 120)]
    assert found[0].before == pytest.approx(0, abs=1)
    assert found[0].after == pytest.approx(8, abs=1)
    assert found[0].effect == pytest.approx(8 / np.sqrt(2), rel=0.25)  # a difference of two values of unit variance
    assert found[0].p < 0.001


def test_a_collapse_over_several_checkpoints_is_one_jump_and_what_goes_before_and_after_is_none() -> None:
    found = detect_jumps(SHORT, COLLAPSE).changes
    assert [(SHORT[change.start], SHORT[change.end]) for change in found] == [(8, 64)]
    assert (found[0].before, found[0].after) == pytest.approx((47, 1.6))


def test_two_jumps_are_told_with_the_levels_that_the_series_has() -> None:
    y = noisy_step(400, 150, 10.0)
    y[280:] += 12
    found = detect_jumps(np.arange(400), y).changes
    assert [(change.start, change.end) for change in found] == [(149, 150), (279, 280)]
    levels = [level for change in found for level in (change.before, change.after)]
    assert levels == pytest.approx([0, 10, 10, 22], abs=1.2)


def test_a_fall_that_goes_on_in_uneven_steps_is_one_jump_from_its_first_value_to_its_last() -> None:
    values = 0.01 * np.random.default_rng(0).standard_normal(40)
    values += np.repeat([20.0, 12.0, 11.0, 4.0], [20, 1, 1, 18])
    found = detect_jumps(np.arange(40), values).changes
    assert [(change.start, change.end) for change in found] == [(19, 22)]
    assert (found[0].before, found[0].after) == pytest.approx((20, 4), abs=0.1)


def test_changes_that_go_on_from_one_another_the_same_way_are_one_and_others_stay() -> None:
    fall, further = Change("jump", 3, 5, 9.0, 4.0, -5.0, 0.01), Change("edge", 5, 7, 4.0, 1.0, -3.0, 0.02)
    rise = further._replace(before=4.0, after=6.0, effect=2.0)
    assert _joined([further, fall]) == [Change("edge", 3, 7, 9.0, 1.0, -8.0, 0.01)]
    assert _joined([fall, rise]) == [fall, rise]
    assert _joined([fall, further._replace(start=6)]) == [fall, further._replace(start=6)]


def test_a_change_of_units_or_of_direction_changes_no_place_and_no_p() -> None:
    y = noisy_step(seed=3)
    plain = detect_jumps(np.arange(200), y)
    for changed in (-5 * y + 1000, 1e-3 * y):
        other = detect_jumps(np.arange(200), changed)
        assert [change[:3] for change in other.changes] == [change[:3] for change in plain.changes]
        assert other.p == pytest.approx(plain.p)
    scaled = detect_jumps(1000 * np.arange(200), y)
    assert [change[:3] for change in scaled.changes] == [change[:3] for change in plain.changes]
    assert scaled.p == pytest.approx(plain.p)


def test_a_steady_drift_added_to_a_series_changes_nothing() -> None:
    y = noisy_step(seed=4)
    plain = detect_jumps(np.arange(200), y).changes
    drifting = detect_jumps(np.arange(200), y + 0.7 * np.arange(200)).changes
    assert [(change.start, change.end) for change in drifting] == [(change.start, change.end) for change in plain]


@pytest.mark.parametrize("name", ["step", "log step"])
def test_a_smooth_drift_on_a_log_grid_then_even_is_no_jump_in_either_clock(name: str) -> None:
    steps = np.array(MEDIUM)
    clock = steps / steps[-1] if name == "step" else np.log1p(steps)
    rng = np.random.default_rng(0)
    assert detect_jumps(steps, 3 * clock + 0.01 * rng.standard_normal(len(steps))).changes == []


def test_a_change_after_a_constant_stretch_is_found_once_and_a_constant_has_none() -> None:
    values = np.where(np.arange(60) < 40, 5.0, 7.0)
    found = detect_jumps(np.arange(60), values).changes
    assert [(change.start, change.end, change.before, change.after) for change in found] == [(39, 40, 5.0, 7.0)]
    assert np.isfinite(found[0].effect)
    assert detect_jumps(np.arange(60), np.full(60, 5.0)) == ([], 1.0)


def test_differences_at_the_precision_of_the_activations_are_no_jump() -> None:
    values = np.full(60, 5.0)
    values[40:] += 5e-7
    assert detect_jumps(np.arange(60), values).changes == []


def test_a_counted_value_that_often_moves_by_one_has_no_jump_until_it_moves_by_many() -> None:
    rng = np.random.default_rng(0)
    counts = np.cumsum((rng.random(400) < 0.1) * rng.choice([-1, 1], 400))
    assert detect_jumps(np.arange(400), counts).changes == []
    counts[200:] += 25
    assert detector(np.arange(400), counts) == [200]


def test_one_count_more_or_less_is_no_jump_where_values_are_counts_and_many_are() -> None:
    steps, counts = np.arange(18) * 100, np.array([20] * 7 + [21] + [20] * 6 + [19] * 4)
    assert len(detect_jumps(steps, counts).changes) == 2  # as real numbers, one jump and one that returns
    assert detect_jumps(steps, counts, resolution=1).changes == []
    counts[14:] += 30
    (found,) = detect_jumps(steps, counts, resolution=1).changes
    assert (found.kind, found.start, found.end) == ("jump", 13, 14)
    named = [Series(name, "r", "l", steps, np.array([20.0] * 14 + [19.0] * 4), None) for name in ("m", COUNTED + "_90")]
    assert [jump.metric for jump in find_jumps(named, NONE)[0]] == ["m"]


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("walking", [False, True])
@pytest.mark.parametrize("n", [18, 30])
def test_of_short_noise_and_walks_that_shrink_or_grow_tenfold_few_have_a_change(
    n: int, walking: bool, rising: bool
) -> None:
    moves = np.random.default_rng(5).standard_normal((60, n)) * np.geomspace(1, 0.1, n)[:: -1 if rising else 1]
    made = np.cumsum(moves, axis=1) if walking else moves
    assert sum(bool(detect_jumps(np.arange(n) * 100, values).changes) for values in made) <= 4
    made[:, n // 2 :] += 20 * np.abs(np.diff(made, axis=1)).max(axis=1, keepdims=True)
    assert sum(n // 2 in detector(np.arange(n) * 100, values) for values in made) >= 54


def test_one_checkpoint_that_departs_and_returns_is_told_as_such() -> None:
    values = np.random.default_rng(1).standard_normal(100)
    values[50] += 20
    found = detect_jumps(np.arange(100), values).changes
    assert [(change.kind, change.start, change.end) for change in found] == [("single checkpoint", 49, 50)]


def test_the_faulty_embeddings_of_pythia_12b_depart_and_are_no_jumps() -> None:
    # Median row norms as published, from 1.52 down to 1.30 at the end; the two copies of the last weights stand out.
    steps = np.arange(40_000, 70_000, 1000)
    norms = np.interp(
        steps, [40_000, 49_000, 51_000, 57_000, 59_000, 70_000], [1.535, 1.5169, 1.5132, 1.5003, 1.4952, 1.47]
    )
    norms += 1e-4 * np.random.default_rng(0).standard_normal(len(steps))
    norms[np.isin(steps, (50_000, 58_000))] = 1.3056
    found = detect_jumps(steps, norms).changes
    assert [(change.kind, int(steps[change.end])) for change in found] == [
        ("single checkpoint", 50_000),
        ("single checkpoint", 58_000),
    ]


def test_a_change_that_only_the_last_checkpoint_shows_is_at_the_edge() -> None:
    values = np.random.default_rng(0).standard_normal(60)
    values[-1] += 15
    found = detect_jumps(np.arange(60), values).changes
    assert [(change.kind, change.end) for change in found] == [("edge", 59)]


@pytest.mark.parametrize("memory", [0.0, 0.8, 1.0])
def test_of_noise_with_any_memory_about_a_twentieth_or_fewer_has_a_p_below_a_twentieth(memory: float) -> None:
    rng = np.random.default_rng(0)
    small = 0
    for _ in range(80):
        y = rng.standard_normal(60)
        for i in range(1, 60):
            y[i] += memory * y[i - 1]
        small += detect_jumps(np.arange(60), y).p <= 0.05
    assert small <= 9  # of 80: a rate of 5 % exceeds this once in a hundred times


@pytest.mark.parametrize("kind", FIXTURES)
def test_planted_jumps_are_found_and_what_has_none_is_left_alone(kind: str) -> None:
    made = [plant(kind, seed=seed) for seed in range(3)]
    found = score(detector, made)
    assert found.false_per_1000 <= 0.5
    if found.n_jumps:
        assert found.n_found >= found.n_jumps - 2
        assert np.mean(found.errors) <= 1


def test_the_rolling_rule_finds_false_ones_in_noise_and_walks_as_it_is_known_to() -> None:
    noise, walks = (
        score(lambda _, v: rolling_z_jumps(v), [plant(kind, seed=s) for s in range(5)])
        for kind in ("noise", "random walk")
    )
    assert 3 < noise.false_per_1000 < 8
    assert 14 < walks.false_per_1000 < 30
    assert (
        rolling_z_jumps(np.where(np.arange(60) < 40, 5.0, 7.0))[0] == 41
    )  # the first value after the constant is missed


def test_a_planted_jump_is_matched_once_and_a_second_report_is_false() -> None:
    one = Planted(np.arange(100), np.zeros(100), (50,), tolerance=5)
    found = score(lambda *_: [48, 51, 80], [one])
    assert (found.n_found, found.n_false, found.errors, found.recall) == (1, 2, [1], 1.0)
    assert found.false_per_1000 == 20
    with pytest.raises(InvalidInput, match="one series or more"):
        score(detector, [])
    with pytest.raises(InvalidInput, match="there is one step"):
        plant("step", seed=0)


def test_a_series_that_is_too_short_or_malformed_is_refused_with_the_reason() -> None:
    with pytest.raises(Unavailable, match=f"{FEWEST_POINTS} checkpoints or more, and there are 3"):
        detect_jumps([0, 1, 2], [1.0, 2.0, 3.0])
    for steps, values in (([0, 1, 1], [1, 2, 3]), ([0, 1, 2], [1, np.nan, 3]), ([0, 1], [1, 2, 3])):
        with pytest.raises(InvalidInput, match="ascending steps and a finite value"):
            detect_jumps(steps, values)


def test_the_step_of_a_jump_is_the_training_step_also_where_values_are_missing() -> None:
    values = noisy_step()
    values[[3, 70]] = np.nan
    jumps, _, _ = find_jumps([series(values)], NONE)
    assert [(jump.start, jump.end) for jump in jumps] == [(1190, 1200)]


def test_q_grows_with_the_number_of_series_and_is_that_of_benjamini_and_hochberg() -> None:
    quiet = [series(np.random.default_rng(seed).standard_normal(60), metric=f"m{seed}") for seed in range(19)]
    (alone,), _, _ = find_jumps([series(noisy_step(60, 30))], NONE)
    (among,), _, _ = find_jumps([series(noisy_step(60, 30)), *quiet], NONE)
    assert alone.q == pytest.approx(alone.p)
    assert among.q == pytest.approx(20 * among.p)


def test_a_change_within_the_floor_of_the_weights_or_the_doubt_over_probes_is_not_reported_but_named() -> None:
    values = noisy_step()
    place = ("m", "r", "l")
    for size, n_jumps in ((2.0, 1), (4.0, 0)):  # three floors of it
        jumps, within, _ = find_jumps([series(values)], {place: size})
        assert len(jumps) == n_jumps
        assert len(within) == 1 - n_jumps
    assert within[0][:3] == ["r", "l", "m"]
    assert "3 precision floors" in within[0][-1]
    for error, n_jumps in ((2.0, 1), (4.0, 0)):  # two times √2 of it
        jumps, within, _ = find_jumps([series(values, error=np.full(200, error))], NONE)
        assert len(jumps) == n_jumps
    assert "2 standard errors over probes" in within[0][-1]


def ask(root: Path, *arguments: object, code: int = 0) -> Result:
    return run("--store", root, "analyze", "jumps", *arguments, code=code)


def collapsing(*, seed: int = 0, n_steps: int = 12) -> Histories:
    """Activations of one run whose first block loses all dimensions but one between steps 700 and 800."""
    rng = np.random.default_rng(seed)
    base, noise = rng.standard_normal((40, 12)), rng.standard_normal((n_steps, 2, 40, 12))
    scale = np.array([1.0] + [0.05] * 11)
    made: Histories = {"run0": {}}
    for number in range(n_steps):
        X = base + 0.02 * noise[number]
        made["run0"][number * 100] = {
            "blocks[0]": (X[0] * (scale if number >= 8 else 1)).astype(np.float32),
            "blocks[1]": X[1].astype(np.float32),
        }
    return made


def test_the_command_names_the_run_layer_and_step_of_a_collapse_and_keeps_the_result(root: Path) -> None:
    store = write_store(root, collapsing())
    result = analyze_jumps(store, metrics=["stable_rank"])
    assert result.sizes["event"] == 1
    event = result.isel(event=0)
    assert [str(event[name].values) for name in ("metric", "run", "layer", "kind")] == [
        "stable_rank", "run0", "blocks[0]:output:mean", "jump",
    ]  # fmt: skip
    assert (int(event["start"]), int(event["end"])) == (700, 800)
    X = collapsing()["run0"][800]["blocks[0]"].astype(float)
    s = np.linalg.svd(X - X.mean(axis=0), compute_uv=False)
    assert float(event["after"]) == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-6)
    printed = json.loads(ask(root, "--metric", "stable_rank", "--json").stdout)
    assert [(row["start"], row["end"]) for row in printed["rows"]] == [(700, 800)]
    assert "no floor measured for run0" in ask(root, "--metric", "stable_rank").stderr


def test_a_change_that_all_probes_share_is_reported_though_both_its_ends_are_in_doubt(root: Path) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal((40, 12)) * np.exp(rng.standard_normal((40, 1)))  # the noise of all checkpoints
    made: Histories = {"run0": {}}
    for number in range(12):
        X = base * (np.linspace(1, 0.3, 12) if number < 8 else np.linspace(1, 0.2, 12))
        made["run0"][number * 100] = {"blocks[0]": (X + 1e-4 * rng.standard_normal(X.shape)).astype(np.float32)}
    store = write_store(root, made)
    found = read_series(store, ["participation_ratio"])
    jumps, ((*_, reason),), _ = find_jumps(found, NONE)
    assert jumps == []
    assert "2 standard errors over probes" in reason
    result = analyze_jumps(store, metrics=["participation_ratio"])
    assert [*zip(result["start"].values, result["end"].values, strict=True)] == [(700, 800)]

    def ratio(X: np.ndarray) -> float:
        powers = np.linalg.svd(X - X.mean(axis=0), compute_uv=False) ** 2
        return float(powers.sum() ** 2 / (powers**2).sum())

    groups, ends = probe_groups(40, n_groups=15), [made["run0"][step]["blocks[0]"].astype(float) for step in (700, 800)]
    parts = [ratio(ends[1][groups != group]) - ratio(ends[0][groups != group]) for group in range(15)]
    error = _paired_error(store, select_layers(store, Choice()), found[0], 700, 800)
    assert error == pytest.approx(np.sqrt(14) * np.std(parts), rel=1e-4)


def test_values_that_are_undefined_are_left_out_by_name(root: Path) -> None:
    made = collapsing()
    made["run0"][300]["blocks[1]"][:] = 1
    result = analyze_jumps(write_store(root, made), metrics=["stable_rank"])
    assert result.attrs["unavailable"] == [
        ["run0", "blocks[1]:output:mean", "stable_rank", "undefined at step 300: left out"]
    ]


def test_a_store_without_jumps_gives_an_empty_table_and_a_figure(root: Path, tmp_path: Path) -> None:
    store = write_store(root, collapsing())
    result = analyze_jumps(store, choice=Choice(layers=["blocks[1]"]), metrics=["stable_rank"])
    assert result.sizes["event"] == 0
    csv, plot = tmp_path / "jumps.csv", tmp_path / "jumps.png"
    printed = ask(root, "--layers", "blocks[1]", "--metric", "stable_rank", "--csv", csv, "--plot", plot)
    assert "0 changes in 1 series" in printed.stdout
    assert csv.read_text().strip().startswith("metric,run,layer,kind,start,end")
    assert plot.stat().st_size > 1000


def test_one_checkpoint_and_a_wrong_metric_end_in_one_line(root: Path) -> None:
    write_store(root, {"run0": {0: collapsing()["run0"][0]}})
    alone = ask(root, code=1)
    assert "8 checkpoints or more, and there are 1" in alone.stderr
    wrong = ask(root, "--metric", "stable_rnk", code=1)
    assert "no series 'stable_rnk' over training; there is stable_rank," in wrong.stderr
    assert len(wrong.stderr.strip().splitlines()) == 1
