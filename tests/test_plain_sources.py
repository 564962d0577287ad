"""Plain weight files as revisions: their names, steps and digests, and how they come into a model."""

import argparse
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from replay.factories import ModelFactory, read_factory
from replay.listing import describe_revisions, list_run
from replay.models import load_model, read_weights
from replay.opening import open_store
from replay.sources import open_sources
from replay.sources.plain import PlainSource
from replay.state_dicts import digest_tensors, fit_weights, read_plain
from store.catalog import Store
from store.commits import RevisionRecord, get_revisions, put_run
from store.errors import DamagedWeights, InvalidInput, MismatchedWeights, UnknownSource

SOURCE = """
from torch import nn
def make(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
def make_wide(): return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
def make_deep(): return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Linear(4, 2))
"""
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "models.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture(scope="module")
def factory(models: Path) -> ModelFactory:
    return read_factory(f"{models}:make")


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root, write=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def state(seed: int) -> State:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return dict(model.state_dict())


def renamed(weights: State, prefix: str) -> State:
    return {prefix + name: value for name, value in weights.items()}


def lightning(seed: int, step: int, **more: Any) -> dict[str, Any]:
    """Return what Lightning's ModelCheckpoint keeps."""
    return {
        "epoch": step // 10,
        "global_step": step,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": renamed(state(seed), "net."),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 1}}}},
        "callbacks": {"ModelCheckpoint": {"kth_value": torch.tensor(torch.inf), "dirpath": "checkpoints"}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-3}]}],
        "hyper_parameters": {"lr": 2e-3},
        **more,
    }


def listed(folder: Path, store: Store, factory: ModelFactory, **options: Any) -> list[RevisionRecord]:
    source = PlainSource(folder, factory=factory, index=store.index, **options)
    return [source.describe(record) for record in source.list_revisions()]


def test_files_are_revisions_in_order_of_their_steps(folder: Path, store: Store, factory: ModelFactory) -> None:
    for step in (512, 8, 64):
        torch.save(state(step), folder / f"model_step{step}.pt")
    records = listed(folder, store, factory)
    assert [(record.name, record.step) for record in records] == [
        ("model_step8", 8),
        ("model_step64", 64),
        ("model_step512", 512),
    ]
    assert {record.config for record in records} == {factory.digest}
    assert len({record.weights for record in records}) == 3
    assert {(record.error, record.tokenizer) for record in records} == {(None, None)}
    assert records[0].files == {"model_step8.pt": [digest_tensors(state(8)), records[0].n_bytes]}


def test_lightning_says_its_steps_itself_and_its_last_checkpoint_is_another_name(
    folder: Path, store: Store, factory: ModelFactory
) -> None:
    (folder / "checkpoints").mkdir()
    for epoch, step in ((9, 90), (11, 110), (1, 10)):
        torch.save(lightning(step, step), folder / "checkpoints" / f"epoch={epoch}-step={step}.ckpt")
    torch.save(lightning(110, 110, callbacks={}), folder / "checkpoints" / "last.ckpt")
    records = listed(folder, store, factory)
    assert [(record.step, record.epoch) for record in records] == [(10, 1), (90, 9), (110, 11), (110, 11)]
    assert {record.name for record in records[2:]} == {"epoch=11-step=110", "last"}
    assert records[2].weights == records[3].weights
    assert records[1].weights != records[2].weights


@pytest.mark.parametrize("table", ["state_dict", "model_state_dict", "model", "module"])
@pytest.mark.parametrize("count", ["global_step", "step", "iteration"])
def test_the_step_in_a_file_beats_the_one_in_its_name(
    folder: Path, store: Store, factory: ModelFactory, table: str, count: str
) -> None:
    saved = {table: state(1), count: 70, "epoch": 3, "optimizer": {"state": {}}, "ema": state(2), "note": "text"}
    torch.save(saved, folder / "step_7.pth")
    (record,) = listed(folder, store, factory)
    assert (record.step, record.epoch) == (70, 3)
    torch.save({table: state(1)}, folder / "step_7.pth")
    (unnumbered,) = listed(folder, store, factory)
    assert (unnumbered.step, unnumbered.epoch) == (7, None)
    assert unnumbered.weights == record.weights


def test_step_folders_of_a_trainer_hold_one_file_each(folder: Path, store: Store, factory: ModelFactory) -> None:
    for step in (500, 60):
        (folder / f"checkpoint-{step}").mkdir()
        save_file(state(step), folder / f"checkpoint-{step}" / "model.safetensors")
        torch.save({"state": {}}, folder / f"checkpoint-{step}" / "optimizer.pt")
    (folder / "checkpoint-60" / "trainer_state.json").write_text('{"global_step": 61, "epoch": 0.5}')
    records = listed(folder, store, factory)
    assert [(record.name, record.step, record.epoch) for record in records] == [
        ("checkpoint-60", 61, 0.5),
        ("checkpoint-500", 500, None),
    ]
    assert [list(record.files) for record in records] == [["model.safetensors"]] * 2


def test_the_same_tensors_in_another_format_are_the_same_weights(
    folder: Path, store: Store, factory: ModelFactory
) -> None:
    torch.save(state(1), folder / "step1.pt")
    save_file(state(1), folder / "step1.safetensors")
    torch.save(state(1), folder / "step2.bin", _use_new_zipfile_serialization=False)
    records = listed(folder, store, factory)
    assert [record.name for record in records] == ["step1.pt", "step1.safetensors", "step2"]
    assert len({record.weights for record in records}) == 1


def test_the_digest_of_tensors_sees_names_types_shapes_and_values_only() -> None:
    x = torch.arange(6.0)
    base = digest_tensors({"a": x, "b": x[:2]})
    assert digest_tensors({"b": x[:2].clone(), "a": x.clone()}) == base
    assert digest_tensors({"a": torch.arange(12.0)[::2] / 2, "b": x[:2]}) == base
    for other in (
        {"c": x, "b": x[:2]},
        {"a": x.double(), "b": x[:2]},
        {"a": x.reshape(2, 3), "b": x[:2]},
        {"a": x + 1, "b": x[:2]},
        {"a": x.view(torch.int32), "b": x[:2]},
    ):
        assert digest_tensors(other) != base
    kinds = (torch.bfloat16, torch.bool, torch.complex64, torch.int64)
    assert len({digest_tensors({"a": torch.ones((), dtype=kind)}) for kind in kinds}) == len(kinds)


def test_names_of_ones_own_are_read_by_a_pattern_and_never_give_an_order(
    folder: Path, store: Store, factory: ModelFactory
) -> None:
    for number in (9, 10):
        torch.save(state(number), folder / f"weights.{number}k.pt")
    line = r"no step in .*neither in the names \(weights\.10k, weights\.9k\) .*--step-regex '(.*)'$"
    with pytest.raises(InvalidInput, match=line) as caught:
        listed(folder, store, factory)
    (guess,) = re.findall("--step-regex '(.*)'", str(caught.value))
    assert guess == r"weights\.(?P<step>\d+k)"
    for pattern in (guess, r"weights\.(?P<step>\d+k)\.pt"):
        records = listed(folder, store, factory, step_regex=re.compile(pattern))
        assert [record.step for record in records] == [9000, 10000]


@pytest.mark.parametrize(
    ("names", "remedy"),
    [
        (("ckpt_128", "ckpt_256"), r"'ckpt_(?P<step>\d+)'"),
        (("run2-ep07", "run2-ep08"), r"'run\d+-ep(?P<step>\d+)'"),
    ],
)
def test_files_that_nobody_can_put_in_order_are_refused_with_a_pattern_that_does(
    folder: Path, store: Store, factory: ModelFactory, names: tuple[str, str], remedy: str
) -> None:
    torch.save(state(0), folder / f"{names[0]}.pth")
    assert [record.step for record in listed(folder, store, factory)] == [None]  # one is in order
    torch.save(state(1), folder / f"{names[1]}.pth")
    with pytest.raises(InvalidInput) as caught:
        listed(folder, store, factory)
    assert str(caught.value).endswith(remedy)
    wanted = [int(re.findall(r"\d+", name)[-1]) for name in names]
    found = listed(folder, store, factory, step_regex=re.compile(remedy.strip("'")))
    assert [record.step for record in found] == wanted


def test_names_without_numbers_are_models_in_no_order(folder: Path, store: Store, factory: ModelFactory) -> None:
    for seed, name in enumerate(("early", "late")):
        torch.save(state(seed), folder / f"{name}.pt")
    assert [(record.name, record.step) for record in listed(folder, store, factory)] == [
        ("early", None),
        ("late", None),
    ]


@pytest.mark.parametrize("counted", [False, True])
def test_two_series_in_one_folder_are_refused_until_one_is_chosen(
    folder: Path, store: Store, factory: ModelFactory, counted: bool
) -> None:
    for step in (10, 20):
        for seed, kind in enumerate(("ema", "model")):
            weights = state(step + seed)
            held = {"model": weights, "step": step} if counted else weights
            torch.save(held, folder / f"{kind}_step{step}.pt")
    with pytest.raises(InvalidInput, match=r"ema_step10 and model_step10 in .* are both of step 10 and hold different"):
        listed(folder, store, factory)
    chosen = listed(folder, store, factory, step_regex=re.compile(r"model_step(?P<step>\d+)"))
    assert {record.name: record.step for record in chosen} == {
        "model_step10": 10,
        "model_step20": 20,
        "ema_step10": None,
        "ema_step20": None,
    }
    for file in folder.glob("ema_*"):
        file.unlink()
    assert [record.step for record in listed(folder, store, factory)] == [10, 20]


def test_other_names_may_stand_beside_a_series(folder: Path, store: Store, factory: ModelFactory) -> None:
    for step in (10, 20):
        torch.save(state(step), folder / f"model_step{step}.pt")
    torch.save(state(20), folder / "best_step20.pt")
    torch.save({"step": 20, "model": state(20)}, folder / "best.pt")
    torch.save(state(8), folder / "swa.pt")
    records = {record.name: record for record in listed(folder, store, factory)}
    assert {name: record.step for name, record in records.items()} == {
        "model_step10": 10,
        "model_step20": 20,
        "best_step20": 20,
        "best": 20,
        "swa": None,
    }
    assert len({records[name].weights for name in ("best_step20", "best", "model_step20")}) == 1
    torch.save({"step": 20, "model": state(7)}, folder / "best.pt")
    with pytest.raises(InvalidInput, match=r"^best and best_step20 in .* are both of step 20") as caught:
        listed(folder, store, factory)
    assert str(caught.value).endswith(r"choose it with --step-regex 'best_step(?P<step>\d+)'")
    chosen = listed(folder, store, factory, step_regex=re.compile(r"model_step(?P<step>\d+)"))
    assert [(record.name, record.step) for record in chosen[:3]] == [
        ("model_step10", 10),
        ("model_step20", 20),
        ("best", None),
    ]


def test_files_beside_the_folder_of_checkpoints_do_not_hide_it(
    folder: Path, store: Store, factory: ModelFactory, tmp_path: Path
) -> None:
    (folder / "checkpoints").mkdir()
    for step in (10, 20):
        torch.save(state(step), folder / "checkpoints" / f"step={step}.ckpt")
    torch.save(state(20), folder / "best.pt")
    torch.save(state(10), folder / "checkpoints" / "best.ckpt")
    source = PlainSource(folder, factory=factory, index=store.index)
    records = {record.name: source.describe(record) for record in source.list_revisions()}
    assert list(records) == ["step=10", "step=20", "best", "checkpoints/best"]
    assert records["best"].weights == records["step=20"].weights
    assert records["checkpoints/best"].weights == records["step=10"].weights
    for name, record in records.items():
        with source.fetch(record, list(record.files), tmp_path / "scratch") as found:
            assert found == (folder if name == "best" else folder / "checkpoints")
            assert (found / next(iter(record.files))).is_file()


def test_a_changed_byte_in_a_file_is_found_by_its_checksum(folder: Path, store: Store, factory: ModelFactory) -> None:
    for step in (1, 2):
        torch.save(state(step), folder / f"step{step}.pt")
    content = bytearray((folder / "step2.pt").read_bytes())
    content[content.index(state(2)["0.weight"].numpy().tobytes()) + 5] ^= 16
    (folder / "step2.pt").write_bytes(content)
    assert read_plain(folder / "step2.pt").weights["0.weight"].shape == (4, 3)  # torch reads it without a word
    sound, broken = listed(folder, store, factory)
    assert sound.error is None
    assert broken.weights is None
    assert re.fullmatch(r"step2\.pt is damaged: the checksum of \S+/data/\d+ in it differs, .*", str(broken.error))


def test_a_file_that_was_saved_without_checksums_is_taken_as_it_is(
    folder: Path, store: Store, factory: ModelFactory
) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state(1), folder / "step1.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert [record.error for record in listed(folder, store, factory)] == [None]


def test_a_file_is_read_once_and_again_when_it_changes(
    folder: Path, store: Store, factory: ModelFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay import state_dicts

    torch.save(state(1), folder / "step1.pt")
    before = listed(folder, store, factory)
    read: list[Path] = []
    original = state_dicts.open_file

    def noting(file: Path) -> Any:
        read.append(file)
        return original(file)

    monkeypatch.setattr(state_dicts, "open_file", noting)
    assert listed(folder, store, factory) == before
    assert read == []
    torch.save({"step": 5, "model": state(2)}, folder / "step1.pt")
    (after,) = listed(folder, store, factory)
    assert after.step == 5
    assert after.weights != before[0].weights
    assert read


def test_a_file_that_changed_since_it_was_listed_is_refused(
    folder: Path, store: Store, factory: ModelFactory, tmp_path: Path
) -> None:
    torch.save(state(1), folder / "step1.pt")
    source = PlainSource(folder, factory=factory, index=store.index)
    record = source.describe(source.list_revisions()[0])
    with source.fetch(record, list(record.files), tmp_path / "scratch") as found:
        assert found == folder
        source.check(record, list(record.files))
    torch.save({"step": 1, "model": state(2)}, folder / "step1.pt")
    with pytest.raises(DamagedWeights, match="was changed since it was listed"):
        source.check(record, list(record.files))
    (folder / "step1.pt").unlink()
    with pytest.raises(DamagedWeights, match="is gone since it was listed"):
        source.check(record, list(record.files))


def test_another_factory_makes_other_weights_of_the_same_files(folder: Path, store: Store, models: Path) -> None:
    torch.save(state(1), folder / "step1.pt")
    first, second = read_factory(f"{models}:make"), read_factory(f"{models}:make", prefix="")
    (before,) = open_sources(store, repos=(), paths=(folder,), factory=first)
    list_run(store, before)
    (old,) = get_revisions(store, before.run)
    (after,) = open_sources(store, repos=(), paths=(folder,), factory=second)
    (new,) = describe_revisions(store, after, after.list_revisions(), retry=False)
    assert (old.config, new.config) == (first.digest, second.digest)
    assert old.weights != new.weights
    put_run(store, after.run, source=after.kind, location=after.location, records=[new])
    assert describe_revisions(store, after, after.list_revisions(), retry=False) == [new]


def spoil(path: Path) -> None:
    torch.save(state(1), path)
    path.write_bytes(path.read_bytes()[:-400])


class Runs:
    """Touches a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("run-by-a-pickle"),)


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (spoil, "cannot be read, it may be truncated"),
        (lambda path: path.write_bytes(pickle.dumps(Runs())), "is no pickle of plain tensors.*nothing in it was run"),
        (lambda path: torch.save({"model": Runs()}, path), "is no pickle of plain tensors.*nothing in it was run"),
        (lambda path: torch.save(nn.Linear(2, 2), path), r"is no pickle of plain tensors \(torch.nn.modules.linear"),
        (
            lambda path: torch.save({"state_dict": state(1), "args": argparse.Namespace(lr=1)}, path),
            r"is no pickle of plain tensors \(argparse.Namespace\)",
        ),
        (lambda path: torch.save([torch.zeros(2)], path), "holds a list: expected a state_dict"),
        (lambda path: torch.save({"loss": 3.0}, path), r"holds no table of tensors by name \(loss\)"),
        (lambda path: torch.save({"ema": state(1)}, path), r"holds no table of tensors by name \(ema\)"),
        (
            lambda path: torch.save({"model": state(1), "state_dict": state(2)}, path),
            r"several tables of tensors \(state_dict, model\)",
        ),
    ],
)
def test_a_file_that_holds_no_plain_weights_fails_alone(
    folder: Path,
    store: Store,
    factory: ModelFactory,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], None],
    line: str,
) -> None:
    monkeypatch.chdir(folder)
    torch.save(state(1), folder / "step1.pt")
    write(folder / "step2.pt")
    sound, broken = listed(folder, store, factory)
    assert sound.weights
    assert (broken.step, broken.weights) == (2, None)
    assert re.search(line, str(broken.error))
    assert not (folder / "run-by-a-pickle").exists()


def test_folders_without_weights_say_what_was_looked_for(folder: Path, store: Store, factory: ModelFactory) -> None:
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "model_step5_optim.pt"):
        torch.save({"state": {}}, folder / name)
    with pytest.raises(UnknownSource, match=r"no weights in .*; there is model_step5_optim\.pt, optim"):
        listed(folder, store, factory)
    torch.save(state(1), folder / "model.pt")
    with pytest.raises(UnknownSource, match="its folders run hold some: name each with its own --path"):
        listed(folder.parent, store, factory)
    with pytest.raises(UnknownSource, match=r"model\.pt is plain weights: say with --model"):
        open_sources(store, repos=(), paths=(folder,))[0].list_revisions()


def test_several_files_in_a_step_folder_are_too_many(folder: Path, store: Store, factory: ModelFactory) -> None:
    (folder / "step3").mkdir()
    for name in ("generator.pt", "critic.pt"):
        torch.save(state(1), folder / "step3" / name)
    (record,) = listed(folder, store, factory)
    assert record.error == "step3 holds 2 weight files (critic.pt, generator.pt): expected one"


def test_a_repository_cannot_hold_plain_weights(store: Store, factory: ModelFactory) -> None:
    with pytest.raises(InvalidInput, match="download a/b and give its --path"):
        open_sources(store, repos=("a/b",), paths=(), factory=factory)


@pytest.mark.parametrize(
    "prefix", ["", "net.", "model.", "module.", "_orig_mod.", "_forward_module.", "module._orig_mod.net."]
)
def test_a_prefix_is_found_and_every_number_gets_to_its_place(folder: Path, factory: ModelFactory, prefix: str) -> None:
    torch.save({"state_dict": renamed(state(3), prefix)}, folder / "a.ckpt")
    model = load_model(folder, factory=factory, file="a.ckpt")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    loaded = model.state_dict()
    assert list(loaded) == list(state(3))
    assert all(torch.equal(loaded[name], value) for name, value in state(3).items())


def test_a_given_prefix_takes_one_model_out_of_a_file_of_two(folder: Path, models: Path, factory: ModelFactory) -> None:
    torch.save(renamed(state(1), "student.") | renamed(state(2), "teacher."), folder / "both.pt")
    with pytest.raises(MismatchedWeights, match=r"without a place in the model \(9\): .*with --prefix student\.$"):
        load_model(folder, factory=factory, file="both.pt")
    teacher = load_model(folder, factory=read_factory(f"{models}:make", prefix="teacher"), file="both.pt")
    assert torch.equal(teacher.state_dict()["0.weight"], state(2)["0.weight"])
    with pytest.raises(MismatchedWeights, match=r"no weight starts with 'net\.': there are student, teacher"):
        load_model(folder, factory=read_factory(f"{models}:make", prefix="net"), file="both.pt")


def test_weights_that_do_not_fit_are_listed(folder: Path, models: Path) -> None:
    torch.save(renamed(state(1), "net."), folder / "a.pt")
    with pytest.raises(MismatchedWeights) as missing:
        load_model(folder, factory=read_factory(f"{models}:make_deep"), file="a.pt")
    assert "missing weights (2): 3.weight, 3.bias" in str(missing.value)
    assert "(1): 2.weight [2, 4] instead of [4, 4]" not in str(missing.value)
    assert "2.weight [2, 4] instead of [4, 4], 2.bias [2] instead of [4]" in str(missing.value)
    with pytest.raises(MismatchedWeights, match=r"another shape than the model's \(7\): .* and 2 more; name the model"):
        load_model(folder, factory=read_factory(f"{models}:make_wide"), file="a.pt")
    surplus = renamed(state(1), "net.") | {"loss.weight": torch.ones(2)}
    with pytest.raises(MismatchedWeights, match=r"without a place in the model \(1\): loss.weight; .* --prefix net\.$"):
        fit_weights(surplus, read_factory(f"{models}:make").skeleton())


def test_tied_weights_need_one_name_in_the_file() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    fitted = fit_weights({"net.1.weight": torch.eye(2)}, model)
    assert set(fitted) == {"0.weight", "1.weight"}
    model.load_state_dict(fitted)
    assert torch.equal(first.weight, torch.eye(2))


def test_weights_that_only_the_model_ties_are_refused_and_equal_ones_are_not() -> None:
    first, second = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    second.weight = first.weight
    model = nn.Sequential(first, second)
    same = torch.tensor([[1.0, torch.nan], [0.0, 2.0]])
    assert set(fit_weights({"0.weight": same, "1.weight": same.clone()}, model)) == {"0.weight", "1.weight"}
    with pytest.raises(MismatchedWeights, match=r"ties and the file does not \(1\): 0\.weight and 1\.weight; name"):
        fit_weights({"0.weight": same, "1.weight": same + 1}, model)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("weight", torch.ones(2, dtype=torch.complex64), r"type than the model's \(1\): weight complex64 into float32"),
        ("num_batches_tracked", torch.tensor(1.5), "num_batches_tracked float32 into int64"),
        ("num_batches_tracked", torch.tensor(torch.nan), "num_batches_tracked float32 into int64"),
        ("num_batches_tracked", torch.tensor(7.0), None),
        ("weight", torch.ones(2, dtype=torch.int64), None),
        ("weight", torch.ones(2, dtype=torch.float64), None),
    ],
)
def test_weights_of_a_type_that_loses_more_than_digits_are_refused(
    name: str, value: torch.Tensor, line: str | None
) -> None:
    model = nn.BatchNorm1d(2)
    weights = dict(model.state_dict()) | {name: value}
    if line is None:
        model.load_state_dict(fit_weights(weights, model))
        assert torch.equal(model.state_dict()[name].to(value.dtype), value)
    else:
        with pytest.raises(MismatchedWeights, match=line):
            fit_weights(weights, model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_loaded_at_the_precision_asked_for_whatever_the_file_has(
    folder: Path, factory: ModelFactory, dtype: str
) -> None:
    torch.save({name: value.double() for name, value in state(1).items()}, folder / "a.pt")
    model = load_model(folder, dtype=dtype, factory=factory, file="a.pt")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert torch.equal(model.get_parameter("0.weight"), state(1)["0.weight"].to(getattr(torch, dtype)))


def test_a_factory_needs_to_be_told_the_file(folder: Path, factory: ModelFactory) -> None:
    with pytest.raises(InvalidInput, match="needs the name of the file"):
        load_model(folder, factory=factory)


def test_the_weights_of_a_plain_file_can_be_read_alone(folder: Path) -> None:
    torch.save(lightning(4, 20), folder / "a.ckpt")
    assert set(read_weights(folder, file="a.ckpt")) == set(renamed(state(4), "net."))
    assert set(read_weights(folder, lambda name: "0." in name, file="a.ckpt")) == {"net.0.weight", "net.0.bias"}
    assert read_plain(folder / "a.ckpt").step == 20


def test_runs_of_plain_files_are_named_and_moved_like_others(
    folder: Path, store: Store, factory: ModelFactory, tmp_path: Path
) -> None:
    torch.save(state(1), folder / "step1.pt")
    shutil.copytree(folder, tmp_path / "other" / "run")
    sources = open_sources(store, repos=(), paths=(folder, tmp_path / "other" / "run"), factory=factory)
    assert len({source.run for source in sources}) == 2
    first, second = (source.describe(source.list_revisions()[0]) for source in sources)
    assert replace(first, error=None) == second
