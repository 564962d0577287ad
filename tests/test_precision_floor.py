"""The precision floor: weights moved within their rounding, replayed once more, and what that does to a metric."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from runs import tokenizer, write_model
from safetensors.torch import load_file, save_file
from sqlalchemy import select

import cli
from replay.analyses.dimension import analyze_dimension
from replay.analyses.floors import precision_floor
from replay.analyses.selection import Choice
from replay.capture import replay_probes
from replay.geometry.dimension import dimension
from replay.layers import expand_layers
from replay.models import load_model
from replay.opening import open_store
from replay.plan import IngestRequest
from replay.probes import Probe, ProbeSet
from replay.rounding import SEED, move_within_rounding, moved_dtype
from store.catalog import Store
from store.errors import InvalidInput
from store.schema import Activation, Replay
from store.segments import segment_path

HALVES = [torch.float16, torch.bfloat16]


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def move(values: torch.Tensor, seed: int = 0) -> torch.Tensor:
    return move_within_rounding({"W": values}, seed)["W"]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_value_of_a_half_stays_among_the_numbers_that_round_to_it(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    moved, finite = move(every), every.isfinite()
    # a draw may fall on the very tie between two values, which rounds to the even one
    up, down = (torch.nextafter(moved, torch.full_like(moved, end)).to(dtype) for end in (torch.inf, -torch.inf))
    assert ((moved.to(dtype) == every) | (up == every) | (down == every))[finite].all()
    assert (moved != every.float())[finite].float().mean() > 0.99
    assert moved.dtype == torch.float32
    np.testing.assert_array_equal(moved[~finite], every.float()[~finite])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(("value", "low", "high"), [(1.5, -0.5, 0.5), (2.0, -0.25, 0.5), (-1.0, -0.5, 0.25)])
def test_the_move_of_a_half_is_uniform_over_its_rounding(
    dtype: torch.dtype, value: float, low: float, high: float
) -> None:
    unit = torch.finfo(dtype).eps * (2 if value == 2 else 1)
    moves = ((move(torch.full((100_000,), value, dtype=dtype)) - value) / unit).double()
    assert float(moves.min()) == pytest.approx(low, abs=1e-3)
    assert float(moves.max()) == pytest.approx(high, abs=1e-3)
    for share in (0.25, 0.5, 0.75):
        side = low if share < 0.5 else high  # each side has half of the draws
        expected = 0.0 if share == 0.5 else side / 2
        assert float(moves.quantile(share)) == pytest.approx(expected, abs=5e-3)


def test_zero_moves_by_less_than_the_smallest_half() -> None:
    moved = move(torch.zeros(1000, dtype=torch.float16))
    assert 0 < float(moved.abs().max()) <= torch.finfo(torch.float16).smallest_normal * 2**-11


def test_single_precision_moves_to_a_neighbour_with_the_variance_of_a_twelfth() -> None:
    values = torch.from_numpy(np.random.default_rng(0).uniform(1, 2, 300_000)).float()
    units = (move(values).double() - values.double()) / 2**-23
    assert set(units.tolist()) == {-1.0, 0.0, 1.0}
    assert float(units.var()) == pytest.approx(1 / 12, rel=0.03)
    assert float(units.mean()) == pytest.approx(0, abs=2e-3)


def test_integers_nan_and_infinities_stay() -> None:
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf])
    moved = move_within_rounding({"n": torch.arange(4), "half": odd.half(), "single": odd}, 0)
    np.testing.assert_array_equal(moved["n"], torch.arange(4))
    for name in ("half", "single"):
        np.testing.assert_array_equal(moved[name], odd)


def test_a_move_hangs_on_seed_and_name_and_on_nothing_else_that_is_moved() -> None:
    W = torch.ones(50, dtype=torch.float16)
    alone, beside = move_within_rounding({"b": W}, 1)["b"], move_within_rounding({"a": W, "c": W, "b": W}, 1)
    np.testing.assert_array_equal(alone, beside["b"])
    assert (beside["a"] != beside["b"]).any()
    assert (move_within_rounding({"b": W}, 2)["b"] != alone).any()


def halve(folder: Path) -> Path:
    """Store the weights of a checkpoint as float16."""
    file = folder / "model.safetensors"
    weights = {name: W.half() for name, W in load_file(file).items()}
    file.unlink()
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of float16 checkpoints."""
    root = tmp_path_factory.mktemp("halves")
    for seed in (1, 2):
        for step in (0, 1, 2, 4):
            halve(write_model(root / f"seed{seed}" / f"step{step}", seed=seed, step=step))
    return root


@pytest.fixture(scope="module")
def floored(tmp_path_factory: pytest.TempPathFactory, runs: Path, probe_file: Path) -> Path:
    """A store of both, with a floor of one."""
    root = tmp_path_factory.mktemp("floored") / "store"
    for seed, more in ((1, ["--floor", 2]), (2, [])):
        run("--store", root, "ingest", "--path", runs / f"seed{seed}", "--probes", probe_file, "--revisions", "all",
            "--layers", "embed", "--layers", "blocks[-1]", *more)  # fmt: skip
    return root


def moved_weights(root: Path) -> set[str]:
    with Store(root).index.read() as session:
        return set(session.scalars(select(Replay.weights).where(Replay.dtype == moved_dtype("float32"))))


def test_a_floor_of_two_replays_the_first_and_the_last_checkpoint_once_more(floored: Path) -> None:
    table = Store(floored).revisions("seed1").set_index("revision")["weights"]
    assert moved_weights(floored) == {table["step0"], table["step4"]}


def test_no_listing_and_no_analysis_takes_a_moved_replay_for_a_checkpoint(floored: Path) -> None:
    store = Store(floored)
    assert [info.dtype for info in store.captures("seed1")] == ["float32"]
    for name in ("layers", "revisions"):
        one, other = (getattr(store, name)(f"seed{seed}") for seed in (1, 2))
        columns = [c for c in one.columns if c not in ("commit", "weights")]
        assert one[columns].equals(other[columns])
    assert store.runs()["replayed"].tolist() == [4, 4]
    assert store.activations("seed1").sizes["revision"] == 4


def test_the_floor_is_the_root_mean_square_change_of_a_metric_under_one_move(
    floored: Path, runs: Path, probe_file: Path
) -> None:
    found = precision_floor(open_store(floored, write=True), Choice(runs=["seed1"]), ("stable_rank", "two_nn"))
    texts = [json.loads(line)["text"] for line in probe_file.read_text().splitlines()]
    ids = [tokenizer()(text)["input_ids"][:64] for text in texts]
    changes: dict[tuple[str, str], list[float]] = {}
    for step in (0, 4):
        folder = runs / "seed1" / f"step{step}"
        measured = []
        for rounding in (None, SEED):
            model = load_model(folder, rounding=rounding)
            layers = expand_layers(model, ["embed", "blocks[-1]"])
            values = replay_probes(model, ids, layers)
            measured.append({layer: dimension(X, metrics=("stable_rank", "two_nn")) for layer, X in values.items()})
        for layer, plain in measured[0].items():
            for name, value in plain.items():
                changes.setdefault((name, layer), []).append(float(measured[1][layer][name]) - float(value))
    assert set(found) == {(name, "seed1", layer) for name, layer in changes}
    for (name, layer), change in changes.items():
        expected = np.sqrt(np.mean(np.square(change)))
        assert expected > 0
        assert found[name, "seed1", layer] == pytest.approx(expected, rel=1e-3)


def test_a_run_without_moved_replays_has_no_floor(floored: Path) -> None:
    store = open_store(floored, write=True)
    assert precision_floor(store, Choice(runs=["seed2"])) == {}
    assert {run for _, run, _ in precision_floor(store, Choice(), ("stable_rank",))} == {"seed1"}
    assert precision_floor(store, Choice(), ("no metric of a dimension",)) == {}


def test_the_floor_of_half_precision_is_far_below_what_training_does(floored: Path) -> None:
    store = open_store(floored, write=True)
    floor = precision_floor(store, Choice(runs=["seed1"]), ("stable_rank",))
    ranks = analyze_dimension(store, choice=Choice(runs=["seed1"]), metrics=["stable_rank"])["stable_rank"].sel(
        run="seed1"
    )
    for layer in ranks["layer"].values:
        assert 0 < floor["stable_rank", "seed1", layer] < 0.1 * float(abs(ranks.sel(layer=layer).diff("step")).max())


def test_the_same_command_again_does_nothing_and_a_lost_moved_replay_is_made_again(
    runs: Path, probe_file: Path, tmp_path: Path
) -> None:
    what = ["--store", tmp_path / "s", "ingest", "--path", runs / "seed2", "--probes", probe_file, "--revisions",
            "step0,step1", "--layers", "embed", "--floor", 1]  # fmt: skip
    run(*what)
    store = Store(tmp_path / "s")
    assert moved_weights(store.root) == {store.revisions("seed2").set_index("revision")["weights"]["step1"]}
    assert "0 checkpoints replayed, 2 already there" in run(*what).stdout
    with store.index.read() as session:
        segment = session.scalar(
            select(Activation.segment)
            .join(Replay, Replay.key == Activation.replay)
            .where(Replay.dtype == moved_dtype("float32"))
        )
    assert segment is not None
    segment_path(store.root, segment).rename(tmp_path / "lost")
    assert "1 checkpoints replayed, 1 already there" in run(*what).stdout
    assert segment_path(store.root, segment).is_dir()


def test_layers_added_later_come_from_the_same_moved_weights(runs: Path) -> None:
    folder = runs / "seed1" / "step2"
    layers = expand_layers(load_model(folder), ["embed"])
    some, whole = load_model(folder, layers=layers, rounding=SEED), load_model(folder, rounding=SEED)
    np.testing.assert_array_equal(some.get_input_embeddings().weight, whole.get_input_embeddings().weight)


def test_a_floor_is_refused_where_it_would_mean_nothing() -> None:
    texts = ProbeSet("texts", (Probe("a"), Probe("b"), Probe("c")))
    with pytest.raises(InvalidInput, match="at bfloat16 rounds more than the stored weights"):
        IngestRequest(probes=texts, floor=2, dtype="bfloat16")
    with pytest.raises(InvalidInput, match="floor is -1: expected 0 or the number"):
        IngestRequest(probes=texts, floor=-1)
    with pytest.raises(InvalidInput, match="leave --partial out"):
        IngestRequest(probes=texts, floor=1, partial=True)
