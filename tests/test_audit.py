"""The audit of a published history: every planted fault is found, and nothing else is called one."""

import hashlib
import json
import random
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hub import Content, Hub
from hub import publish as publish_folder
from runs import write_run

import cli
from replay.audit import audit_hashes, audit_run, refresh_audit
from replay.grids import find_grids
from replay.listing import describe_revisions, get_listing, list_run, remember_listing
from replay.opening import open_store
from replay.sources import open_sources
from replay.sources.files import describe_files
from replay.sources.folders import FolderSource
from replay.sources.hub import HubSource
from replay.weighing import VERSION, weigh, weighing_arrays
from store.catalog import Store
from store.commits import (
    FindingRecord,
    RevisionRecord,
    commit_weighing,
    fail_revisions,
    get_revisions,
    put_findings,
    put_run,
    stage_weighing,
)
from store.errors import SourceUnreachable, UnknownRun

PYTHIA = [0, *(2**n for n in range(10)), *range(1000, 144000, 1000)]
MULTIBERTS = [*range(0, 200_001, 20_000), *range(300_000, 2_000_001, 100_000)]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"{result.output}\n{result.exception!r}"
    return result


def record(
    name: str,
    *shards: object,
    config: str = "c",
    tokenizer: str | None = "t",
    n_bytes: int = 1000,
    stage: int | None = None,
    suffix: str = "safetensors",
    step: int | None = None,
) -> RevisionRecord:
    """A described revision with one weight file for each of ``shards``, which stand for their contents."""
    total = len(shards)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    files = {"config.json": (config, 10)}
    for number, shard in enumerate(shards, 1):
        file = f"{stem}.{suffix}" if total == 1 else f"{stem}-{number:05d}-of-{total:05d}.{suffix}"
        files[file] = (hashlib.sha256(str(shard).encode()).hexdigest(), n_bytes)
    if total > 1:
        files[f"{stem}.{suffix}.index.json"] = ("index", 5)
    if tokenizer is not None:
        files["tokenizer.json"] = (tokenizer, 20)
    digits = name.removeprefix("step")
    parsed = int(digits) if name.startswith("step") and digits.isdecimal() else step
    return describe_files(RevisionRecord(name, commit=f"sha-{name}", step=parsed, stage=stage), files)


def history(steps: Sequence[int], same: Mapping[int, int] | None = None) -> list[RevisionRecord]:
    """Steps with weights of their own, except where ``same`` names the step whose weights they hold."""
    return [record(f"step{step}", (same or {}).get(step, step)) for step in steps]


def audit(records: Sequence[RevisionRecord], *, complete: bool = True) -> list[FindingRecord]:
    return audit_hashes(records, complete=complete)


def faults(records: Sequence[RevisionRecord], *, complete: bool = True) -> dict[str | None, str]:
    return {f.revision: f.kind for f in audit(records, complete=complete) if f.level == "fault"}


def gaps(steps: Sequence[int], *without: int) -> list[int]:
    found = audit(history([step for step in steps if step not in without]))
    assert {finding.kind for finding in found} <= {"gap"}
    return [int(finding.text.split()[1]) for finding in found]


def notes(records: Sequence[RevisionRecord], *, complete: bool = True) -> list[tuple[str | None, str, str]]:
    return [(f.revision, f.kind, f.text) for f in audit(records, complete=complete) if f.level == "note"]


def test_a_sound_history_has_no_finding_but_the_other_names_of_its_checkpoints() -> None:
    records = [*history(PYTHIA), record("main", 143000), record("v1.0", 512), record("fp32", "other")]
    assert [f[:2] for f in notes(records)] == [("main", "alias"), ("v1.0", "alias")]
    assert faults(records) == {}
    texts = {f.revision: f.text for f in audit(records)}
    assert texts == {
        "main": "main holds the weights of step143000, the last one",
        "v1.0": "v1.0 holds the weights of step512",
    }


def test_copies_of_the_final_weights_are_faults_where_they_are_early() -> None:
    found = audit([*history([0, 1, 2, 4, 8, 16], {2: 16, 4: 16}), record("main", 16)])
    assert [(f.revision, f.kind, f.level, f.others) for f in found] == [
        ("step2", "final", "fault", ("step16",)),
        ("step4", "final", "fault", ("step16",)),
        ("main", "alias", "note", ("step16",)),
    ]
    assert found[0].text == "step2 holds the final weights, those of step16"


def test_main_that_is_not_the_last_step_is_a_note_that_says_what_it_is() -> None:
    steps = [0, 1, 2, 3]
    assert notes([*history(steps), record("main", 2)]) == [
        ("main", "main", "main holds the weights of step2, not those of the last one, step3")
    ]
    assert notes([*history(steps), record("main", "else")]) == [
        ("main", "main", "main holds weights of no step, not those of the last one, step3")
    ]
    assert faults([*history(steps), record("main", 2)]) == {}
    assert faults([*history(steps, {0: 2}), record("main", 2)]) == {"step0": "final", "step2": "final"}
    assert notes([record("main", "alone")]) == []


def test_another_config_does_not_hide_equal_weights() -> None:
    records = [record("step0", 0), record("step1", 2, config="new"), record("step2", 2), record("main", 2, config="m")]
    assert faults(records) == {"step1": "final"}
    assert [f[:2] for f in notes(records)] == [
        ("step1", "config"),
        ("step2", "config"),
        ("main", "alias"),
        ("main", "config"),
    ]


def test_of_equal_neighbours_the_first_keeps_its_place() -> None:
    found = audit(history([0, 1, 2, 4, 8], {1: 0, 2: 0}))
    assert [(f.revision, f.kind, f.others) for f in found] == [
        ("step1", "duplicate", ("step0",)),
        ("step2", "duplicate", ("step0",)),
    ]
    assert found[0].text == "step1 still holds the weights of step0"


def test_equal_weights_far_apart_are_all_faults_as_hashes_cannot_tell() -> None:
    found = audit(history([0, 1, 2, 4, 8, 16], {8: 1}))
    assert [(f.revision, f.kind, f.others) for f in found] == [
        ("step1", "duplicate", ("step8",)),
        ("step8", "duplicate", ("step1",)),
    ]
    assert found[0].text.endswith("step1, step8; hashes cannot tell whose they are")


def test_two_names_of_one_step_are_a_note() -> None:
    assert notes([*history([1, 2, 3]), record("checkpoint-2", 2, step=2)]) == [
        ("step2", "alias", "step2 is another name of checkpoint-2: same step, same weights")
    ]


def test_one_shard_of_the_final_model_is_a_fault_of_the_earlier_step() -> None:
    records = [record(f"step{s}", f"a{s if s != 3 else 6}", f"b{s}") for s in range(7)]
    found = audit(records)
    assert [(f.revision, f.kind, f.level, f.others) for f in found] == [("step3", "shard", "fault", ("step6",))]
    assert found[0].text == "step3 has model-00001-of-00002.safetensors of step6 beside files of its own"


def test_a_shared_shard_is_the_later_neighbours_fault_and_of_both_where_they_are_apart() -> None:
    def shards(*equal: int) -> list[RevisionRecord]:
        return [record(f"step{s}", f"a{equal[0] if s in equal else s}", f"b{s}") for s in range(7)]

    assert faults(shards(2, 3)) == {"step3": "shard"}
    assert faults(shards(2, 4)) == {"step2": "shard", "step4": "shard"}
    assert all(f.text.endswith("hashes cannot tell whose they are") for f in audit(shards(2, 4)))


def test_a_shard_that_never_changes_is_one_note_even_where_one_revision_has_another() -> None:
    frozen = [record(f"step{s}", "embedding", f"b{s}") for s in range(20)]
    (found,) = audit(frozen)
    assert (found.revision, found.kind, found.level) == (None, "shard", "note")
    assert found.text.startswith("model-00001-of-00002.safetensors: equal in all 20 different weights")
    (found,) = audit([*frozen[:7], record("step7", "other", "b7"), *frozen[8:]])
    assert "equal in 19 of 20 different weights" in found.text


def test_the_index_of_shards_is_no_weight() -> None:
    records = [record(f"step{s}", f"a{s}", f"b{s}") for s in range(4)]  # the index is the same in all
    assert audit(records) == []


def test_missing_weights_shards_and_configs_are_faults_and_failed_replays_are_not() -> None:
    def described(step: int, *files: str) -> RevisionRecord:
        named = {file: (f"{file}{step}", 5) for file in ("tokenizer.json", *files)}
        return describe_files(RevisionRecord(f"step{step}", step=step), named)

    index = "model.safetensors.index.json"
    found = audit(
        [
            record("step0", "a", "b"),
            described(1, "config.json"),
            described(2, "config.json", index, SHARDS[0]),
            described(3, "model.safetensors"),
            replace(record("step4", "c", "d"), error="the hub cannot be reached"),
            RevisionRecord("step5", step=5),  # not described
        ]
    )
    assert [(f.revision, f.kind) for f in found] == [("step1", "missing"), ("step2", "missing"), ("step3", "missing")]
    assert found[0].text.startswith("step1 cannot be used: no weights that can be loaded")
    assert "1 weight shards are missing, the first is model-00002-of-00002.safetensors" in found[1].text
    assert "no config.json" in found[2].text


def test_a_truncated_upload_is_a_fault_and_another_precision_or_format_is_not() -> None:
    records = [record(f"step{s}", s, n_bytes=1_000_000 + s) for s in range(6)]
    cut = [*records, record("step6", 6, n_bytes=700_000), record("step7", 7)]
    assert faults(cut) == {"step6": "size", "step7": "size"}
    assert "step6 has 700,000 bytes of weights, 1,000,00" in audit(cut)[0].text
    half = [*records, record("step6", 6, n_bytes=500_000), record("step7", 7, n_bytes=1_300_000)]
    assert [text.rpartition(": ")[2] for _, _, text in notes(half)] == ["another precision", "larger than the others"]
    assert faults(half) == {}
    other = [*records, record("step6", 6, n_bytes=1_150_000, suffix="bin")]
    assert audit(other) == []
    smaller = [*records, record("step6", 6, n_bytes=700_000, config="small")]
    assert faults(smaller) == {}


def test_plain_files_have_no_usual_size_and_no_config_json() -> None:
    sizes = (1000, 1000, 1000, 3000, 300)
    files = [{f"step{step}.pt": [f"d{step}", n_bytes]} for step, n_bytes in enumerate(sizes)]
    records = [
        RevisionRecord(f"step{step}", step=step, config="a", weights=f"w{step}", files=held)
        for step, held in enumerate(files)
    ]
    assert audit(records) == []
    records[-1] = replace(records[-1], config="b")
    assert notes(records) == [("step4", "config", "step4 has another model (--model) than step3")]
    assert faults(records) == {}


def test_changes_of_config_and_tokenizer_are_noted_once_each() -> None:
    records = [
        record(f"step{s}", s, config="old" if s < 4 else "new", tokenizer=None if s == 7 else "x" if s < 6 else "y")
        for s in range(9)
    ]
    assert notes(records) == [
        (None, "tokenizer", "1 of 9 revisions have no tokenizer: step7"),
        ("step4", "config", "step4 has another config.json than step3"),
        ("step6", "tokenizer", "step6 has another tokenizer than step5"),
    ]


@pytest.mark.parametrize(
    "steps",
    [
        PYTHIA,
        MULTIBERTS,
        [*range(500, 10_001, 500), 10_123],
        [2**n for n in range(18)],
        [0, *(2**n for n in range(13)), *range(5120, 40_000, 1024)],
        [0, *(2**n for n in range(10)), *range(1024, 40_000, 512)],
        [0, 1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64],
        [0, 150, 600, 700, 900, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 9000, 10_000],
        [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000],
        [1000, 10_000, 100_000, 200_000, 300_000, 400_000, 500_000, 600_000],
        [0],
        [0, 1000],
        [10, 20, 40],
        [0, 1000, 2000, 4000],
        [0, 500, 1000, 1500, 2500],
    ],
    ids=lambda steps: f"{steps[0]}-{steps[-1]}-{len(steps)}",
)
def test_a_sound_or_irregular_grid_lacks_nothing(steps: list[int]) -> None:
    assert audit(history(steps)) == []


@pytest.mark.parametrize(
    ("steps", "without"),
    [
        (PYTHIA, [5000, 90_000]),
        (PYTHIA, [5000, 6000]),
        (PYTHIA, [1000]),
        (PYTHIA, [2000]),
        (PYTHIA, [142_000]),
        (PYTHIA, [2]),
        (PYTHIA, [64, 128]),
        (PYTHIA, [256]),
        (PYTHIA, list(range(50_000, 61_000, 1000))),
        (MULTIBERTS, [20_000]),
        (MULTIBERTS, [40_000, 300_000]),
        (MULTIBERTS, [300_000, 400_000]),
        (list(range(500, 10_001, 500)), [9500]),
        ([0, *(2**n for n in range(10)), *range(1024, 40_000, 512)], [39_424]),
    ],
)
def test_missing_steps_are_named_and_no_others(steps: list[int], without: list[int]) -> None:
    assert gaps(steps, *without) == without


def test_a_gap_names_its_neighbours_and_the_grid() -> None:
    (found,) = audit(history([step for step in PYTHIA if step != 7000]))
    assert (found.revision, found.level, found.others) == (None, "fault", ("step6000", "step8000"))
    assert found.text == "step 7000 is missing: there is one every 1000 from 1000 to 143000"


def test_grids_drawn_at_random_lack_nothing() -> None:
    generator = random.Random(0)
    for _ in range(100):
        steps = sorted(generator.sample(range(200), generator.randrange(1, 60)))
        assert [f for f in audit(history([1000 * s for s in steps])) if f.kind == "gap"] == []


def test_a_step_between_those_of_the_grid_is_a_note() -> None:
    assert notes(history(sorted([*range(0, 20_001, 1000), 5500]))) == [
        ("step5500", "outlier", "step5500 does not lie on the grid: there is one every 1000 from 0 to 20000")
    ]


def test_of_chosen_revisions_none_is_missed_and_the_last_is_final_only_if_main_says_so() -> None:
    chosen = [step for step in PYTHIA if step != 7000]
    assert audit(history(chosen), complete=False) == []
    few = history([0, 1000, 2000, 4000], {1000: 4000})
    assert faults(few, complete=False) == {"step1000": "duplicate", "step4000": "duplicate"}
    assert faults([*few, record("main", 4000)], complete=False) == {"step1000": "final"}
    assert notes([*history([0, 1000]), record("main", 143)], complete=False) == []


def test_stages_count_their_own_steps() -> None:
    first = [record(f"stage1-step{s}-tokens{s}B", f"1-{s}", step=s, stage=1) for s in range(0, 6000, 1000)]
    second = [record(f"stage2-step{s}-tokens{s}B", f"2-{s}", step=s, stage=2) for s in range(1000, 6000, 1000)]
    begins = record("stage2-step0-tokens0B", "1-5000", step=0, stage=2)  # as the first one ended
    main = record("main", "2-5000")
    assert faults([*first, begins, *second, main]) == {}
    copied = record("stage1-step2000-tokens2000B", "2-5000", step=2000, stage=1)
    assert faults([r for r in first if r.step != 2000] + [copied, begins, *second, main]) == {copied.name: "final"}
    assert faults([*first, begins, *second, record("main", "1-5000")]) == {}  # main never moved on


def test_equal_weights_of_two_branches_of_a_stage_are_faults_but_for_their_common_start() -> None:
    first = [record(f"stage1-step{s}-tokens{s}B", f"1-{s}", step=s, stage=1) for s in range(0, 6000, 1000)]

    def mixes(contents: str) -> list[RevisionRecord]:
        return [
            record(f"stage2-ingredient{n}-step{s}-tokens{s}B", c, step=s, stage=2)
            for (n, s), c in zip([(n, s) for n in (1, 2) for s in (0, 1, 2)], contents, strict=True)
        ]

    assert audit([*first, *mixes("abcade")]) == []
    assert faults([*first, *mixes("abcabe")]) == {
        "stage2-ingredient1-step1-tokens1B": "duplicate",
        "stage2-ingredient2-step1-tokens1B": "duplicate",
    }


def test_names_that_tell_only_a_number_keep_their_order() -> None:
    records = [record(f"ckpt_{n:03d}", 1 if n == 7 else n) for n in range(12) if n != 9]
    found = audit(records)
    assert {f.revision: f.kind for f in found} == {None: "gap", "ckpt_001": "duplicate", "ckpt_007": "duplicate"}
    assert found[0].text.startswith("number 9 is missing")


def test_the_order_of_the_records_does_not_matter() -> None:
    records = [*history([s for s in PYTHIA if s != 9000], {1: 0, 4000: 143_000, 7000: 50_000}), record("main", 143_000)]
    records += [record("v1", 8), record("checkpoint-8", 8, step=8), RevisionRecord("step3", step=3, error="no weights")]
    expected = audit(records)
    assert len(expected) == 9
    for seed in range(5):
        random.Random(seed).shuffle(records)
        assert audit(records) == expected


def write_history(steps: Sequence[int]) -> dict[str, dict[str, Content | str | None]]:
    """The files of each branch, tiny and under the names of a sharded model."""
    common: dict[str, Content | str | None] = {
        "config.json": "{}",
        "tokenizer.json": "{}",
        "model.safetensors.index.json": "{}",
    }
    return {f"step{s}": common | {name: f"{name} {s:06d}" for name in SHARDS} for s in steps}


def publish(hub: Hub, repo: str, branches: Mapping[str, Mapping[str, Content | str | None]]) -> None:
    for name, files in branches.items():
        sha = hub.commit(repo, name, files=files)
    hub.point(repo, "main", sha)


COPIES = [f"step{s}" for s in (4, 64, 3000, 10_000, 11_000, 25_000, 60_000, 99_000, 120_000, 142_000)]


@pytest.fixture(scope="module")
def spoiled(hub: Hub) -> str:
    """A repository of 154 steps, two of them missing, with every kind of wrong upload."""
    branches = write_history(PYTHIA)
    for name in COPIES:
        branches[name] = branches["step143000"]
    branches["step50000"] |= {SHARDS[0]: branches["step143000"][SHARDS[0]]}
    branches["step40000"] = {"config.json": "{}", "tokenizer.json": "{}"}
    branches["step1"] = branches["step0"]
    del branches["step20000"], branches["step70000"]
    publish(hub, "audit/spoiled", branches)
    return "audit/spoiled"


@pytest.fixture(scope="module")
def sound(hub: Hub) -> str:
    publish(hub, "audit/sound", write_history(PYTHIA))
    return "audit/sound"


def test_every_planted_fault_is_found_over_the_real_client_and_nothing_else(spoiled: str, root: Path, hub: Hub) -> None:
    before = len(hub.requests())
    document = json.loads(run("--store", root, "audit", "--repo", spoiled, "--json").stdout)[0]
    assert len(hub.requests()) - before <= 160
    assert not hub.requests(f"{spoiled}/resolve")
    found = {(f["revision"], f["kind"]) for f in document["findings"] if f["level"] == "fault"}
    missed = [f["text"] for f in document["findings"] if f["kind"] == "gap"]
    assert found == {
        *((name, "final") for name in COPIES),
        ("step50000", "shard"),
        ("step40000", "missing"),
        ("step1", "duplicate"),
        (None, "gap"),
    }
    assert [text.split(":")[0] for text in missed] == ["step 20000 is missing", "step 70000 is missing"]
    assert (document["faults"], document["notes"], document["revisions"]) == (15, 1, 153)
    assert document["unique_weights"] == 152 - 10 - 1 - 1


def test_a_second_audit_asks_one_request_and_the_store_alone_none(spoiled: str, root: Path, hub: Hub) -> None:
    first = run("--store", root, "audit", "--repo", spoiled)
    before = len(hub.requests())
    assert run("--store", root, "audit", "--repo", spoiled).stdout == first.stdout
    assert len(hub.requests()) == before + 1
    assert run("--store", root, "audit").stdout == first.stdout
    assert run("--store", root, "audit", "--runs", "audit/sp*").stdout == first.stdout
    assert len(hub.requests()) == before + 1
    hub.commit("audit/moved", "step0", files=write_history([0])["step0"])
    run("--store", root, "audit", "--repo", "audit/moved")
    hub.commit("audit/moved", "step0", files={"model-00001-of-00002.safetensors": None})
    moved = run("--store", root, "audit", "--repo", "audit/moved").stdout
    assert "missing" in moved


def test_a_sound_history_over_the_real_client_has_no_fault(sound: str, root: Path, hub: Hub) -> None:
    before = len(hub.requests())
    shown = run("--store", root, "audit", "--repo", sound, "--strict")
    assert len(hub.requests()) - before <= 160
    assert (
        shown.stdout.splitlines()[0]
        == "audit/sound: 155 revisions, 154 unique weights (values not known), 0 faults, 1 note"
    )


def test_equal_findings_are_folded_for_a_person(spoiled: str, root: Path) -> None:
    shown = run("--store", root, "audit", "--repo", spoiled, "--strict", code=1)
    lines = [line.split(maxsplit=2) for line in shown.stdout.splitlines()[2:]]
    assert [line[:2] for line in lines] == [
        ["fault", "gap"],
        ["fault", "duplicate"],
        ["fault", "final"],
        ["fault", "missing"],
        ["fault", "shard"],
        ["note", "alias"],
    ]
    assert "step4, step64, step3000, … step142000 (10)" in shown.stdout
    assert "step 20000, step 70000" in shown.stdout
    assert shown.stderr == ""


def test_listings_of_revisions_show_findings_where_there_are_any(spoiled: str, sound: str, root: Path) -> None:
    run("--store", root, "audit", "--repo", spoiled)
    header, *lines = run("--store", root, "ls", "revisions", spoiled).stdout.splitlines()
    assert "findings" in header
    assert next(line for line in lines if " step1 " in line).split()[4:6] == ["step0", "0"]
    assert "duplicate" in next(line for line in lines if " step1 " in line)
    put_run(open_store(root, write=True), "plain", source="folder", location="x", records=history([1, 2]))
    assert "findings" not in run("--store", root, "ls", "revisions", "plain").stdout


def test_what_an_ingest_has_recorded_survives_an_audit(root: Path, tmp_path: Path, probe_file: Path) -> None:
    given = ("--path", write_run(tmp_path / "own", seed=1, steps=(0, 4, 8)))
    run("--store", root, "ingest", *given, "--revisions", "step0,step8", "--probes", probe_file)
    store = open_store(root, write=True)
    before = store.revisions("own").set_index("revision")
    fail_revisions(store, 1, ["step8"], "the device fell over")
    run("--store", root, "audit", *given)
    after = Store(root).revisions("own").set_index("revision")
    assert list(after.index) == ["step0", "step4", "step8"]
    assert (before.loc["step0", "state"], after.loc["step0", "state"]) == ("done", "done")
    assert after.loc["step8", "error"] == "the device fell over"
    assert after.loc["step8", "layers"] == 3
    assert not after["flagged"].any()


def test_a_folder_is_audited_as_a_repository_is(root: Path, tmp_path: Path) -> None:
    for name, files in write_history([0, 1, 2, 4]).items():
        (tmp_path / "own" / name).mkdir(parents=True)
        for file, content in files.items():
            (tmp_path / "own" / name / file).write_text(str(content).replace("000002", "000004"))
    shown = run("--store", root, "audit", "--path", tmp_path / "own", "--strict", code=1).stdout
    assert shown.startswith("own: 4 revisions, 3 unique weights (values not known), 1 fault, 0 notes\n")
    assert "holds the final weights, those of step4" in shown


def test_a_pattern_reads_steps_and_a_later_audit_without_it_keeps_them(root: Path, tmp_path: Path) -> None:
    for step, files in enumerate(write_history([0, 1]).values()):
        folder = tmp_path / "own" / f"at{step}"
        folder.mkdir(parents=True)
        for file, content in files.items():
            (folder / file).write_text(str(content))
    for options in (["--step-regex", r"at(?P<step>\d+)"], []):
        run("--store", root, "audit", "--path", tmp_path / "own", *options)
        assert list(Store(root).revisions("own")["step"]) == [0, 1]


def test_mistakes_end_in_one_line(root: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def line(*arguments: object) -> str:
        result = run("--store", root, "audit", *arguments, code=1)
        assert result.stdout == ""
        assert len(result.stderr.strip().splitlines()) == 1
        return result.stderr

    assert "does not exist: name one with --store" in line()
    assert not root.exists()
    assert "no repository audit/none" in line("--repo", "audit/none")
    assert "is no repository id" in line("--repo", "pythia")
    assert "does not exist: --path takes a folder" in line("--path", root / "none")
    assert "no run 'x' in" in line("--runs", "x")
    assert "give either it or --repo and --path" in line("--runs", "x", "--repo", "a/b")
    assert "give --repo or --path with it" in line("--step-regex", r"(?P<step>\d+)")
    assert "has no group named step" in line("--repo", "a/b", "--step-regex", "x")
    with pytest.raises(UnknownRun, match="no run 'nothing'"):
        audit_run(open_store(root, write=True), "nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SourceUnreachable, match="audit what the store knows with --runs"):
        list_run(open_store(root, write=True), HubSource("audit/sound"))


def weighed(root: Path, values: Sequence[Sequence[float]], records: Sequence[RevisionRecord]) -> Store:
    """A store that knows the weights' values of a run."""
    store = open_store(root, write=True)
    put_run(store, "run", source="folder", location="x", records=records)
    for row, values_of in zip(records, values, strict=True):
        put_weighing(store, row, {"layers.0.weight": values_of})
    return store


def put_weighing(
    store: Store, row: RevisionRecord, tensors: Mapping[str, Sequence[float]], *, version: int = VERSION
) -> None:
    weighing = weigh({name: torch.tensor(list(values)).reshape(8, -1) for name, values in tensors.items()})
    weights, arrays = str(row.weights), weighing_arrays(weighing)
    staged = stage_weighing(store.root, weights=weights, version=version, groups=weighing.groups, arrays=arrays)
    commit_weighing(store, staged, weights=weights, version=version, whole=True)


def path_of_weights(n_steps: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    start, direction = generator.normal(size=(2, 64))
    return [start + (step + generator.normal(size=64) / 10) * direction / 10 for step in range(n_steps)]


def test_values_that_leave_the_path_and_values_that_are_no_numbers_are_faults(root: Path) -> None:
    values = path_of_weights(16)
    values[4] = values[13] + 1e-4
    values[7][3] = np.nan
    store = weighed(root, [v.tolist() for v in values], history(range(16)))
    assert {(f.revision, f.kind): f.others for f in audit_run(store, "run").findings} == {
        ("step4", "departure"): ("step13",),
        ("step7", "nonfinite"): (),
    }
    table = store.findings("run")
    assert set(table["basis"]) == {"values"}
    assert set(store.flagged("run")) == {"step4", "step7"}
    audit_run(store, "run")
    assert len(store.findings("run")) == 2


def test_a_known_copy_is_not_found_again_in_its_values(root: Path) -> None:
    values = path_of_weights(12)
    values[3] = values[11]
    store = weighed(root, [v.tolist() for v in values], history(range(12), {3: 11}))
    put_run(store, "run", source="folder", location="x", records=[record("main", 11)])
    findings = audit_run(store, "run").findings
    assert [(f.revision, f.kind) for f in findings] == [("step3", "final"), ("main", "alias")]


def test_values_settle_whose_equal_weights_are(root: Path) -> None:
    values = path_of_weights(12)
    values[3] = values[8]
    store = weighed(root, [v.tolist() for v in values], history(range(12), {3: 8}))
    findings = audit_run(store, "run").findings
    assert {(f.revision, f.kind, f.others) for f in findings} == {
        ("step3", "duplicate", ("step8",)),
        ("step3", "departure", ("step8",)),
    }
    assert findings[0].text == "step3 holds the weights of step8, where their values fit"
    assert faults(history(range(12), {3: 8})) == {"step3": "duplicate", "step8": "duplicate"}


def test_revisions_fetched_in_part_are_compared_on_what_all_have(root: Path) -> None:
    first, second = path_of_weights(16), path_of_weights(16)
    first[4], second[7] = first[13] + 1e-4, second[12] + 1e-4
    records, store = history(range(16)), open_store(root, write=True)
    put_run(store, "run", source="folder", location="x", records=records)
    for number, row in enumerate(records):
        whole = {"layers.0.weight": first[number].tolist(), "layers.1.weight": second[number].tolist()}
        put_weighing(store, row, {"layers.0.weight": first[number].tolist()} if number == 4 else whole)
    audited = audit_run(store, "run")
    assert [(f.revision, f.kind, f.others) for f in audited.findings] == [
        ("step4", "departure", ("step13",)),
        ("step7", "departure", ("step12",)),
    ]
    assert "1 of 2 groups (layers.1)" in audited.findings[1].text


def test_values_of_another_version_are_neither_compared_nor_counted(root: Path) -> None:
    values = path_of_weights(16)
    values[4] = values[13] + 1e-4
    records = history(range(16))
    store = weighed(root, [v.tolist() for v in values], records)
    put_weighing(store, records[4], {"layers.0.weight": values[4].tolist()}, version=VERSION + 1)
    audited = audit_run(store, "run")
    assert (audited.n_unique, audited.n_weighed, audited.findings) == (16, 15, [])


def test_the_summary_says_of_how_many_weights_the_values_are_known(root: Path) -> None:
    weighed(root, [v.tolist() for v in path_of_weights(8)], history(range(8)))
    put_run(open_store(root, write=True), "run", source="folder", location="x", records=history([8, 9]))
    shown = run("--store", root, "audit").stdout
    assert shown == "run: 10 revisions, 10 unique weights (values known of 8), 0 faults, 0 notes\n"
    assert json.loads(run("--store", root, "audit", "--json").stdout)[0]["values_known"] == 8


def test_an_audit_is_repeated_when_and_only_when_there_is_something_else_to_look_at(root: Path) -> None:
    values = path_of_weights(16)
    values[4] = values[13] + 1e-4
    records, store = history(range(16)), open_store(root, write=True)
    run_id = put_run(store, "run", source="folder", location="x", records=records)
    source = FolderSource(root, index=store.index, run="run")
    nothing = [FindingRecord(None, "old", "note", "what an earlier audit said")]

    def repeated() -> bool:
        put_findings(store, run_id, "hashes", nothing)
        refresh_audit(store, "run")
        return "old" not in set(store.findings("run")["kind"])

    assert repeated()
    assert not repeated()
    for row, values_of in zip(records, values, strict=True):
        put_weighing(store, row, {"layers.0.weight": values_of.tolist()})
    assert repeated()
    assert set(store.flagged("run")) == {"step4"}
    assert not repeated()
    fail_revisions(store, run_id, ["step7"], "the device fell over")
    assert repeated()
    remember_listing(store, source, records[:8], records[:8])
    assert repeated()
    put_run(store, "run", source="folder", location="x", records=[record("step3", 3, tokenizer="new")])
    assert repeated()
    audit_run(store, "run")
    assert not repeated()


def test_an_ingest_that_ends_while_a_run_is_listed_is_not_undone(
    root: Path, family: Path, probe_file: Path, tmp_path: Path
) -> None:
    shutil.copytree(family / "seed1", tmp_path / "own")
    store = open_store(root, write=True)
    (source,) = open_sources(store, repos=[], paths=[tmp_path / "own"])
    asked = "--path", tmp_path / "own", "--revisions", "step0,step1", "--probes", probe_file

    def meanwhile(what: str, n_done: int, n_all: int, text: str) -> None:
        if n_done == n_all:  # all is described, and nothing written yet
            run("--store", root, "ingest", *asked)
            fail_revisions(store, 1, ["step1"], "the device fell over")

    list_run(store, source, advance=meanwhile)
    table = store.revisions("own").set_index("revision")
    assert list(table.index) == ["step0", "step1", "step2", "step4", "step8"]
    assert (table.loc["step0", "state"], table.loc["step0", "layers"]) == ("done", 3)
    assert table.loc["step1", "error"] == "the device fell over"


def test_steps_that_were_not_described_hold_their_places(root: Path, hub: Hub) -> None:
    steps = [step for step in range(0, 1200, 100) if step != 300]
    branches = write_history(steps)
    branches["step100"] = branches["step700"]
    publish(hub, "audit/chosen", branches)
    store, source = open_store(root, write=True), HubSource("audit/chosen")

    def look(*names: str) -> dict[str | None, str]:
        listed = source.list_revisions()
        chosen = [revision for revision in listed if revision.name in names]
        described = describe_revisions(store, source, chosen, retry=True)
        put_run(store, source.run, source="hub", location=source.location, records=described)
        remember_listing(store, source, listed, described)
        found = audit_run(store, source.run)
        assert found.n_revisions == len(get_revisions(store, source.run))
        return {f.revision: f.text for f in found.findings if f.level == "fault"}

    gap = "step 300 is missing: there is one every 100 from 0 to 1100"
    assert look("step0", "step200", "step1100") == {None: gap}
    hub.commit("audit/chosen", "step1200", files=write_history([1200])["step1200"])
    unclear = "is one of 2 revisions with equal weights, step100, step700; hashes cannot tell whose they are"
    assert look("step100", "step700") == {
        None: gap.replace("1100", "1200"),
        "step100": f"step100 {unclear}",
        "step700": f"step700 {unclear}",
    }


def test_a_selection_is_audited_among_all_that_the_source_lists(root: Path, tmp_path: Path, probe_file: Path) -> None:
    own = write_run(tmp_path / "own", seed=1, steps=(0, 10, 20, 40, 50, 60, 70))
    run("--store", root, "ingest", "--path", own, "--revisions", "step0,step70", "--probes", probe_file)
    assert list(Store(root).findings("own")["text"]) == ["step 30 is missing: there is one every 10 from 0 to 70"]
    assert len(get_listing(Store(root), "own") or ()) == 7


def test_what_the_final_weights_are_is_known_only_if_the_last_step_was_described() -> None:
    steps = [0, 1, 2, 4, 8, 16]
    assert faults([*history(steps, {2: 16}), RevisionRecord("step3", step=3)]) == {"step2": "final"}
    later = RevisionRecord("step32", step=32)
    assert faults([*history(steps, {2: 16}), later]) == {"step2": "duplicate", "step16": "duplicate"}
    assert faults([*history(steps, {2: 16}), later, record("main", 16)]) == {"step2": "final"}
    broken = replace(later, error="no weights")
    assert faults([*history(steps, {2: 16}), broken]) == {"step2": "final", "step32": "missing"}


def test_what_a_source_lists_no_more_is_no_evidence_against_the_rest(root: Path, hub: Hub) -> None:
    branches = write_history(range(0, 900, 100))
    publish(hub, "audit/mended", {"step350": branches["step800"]} | branches)
    options = "--store", root, "audit", "--repo", "audit/mended", "--strict"
    assert re.search("step350 +holds the final weights, those of step800", run(*options, code=1).stdout)
    del hub.repository("audit/mended").branches["step350"]
    shown = run(*options).stdout
    assert shown.startswith("audit/mended: 10 revisions, 9 unique weights (values not known), 0 faults, 2 notes\n")
    assert "not listed any more, of those that the store knows: step350" in shown
    assert "step350" in set(Store(root).revisions("audit/mended")["revision"])
    del hub.repository("audit/mended").branches["step300"]
    assert re.search("step 300 +is missing: there is one every 100 from 0 to 800", run(*options, code=1).stdout)


def test_what_was_replayed_stays_at_fault_when_it_is_withdrawn(
    root: Path, hub: Hub, tmp_path: Path, probe_file: Path
) -> None:
    own = write_run(tmp_path / "own", seed=1, steps=(0, 2, 8))
    shutil.copytree(own / "step8", own / "step4")
    publish_folder(hub, "audit/own", own)
    run("--store", root, "ingest", "--repo", "audit/own", "--revisions", "all", "--probes", probe_file)
    flagged = {"step4": "step4 holds the final weights, those of step8"}
    assert Store(root).flagged("audit/own") == flagged
    del hub.repository("audit/own").branches["step4"], hub.repository("audit/own").branches["step2"]
    run("--store", root, "audit", "--repo", "audit/own")
    assert Store(root).flagged("audit/own") == flagged
    assert "gone" in set(Store(root).findings("audit/own")["kind"])


def test_checkpoints_that_a_trainer_removed_after_their_replay_stay_a_part_of_the_run(
    root: Path, tmp_path: Path, probe_file: Path
) -> None:
    own = write_run(tmp_path / "own", seed=1, steps=(0, 2))
    run("--store", root, "ingest", "--path", own, "--revisions", "all", "--probes", probe_file)
    (own / "step2").rename(own / "step4")
    shutil.rmtree(own / "step0")
    run("--store", root, "audit", "--path", own)
    assert Store(root).flagged("own") == {"step2": "step2 holds the final weights, those of step4"}
    assert set(Store(root).findings("own")["kind"]) == {"final"}


def test_an_offline_listing_is_not_taken_for_all_there_is(
    sound: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, records = open_store(root, write=True), history([1, 2])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    remember_listing(store, HubSource(sound), records, records)
    assert get_listing(store, sound) is None
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    remember_listing(store, HubSource(sound), records, records)
    assert [revision.name for revision in get_listing(store, sound) or ()] == ["step1", "step2"]


def test_stretches_of_one_grid_may_lie_far_apart() -> None:
    assert find_grids([*range(8), *range(10**12, 10**12 + 8)]) == []
