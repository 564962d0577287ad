"""The command line: what a person sees, and one clear line for each thing that can be wrong."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hub import Hub, publish
from safetensors.torch import load_file, save_file

import cli
from store.catalog import Store


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def one_line(result: Result) -> str:
    """The only line on stderr; nothing on stdout."""
    assert result.stdout == ""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("replay: ")
    return lines[0].removeprefix("replay: ")


@pytest.fixture
def filled(root: Path, family: Path, probe_file: Path) -> Path:
    """A store with one run, to be harmed."""
    run("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step0,step8", "--probes", probe_file)
    return root


def contents(root: Path) -> dict[str, bytes]:
    files = (p for p in root.rglob("*") if p.is_file() and not p.name.startswith("index."))
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


def test_mistakes_end_in_one_line_and_leave_the_store_unharmed(filled: Path, family: Path, tmp_path: Path) -> None:
    def probes(name: str, content: bytes) -> list[object]:
        (tmp_path / name).write_bytes(content)
        return ["--probes", tmp_path / name]

    before = contents(filled)
    expected: list[tuple[list[object], str]] = [
        (["--revisions", "step7"], 'no revision "step7"; there are step'),
        (["--revisions", "every:ten"], '"ten" is not a whole number'),
        (["--revisions", "3000..4000"], 'revisions "3000..4000" selects nothing; there are 5 revisions with a step'),
        (["--revisions", "ste?"], 'no revision "ste?"'),
        (
            ["--layers", "blocks[7]"],
            "no layer 'blocks[7]' ('layers' has 3 entries, 0 to 2); the nearest are blocks",
        ),
        (["--layers", "gpt_neox.layer[0]"], "has no layer 'gpt_neox.layer[0]'; the nearest are layers.0"),
        (["--layers", "blocks[0]:ouput"], "unknown extraction point 'ouput'"),
        (["--layers", "blocks[0]junk"], "blocks[0]junk"),
        (["--reduce", "men"], "unknown reduction 'men'"),
        (["--dtype", "float64"], "dtype 'float64' is not known: expected one of float32, bfloat16, float16"),
        (["--device", "warp:9", "--layers", "embed"], "device 'warp:9' cannot be used here"),
        (["--batch", "0"], "batch_tokens is 0"),
        (["--max-length", "0"], "max_length is 0"),
        (["--step-regex", "(step"], "is not a regular expression"),
        (["--step-regex", "step(.*)"], "has no group named step"),
        (["--probes", tmp_path / "none.txt"], "none.txt: no such file"),
        (["--probes", "nothing"], "no probe set 'nothing'"),
        (["--probes", tmp_path], "a folder, not a file"),
        (probes("empty.txt", b""), "empty.txt: "),
        (probes("blank.txt", b"\n \n"), "no usable probe, only 2 empty probes"),
        (probes("latin.txt", "caf\xe9\n".encode("latin-1")), "not UTF-8"),
        (probes("columns.csv", b"name,label\na,b\n"), "text"),
        (probes("rows.jsonl", b'{"name": "a"}\n'), "text"),
        (probes("broken.jsonl", b'{"text": \n'), "line 1"),
        (probes("kind.xml", b"<a/>"), "unknown kind of probe file '.xml'"),
    ]
    for given, line in expected:
        result = run("--store", filled, "ingest", "--path", family / "seed1", *given, code=1)
        lines = [text for text in result.stderr.splitlines() if text.startswith("replay: ")]
        assert len(lines) == 1, given
        assert line in lines[0], given
        assert contents(filled).keys() >= before.keys(), given
        assert {name: contents(filled)[name] for name in before} == before, given
    assert list(Store(filled).activations("seed1")["revision"].values) == ["step0", "step8"]


def test_sources_that_cannot_be_read_are_one_line(root: Path, family: Path, tmp_path: Path, hub: Hub) -> None:
    hub.commit("cli/gated", "step1", folder=family / "seed1" / "step1")
    hub.repository("cli/gated").gated = True
    base = ("--store", root, "ingest")
    assert one_line(run(*base, "--repo", "cli/none", code=1)).startswith("no repository cli/none at http://127.0.0.1:")
    assert one_line(run(*base, "--repo", "cli/gated", code=1)).startswith("cli/gated is gated: accept its terms")
    assert "expected ORG/NAME" in one_line(run(*base, "--repo", "pythia", code=1))
    assert "does not exist: --path takes a folder" in one_line(run(*base, "--path", tmp_path / "none", code=1))
    assert "nothing to ingest: give --repo" in one_line(run(*base, code=1))
    assert not list((root / "checkpoints").iterdir())


def test_a_gated_repository_is_ingested_with_its_token(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    import subprocess
    import sys

    hub.commit("cli/token", "step1", folder=family / "seed1" / "step1")
    hub.repository("cli/token").gated = True
    command = [sys.executable, "-m", "cli", "--store", root, "ingest", "--repo", "cli/token", "--probes", probe_file]
    environ = hub.environ(tmp_path / "cache", HF_TOKEN=hub.token)
    done = subprocess.run([*map(str, command)], env=environ, capture_output=True, text=True, check=True)
    assert "1 checkpoints replayed" in done.stdout
    assert hub.token not in "".join(p.read_bytes().decode("latin-1") for p in root.rglob("*") if p.is_file())


def truncated(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def missing_keys(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.bias"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def unexpected_keys(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.7.mlp.dense_4h_to_h.bias"] = torch.zeros(32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


class _Command:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        import os

        return os.system, ('touch "$REPLAY_TEST_MARK"',)


def no_plain_tensors(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weights": _Command()}, file)


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def unknown_architecture(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "perceptron-1958"}')


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (truncated, "model.safetensors"),
        (missing_keys, "layers.1.mlp.dense_4h_to_h.bias"),
        (unexpected_keys, "layers.7.mlp.dense_4h_to_h.bias"),
        (no_plain_tensors, "pytorch_model.bin"),
        (no_weights, "no weights that can be loaded"),
        (broken_config, "config.json"),
        (unknown_architecture, "perceptron-1958"),
    ],
)
def test_a_harmed_checkpoint_fails_with_its_reason_and_the_rest_go_on(
    root: Path,
    family: Path,
    tmp_path: Path,
    probe_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], None],
    reason: str,
) -> None:
    monkeypatch.setenv("REPLAY_TEST_MARK", str(tmp_path / "mark"))
    for step in (1, 2, 4):
        shutil.copytree(family / "seed1" / f"step{step}", tmp_path / "run" / f"step{step}")
    harm(tmp_path / "run" / "step2")
    result = run("--store", root, "ingest", "--path", tmp_path / "run", "--probes", probe_file, code=1)
    failures = [line for line in result.stderr.splitlines() if line.startswith("failed: ")]
    assert len(failures) == 1
    assert failures[0].startswith("failed: run step2: ")
    assert reason in failures[0]
    assert "2 checkpoints replayed, 0 already there, 0 aliases, 1 failed" in result.stdout
    assert not (tmp_path / "mark").exists()
    table = Store(root).revisions("run").set_index("revision")
    assert table["state"].to_dict() == {"step1": "done", "step2": "failed", "step4": "done"}
    assert reason in table["error"]["step2"]
    listed = run("--store", root, "ls", "revisions", "run").stdout
    assert "failed" in listed
    assert reason in listed


def test_listings_say_what_is_there_to_people_and_programs(filled: Path) -> None:
    runs = json.loads(run("--store", filled, "ls", "runs", "--json").stdout)
    assert [(r["run"], r["revisions"], r["replayed"], r["first_step"], r["last_step"]) for r in runs] == [
        ("seed1", 2, 2, 0, 8)
    ]
    assert run("--store", filled, "ls", "runs").stdout.splitlines()[1].split()[0] == "seed1"
    revisions = json.loads(run("--store", filled, "ls", "revisions", "seed1", "--json").stdout)
    assert [(r["revision"], r["step"], r["state"], r["layers"]) for r in revisions] == [
        ("step0", 0, "done", 3),
        ("step8", 8, "done", 3),
    ]
    layers = json.loads(run("--store", filled, "ls", "layers", "seed1", "--json").stdout)
    assert next((x["layer"], x["module"], x["width"]) for x in layers) == ("blocks[0]:output:mean", "layers.0", 32)
    probes = json.loads(run("--store", filled, "ls", "probes", "--json").stdout)
    assert [(p["name"], p["probes"], p["labels"], p["used"]) for p in probes] == [("forty", 40, 2, True)]
    assert json.loads(run("--store", filled, "ls", "results", "--json").stdout) == []
    assert "no run 'sed1'" in one_line(run("--store", filled, "ls", "layers", "sed1", code=1))


def test_listings_of_an_empty_store_are_empty(root: Path) -> None:
    from replay.opening import open_store

    open_store(root, write=True)
    for what in ("runs", "revisions", "layers", "probes", "results"):
        run("--store", root, "ls", what)
        assert json.loads(run("--store", root, "ls", what, "--json").stdout) == []


def test_probe_sets_are_added_once_and_never_changed_behind_a_run(root: Path, family: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("text,label\nfirst,a\nsecond,b\nfirst,a\n,a\n")
    added = run("--store", root, "probes", "add", mine, "--name", "trio")
    assert added.stdout.startswith("trio: 3 probes, 2 labels, digest ")
    assert added.stdout.endswith(", added\n")
    assert "left out 1 empty probe: line 5" in added.stderr
    assert "kept 1 text given more than once: lines 2, 4" in added.stderr
    assert run("--store", root, "probes", "add", mine, "--name", "trio").stdout.endswith("was there already\n")
    run("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step0", "--probes", "trio")
    assert Store(root).activations("seed1").sizes["probe"] == 3
    mine.write_text("text\nother\n")
    line = one_line(run("--store", root, "probes", "add", mine, "--name", "trio", code=1))
    assert "a run has used them, so they may not change: add these under another name" in line


def test_probes_of_which_only_some_have_labels_can_be_used_by_name(root: Path, family: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.jsonl"
    mine.write_text('{"text": "a b", "label": "x"}\n{"text": "c d"}\n{"text": "e f", "id": "third"}\n')
    run("--store", root, "probes", "add", mine)
    for _ in range(2):
        run("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step0", "--probes", "mine")
    ds = Store(root).activations("seed1")
    assert list(ds["label"].values) == ["x", "", ""]
    assert list(ds["probe_id"].values) == ["", "", "third"]


def test_the_name_of_the_built_in_probes_is_taken(root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "topics.txt"
    mine.write_text("one\n")
    assert "names the built-in probes" in one_line(run("--store", root, "probes", "add", mine, code=1))


def test_an_index_that_is_damaged_inside_is_one_line(filled: Path, family: Path) -> None:
    database = filled / "index.sqlite"
    content = bytearray(database.read_bytes())
    content[4096:] = b"\x5a" * (len(content) - 4096)
    database.write_bytes(content)
    for command in (["ls", "runs"], ["ingest", "--path", family / "seed1"], ["analyze", "spread"]):
        line = one_line(run("--store", filled, *command, code=1))
        assert "is damaged" in line or "is no SQLite file" in line


def test_one_folder_is_one_run_whatever_it_was_called_first(root: Path, family: Path, tmp_path: Path) -> None:
    for parent in ("a", "b"):
        shutil.copytree(family / "seed1" / "step1", tmp_path / parent / "run" / "step1")
    both = ["--path", tmp_path / "a" / "run", "--path", tmp_path / "b" / "run"]
    run("--store", root, "ingest", *both, "--layers", "blocks[0]")
    run("--store", root, "ingest", "--path", tmp_path / "a" / "run", "--layers", "blocks[1]")
    assert list(Store(root).runs()["run"]) == ["a/run", "b/run"]


def test_an_export_is_announced_with_its_sizes(filled: Path, tmp_path: Path) -> None:
    shown = run("--store", filled, "export", "zarr", "seed1", tmp_path / "out.zarr", "--layers", "blocks[1]").stdout
    assert "linked" in shown
    import xarray as xr

    assert list(xr.open_zarr(tmp_path / "out.zarr")["layer"].values) == ["blocks[1]:output:mean"]
    assert "exists already" in one_line(
        run("--store", filled, "export", "zarr", "seed1", tmp_path / "out.zarr", code=1)
    )


def test_upgrade_says_when_there_is_nothing_to_do(filled: Path, tmp_path: Path) -> None:
    assert run("--store", filled, "upgrade").stdout == f"{filled} is up to date\n"
    assert "is not a replay store" in one_line(run("--store", tmp_path, "upgrade", code=1))


def test_targets_are_checked_before_any_work(filled: Path, tmp_path: Path) -> None:
    base = ("--store", filled, "analyze", "spread")
    for option in ("--plot", "--csv"):
        assert "there is no folder" in one_line(run(*base, option, tmp_path / "no" / "x.png", code=1))
        assert "is a folder" in one_line(run(*base, option, tmp_path, code=1))
    assert "ends in '.gif': expected one of .png, .svg, .pdf" in one_line(run(*base, "--plot", "x.gif", code=1))
    assert "ends in '.txt': expected one of .csv" in one_line(run(*base, "--csv", "x.txt", code=1))


def test_usage_errors_keep_exit_code_2_and_debug_shows_the_traceback(tmp_path: Path) -> None:
    run("ingest", "--no-such-option", code=2)
    run("analyse", code=2)
    run("ingest", "--batch", "many", code=2)
    result = CliRunner().invoke(cli.main, ["--debug", "--store", str(tmp_path / "none"), "ls", "runs"])
    assert type(result.exception).__name__ == "NotAStore"


def test_the_store_is_named_by_option_or_environment(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REPLAY_STORE", str(filled))
    assert "seed1" in run("ls", "runs").stdout
    assert "does not exist" in one_line(run("--store", filled / "other", "ls", "runs", code=1))


def test_the_hub_and_a_folder_of_the_same_run_share_every_segment(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "cli/shared", family / "seed2")
    base = ("--store", root, "ingest", "--revisions", "all", "--probes", probe_file)
    run(*base, "--path", family / "seed2")
    result = run(*base, "--repo", "cli/shared")
    assert "0 checkpoints replayed, 5 already there, 1 aliases" in result.stdout
    assert not hub.requests(r"GET .*/lfs/cli/shared/.*safetensors")
