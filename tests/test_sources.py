"""Sources: one contract for the hub and for folders, and what is particular to each."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hub import Hub, publish
from runs import write_bin, write_model

from replay.opening import open_store
from replay.sources import Source, open_sources
from replay.sources.files import choose_weights, sha256
from replay.sources.folders import FolderSource
from replay.sources.hub import HubSource
from store.catalog import Store
from store.commits import RevisionRecord, put_run
from store.errors import DamagedWeights, GatedSource, InvalidInput, MissingWeights, UnknownSource

Make = Callable[[Path], Source]


@pytest.fixture
def store(root: Path) -> Store:
    return open_store(root, write=True)


class SourceContract:
    """What every source must do; a subclass says how one is made of a folder of revision folders."""

    def make(self, folder: Path, store: Store, hub: Hub) -> Source:
        raise NotImplementedError

    @pytest.fixture
    def source(self, family: Path, tmp_path: Path, store: Store, hub: Hub) -> Source:
        folder = tmp_path / "run"
        shutil.copytree(family / "seed1", folder)
        shutil.copytree(folder / "step8", folder / "step16")
        (folder / "step2" / "model.safetensors").unlink()
        return self.make(folder, store, hub)

    def test_revisions_come_ordered_by_step(self, source: Source) -> None:
        records = [r for r in source.list_revisions() if r.name != "main"]
        assert [r.name for r in records] == ["step0", "step1", "step2", "step4", "step8", "step16"]
        assert [r.step for r in records] == [0, 1, 2, 4, 8, 16]

    def test_equal_weights_have_equal_digests_and_others_do_not(self, source: Source) -> None:
        records = {r.name: source.describe(r) for r in source.list_revisions()}
        assert records["step8"].weights == records["step16"].weights
        digests = {records[name].weights for name in ("step0", "step1", "step4", "step8")}
        assert len(digests) == 4
        assert None not in digests
        assert len({r.tokenizer for r in records.values()}) == 1

    def test_a_revision_without_weights_is_described_with_the_reason(self, source: Source) -> None:
        broken = next(source.describe(r) for r in source.list_revisions() if r.name == "step2")
        assert broken.weights is None
        assert broken.error is not None
        assert "no weights that can be loaded" in broken.error

    def test_fetched_files_are_those_that_were_described(self, source: Source, tmp_path: Path) -> None:
        record = next(source.describe(r) for r in source.list_revisions() if r.name == "step1")
        with source.fetch(record, list(record.files), tmp_path / "scratch") as folder:
            assert sha256(folder / "model.safetensors") == record.files["model.safetensors"][0]
            assert all((folder / name).is_file() for name in record.files)
        assert not (tmp_path / "scratch").exists()

    def test_a_config_can_be_fetched_alone(self, source: Source, tmp_path: Path) -> None:
        record = next(source.describe(r) for r in source.list_revisions() if r.name == "step1")
        with source.fetch(record, ["config.json"], tmp_path / "scratch") as folder:
            assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt_neox"


class TestFolderSource(SourceContract):
    def make(self, folder: Path, store: Store, hub: Hub) -> Source:
        return FolderSource(folder, index=store.index)


class TestHubSource(SourceContract):
    def make(self, folder: Path, store: Store, hub: Hub) -> Source:
        repo = f"contract/{folder.parent.name}"
        publish(hub, repo, folder)
        return HubSource(repo)

    def test_digests_cost_one_request_and_no_weights(self, source: Source, hub: Hub) -> None:
        before = len(hub.requests())
        records = source.list_revisions()
        assert len(hub.requests()) == before + 1
        source.describe(records[0])
        assert len(hub.requests()) == before + 2
        assert not hub.requests(f"{source.location}/resolve")


def test_folder_and_hub_agree_on_the_identity_of_a_checkpoint(
    family: Path, tmp_path: Path, store: Store, hub: Hub
) -> None:
    shutil.copytree(family / "seed1", tmp_path / "same")
    write_model(tmp_path / "same" / "step3", seed=1, step=3, max_shard_size="40KB")
    publish(hub, "contract/same", tmp_path / "same")
    local = FolderSource(tmp_path / "same", index=store.index)
    remote = HubSource("contract/same")
    ours = [local.describe(r) for r in local.list_revisions()]
    theirs = [remote.describe(r) for r in remote.list_revisions() if r.name != "main"]
    assert [(r.weights, r.tokenizer, r.config) for r in ours] == [(r.weights, r.tokenizer, r.config) for r in theirs]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "tf_model.h5"], ["pytorch_model.bin"]),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ),
        (
            [
                "model.safetensors.index.json",
                "model-00001-of-00001.safetensors",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
            [
                "model.safetensors.index.json",
                "model-00001-of-00001.safetensors",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors",
            ],
        ),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors", "pytorch_model.bin"],
            ["pytorch_model.bin"],
        ),
    ],
)
def test_one_complete_weight_set_is_chosen(names: list[str], chosen: list[str]) -> None:
    assert choose_weights(names) == chosen


def test_a_missing_shard_is_named() -> None:
    with pytest.raises(MissingWeights, match=r"1 weight shards are missing, the first is model-00002-of-00002"):
        choose_weights(["model.safetensors.index.json", "model-00001-of-00002.safetensors"])


def test_a_trainers_folder_gives_steps_and_scalars_from_inside(family: Path, tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "out"
    for name, step in (("checkpoint-9", 9), ("checkpoint-10", 10), ("checkpoint-77", 100)):
        shutil.copytree(family / "seed1" / "step1", folder / name)
        history = [
            {"step": 9, "loss": 2.5, "learning_rate": 0.1},
            {"step": 10, "eval_loss": 2.0},
            {"step": 50, "loss": 1},
        ]
        state = {"global_step": step, "epoch": step / 10, "log_history": history}
        (folder / name / "trainer_state.json").write_text(json.dumps(state))
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        shutil.copy(family / "seed1" / "step1" / name, folder / name)
    records = FolderSource(folder, index=store.index).list_revisions()
    assert [(r.name, r.step) for r in records] == [
        ("checkpoint-9", 9),
        ("checkpoint-10", 10),
        ("checkpoint-77", 100),
        ("main", None),
    ]
    assert records[1].scalars == {"loss": 2.5, "learning_rate": 0.1, "eval_loss": 2.0}
    assert records[2].scalars["loss"] == 1
    assert records[1].epoch == 1.0


def test_a_single_model_folder_is_one_revision(family: Path, tmp_path: Path, store: Store) -> None:
    alone = FolderSource(family / "seed1" / "step4", index=store.index).list_revisions()
    assert [(r.name, r.step) for r in alone] == [("step4", 4)]
    shutil.copytree(family / "seed1" / "step4", tmp_path / "model")
    alone = FolderSource(tmp_path / "model", index=store.index).list_revisions()
    assert [(r.name, r.step) for r in alone] == [("main", None)]


def test_unchanged_files_are_hashed_once(family: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from replay.sources import folders

    hashed: list[Path] = []

    def noting(path: Path) -> str:
        hashed.append(path)
        return sha256(path)

    monkeypatch.setattr(folders, "sha256", noting)
    source = FolderSource(family / "seed1", index=store.index)
    for _ in range(2):
        for record in source.list_revisions():
            source.describe(record)
    assert len(hashed) == 5


def test_weights_that_change_between_plan_and_replay_are_refused(family: Path, tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "run" / "step1"
    shutil.copytree(family / "seed1" / "step1", folder)
    source = FolderSource(folder.parent, index=store.index)
    record = source.describe(source.list_revisions()[0])
    shutil.copy(family / "seed1" / "step2" / "model.safetensors", folder / "model.safetensors")
    os.utime(folder / "model.safetensors", (1, 1))
    with (
        pytest.raises(DamagedWeights, match="was changed since it was listed"),
        source.fetch(record, list(record.files), tmp_path),
    ):
        pass


def test_folders_without_checkpoints_say_what_they_hold(family: Path, tmp_path: Path, store: Store) -> None:
    with pytest.raises(UnknownSource, match="does not exist: --path takes a folder"):
        FolderSource(tmp_path / "none", index=store.index)
    with pytest.raises(
        UnknownSource, match=r"its folders seed1, seed2, seed3 hold some: name each with its own --path"
    ):
        FolderSource(family, index=store.index).list_revisions()
    (tmp_path / "a" / "notes").mkdir(parents=True)
    with pytest.raises(UnknownSource, match=r"there is notes \(--step-regex reads other names\)"):
        FolderSource(tmp_path / "a", index=store.index).list_revisions()


def test_runs_of_folders_with_one_name_are_told_apart(family: Path, tmp_path: Path, store: Store) -> None:
    for parent in ("a", "b"):
        shutil.copytree(family / "seed1" / "step1", tmp_path / parent / "model" / "step1")
    paths = [tmp_path / parent / "model" for parent in ("a", "b")]
    assert [s.run for s in open_sources(store, repos=(), paths=paths)] == ["a/model", "b/model"]
    assert [s.run for s in open_sources(store, repos=(), paths=paths[:1])] == ["model"]
    put_run(store, "model", source="folder", location=str(paths[0]))
    assert [s.run for s in open_sources(store, repos=(), paths=paths[:1])] == ["model"]
    assert [s.run for s in open_sources(store, repos=(), paths=paths[1:])] == ["b/model"]
    with pytest.raises(InvalidInput, match="is given twice"):
        open_sources(store, repos=("a/b", "a/b"), paths=())
    with pytest.raises(InvalidInput, match="nothing to ingest"):
        open_sources(store, repos=(), paths=())


@pytest.mark.parametrize("repo", ["pythia", "a/b/c", "a b/c", ""])
def test_what_is_no_repository_id_is_refused(repo: str) -> None:
    with pytest.raises(InvalidInput, match="expected ORG/NAME"):
        HubSource(repo)


def test_branches_and_tags_are_resolved_to_commits(family: Path, hub: Hub) -> None:
    sha = hub.commit("contract/tags", "step1", folder=family / "seed1" / "step1", tag="v1.0")
    records = {r.name: r for r in HubSource("contract/tags").list_revisions()}
    assert records["step1"].commit == records["v1.0"].commit == sha
    assert records["v1.0"].step is None


def test_unknown_gated_and_private_repositories_are_told_apart(family: Path, tmp_path: Path, hub: Hub) -> None:
    with pytest.raises(UnknownSource, match=r"no repository contract/none at http.*check its name"):
        HubSource("contract/none").list_revisions()
    hub.commit("contract/gated", "step1", folder=family / "seed1" / "step1")
    hub.repository("contract/gated").gated = True
    source = HubSource("contract/gated")
    record = source.describe(source.list_revisions()[0])
    with (
        pytest.raises(GatedSource, match="is gated: accept its terms on its page and set HF_TOKEN"),
        source.fetch(record, list(record.files), tmp_path / "s"),
    ):
        pass


def test_a_download_that_is_not_what_was_listed_is_refused(family: Path, tmp_path: Path, hub: Hub) -> None:
    hub.commit("contract/wrong", "step1", folder=family / "seed1" / "step1")
    source = HubSource("contract/wrong")
    record = source.describe(source.list_revisions()[0])
    record.files["model.safetensors"][0] = "0" * 64
    with (
        pytest.raises(DamagedWeights, match="sha256 differs"),
        source.fetch(record, list(record.files), tmp_path / "s"),
    ):
        pass
    assert not (tmp_path / "s").exists()


OFFLINE = """
import sys
from pathlib import Path
from replay.sources.hub import HubSource
source = HubSource("contract/offline")
records = source.list_revisions()
print([r.name for r in records], [source.describe(r).weights for r in records])
record = source.describe(records[0])
with source.fetch(record, list(record.files), Path(sys.argv[1])) as folder:
    print((folder / "model.safetensors").stat().st_size)
"""


def test_offline_the_users_own_cache_serves_what_it_holds(family: Path, tmp_path: Path, hub: Hub) -> None:
    hub.commit("contract/offline", "step1", folder=family / "seed1" / "step1")
    environ = hub.environ(tmp_path / "cache")
    program = "from huggingface_hub import snapshot_download; snapshot_download('contract/offline', revision='step1')"
    subprocess.run([sys.executable, "-c", program], env=environ, check=True, capture_output=True)
    online = HubSource("contract/offline")
    weights = online.describe(online.list_revisions()[0]).weights
    before = len(hub.requests())
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, str(tmp_path / "scratch")],
        env=environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    size = (family / "seed1" / "step1" / "model.safetensors").stat().st_size
    assert done.stdout.splitlines() == [f"['step1'] ['{weights}']", str(size)]
    assert len(hub.requests()) == before


def test_bin_and_sharded_sets_are_described_whole(family: Path, tmp_path: Path, store: Store) -> None:
    write_bin(family / "seed1" / "step1", tmp_path / "run" / "step1")
    write_model(tmp_path / "run" / "step2", seed=1, step=2, max_shard_size="40KB")
    source = FolderSource(tmp_path / "run", index=store.index)
    bin_, sharded = (source.describe(r) for r in source.list_revisions())
    assert "pytorch_model.bin" in bin_.files
    shards = [name for name in sharded.files if name.startswith("model-0")]
    assert len(shards) > 2
    assert "model.safetensors.index.json" in sharded.files
    assert sharded.n_bytes == sum(sharded.files[name][1] for name in [*shards, "model.safetensors.index.json"])


def test_a_record_without_a_config_says_so(tmp_path: Path, family: Path, store: Store) -> None:
    shutil.copytree(family / "seed1" / "step1", tmp_path / "run" / "step1")
    (tmp_path / "run" / "step1" / "config.json").unlink()
    source = FolderSource(tmp_path / "run", index=store.index)
    record: RevisionRecord = source.describe(source.list_revisions()[0])
    assert record.error == "there is no config.json beside the weights"
