"""Scalars of training: which logged value belongs to which revision, and that none is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from synthetic import histories, write_store

import cli
from replay.opening import open_store
from replay.scalars import Log, add_logged, give_again, give_scalars, read_given, read_logs, trainer_log
from store.catalog import Store
from store.commits import RevisionRecord, get_revisions, put_run, put_scalars
from store.errors import InvalidInput, UnknownRun


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two runs with five steps, 0 to 400."""
    root = tmp_path_factory.mktemp("scalars") / "store"
    write_store(root, histories(runs=2, n_probes=8, width=3, layers=1))
    return root


@pytest.fixture
def store(made: Path, root: Path) -> Store:
    shutil.copytree(made, root)
    return open_store(root, write=True)


def scalars(store: Store, run: str = "run0") -> dict[str, dict[str, float]]:
    return {record.name: record.scalars for record in get_revisions(store, run)}


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def log(*places: float) -> Log:
    return Log("log.csv", "step", {"loss": {place: 10 + place for place in places}})


@pytest.mark.parametrize(
    ("places", "at", "found"),
    [
        ((0, 10, 20, 30), 20, 20),
        ((0, 10, 20, 30), 29, 20),
        ((0, 10, 20, 30), 50, 30),  # twice the interval past the end
        ((0, 10, 20, 30), 51, None),
        ((0, 1, 2, 4, 8, 16), 31, 16),  # a log that doubles its interval, before its next entry
        ((20, 40), 19, None),
        ((0, 100), 90, 0),
        ((60,), 180, 60),
        ((60,), 181, None),
        ((0,), 1, None),
        ((10, 20, 9000), 5000, None),  # nothing was logged for long
    ],
)
def test_a_revision_gets_the_last_value_at_its_step_or_before_if_it_is_recent(
    places: tuple[float, ...], at: int, found: int | None
) -> None:
    assert log(*places).at(at) == ({} if found is None else {"loss": 10 + found})


def test_a_value_that_is_no_number_hides_the_one_before_it() -> None:
    diverged = Log("log.csv", "step", {"loss": {0: 3, 10: 2, 20: float("nan"), 30: float("inf"), 40: 1}})
    assert [diverged.at(step).get("loss") for step in (10, 20, 25, 30, 40)] == [2, None, None, None, 1]


def test_a_trainers_log_has_no_timings_totals_or_summary() -> None:
    history = [
        {"step": 20, "epoch": 0.1, "loss": 2, "grad_norm": 1.5, "learning_rate": 1e-3, "num_input_tokens_seen": 5},
        {"step": 20, "eval_loss": 1.9, "eval_runtime": 0.3, "eval_samples_per_second": 9.0, "eval_steps_per_second": 2},
        {"step": 20, "eval_model_preparation_time": 0.1, "overflow": True, "note": "x"},
        {"step": 40, "loss": 1.0},
        {"step": 40, "train_runtime": 9.0, "train_loss": 7.0, "total_flos": 1e9},
    ]
    found = trainer_log({"log_history": history})
    assert found.at(20) == {"loss": 2, "grad_norm": 1.5, "learning_rate": 1e-3, "eval_loss": 1.9}
    assert found.at(39)["loss"] == 2
    assert found.at(40)["loss"] == 1
    assert "train_loss" not in found.at(40)


def test_rows_of_lightnings_logger_count_batches_from_0_and_checkpoints_finished_steps(tmp_path: Path) -> None:
    rows = ["epoch,step,train_loss,val_acc", "0,0,2.5,", "0,1,2.0,", "0,1,,0.5", "1,2,1.5,", "1,3,1.0,", "1,3,,0.75"]
    path = write(tmp_path / "csv" / "metrics.csv", *rows)
    plain = read_logs(path)[""]
    assert plain.at(2) == {"train_loss": 1.5, "val_acc": 0.5}
    write(tmp_path / "csv" / "hparams.yaml", "lr: 0.1")
    lightning = read_logs(path)[""]
    # After two finished steps, one epoch of two batches, the last batch was number 1; after four, number 3.
    assert lightning.at(2) == {"train_loss": 2.0, "val_acc": 0.5}
    assert lightning.at(4) == {"train_loss": 1.0, "val_acc": 0.75}
    assert lightning.at(1) == {"train_loss": 2.5}


def test_a_table_may_be_over_tokens_or_epochs_and_of_several_runs(tmp_path: Path) -> None:
    records = [RevisionRecord("a", step=1, tokens=1024, epoch=0.5), RevisionRecord("b", step=2, tokens=2048, epoch=1.0)]
    tokens = write(tmp_path / "tokens.csv", "tokens,loss", "1024,3", "2048,2")
    epochs = write(tmp_path / "epochs.csv", "epoch,loss", "0.5,3", "1,2")
    for path in (tokens, epochs):
        assert read_logs(path)[""].match(records) == {"a": {"loss": 3}, "b": {"loss": 2}}
    assert read_logs(tokens)[""].match([replace(records[0], tokens=None)]) == {}
    runs = read_logs(write(tmp_path / "runs.csv", "run,step,loss", "x,1,5", "y,1,6"))
    assert {run: log.at(1) for run, log in runs.items()} == {"x": {"loss": 5}, "y": {"loss": 6}}


def test_empty_cells_are_nothing_texts_no_scalars_and_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    rows = ["step , loss,note,seconds", "1,3,warm,", "2,,up,4", "", "2,1e-1,again,", "1,2.5,,"]
    found = read_logs(write(tmp_path / "log.csv", *rows))[""]
    assert found.entries == {"loss": {1: 2.5, 2: 0.1}, "seconds": {2: 4}}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["time,loss", "1,2"], "no column step, tokens or epoch: it has time, loss"),
        (["step,loss", "0,1", "10,oops"], "line 3: loss is 'oops': expected a number"),
        (["step,loss", "0,1", ",2"], "line 3: step is '': expected a whole number of 0 or more"),
        (["step,loss", "1.5,2"], "line 2: step is '1.5'"),
        (["step,loss", "-1,2"], "line 2: step is '-1'"),
        (["epoch,loss", "nan,2"], "line 2: epoch is 'nan': expected a number of 0 or more"),
        (["step,loss", "1"], "line 2 has 1 cells: expected 2"),
        (["step,loss,loss", "1,2,3"], "two columns of one name"),
        (["step,note", "1,a"], "holds no number beside its step"),
        (["step,loss"], "holds no number beside its step"),
        ([], "it has no header"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_in_one_line(tmp_path: Path, lines: list[str], said: str) -> None:
    path = write(tmp_path / "log.csv", *lines)
    with pytest.raises(InvalidInput, match=said) as refused:
        read_logs(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(b"\xff\xfe\x00step")
    for path in (tmp_path / "log.csv", tmp_path / "missing.csv", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read as CSV"):
            read_logs(path)


def test_given_scalars_win_over_the_sources_and_neither_is_lost_by_a_new_listing(store: Store) -> None:
    def listed(weights: str | None, **values: float) -> None:
        record = RevisionRecord("step100", step=100, weights=weights, scalars=values)
        put_run(store, "run0", source="folder", location="run0", records=[record])

    listed("run0-100", loss=3.0, lr=1.0)
    put_scalars(store, "run0", {"step100": {"loss": 9.0, "accuracy": 0.5}})
    assert scalars(store)["step100"] == {"loss": 9.0, "lr": 1.0, "accuracy": 0.5}
    listed("run0-100", loss=2.0)  # the source's newer value does not replace the given one, nor drops its own older
    assert scalars(store)["step100"] == {"loss": 9.0, "lr": 1.0, "accuracy": 0.5}
    listed(None, lr=0.5)
    assert scalars(store)["step100"] == {"loss": 9.0, "lr": 0.5, "accuracy": 0.5}
    put_scalars(store, "run0", {"step100": {"accuracy": 0.75}, "step0": {"loss": 4.0}})
    assert scalars(store)["step100"] == {"loss": 9.0, "lr": 0.5, "accuracy": 0.75}
    assert scalars(store)["step0"] == {"loss": 4.0}
    listed("another training", loss=1.0)  # whose own values are those of other weights
    assert scalars(store)["step100"] == {"loss": 9.0, "accuracy": 0.75}
    assert scalars(store, "run1")["step100"] == {}
    with pytest.raises(UnknownRun, match="no run 'run9'"):
        put_scalars(store, "run9", {})


def test_a_file_is_of_the_run_it_says_it_is_of(store: Store, tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.csv", "step,loss", "0,5", "100,4")
    runs = write(tmp_path / "runs.csv", "run,step,acc", "run1,100,0.5", "else,100,0.1")
    lines = give_scalars(store, ["run0", "run1"], read_given([f"run0={plain}", str(runs)]))
    assert lines == [
        f"run0: loss at 4 of 5 revisions, from {plain}",  # 200 and 300 follow within twice the interval
        f"run1: acc at 3 of 5 revisions, from {runs}",
    ]
    assert scalars(store)["step100"] == {"loss": 4}
    assert scalars(store, "run1")["step100"] == {"acc": 0.5}
    assert store.revisions("run1").set_index("revision").loc["step100", "scalars"] == {"acc": 0.5}


def test_revisions_that_are_ingested_later_get_what_was_given_before(store: Store, tmp_path: Path) -> None:
    first = write(tmp_path / "first.csv", "step,loss,lr", *(f"{step},{step / 10},{step}" for step in range(0, 900, 50)))
    again = write(tmp_path / "again.csv", "step,loss", "700,1", "750,nan", "800,2")
    give_scalars(store, ["run0"], read_given([f"run0={first}"]))
    records = [RevisionRecord(f"step{step}", step=step, scalars={"loss": 9.0}) for step in (610, 700, 760)]
    put_run(store, "run0", source="folder", location="run0", records=records)
    give_again(store, "run0")
    found = scalars(store)
    assert [found[f"step{step}"] for step in (400, 610, 700)] == [
        {"loss": 40, "lr": 400}, {"loss": 60, "lr": 600}, {"loss": 70, "lr": 700},
    ]  # fmt: skip
    for _ in range(2):  # given twice is kept once
        give_scalars(store, ["run0"], read_given([f"run0={again}"]))
    put_run(store, "run0", source="folder", location="run0", records=[RevisionRecord("step805", step=805)])
    give_again(store, "run0")
    found = scalars(store)
    expected = [{"loss": 60, "lr": 600}, {"loss": 1, "lr": 700}, {"loss": 75, "lr": 750}, {"loss": 2, "lr": 800}]
    assert [found[f"step{step}"] for step in (610, 700, 760, 805)] == expected
    assert scalars(store, "run1")["step100"] == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{plain}", "no column run, and there are 2 runs: give --scalars RUN=FILE"),
        ("run7={plain}", "no run 'run7' is ingested here: run0, run1"),
        ("{others}", "is of the runs else: expected one of run0, run1"),
        ("run0={late}", "has step 5000 to 6000, and run0 revisions at step 0 to 400: none has a value"),
    ],
)
def test_scalars_that_fit_nothing_are_refused_and_none_is_added(
    store: Store, tmp_path: Path, given: str, said: str
) -> None:
    files = {
        "plain": write(tmp_path / "plain.csv", "step,loss", "0,5"),
        "others": write(tmp_path / "others.csv", "run,step,loss", "else,0,5"),
        "late": write(tmp_path / "late.csv", "step,loss", "5000,5", "6000,4"),
    }
    good = write(tmp_path / "good.csv", "step,loss", "0,5", "100,4")
    with pytest.raises(InvalidInput, match=said):
        give_scalars(store, ["run0", "run1"], read_given([f"run1={good}", given.format(**files)]))
    assert not any(scalars(store, "run1").values())


def test_a_log_in_the_folder_of_a_run_is_found_and_yields_to_what_a_trainer_wrote(tmp_path: Path) -> None:
    said: list[str] = []
    records = [RevisionRecord("step1", step=1), RevisionRecord("step2", step=2, scalars={"loss": 1.0})]
    folder = tmp_path / "mlp" / "checkpoints"
    write(tmp_path / "mlp" / "log.csv", "step,loss,acc", "1,3,0.1", "2,9,0.2")
    expected = [{"loss": 3, "acc": 0.1}, {"loss": 1, "acc": 0.2}]
    for place in (folder, folder.parent):
        assert [record.scalars for record in add_logged(place, records, report=said.append)] == expected
    assert not said
    assert add_logged(tmp_path, records, report=said.append) == records  # a run's folder, not any above it


def test_a_log_that_cannot_be_used_is_named_and_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    records = [RevisionRecord("step1", step=1)]
    write(tmp_path / "log.csv", "time,message", "1,started")
    assert add_logged(tmp_path, records, report=said.append) == records
    write(tmp_path / "csv" / "metrics.csv", "step,loss", "1,3")
    assert add_logged(tmp_path, records, report=said.append) == records
    assert ["no column step" in said[0], "several logs" in said[1], len(said)] == [True, True, 2]


def test_scalars_are_added_to_a_replayed_run_without_any_forward_pass(
    replayed: Path, family: Path, probe_file: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(replayed, root)
    path = write(tmp_path / "loss.csv", "step,loss", "0,5.5", "1,5.25", "2,5", "4,4", "8,3")
    ingest = ["--store", str(root), "ingest", "--path", str(family / "seed1"), "--probes", str(probe_file)]
    ingest += ["--revisions", "all"]

    def listed() -> dict[str, dict[str, float] | None]:
        done = CliRunner().invoke(cli.main, ["--store", str(root), "ls", "revisions", "seed1", "--json"])
        return {row["revision"]: row["scalars"] for row in json.loads(done.stdout)}

    dry = CliRunner().invoke(cli.main, [*ingest, "--scalars", str(path), "--dry-run"])
    assert (dry.exit_code, listed()["step8"]) == (0, {})
    done = CliRunner().invoke(cli.main, [*ingest, "--scalars", str(path)])
    assert done.exit_code == 0, done.output
    assert "5 revisions: 0 checkpoints replayed, 5 already there" in done.stdout
    assert f"scalars: seed1: loss at 5 of 5 revisions, from {path}" in done.stderr
    expected = {"step0": 5.5, "step1": 5.25, "step2": 5, "step4": 4, "step8": 3}
    assert listed() == {name: {"loss": value} for name, value in expected.items()}
    assert CliRunner().invoke(cli.main, ingest).exit_code == 0  # without them
    assert listed() == {name: {"loss": value} for name, value in expected.items()}
    write(path, "step,loss", "0,5", "1,x")
    refused = CliRunner().invoke(cli.main, [*ingest, "--scalars", str(path)])
    assert refused.exit_code == 1
    assert refused.stderr == f"replay: {path} line 3: loss is 'x': expected a number\n"
    assert len(open_store(root).revisions("seed1")) == 5


def test_an_ingest_of_further_revisions_takes_the_scalars_that_were_given(
    family: Path, probe_file: Path, root: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "loss.csv", "step,loss", "0,5.5", "1,5.25", "2,5", "4,4", "8,3")
    ingest = ["--store", str(root), "ingest", "--path", str(family / "seed1"), "--probes", str(probe_file)]
    for more in (["--revisions", "last:2", "--scalars", str(path)], ["--revisions", "all"]):
        done = CliRunner().invoke(cli.main, [*ingest, *more])
        assert done.exit_code == 0, done.output
    found = scalars(open_store(root), "seed1")
    expected = {"step0": 5.5, "step1": 5.25, "step2": 5, "step4": 4, "step8": 3}
    assert found == {name: {"loss": value} for name, value in expected.items()}
