"""Refining: the interval that changes most is bisected, and what changes within its noise is left alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

import cli
from replay.analyses.selection import Choice, select_layers
from replay.analyses.series import Series
from replay.opening import open_store
from replay.refine import Refinement, coverage, find_gap
from store.errors import InvalidInput

STEPS = range(0, 170, 10)
JUMP = 100


def series(values: dict[int, float], *, run: str = "run", error: float | None = None) -> Series:
    steps = np.array(sorted(values), np.int64)
    ends = None if error is None else np.full(len(steps), error)
    return Series("rank", run, "blocks[0]", steps, np.array([values[step] for step in sorted(values)]), ends)


def test_the_interval_with_the_largest_change_per_unit_of_log_step_is_bisected_in_its_log_middle() -> None:
    gap = find_gap([series({0: 10.0, 9: 9.0, 99: 5.0, 999: 3.0})], {"run": range(1000)})
    assert gap is not None
    assert (gap.before, gap.after) == (9, 99)
    assert gap.middle == pytest.approx(np.expm1((np.log(10) + np.log(100)) / 2), abs=1)
    assert gap.rate == pytest.approx((4 / 7) / np.log(10))


def test_series_of_any_size_count_alike() -> None:
    small, large = {0: 1.0, 10: 1.5, 100: 2.0}, {0: 1e6, 10: 1e6, 100: 2e6}
    gap = find_gap([series(small), series(large)], {"run": range(101)})
    assert gap is not None
    assert gap.series.values[0] == 1e6


def test_a_change_within_two_standard_errors_is_left_alone() -> None:
    assert find_gap([series({0: 1.0, 100: 2.0}, error=0.36)], {"run": range(101)}) is None
    assert find_gap([series({0: 1.0, 100: 2.0}, error=0.35)], {"run": range(101)}) is not None


def test_a_change_within_three_precision_floors_is_left_alone() -> None:
    rows, steps = [series({0: 1.0, 100: 2.0})], {"run": range(101)}
    assert find_gap(rows, steps, floors={("rank", "run", "blocks[0]"): 0.34}) is None
    assert find_gap(rows, steps, floors={("rank", "run", "blocks[0]"): 0.33}) is not None


def test_an_interval_without_a_revision_inside_and_a_series_that_never_changes_are_passed_over() -> None:
    assert find_gap([series({0: 1.0, 10: 2.0})], {"run": [0, 10, 20]}) is None
    assert find_gap([series({0: 1.0, 100: 1.0})], {"run": range(101)}) is None
    undefined = series({0: 1.0, 50: float("nan"), 100: float("nan")})
    assert find_gap([undefined], {"run": range(101)}) is None


def test_a_series_of_all_runs_looks_for_a_step_that_all_have() -> None:
    gap = find_gap([series({0: 1.0, 100: 2.0}, run="")], {"one": [0, 9, 30, 100], "other": [0, 30, 100]})
    assert gap is not None
    assert gap.middle == 30


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 or more"):
        Refinement(budget=0)


@pytest.fixture
def collapsing(tmp_path: Path) -> Path:
    """Two runs of plain weights that stay as they are, but for one collapse to rank one, and what builds the model."""
    (tmp_path / "models.py").write_text(
        "from torch import nn\n\n\ndef make():\n    return nn.Sequential(nn.Linear(12, 12, bias=False), nn.ReLU())\n"
    )
    np.save(tmp_path / "probes.npy", np.random.default_rng(0).normal(size=(60, 12)).astype(np.float32))
    for seed in (1, 2):
        generator = torch.Generator().manual_seed(seed)
        wide = torch.randn(12, 12, generator=generator)
        flat = torch.outer(wide[0], wide[1]) + 0.05 * wide
        (tmp_path / f"seed{seed}").mkdir()
        for step in STEPS:
            weight = (flat if step >= JUMP else wide) + 1e-4 * torch.randn(12, 12, generator=generator)
            torch.save({"0.weight": weight}, tmp_path / f"seed{seed}" / f"model_step{step}.pt")
    return tmp_path


def invoke(folder: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["--store", str(folder / "store"), *arguments])


def ingest(folder: Path, revisions: str, *, seeds: tuple[int, ...] = (1,)) -> Result:
    runs = [argument for seed in seeds for argument in ("--path", str(folder / f"seed{seed}"))]
    model = ["--model", f"{folder}/models.py:make", "--probes", str(folder / "probes.npy"), "--layers", "*"]
    return invoke(folder, "ingest", *runs, *model, "--revisions", revisions)


def jumps(folder: Path) -> set[tuple[str, int, int]]:
    rows = json.loads(invoke(folder, "analyze", "jumps", "--json").stdout)["rows"]
    return {(row["metric"], row["start"], row["end"]) for row in rows}


def test_half_of_the_revisions_give_the_jumps_of_the_full_grid(collapsing: Path) -> None:
    assert ingest(collapsing, "model_step0,model_step160").exit_code == 0
    result = invoke(collapsing, "refine", "--budget", "9")
    assert result.exit_code == 0, result.output
    store = open_store(collapsing / "store")
    for run, history in select_layers(store, Choice()).histories.items():
        steps = history.steps({layer for _, layer in history.slices})
        assert {JUMP - 10, JUMP} <= set(steps), run
        assert len(steps) <= len(STEPS) // 2, run
    assert coverage(store, Choice()) == {"seed1": (8, 17)}
    assert "no interval is left" in result.output
    again = invoke(collapsing, "refine", "--budget", "9")
    assert again.exit_code == 0
    assert "ingested" not in again.output
    half = jumps(collapsing)
    assert half == {("stable_rank", JUMP - 10, JUMP), ("participation_ratio", JUMP - 10, JUMP)}
    assert ingest(collapsing, "all").exit_code == 0
    assert jumps(collapsing) == half


def test_the_budget_ends_it_and_the_same_command_goes_on(collapsing: Path) -> None:
    assert ingest(collapsing, "model_step0,model_step160").exit_code == 0
    first = invoke(collapsing, "refine", "--budget", "1")
    assert "the budget of 1 is spent" in first.output
    assert open_store(collapsing / "store").results().empty  # what was looked at in passing is nobody's result
    assert coverage(open_store(collapsing / "store"), Choice())["seed1"] == (3, 17)
    assert invoke(collapsing, "refine", "--budget", "1").exit_code == 0
    assert coverage(open_store(collapsing / "store"), Choice())["seed1"] == (4, 17)


def test_a_checkpoint_that_cannot_be_had_is_named_and_the_rest_goes_on(collapsing: Path) -> None:
    assert ingest(collapsing, "model_step0,model_step160", seeds=(1, 2)).exit_code == 0
    broken = collapsing / "seed1" / "model_step10.pt"
    broken.write_bytes(broken.read_bytes()[:300])
    result = invoke(collapsing, "refine", "--budget", "2")
    assert result.exit_code == 1
    assert "failed: seed1 model_step10" in result.output
    assert coverage(open_store(collapsing / "store"), Choice()) == {"seed1": (3, 17), "seed2": (4, 17)}


def test_a_model_that_was_changed_since_is_not_mixed_in(collapsing: Path) -> None:
    assert ingest(collapsing, "model_step0,model_step160").exit_code == 0
    models = collapsing / "models.py"
    models.write_text(models.read_text().replace("ReLU", "Tanh"))
    result = invoke(collapsing, "refine")
    assert result.exit_code == 1
    assert "was ingested with another model" in result.output
    assert coverage(open_store(collapsing / "store"), Choice())["seed1"] == (2, 17)


def test_one_checkpoint_or_an_unknown_metric_ends_in_one_line(collapsing: Path) -> None:
    assert ingest(collapsing, "model_step0").exit_code == 0
    alone = invoke(collapsing, "refine")
    assert alone.exit_code == 1
    assert "one checkpoint" in alone.output
    assert ingest(collapsing, "model_step160").exit_code == 0
    unknown = invoke(collapsing, "refine", "--metric", "stable_ranc")
    assert unknown.exit_code == 1
    assert "stable_rank" in unknown.output
    assert len(unknown.output.splitlines()) == 1
