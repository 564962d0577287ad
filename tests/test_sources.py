"""Sources: one contract for the hub and for folders, and what is particular to each."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hub import Hub, publish
from huggingface_hub import constants
from runs import write_bin, write_model

from replay.listing import list_run
from replay.opening import open_store
from replay.sources import Source, open_sources, retries, series
from replay.sources.files import choose_weights, sha256
from replay.sources.folders import FolderSource
from replay.sources.hub import HubSource
from replay.sources.series import SeriesSource
from store.catalog import Store
from store.commits import RevisionRecord, get_revisions, put_run
from store.errors import (
    DamagedWeights,
    GatedSource,
    InvalidInput,
    MissingWeights,
    SourceUnreachable,
    UnknownRevision,
    UnknownSource,
)
from store.keys import git_blob_id

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

    def test_what_nobody_touched_passes_a_second_look(self, source: Source, tmp_path: Path) -> None:
        record = next(source.describe(r) for r in source.list_revisions() if r.name == "step1")
        with source.fetch(record, list(record.files), tmp_path / "scratch"):
            source.check(record, list(record.files))

    def test_a_config_can_be_fetched_alone(self, source: Source, tmp_path: Path) -> None:
        record = next(source.describe(r) for r in source.list_revisions() if r.name == "step1")
        with source.fetch(record, ["config.json"], tmp_path / "scratch") as folder:
            assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt_neox"


class TestFolderSource(SourceContract):
    def make(self, folder: Path, store: Store, hub: Hub) -> Source:
        return FolderSource(folder, index=store.index)

    def test_nothing_has_to_be_fetched(self, source: Source) -> None:
        record = source.describe(source.list_revisions()[0])
        assert source.bytes_to_fetch(record, list(record.files)) == 0


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


class TestSeriesSource(SourceContract):
    def make(self, folder: Path, store: Store, hub: Hub) -> Source:
        owner = f"series-{folder.parent.name}"
        for path in folder.iterdir():
            hub.commit(f"{owner}/{path.name}", folder=path)
        return SeriesSource(f"{owner}/step*")

    def test_digests_cost_one_request_for_all_names_and_one_a_repository(self, source: Source, hub: Hub) -> None:
        before = len(hub.requests())
        records = source.list_revisions()
        assert len(hub.requests()) == before + 1
        source.describe(records[0])
        assert len(hub.requests()) == before + 2

    def test_what_has_to_be_fetched_is_counted(self, source: Source) -> None:
        record = source.describe(source.list_revisions()[0])
        assert record.n_bytes is not None
        assert source.bytes_to_fetch(record, ["model.safetensors"]) == record.n_bytes > 0


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


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_files_that_change_between_fetch_and_commit_are_refused(
    name: str, family: Path, tmp_path: Path, store: Store
) -> None:
    folder = tmp_path / "run" / "step1"
    shutil.copytree(family / "seed1" / "step1", folder)
    source = FolderSource(folder.parent, index=store.index)
    record = source.describe(source.list_revisions()[0])
    with source.fetch(record, list(record.files), tmp_path / "scratch"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        os.utime(folder / name, (1, 1))
        with pytest.raises(DamagedWeights, match=f"step1/{name} was changed since it was listed: run the same command"):
            source.check(record, list(record.files))
        source.check(record, [other for other in record.files if other != name])
        (folder / name).unlink()
        with pytest.raises(DamagedWeights, match=f"step1/{name} is gone since it was listed"):
            source.check(record, list(record.files))


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


@pytest.mark.parametrize("digest", ["x/../../../../victim", "A" * 64, "a" * 63, "a" * 64 + "\n"])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_digest_that_is_none_is_an_error_of_its_revision(name: str, digest: str, family: Path, hub: Hub) -> None:
    sha = hub.commit("contract/digests", "step1", folder=family / "seed1" / "step1")
    commit = hub.repository("contract/digests").commits[sha]
    blob = commit.files[name]
    blob = replace(blob, oid=digest) if blob.sha256 is None else replace(blob, sha256=digest)
    hub.repository("contract/digests").commits[sha] = replace(commit, files={**commit.files, name: blob})
    source = HubSource("contract/digests")
    described = source.describe(source.list_revisions()[0])
    assert described.error == f"the hub lists {name} with {digest!r}, which is no sha1 or sha256 in hex"


def test_a_repository_without_tags_or_branches_has_no_revisions(hub: Hub) -> None:
    hub.fail("contract/bare/refs", status=200)  # with an empty object
    assert HubSource("contract/bare").list_revisions() == []


def test_a_listing_never_goes_on_at_another_server(family: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    hub.commit("contract/links", "step1", folder=family / "seed1" / "step1")
    source = HubSource("contract/links")
    record = source.list_revisions()[0]
    with Hub() as other:
        hub.fail("contract/links/tree", status=200, headers={"Link": f'<{other.url}/steal>; rel="next"'})
        with pytest.raises(SourceUnreachable, match=r"contract/links step1 goes on at http://127.0.0.1:\d+/, another"):
            source.describe(record)
        assert other.log == []
    here = f'</api/models/contract/links/tree/{record.commit}>; rel="next"'
    hub.fail("contract/links/tree", status=200, headers={"Link": here})
    assert source.describe(record).weights


@pytest.fixture
def multiberts(hub: Hub) -> Iterator[Hub]:
    for seed in (0, 1):
        for step in ("20k", "200k", "0k"):
            hub.commit(f"berts/multiberts-seed_{seed}-step_{step}", files={"config.json": "{}"})
        hub.commit(f"berts/multiberts-seed_{seed}", files={"config.json": "{}"})
    hub.commit("others/multiberts-seed_0-step_40k", files={"config.json": "{}"})
    yield hub
    hub.faults.clear()
    for repo in [repo for repo in hub.repositories if repo.startswith("berts/")]:
        del hub.repositories[repo]


def test_a_pattern_is_one_run_of_many_repositories(multiberts: Hub, store: Store) -> None:
    (source,) = open_sources(store, repos=("berts/multiberts-seed_0-step_*",), paths=())
    assert (source.kind, source.run, source.location) == (
        "hub",
        "berts/multiberts-seed_0",
        "berts/multiberts-seed_0-step_*",
    )
    records = source.list_revisions()
    assert [(r.name, r.step) for r in records] == [
        ("multiberts-seed_0-step_0k", 0),
        ("multiberts-seed_0-step_20k", 20_000),
        ("multiberts-seed_0-step_200k", 200_000),
    ]
    assert records[0].commit == multiberts.repository("berts/multiberts-seed_0-step_0k").branches["main"]
    beside = SeriesSource("berts/multiberts-seed_1*").list_revisions()
    assert [(r.name, r.step) for r in beside][-1] == ("multiberts-seed_1", None)


def test_a_series_is_listed_page_by_page(multiberts: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "PAGE", 2)
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    multiberts.fail("GET /api/models[?].*cursor=", status=503)
    before, told = len(multiberts.requests()), list[str]()
    pattern = "berts/multiberts-seed_0-step_*"
    assert len(SeriesSource(pattern, report=told.append).list_revisions()) == 3
    assert [line.status for line in multiberts.requests()[before:]] == [200, 503, 200]
    assert told == [f"{pattern}: 503, trying again in 0 s (2 of 6)"]


def test_several_series_in_one_pattern_are_refused(multiberts: Hub) -> None:
    with pytest.raises(
        InvalidInput,
        match="several series: multiberts-seed_0-step_0k and multiberts-seed_1-step_0k both are step 0; name one",
    ):
        SeriesSource("berts/multiberts-seed_*-step_*").list_revisions()


def test_a_pattern_that_nothing_matches_says_what_there_is(multiberts: Hub) -> None:
    with pytest.raises(UnknownSource, match=r"no repository matches berts/multiberts-seed_0-stop\*: check the owner"):
        SeriesSource("berts/multiberts-seed_0-stop*").list_revisions()
    with pytest.raises(UnknownSource, match="there are berts/multiberts-seed_0-step_0k, berts/multiberts-seed_0-step_"):
        SeriesSource("berts/multiberts-seed_0-step_?").list_revisions()


@pytest.mark.parametrize("pattern", ["*/step_1", "step_*", "a b/*", "a/b/*"])
def test_what_is_no_series_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidInput, match="expected ORG/GLOB"):
        SeriesSource(pattern)


def test_offline_a_series_is_what_it_was(multiberts: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pattern = "berts/multiberts-seed_0-step_*"
    online = SeriesSource(pattern)
    records = [replace(online.describe(record), weights="known", error=None) for record in online.list_revisions()]
    put_run(store, online.run, source=online.kind, location=online.location, records=records)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (offline,) = open_sources(store, repos=(pattern,), paths=())
    assert [offline.describe(record) for record in offline.list_revisions()] == records
    with pytest.raises(SourceUnreachable, match="has never been listed and HF_HUB_OFFLINE is set"):
        SeriesSource(pattern.replace("_0", "_1")).list_revisions()


def test_a_series_repository_that_is_gone_is_named(multiberts: Hub, tmp_path: Path) -> None:
    source = SeriesSource("berts/multiberts-seed_0-step_*")
    record = source.list_revisions()[0]
    multiberts.repository(f"berts/{record.name}").commits.clear()
    with pytest.raises(UnknownRevision, match="berts/multiberts-seed_0-step_0k main was listed and is gone"):
        source.describe(record)
    del multiberts.repositories[f"berts/{record.name}"]
    described = source.describe(record)
    assert "no repository berts/multiberts-seed_0-step_0k" in str(described.error)
    with (
        pytest.raises(UnknownRevision, match="no repository berts/multiberts-seed_0-step_0k"),
        source.fetch(replace(record, files=LISTED), ["config.json"], tmp_path),
    ):
        pass
    with pytest.raises(UnknownRevision, match="no repository"):
        source.bytes_to_fetch(replace(record, files=LISTED), [], wanted=bool, scratch=tmp_path)


LISTED: dict[str, list[Any]] = {"config.json": ["0" * 40, 2], "model.safetensors": ["0" * 64, 2000]}


def test_a_series_repository_that_is_gated_fails_alone(multiberts: Hub, tmp_path: Path) -> None:
    source = SeriesSource("berts/multiberts-seed_0-step_*")
    first, *rest = (source.describe(record) for record in source.list_revisions())
    multiberts.repository(f"berts/{first.name}").gated = True
    names = {"config.json": [git_blob_id(b"{}"), 2]}
    with (
        pytest.raises(UnknownRevision, match=f"berts/{first.name} is gated: accept its terms"),
        source.fetch(replace(first, files=names), ["config.json"], tmp_path / "s"),
    ):
        pass
    for record in rest:
        with source.fetch(replace(record, files=names), ["config.json"], tmp_path / "s") as folder:
            assert (folder / "config.json").read_text() == "{}"


def test_what_goes_wrong_while_files_are_used_is_no_failure_of_their_repository(
    multiberts: Hub, tmp_path: Path
) -> None:
    source = SeriesSource("berts/multiberts-seed_0-step_*")
    record = replace(source.list_revisions()[0], files={"config.json": [git_blob_id(b"{}"), 2]})
    with pytest.raises(GatedSource, match="of another"), source.fetch(record, ["config.json"], tmp_path / "s"):
        raise GatedSource("of another")


def test_a_series_repository_that_was_gated_is_asked_again_at_the_next_listing(
    family: Path, store: Store, hub: Hub
) -> None:
    for step in (0, 1):
        hub.commit(f"gates/run-step_{step}", folder=family / "seed1" / f"step{step}")
    hub.fail("gates/run-step_0/tree", status=403, headers={"X-Error-Code": "GatedRepo"})
    source = SeriesSource("gates/run-step_*")
    list_run(store, source)
    closed, other = get_revisions(store, source.run)
    assert "gates/run-step_0 is gated" in str(closed.error)
    assert (other.error, bool(other.weights)) == (None, True)
    list_run(store, SeriesSource("gates/run-step_*", known=[closed, other]))
    opened, again = get_revisions(store, source.run)
    assert (opened.error, bool(opened.weights), bool(opened.commit)) == (None, True, True)
    assert again == other


def test_offline_a_series_leaves_out_what_it_could_not_look_into(
    multiberts: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = "berts/multiberts-seed_0-step_*"
    closed, *rest = SeriesSource(pattern).list_revisions()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    source = SeriesSource(pattern, known=[replace(closed, commit=None, error="gated"), *rest])
    assert [record.name for record in source.list_revisions()] == [record.name for record in rest]


def test_a_series_goes_to_another_process(multiberts: Hub) -> None:
    source = SeriesSource("berts/multiberts-seed_0-step_*", report=lambda line: None)
    assert pickle.loads(pickle.dumps(source)).list_revisions() == source.list_revisions()


def test_retries_are_reported_to_who_opened_the_sources(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    hub.commit("contract/told", files={"config.json": "{}"})
    hub.fail("contract/told/refs", status=503)
    hub.fail("GET /api/models[?]", status=503)
    told: list[str] = []
    for source in open_sources(store, repos=("contract/told", "contract/tol?"), paths=(), report=told.append):
        source.list_revisions()
    assert told == [f"contract/{name}: 503, trying again in 0 s (2 of 6)" for name in ("told", "tol?")]


OFFLINE = """
import sys
from pathlib import Path
from replay.sources.hub import HubSource
from replay.sources.series import SeriesSource
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
