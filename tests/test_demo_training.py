"""The demonstration's text and its training, in a few steps of a very small model."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest

from replay.demo import run
from replay.demo.corpus import read_corpus
from replay.demo.train import Recipe, is_complete, read_losses, train_replica, train_replicas
from replay.probes import builtin_probes, load_tokenizer, tokenize
from store.errors import StoreNotWritable

TINY = Recipe(
    steps=(0, 1, 4), n_layers=1, n_heads=2, n_features=16, n_vocabulary=300, n_context=32, n_batch=4, n_warmup=2
)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "replica"
    train_replica(folder, seed=1, recipe=TINY)
    return folder


def test_every_checkpoint_is_complete_and_loads_as_users_load_it(replica: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sorted(path.name for path in replica.iterdir()) == ["losses.csv", "step0", "step1", "step4"]
    for step in TINY.steps:
        folder = replica / f"step{step}"
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, info = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, output_loading_info=True)
        assert not any(info.values())
        assert model.dtype == torch.float32
        with torch.inference_mode():
            logits = model(**tokenizer("In the beginning", return_tensors="pt")).logits
        assert logits.shape[-1] == len(tokenizer) == TINY.n_vocabulary
        assert torch.isfinite(logits).all()


def test_the_tokenizer_gives_text_back_and_reads_the_built_in_probes(replica: Path) -> None:
    tokenizer = load_tokenizer(replica / "step0")
    assert tokenizer.decode(tokenizer("naïve cats, 12 €")["input_ids"]) == "naïve cats, 12 €"
    tokens = tokenize(builtin_probes(), tokenizer, max_length=512)
    assert tokens.cut == ()
    assert max(map(max, tokens.ids)) < TINY.n_vocabulary


def test_the_losses_are_recorded_for_every_checkpoint(replica: Path) -> None:
    losses = read_losses(replica)
    assert [loss.step for loss in losses] == [0, 1, 4]
    assert [loss.tokens for loss in losses] == [0, 128, 512]


def test_training_learns_what_held_out_text_has_in_common_with_the_corpus(tmp_path: Path) -> None:
    recipe = Recipe(steps=(0, 60), n_layers=1, n_features=32, n_vocabulary=300, n_context=32, n_warmup=10)
    train_replica(tmp_path, seed=1, recipe=recipe)
    first, last = read_losses(tmp_path)
    assert first.validation == pytest.approx(5.70, abs=0.1)  # log 300: a fresh model gives every token equal odds
    assert last.validation < first.validation - 0.8


def test_a_complete_replica_is_not_trained_again(replica: Path) -> None:
    steps: list[None] = []
    before = {path: path.stat().st_mtime_ns for path in replica.rglob("*")}
    train_replica(replica, seed=1, recipe=TINY, advance=lambda: steps.append(None))
    assert steps == []
    assert {path: path.stat().st_mtime_ns for path in replica.rglob("*")} == before


def test_one_seed_gives_identical_bytes_and_another_seed_other_weights(replica: Path, tmp_path: Path) -> None:
    for name, seed in [("again", 1), ("other", 2)]:
        train_replica(tmp_path / name, seed=seed, recipe=TINY)
    expected = files(replica)
    assert files(tmp_path / "again") == expected
    other = files(tmp_path / "other")
    different = {name for name in expected if other[name] != expected[name]}
    assert different == {"losses.csv", *(f"step{step}/model.safetensors" for step in TINY.steps)}


def test_a_training_stopped_on_the_way_ends_with_the_same_bytes(replica: Path, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop_after(n: int) -> Callable[[], None]:
        steps: list[None] = []

        def advance() -> None:
            steps.append(None)
            if len(steps) == n:
                raise Stopped

        return advance

    with pytest.raises(Stopped):
        train_replica(tmp_path / "r", seed=1, recipe=TINY, advance=stop_after(3))
    assert not is_complete(tmp_path / "r", TINY)
    kept = (tmp_path / "r" / "step1").stat().st_mtime_ns
    train_replica(tmp_path / "r", seed=1, recipe=TINY)
    assert files(tmp_path / "r") == files(replica)
    assert (tmp_path / "r" / "step1").stat().st_mtime_ns == kept


def test_a_process_killed_while_it_writes_a_checkpoint_leaves_no_half_of_it(replica: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from transformers import PreTrainedTokenizerFast as T\n"
        "from replay.demo.train import Recipe, train_replica\n"
        "save = T.save_pretrained\n"
        "def killed(self, folder):\n"
        "    if 'step1' in str(folder): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return save(self, folder)\n"
        "T.save_pretrained = killed\n"
        f"train_replica(Path(sys.argv[1]), seed=1, recipe={TINY!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], check=False)
    assert done.returncode == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "r").glob("[!.]*")) == ["losses.csv", "step0"]
    train_replica(tmp_path / "r", seed=1, recipe=TINY)
    assert files(tmp_path / "r") == files(replica)


def test_the_callers_threads_and_random_numbers_are_as_they_were(tmp_path: Path) -> None:
    import torch

    n_threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    train_replica(tmp_path, seed=1, recipe=TINY)
    assert torch.get_num_threads() == n_threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_replicas_trained_side_by_side_share_the_tokenizer_and_are_those_trained_alone(
    replica: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folders = train_replicas(tmp_path, seeds=(1, 2), recipe=TINY)
    assert [folder.name for folder in folders] == ["replica-seed1", "replica-seed2"]
    assert files(folders[0]) == files(replica)
    tokenizers = {(folder / "step0" / "tokenizer.json").read_bytes() for folder in folders}
    assert len(tokenizers) == 1
    again = train_replicas(tmp_path, seeds=(2, 1), recipe=TINY)
    assert again == folders[::-1]
    assert capfd.readouterr() == ("", "")


def test_what_goes_wrong_in_one_replica_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "replica-seed1").write_text("in the way")
    with pytest.raises(OSError, match="replica-seed1"):
        train_replicas(tmp_path, seeds=(1,), recipe=TINY)


def test_replicas_whose_parent_was_killed_stop_as_well(tmp_path: Path) -> None:
    endless = Recipe(
        steps=(0, 1, 10**9), n_layers=1, n_heads=2, n_features=16, n_vocabulary=300, n_context=8, n_batch=1
    )
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from replay.demo import train\n"
        "wait, folder = train.wait, Path(sys.argv[1])\n"
        "def die_once_training(*arguments, **options):\n"
        "    if (folder / 'replica-seed1' / 'step1').exists(): os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return wait(*arguments, **options)\n"
        "if __name__ == '__main__':\n"
        "    train.wait = die_once_training\n"
        f"    train.train_replicas(folder, seeds=(1,), recipe=train.{endless!r})\n"
    )
    # The worker inherits its parent's stdout, so that this returns only once both have ended.
    done = subprocess.run([sys.executable, str(script), str(tmp_path / "runs")], stdout=subprocess.PIPE, check=False)
    assert done.returncode == -signal.SIGKILL


def test_a_command_that_fails_ends_the_demonstration_with_its_exit_code(
    replica: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(command: list[str], *, check: bool) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 3)

    monkeypatch.setattr(run, "train_replicas", lambda folder: [replica])
    monkeypatch.setattr("replay.demo.run.subprocess.run", fail)
    with pytest.raises(SystemExit) as caught:
        run.run_demo(tmp_path)
    assert caught.value.code == 3
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"replica: 3 checkpoints, step 0 to 4, validation loss 5\.\d\d to 5\.\d\d", lines[0])
    assert lines[1:] == ["", f"$ replay --store {tmp_path / 'store'} ingest --path {replica} --revisions all"]


def test_a_folder_that_cannot_be_written_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> list[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(run, "train_replicas", refuse)
    with pytest.raises(StoreNotWritable, match=r"cannot be written \(Permission denied\): name another with --folder$"):
        run.run_demo(tmp_path)


def test_the_corpus_is_of_moderate_size_and_parted_without_overlap() -> None:
    corpus = resources.files("replay.demo") / "data" / "corpus.txt"
    assert len(corpus.read_bytes()) <= 400_000
    paragraphs = read_corpus()
    assert len(paragraphs.train) > 15 * len(paragraphs.validation) > 500
    assert not set(paragraphs.train) & set(paragraphs.validation)


def test_no_built_in_probe_stands_in_the_corpus() -> None:
    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    paragraphs = read_corpus()
    corpus = plain(" ".join([*paragraphs.train, *paragraphs.validation]))
    assert [text for text in builtin_probes().texts if plain(text) in corpus] == []


def test_the_licences_of_the_corpus_are_shipped_beside_it() -> None:
    notice = (resources.files("replay.demo") / "data" / "NOTICE").read_text(encoding="utf-8")
    assert "corpus.txt" in notice
    assert "WordNet 3.0 Copyright 2006 by Princeton University.  All rights reserved." in notice
    assert "World English Bible" in notice
    assert "Jargon File" in notice
    assert notice.count("public domain") == 2
