"""Ingest: the right numbers, only what is missing, whatever interrupts it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from click.testing import CliRunner, Result
from hub import Hub, publish
from runs import VOCABULARY, tokenizer, write_bin, write_model, write_probes
from sqlalchemy import select

import cli
from replay.opening import open_store
from store.catalog import Store
from store.schema import Segment
from store.segments import verify

FAMILIES = ("gpt_neox", "gpt2", "llama", "bert")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def forwards(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Note every model that is loaded from now on."""
    from replay import models

    loaded: list[Path] = []
    original = models.load_model

    def noting(folder: Path, **options: Any) -> Any:
        loaded.append(folder)
        return original(folder, **options)

    monkeypatch.setattr(models, "load_model", noting)
    return loaded


def plain_loop(folder: Path, texts: Sequence[str], reduce: str) -> list[np.ndarray]:
    """What transformers gives for one unpadded text at a time: per block (probe, feature) or (token, feature)."""
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = model.get_submodule({"gpt2": "h", "bert": "encoder.layer"}.get(model.config.model_type, "layers"))
    rows: list[list[np.ndarray]] = [[] for _ in blocks]
    outputs: dict[int, torch.Tensor] = {}

    def keep(number: int) -> Any:
        return lambda _module, _args, out: outputs.__setitem__(number, out if torch.is_tensor(out) else out[0])

    for number, block in enumerate(blocks):
        block.register_forward_hook(keep(number))
    encode = tokenizer()
    for text in texts:
        with torch.no_grad():
            model(**encode(text, return_tensors="pt", truncation=True, max_length=64))
        for number in range(len(blocks)):
            states = outputs[number][0].numpy()
            picked = {"mean": states.mean(0)[None], "last_token": states[-1:], "first_token": states[:1]}
            rows[number].append(picked.get(reduce, states).copy())
    return [np.concatenate(row) for row in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_stored_activations_equal_a_plain_loop_over_one_text_at_a_time(family: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "run" / "step3", seed=5, step=3, family=family)
    probes = write_probes(tmp_path / "p.jsonl", 24)
    texts = [json.loads(line)["text"] for line in probes.read_text().splitlines()]
    for batch in (16, 100, 4096):
        root = tmp_path / f"store{batch}"
        for reduce in ("mean", "last_token", "first_token", "all"):
            run("--store", root, "ingest", "--path", folder.parent, "--probes", probes, "--batch", str(batch),
                "--reduce", reduce, "--max-length", "64")  # fmt: skip
            name = "activations_token" if reduce == "all" else "activations"
            stored = Store(root).activations("run", layers=f"blocks[*]:output:{reduce}")[name][0].values
            for block, expected in zip(stored, plain_loop(folder, texts, reduce), strict=True):
                np.testing.assert_allclose(block, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_the_last_block_differs_from_transformers_last_state_and_the_final_norm_equals_it(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "run" / "step3", seed=5, step=3)
    probes = write_probes(tmp_path / "p.jsonl", 5)
    run("--store", tmp_path / "s", "ingest", "--path", folder.parent, "--probes", probes, "--reduce", "last_token",
        "--layers", "blocks[-1]", "--layers", "final_norm", "--layers", "blocks[-1]:hidden_states")  # fmt: skip
    ds = Store(tmp_path / "s").activations("run")["activations"][0]
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    expected = []
    for text in ds["text"].values:
        with torch.no_grad():
            states = model(**tokenizer()(str(text), return_tensors="pt"), output_hidden_states=True).hidden_states
        expected.append(states[-1][0, -1].numpy())
    norm, block, reported = (
        ds.sel(layer=f"{name}:last_token").values
        for name in ("final_norm:output", "blocks[2]:output", "blocks[2]:hidden_states")
    )
    np.testing.assert_allclose(norm, expected, atol=2e-5)
    np.testing.assert_array_equal(norm, reported)
    assert np.abs(block - expected).max() > 0.1


def test_token_level_rows_carry_probe_position_and_token(tmp_path: Path, probe_file: Path, family: Path) -> None:
    run("--store", tmp_path / "s", "ingest", "--path", family / "seed1", "--revisions", "step1", "--probes", probe_file,
        "--layers", "blocks[0]:output:all")  # fmt: skip
    ds = Store(tmp_path / "s").activations("seed1")
    texts = ds["text"].values
    encode = tokenizer()
    for probe in (0, 17, 39):
        mine = ds["token_probe"].values == probe
        assert (
            list(ds["token_id"].values[mine]) == encode(str(texts[probe]), truncation=True, max_length=64)["input_ids"]
        )
        assert list(ds["token_position"].values[mine]) == list(range(mine.sum()))
    assert ds["activations_token"].sizes["token"] == len(ds["token_id"])


def test_a_second_ingest_replays_nothing_and_a_further_layer_adds_only_itself(
    root: Path, family: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = forwards(monkeypatch)
    base = ("--store", root, "ingest", "--path", family / "seed1", "--revisions", "all", "--probes", probe_file)
    first = run(*base, "--layers", "blocks[0]")
    assert "5 revisions: 5 checkpoints replayed, 0 already there" in first.stdout
    assert len(loaded) == 5
    again = run(*base, "--layers", "blocks[0]")
    assert "0 checkpoints replayed, 5 already there" in again.stdout
    assert len(loaded) == 5
    more = run(*base, "--layers", "blocks[*]")
    assert "5 checkpoints replayed" in more.stdout
    layers = Store(root).layers("seed1")
    assert list(layers["layer"]) == [f"blocks[{n}]:output:mean" for n in range(3)]
    assert list(layers["revisions"]) == [5, 5, 5]
    with Store(root).index.read() as session:
        segments = session.scalars(select(Segment).where(Segment.kind == "activations")).all()
    assert len(segments) == 10  # one for blocks[0], one for the two others, at each step


def test_equal_weights_are_replayed_once(
    root: Path, family: Path, tmp_path: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch, hub: Hub
) -> None:
    shutil.copytree(family / "seed1", tmp_path / "run")
    shutil.copytree(tmp_path / "run" / "step8", tmp_path / "run" / "step1000")
    publish(hub, "ingest/aliases", tmp_path / "run")
    loaded = forwards(monkeypatch)
    result = run("--store", root, "ingest", "--repo", "ingest/aliases", "--revisions", "all", "--probes", probe_file)
    assert "7 revisions: 5 checkpoints replayed, 0 already there, 2 aliases" in result.stdout
    assert len(loaded) == 5
    table = Store(root).revisions("ingest/aliases").set_index("revision")
    assert table["alias_of"].to_dict() == {
        "step0": "", "step1": "", "step2": "", "step4": "", "step8": "", "step1000": "step8", "main": "step8",
    }  # fmt: skip
    weights = len(hub.requests(r"GET .*/lfs/ingest/aliases/.*model\.safetensors"))
    assert weights == 5
    before = len(hub.requests())
    run("--store", root, "ingest", "--repo", "ingest/aliases", "--revisions", "all", "--probes", probe_file)
    assert [r.path for r in hub.requests()[before:]] == ["/api/models/ingest/aliases/refs"]
    assert not list((root / "checkpoints").iterdir())


def test_every_weight_format_gives_the_same_activations(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    origin = family / "seed1" / "step4"
    shutil.copytree(origin, tmp_path / "a" / "step4")
    write_bin(origin, tmp_path / "b" / "step4")
    write_model(tmp_path / "c" / "step4", seed=1, step=4, max_shard_size="40KB")
    # transformers no longer writes sharded bins; it reads them by the index.
    sharded = tmp_path / "d" / "step4"
    write_bin(origin, sharded)
    tensors = torch.load(sharded / "pytorch_model.bin", weights_only=True)
    names = sorted(tensors)
    parts = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for part, members in parts.items():
        torch.save({name: tensors[name] for name in members}, sharded / part)
    weight_map = {name: part for part, members in parts.items() for name in members}
    (sharded / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (sharded / "pytorch_model.bin").unlink()
    paths = [argument for name in "abcd" for argument in ("--path", tmp_path / name)]
    run("--store", root, "ingest", *paths, "--probes", probe_file)
    store = Store(root)
    assert len({store.revisions(name)["weights"][0] for name in "abcd"}) == 4
    expected = store.activations("a")["activations"].values
    for name in "bcd":
        np.testing.assert_array_equal(store.activations(name)["activations"].values, expected)


def test_the_precision_of_the_replay_is_recorded_and_kept_apart(root: Path, family: Path, probe_file: Path) -> None:
    for dtype in ("bfloat16", "float32"):
        run("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step8", "--probes", probe_file,
            "--dtype", dtype)  # fmt: skip
    store = Store(root)
    low, full = (store.activations("seed1", dtype=dtype) for dtype in ("bfloat16", "float32"))
    assert (low.attrs["dtype"], full.attrs["dtype"]) == ("bfloat16", "float32")
    assert low["activations"].dtype == full["activations"].dtype == np.float32
    difference = np.abs(low["activations"].values - full["activations"].values).max()
    assert 0 < difference < 0.05 * np.abs(full["activations"].values).max()


def test_a_revision_that_fails_is_recorded_the_rest_go_on_and_the_next_run_retries_it(
    root: Path, family: Path, tmp_path: Path, probe_file: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(family / "seed1", folder)
    whole = (folder / "step2" / "model.safetensors").read_bytes()
    (folder / "step2" / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    base = ("--store", root, "ingest", "--path", folder, "--revisions", "all", "--probes", probe_file)
    result = run(*base, code=1)
    assert "4 checkpoints replayed, 0 already there, 0 aliases, 1 failed" in result.stdout
    assert "failed: run step2: " in result.stderr
    table = Store(root).revisions("run").set_index("revision")
    assert table["state"].to_dict() == dict.fromkeys(("step0", "step1", "step4", "step8"), "done") | {"step2": "failed"}
    assert "safetensors" in table["error"]["step2"]
    assert list(Store(root).activations("run")["revision"].values) == ["step0", "step1", "step4", "step8"]
    (folder / "step2" / "model.safetensors").write_bytes(whole)
    result = run(*base)
    assert "1 checkpoints replayed, 4 already there" in result.stdout
    assert set(Store(root).revisions("run")["state"]) == {"done"}


def test_a_dry_run_shows_the_plan_and_writes_nothing(root: Path, family: Path, probe_file: Path) -> None:
    base = ("ingest", "--path", family / "seed1", "--revisions", "last:2", "--probes", probe_file)
    result = run("--store", root, *base, "--dry-run")
    assert "2 checkpoints to replay" in result.stdout
    assert f"about {2 * 3 * 40 * 32 * 4 / 1000:.1f} kB to store" in result.stdout
    assert not root.exists()
    run("--store", root, *base)
    before = contents(root)
    result = run("--store", root, *base, "--revisions", "all", "--dry-run")
    assert "3 checkpoints to replay" in result.stdout
    assert contents(root) == before


def contents(root: Path) -> dict[Path, bytes]:
    """Every file of a store but SQLite's scratch files, which come and go with its readers."""
    files = (path for path in root.rglob("*") if path.is_file() and not path.name.endswith(("-wal", "-shm")))
    return {path.relative_to(root): path.read_bytes() for path in files}


def test_probe_files_report_what_they_hold_and_texts_that_were_cut(root: Path, family: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one\n\none\n" + "long " * 40 + "\n")
    for step in ("step0", "step0", "step1"):  # each time, not only when the tokens are new
        result = run("--store", root, "ingest", "--path", family / "seed1", "--revisions", step, "--probes", file)
        assert "probes mine: left out 1 empty probe: line 2" in result.stderr
        assert "kept 1 text given more than once: lines 1, 3" in result.stderr
        assert "seed1: 1 of 3 probes are longer than 64 tokens and were cut, the first is number 3" in result.stderr


def test_a_revision_without_tokenizer_borrows_that_of_its_run(
    root: Path, family: Path, tmp_path: Path, probe_file: Path, hub: Hub
) -> None:
    shutil.copytree(family / "seed1", tmp_path / "run")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "run" / "step1" / name).unlink()
    publish(hub, "ingest/borrowed", tmp_path / "run")
    base = ("--store", root, "ingest", "--repo", "ingest/borrowed", "--revisions", "all")
    for number in (1, 2):  # the second time with rows that the index already has, and tokens that it has not
        probes = write_probes(tmp_path / f"{number}.jsonl", 5 + number)
        result = run(*base, "--probes", probes)
        assert "ingest/borrowed step1 has no tokenizer; that of main is used" in result.stderr
        assert Store(root).activations("ingest/borrowed").sizes["revision"] == 6
    alone = run("--store", root, "ingest", "--path", tmp_path / "run" / "step1", "--probes", probe_file, code=1)
    assert "no tokenizer files (such as tokenizer.json) in this or any other revision" in alone.stderr


def test_the_built_in_probes_need_no_option_and_blocks_count_from_the_end(root: Path, family: Path) -> None:
    run("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step8", "--layers", "blocks[-1]")
    store = Store(root)
    assert store.probe_sets().iloc[0].to_dict() | {"digest": ""} == {
        "name": "topics", "probes": 512, "labels": 8, "digest": "", "used": True,
    }  # fmt: skip
    ds = store.activations("seed1")
    assert ds["activations"].shape == (1, 1, 512, 32)
    assert list(ds["layer"].values) == ["blocks[2]:output:mean"]


def test_two_processes_share_the_work_without_conflict(root: Path, family: Path, probe_file: Path) -> None:
    arguments = ["--store", root, "ingest", "--probes", probe_file, "--revisions", "all"]
    for seed in (1, 2, 3):
        arguments += ["--path", family / f"seed{seed}"]
    command = [sys.executable, "-m", "cli", *map(str, arguments)]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0], outputs
    replayed = [int(out.split(" checkpoints replayed")[0].rsplit(" ", 1)[1]) for out, _ in outputs]
    assert sum(replayed) == 15
    store = Store(root)
    assert [len(store.activations(f"seed{s}")["revision"]) for s in (1, 2, 3)] == [5, 5, 5]
    assert not list((root / "staging").iterdir())
    with store.index.read() as session:
        assert session.connection().exec_driver_sql("SELECT count(*) FROM claim").scalar_one() == 0


KILLED = """
import os, signal, sys, time
import torch
torch.set_num_threads(1)
import cli, replay.capture, replay.models, replay.probes, store.views, transformers
from transformers import AutoModel, AutoTokenizer, GPTNeoXModel

arguments = sys.argv[1:]

def ingest():
    pid = os.fork()
    if pid == 0:
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1); os.dup2(devnull, 2)
        try:
            cli.main(arguments, standalone_mode=False)
        except BaseException:
            os._exit(3)
        os._exit(0)
    return pid

for line in sys.stdin:
    word, *rest = line.split()
    pid = ingest()
    if word == "kill":
        time.sleep(float(rest[0]))
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_nothing_half_and_resumes_to_the_same_bytes(
    tmp_path: Path, family: Path, probe_file: Path
) -> None:
    def arguments(root: Path) -> list[str]:
        given = ["--store", root, "ingest", "--probes", probe_file, "--revisions", "all"]
        for seed in (1, 2, 3):
            given += ["--path", family / f"seed{seed}"]
        return [str(argument) for argument in given]

    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    run(*arguments(undisturbed))
    command = [sys.executable, "-c", KILLED, *arguments(killed)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin is not None
    assert child.stdout is not None
    moments = random.Random(1)
    codes, seen = [], 0
    for _ in range(20):
        child.stdin.write(f"kill {moments.uniform(0.02, 0.6)}\n")
        child.stdin.flush()
        codes.append(int(child.stdout.readline()))
        if not (killed / "index.sqlite").exists():
            continue
        try:
            store = open_store(killed)
        except Exception as error:  # noqa: BLE001 (killed before the first migration was committed: no store yet)
            assert "older replay (format 0" in str(error) or "belongs to another" in str(error)  # noqa: PT017
            continue
        with store.index.read() as session:
            rows = session.scalars(select(Segment)).all()
        for row in rows:
            verify(killed, row.id, row.files)
        assert len(rows) >= seen
        seen = len(rows)
        for name in store.runs()["run"]:
            if store.captures(name):
                assert not np.isnan(store.activations(name)["activations"].values).any()
    child.stdin.write("finish\n")
    child.stdin.flush()
    assert int(child.stdout.readline()) == 0
    child.communicate()
    assert codes.count(-signal.SIGKILL) >= 15
    assert contents(undisturbed / "segments") == contents(killed / "segments")
    assert not list((killed / "staging").iterdir())
    assert not list((killed / "checkpoints").iterdir())


def test_what_is_interrupted_by_the_keyboard_keeps_what_was_done(
    root: Path, family: Path, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from replay import capture

    calls = 0
    original = capture.replay_probes

    def interrupted(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return original(*given, **options)

    monkeypatch.setattr(capture, "replay_probes", interrupted)
    base = ("--store", root, "ingest", "--path", family / "seed1", "--revisions", "all", "--probes", probe_file)
    interrupted_run = run(*base, code=1)
    assert "interrupted after 2 checkpoints, which are kept: run the same command again" in interrupted_run.stderr
    assert len(Store(root).activations("seed1")["revision"]) == 2
    monkeypatch.setattr(capture, "replay_probes", original)
    assert "3 checkpoints replayed, 2 already there" in run(*base).stdout


def test_a_disk_that_fills_up_ends_in_one_line_and_loses_nothing(root: Path, family: Path) -> None:
    program = textwrap.dedent("""
        import resource, signal, sys
        import cli
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        base = sys.argv[1:]
        cli.main([*base, "--revisions", "step0"], standalone_mode=False)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # less than one token-level shard
        cli.main([*base, "--revisions", "all", "--reduce", "all"], standalone_mode=False)
    """)
    given = ["--store", root, "ingest", "--path", family / "seed1", "--layers", "blocks[0]"]
    command = [sys.executable, "-c", program, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == f"replay: no space left for {root}: free some and run the same command again; nothing is lost"
    assert "Traceback" not in done.stderr
    assert not list((root / "staging").iterdir())
    assert list(Store(root).activations("seed1")["revision"].values) == ["step0"]
    assert "5 checkpoints replayed" in run(*given, "--revisions", "all", "--reduce", "all").stdout


def test_a_folder_that_may_not_be_written_ends_in_one_line(tmp_path: Path, family: Path, probe_file: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o500)
    program = textwrap.dedent("""
        import ctypes, os, sys
        libc = ctypes.CDLL(None, use_errno=True)
        if os.geteuid() == 0:  # root passes every permission check unless it gives the capability up
            for capability in (1, 2):
                libc.prctl(24, capability, 0, 0, 0)
        os.execv(sys.executable, [sys.executable, "-m", "cli", *sys.argv[1:]])
    """)
    given = ["--store", folder / "store", "ingest", "--path", family / "seed1", "--probes", probe_file]
    command = [sys.executable, "-c", program, *map(str, given)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == f"replay: {folder / 'store'} may not be written by this user: check its permissions"


def test_without_a_network_one_line_says_so_and_offline_a_known_run_goes_on(
    root: Path, tmp_path: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    hub.commit("ingest/nonet", "step1", folder=family / "seed1" / "step1")
    given = ["--store", root, "ingest", "--repo", "ingest/nonet", "--revisions", "all", "--probes", probe_file]
    command = [sys.executable, "-m", "cli", *map(str, given)]

    def again(**environ: str) -> subprocess.CompletedProcess[str]:
        whole = hub.environ(tmp_path / "cache") | environ
        return subprocess.run(command, capture_output=True, text=True, check=False, env=whole)

    dead = again(HF_ENDPOINT="http://127.0.0.1:9")
    assert dead.returncode == 1
    *tried, last = dead.stderr.strip().splitlines()
    assert last.startswith("replay: http://127.0.0.1:9 cannot be reached for ingest/nonet (")
    assert "after 3 attempts" in last
    assert len(tried) == 2
    assert all("trying again in" in line for line in tried)
    unknown = again(HF_HUB_OFFLINE="1")
    assert unknown.returncode == 1
    assert "is not in the local cache and HF_HUB_OFFLINE is set" in unknown.stderr
    run(*given)
    known = again(HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert known.returncode == 0, known.stderr
    assert "0 checkpoints replayed, 1 already there" in known.stdout


def test_processes_that_ingest_one_repository_at_once_do_not_harm_each_others_downloads(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    publish(hub, "ingest/shared", family / "seed1")
    base = [sys.executable, "-m", "cli", "--store", root, "ingest", "--repo", "ingest/shared", "--revisions", "all"]
    hub.bandwidth = 400_000.0
    try:
        children = [
            subprocess.Popen(
                [*map(str, base), "--probes", str(probe_file), "--dtype", dtype],
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=hub.environ(tmp_path / "cache"),
            )
            for dtype in ("float32", "float32", "bfloat16")
        ]  # fmt: skip
        outputs = [child.communicate() for child in children]
    finally:
        hub.bandwidth = None
    assert [child.returncode for child in children] == [0, 0, 0], outputs
    assert Store(root).activations("ingest/shared", dtype="float32").sizes["revision"] == 6
    assert Store(root).activations("ingest/shared", dtype="bfloat16").sizes["revision"] == 6
    assert not list((root / "checkpoints").iterdir())


def test_a_segment_that_somebody_removed_is_made_again(root: Path, family: Path, probe_file: Path) -> None:
    base = ("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step1,step2", "--probes", probe_file)
    run(*base)
    before = contents(root / "segments")
    with Store(root).index.read() as session:
        lost = session.scalars(select(Segment.id).where(Segment.kind == "activations")).first()
    shutil.rmtree(next((root / "segments").glob(f"*/{lost}")))
    assert "1 checkpoints replayed, 1 already there" in run(*base).stdout
    assert contents(root / "segments") == before
    expected = Store(root).activations("seed1", layers="blocks[1]")["activations"].values
    shutil.rmtree(next((root / "segments").glob(f"*/{lost}")))
    run(*base, "--layers", "blocks[1]")  # another segment than the lost one, which held all three
    np.testing.assert_array_equal(Store(root).activations("seed1", layers="blocks[1]")["activations"].values, expected)


def test_a_failed_ingest_leaves_probes_and_readers_as_they_were(
    root: Path, family: Path, probe_file: Path, tmp_path: Path
) -> None:
    base = ("--store", root, "ingest", "--path", family / "seed1", "--revisions", "step1")
    run(*base, "--probes", probe_file, "--max-length", "4")
    mine = tmp_path / "mine.txt"
    mine.write_text("first\nsecond\nthird\n")
    run(*base, "--probes", mine, "--layers", "blocks[99]", code=1)
    run(*base, "--probes", probe_file, "--layers", "blocks[99]", code=1)
    store = Store(root)
    assert store.activations("seed1").attrs["max_length"] == 4
    mine.write_text("another\nsecond\nthird\n")
    run(*base, "--probes", mine)
    assert list(Store(root).activations("seed1")["text"].values) == ["another", "second", "third"]


def test_models_of_every_core_family_are_ingested(root: Path, tmp_path: Path, probe_file: Path) -> None:
    for name in (*FAMILIES, "opt"):
        write_model(tmp_path / name / "step1", seed=1, step=1, family=name)
    paths = [argument for name in (*FAMILIES, "opt") for argument in ("--path", tmp_path / name)]
    run("--store", root, "ingest", *paths, "--probes", probe_file, "--layers", "embed", "--layers", "blocks[*]")
    for name in (*FAMILIES, "opt"):
        layers = list(Store(root).activations(name)["layer"].values)
        assert layers == ["embed:output:mean", *(f"blocks[{n}]:output:mean" for n in range(3))]


def test_the_vocabulary_of_the_tests_fits_their_models() -> None:
    assert len(tokenizer()) <= VOCABULARY
    assert os.environ["OMP_NUM_THREADS"] == "1"
