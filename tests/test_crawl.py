"""The crawl: ahead of the replay, within its budget, through failures of the hub, on one process or many."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hub import Hub, publish
from runs import write_bin
from test_ingest import contents, run

from replay import crawl
from replay.ingest import Outcome, ingest
from replay.jobs import Cluster
from replay.opening import open_store
from replay.plan import IngestRequest, Plan, make_plan
from replay.probes import read_probes
from replay.sources import open_sources, retries
from store.catalog import Store
from store.errors import InvalidInput, SourceUnreachable, StoreNotWritable

WEIGHTS = r"GET /lfs/.*safetensors"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 0.05)


def planned(root: Path, repo: str, probe_file: Path, **what: Any) -> tuple[Store, Plan]:
    store = open_store(root, write=True)
    request = IngestRequest(probes=read_probes(probe_file), revisions=("all",), layers=("blocks[0]",), **what)
    return store, make_plan(store, open_sources(store, repos=[repo], paths=[]), request)


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


@contextmanager
def sampled(folder: Path) -> Iterator[list[int]]:
    """Note the size of a folder over and over."""
    sizes: list[int] = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            sizes.append(crawl._size(folder))
            time.sleep(0.002)

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield sizes
    finally:
        done.set()
        thread.join()


def test_the_next_checkpoints_are_fetched_while_one_is_replayed_but_not_all_of_them(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/ahead", family / "seed1")
    store, plan = planned(root, "crawl/ahead", probe_file)
    assert len(plan.jobs) == 5
    outcomes = ingest(store, plan)
    assert next(outcomes).error is None
    seen = "crawl/ahead.*safetensors"
    until(lambda: len({line.path for line in hub.requests(f"GET /lfs/{seen}")}) == 4)
    time.sleep(0.3)
    assert len({line.path for line in hub.requests(f"GET /lfs/{seen}")}) == 4  # the one done and three ahead
    assert sum(outcome.error is None for outcome in outcomes) == 4
    assert not list((root / "checkpoints").iterdir())


def test_downloads_never_take_more_than_the_budget(
    root: Path, family: Path, hub: Hub, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "crawl/budget", family / "seed1")
    store, plan = planned(root, "crawl/budget", probe_file)
    one = max(sum(size for _, size in job.record.files.values()) for job in plan.jobs) + crawl.OVERHEAD_BYTES
    for budget in (one, 2 * one + 10):
        shutil.rmtree(root)
        store, plan = planned(root, "crawl/budget", probe_file)
        hub.bandwidth = 2e6
        try:
            with sampled(root / "checkpoints") as sizes:
                outcomes = list(ingest(store, plan, cache_budget=budget))
        finally:
            hub.bandwidth = None
        assert [outcome.error for outcome in outcomes] == [None] * 5
        assert 0 < max(sizes) <= budget


def test_two_processes_share_one_budget(root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path) -> None:
    publish(hub, "crawl/together", family / "seed1")
    _, plan = planned(root, "crawl/together", probe_file)
    one = max(sum(size for _, size in job.record.files.values()) for job in plan.jobs) + crawl.OVERHEAD_BYTES
    command = [sys.executable, "-m", "cli", "--store", root, "ingest", "--repo", "crawl/together", "--revisions", "all"]
    command += ["--probes", probe_file, "--cache-budget", f"{2 * one}"]
    hub.bandwidth = 1e6
    try:
        with sampled(root / "checkpoints") as sizes:
            children = [
                subprocess.Popen(
                    [*map(str, command), "--dtype", dtype], stderr=subprocess.PIPE, env=hub.environ(tmp_path / "cache")
                )
                for dtype in ("float32", "bfloat16")
            ]
            outputs = [child.communicate()[1] for child in children]
    finally:
        hub.bandwidth = None
    assert [child.returncode for child in children] == [0, 0], outputs
    weights = re.compile(r"[0-9a-f]{64}$")
    assert max(sizes) > 0
    # tokenizers and configs that are looked at while planning stand beside the downloads for a moment
    assert max(sizes) <= 2 * one + 50_000, [path.name for path in root.iterdir() if weights.search(path.name)]


def test_what_a_dead_process_left_makes_room_when_it_is_needed(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/left", family / "seed1")
    store, plan = planned(root, "crawl/left", probe_file)
    one = max(sum(size for _, size in job.record.files.values()) for job in plan.jobs) + crawl.OVERHEAD_BYTES
    left = root / "checkpoints" / ("ab" * 32)
    left.mkdir()
    (left / "model.safetensors.part").write_bytes(bytes(one))
    assert all(outcome.error is None for outcome in ingest(store, plan, cache_budget=one + 1))
    assert not left.exists()


def test_a_checkpoint_larger_than_the_budget_is_refused_with_the_room_it_needs(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/large", family / "seed1")
    given = ("--store", root, "ingest", "--repo", "crawl/large", "--revisions", "all", "--probes", probe_file)
    refused = run(*given, "--cache-budget", "100kB", code=1)
    assert re.fullmatch(
        r"replay: crawl/large step0 needs [\d.]+ kB of room, --cache-budget is 100.0 kB: raise it to that at least",
        refused.stderr.strip().splitlines()[-1],
    )
    assert not list((root / "checkpoints").iterdir())
    wrong = run(*given, "--cache-budget", "much", code=1)
    assert wrong.stderr.strip() == "replay: 'much' is no size: expected one such as 20GB or 500MB"
    assert "5 checkpoints replayed" in run(*given).stdout


def test_a_disk_without_room_is_told_before_the_download(root: Path, family: Path, hub: Hub, probe_file: Path) -> None:
    publish(hub, "crawl/disk", family / "seed1")
    store, plan = planned(root, "crawl/disk", probe_file)
    job = plan.jobs[0]
    huge = {name: [digest, 10**17] for name, (digest, _) in job.record.files.items()}
    plan.jobs = [replace(job, record=replace(job.record, files=huge))]
    with pytest.raises(StoreNotWritable, match=r"crawl/disk step0 needs [\d.]+ TB of the disk of .* left: free"):
        list(ingest(store, plan, cache_budget=10**18))
    assert not hub.requests("GET /lfs/crawl/disk.*safetensors")
    with pytest.raises(InvalidInput, match="raise it"):
        list(ingest(store, plan))


def test_a_revision_that_is_deleted_in_mid_crawl_fails_alone(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/deleted", family / "seed1")
    store, plan = planned(root, "crawl/deleted", probe_file)
    repository = hub.repository("crawl/deleted")
    del repository.commits[repository.branches.pop("step2")]
    outcomes = {outcome.job.record.name: outcome for outcome in ingest(store, plan)}
    assert {name for name, outcome in outcomes.items() if outcome.error} == {"step2"}
    assert not outcomes["step2"].lost
    assert "gone" in str(outcomes["step2"].error)
    table = store.revisions("crawl/deleted").set_index("revision")
    assert table.loc["step2", "state"] == "failed"
    assert table.loc["step4", "state"] == "done"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"status": 403, "headers": {"X-Error-Code": "GatedRepo"}}, "is gated: accept its terms"),
        ({"status": 401}, "401"),
        ({"reset": True}, "cannot be reached"),
        ({"status": 503}, "503"),
    ],
)
def test_a_source_that_is_lost_in_mid_crawl_ends_alone_and_is_not_held_against_its_revisions(
    fault: dict[str, Any], words: str, root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/lost", family / "seed1")
    publish(hub, "crawl/sound", family / "seed2")
    store = open_store(root, write=True)
    request = IngestRequest(probes=read_probes(probe_file), revisions=("all",), layers=("blocks[0]",))
    plan = make_plan(store, open_sources(store, repos=["crawl/lost", "crawl/sound"], paths=[]), request)
    hub.fail("/crawl/lost/(resolve|.*safetensors)", times=10**6, **fault)
    try:
        outcomes = list(ingest(store, plan))
    finally:
        hub.faults.clear()
    by_run: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_run.setdefault(outcome.job.source.run, []).append(outcome)
    assert [outcome.error for outcome in by_run["crawl/sound"]] == [None] * 5
    assert all(outcome.lost and words in str(outcome.error) for outcome in by_run["crawl/lost"])
    assert set(store.revisions("crawl/lost")["state"]) == {"listed"}
    given = ("--store", root, "ingest", "--repo", "crawl/lost", "--revisions", "all", "--probes", probe_file)
    assert "5 checkpoints replayed" in run(*given, "--layers", "blocks[0]").stdout


def test_passing_failures_are_reported_and_survived(root: Path, family: Path, hub: Hub, probe_file: Path) -> None:
    publish(hub, "crawl/rough", family / "seed1")
    for fault in (
        {"status": 429, "headers": {"Retry-After": "0"}},
        {"status": 503},
        {"reset": True},
        {"truncate": 5000},
        {"truncate": 9000, "reset": True},
    ):
        hub.fail("GET .*crawl/rough.*safetensors", **fault)
    hub.fail("GET /api/models/crawl/rough/refs", status=502)
    hub.fail("GET /api/models/crawl/rough/tree", status=429, headers={"Retry-After": "0"})
    result = run("--store", root, "ingest", "--repo", "crawl/rough", "--revisions", "all", "--probes", probe_file)
    assert "5 checkpoints replayed" in result.stdout
    assert "502, trying again in" in result.stderr
    assert "429, trying again in" in result.stderr
    assert not [fault for fault in hub.faults if fault.times]


def test_a_kill_in_mid_download_and_one_in_mid_replay_resume_to_the_same_store(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for step in (0, 1, 2):
        shutil.copytree(family / "seed1" / f"step{step}", folder / f"step{step}")
    publish(hub, "crawl/killed", folder)
    publish(hub, "crawl/whole", folder)
    given = ["--revisions", "all", "--probes", str(probe_file)]
    undisturbed = tmp_path / "undisturbed"
    run("--store", undisturbed, "ingest", "--repo", "crawl/whole", *given)
    command = [sys.executable, "-m", "cli", "--store", str(root), "ingest", "--repo", "crawl/killed", *given]
    environ = hub.environ(tmp_path / "cache")

    def killed_when(condition: Callable[[], object]) -> None:
        child = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(condition, 60)
        child.kill()
        child.wait()

    hub.bandwidth = 100_000.0
    parts = r"GET /lfs/crawl/killed/.*safetensors"
    try:
        killed_when(lambda: hub.bytes_served(parts) > 50_000)
    finally:
        hub.bandwidth = None
    assert list((root / "checkpoints").iterdir())
    killed_when(lambda: list((root / "staging").iterdir()) or list((root / "segments").glob("*/*")))
    resumed = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert "failed" not in resumed.stdout
    assert contents(root / "segments") == contents(undisturbed / "segments")
    assert not list((root / "checkpoints").iterdir())


def test_workers_write_the_same_store_and_one_that_dies_loses_nothing(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    publish(hub, "crawl/workers", family / "seed1")
    alone, plan = planned(tmp_path / "alone", "crawl/workers", probe_file)
    assert all(outcome.error is None for outcome in ingest(alone, plan))
    store, plan = planned(root, "crawl/workers", probe_file)
    before = set(psutil.Process().children(recursive=True))
    outcomes = []
    for outcome in ingest(store, plan, cluster=Cluster(workers=2)):
        outcomes.append(outcome)
        if len(outcomes) == 1:
            workers = [
                child
                for child in set(psutil.Process().children(recursive=True)) - before
                if "spawn_main" in " ".join(child.cmdline())
            ]
            os.kill(workers[0].pid, signal.SIGKILL)
    assert [outcome.error for outcome in outcomes] == [None] * 5
    assert contents(root / "segments") == contents(tmp_path / "alone" / "segments")
    assert not list((root / "checkpoints").iterdir())


def test_a_scheduler_of_the_users_own_is_used(root: Path, family: Path, hub: Hub, probe_file: Path) -> None:
    import dask
    from distributed import LocalCluster

    publish(hub, "crawl/scheduler", family / "seed1")
    given = ("--store", root, "ingest", "--repo", "crawl/scheduler", "--revisions", "all", "--probes", probe_file)
    with (
        dask.config.set({"distributed.worker.profile.enabled": False}),  # see replay.jobs.connect
        LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster,
    ):
        assert "5 checkpoints replayed" in run(*given, "--scheduler", cluster.scheduler_address).stdout
    lost = run(*given, "--scheduler", "tcp://127.0.0.1:9", "--layers", "embed", code=1)
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in lost.stderr


def test_partial_fetches_only_what_the_layers_need_and_says_that_files_were_not_verified(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    publish(hub, "crawl/partial", family / "seed1")
    given = ("ingest", "--repo", "crawl/partial", "--revisions", "all", "--probes", probe_file, "--layers", "blocks[0]")
    run("--store", tmp_path / "whole", *given)
    whole = hub.bytes_served("GET /lfs/crawl/partial.*safetensors")
    assert "5 checkpoints replayed" in run("--store", root, *given, "--partial").stdout
    assert hub.bytes_served("GET /lfs/crawl/partial.*safetensors") - whole < 0.9 * whole
    np.testing.assert_array_equal(
        Store(root).activations("crawl/partial")["activations"],
        Store(tmp_path / "whole").activations("crawl/partial")["activations"],
    )
    findings = Store(root).findings("crawl/partial").query("basis == 'fetch'")
    assert set(findings["revision"]) == {"step0", "step1", "step2", "step4", "step8", "main"}
    assert set(findings["kind"]) == {"unverified"}
    assert set(Store(root).revisions("crawl/partial")["findings"]) == {"unverified", "alias, unverified"}
    assert not list((root / "checkpoints").iterdir())
    assert "0 checkpoints replayed, 5 already there" in run("--store", root, *given, "--partial").stdout
    run("--store", root, *given[:-1], "blocks[1]")  # other layers, whole: those that are there stay what they are
    assert len(Store(root).findings("crawl/partial").query("basis == 'fetch'")) == 6
    assert "5 checkpoints replayed" in run("--store", root, *given).stdout  # the same ones, now verified
    assert Store(root).findings("crawl/partial").query("basis == 'fetch'").empty


def test_partial_takes_whole_files_where_there_are_no_safetensors(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    hub.commit("crawl/bin", "step1", folder=write_bin(family / "seed1" / "step1", tmp_path / "bin"))
    given = (
        "--store",
        root,
        "ingest",
        "--repo",
        "crawl/bin",
        "--revisions",
        "all",
        "--probes",
        probe_file,
        "--partial",
    )
    result = run(*given)
    assert "crawl/bin step1 has no safetensors and is fetched whole" in result.stderr
    assert "1 checkpoints replayed" in result.stdout
    assert Store(root).findings("crawl/bin").query("basis == 'fetch'").empty


def test_two_ingests_in_one_process_share_the_work(root: Path, family: Path, hub: Hub, probe_file: Path) -> None:
    publish(hub, "crawl/threads", family / "seed1")
    planned(root, "crawl/threads", probe_file)
    outcomes: list[Outcome] = []

    def one() -> None:
        store, plan = planned(root, "crawl/threads", probe_file)
        outcomes.extend(ingest(store, plan))

    threads = [threading.Thread(target=one) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcome.error for outcome in outcomes] == [None] * len(outcomes)
    assert sum(not outcome.elsewhere for outcome in outcomes) == 5
    assert set(Store(root).revisions("crawl/threads")["state"]) == {"done", "alias"}


def test_an_ingest_that_is_given_up_leaves_no_download_and_no_claim_behind(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/given-up", family / "seed1")
    store, plan = planned(root, "crawl/given-up", probe_file)
    hub.bandwidth = 200_000.0
    try:
        outcomes = ingest(store, plan)
        next(outcomes)
        until(lambda: crawl._size(root / "checkpoints") > 20_000)
        outcomes.close()
        assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("crawl", "fetch"))]
        assert store.index.claimed() == {}
        before = crawl._size(root / "checkpoints")
        time.sleep(0.5)
        assert crawl._size(root / "checkpoints") == before
    finally:
        hub.bandwidth = None
    store, plan = planned(root, "crawl/given-up", probe_file)
    assert [outcome.error for outcome in ingest(store, plan)] == [None] * 4


def test_an_interrupt_in_mid_download_ends_the_process(
    root: Path, family: Path, hub: Hub, probe_file: Path, tmp_path: Path
) -> None:
    publish(hub, "crawl/interrupt", family / "seed1")
    command = [
        sys.executable,
        "-m",
        "cli",
        "--store",
        root,
        "ingest",
        "--repo",
        "crawl/interrupt",
        "--revisions",
        "all",
    ]
    hub.bandwidth = 2_000.0  # a minute and a half a file
    try:
        child = subprocess.Popen(
            [*map(str, command), "--probes", str(probe_file)],
            stderr=subprocess.PIPE, text=True, env=hub.environ(tmp_path / "cache"),
        )  # fmt: skip
        until(lambda: hub.bytes_served(r"GET /lfs/crawl/interrupt/.*safetensors") > 1_000, 60)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    finally:
        hub.bandwidth = None
    assert child.returncode == 1
    assert "interrupted after 0 checkpoints" in said
    assert "Traceback" not in said
    assert any(path.is_file() for path in (root / "checkpoints").rglob("*.part"))


def test_a_scheduler_that_is_lost_ends_the_ingest_with_a_line(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    from dask.config import set as configured
    from distributed import LocalCluster

    publish(hub, "crawl/lost-scheduler", family / "seed1")
    store, plan = planned(root, "crawl/lost-scheduler", probe_file)
    with (
        configured({"distributed.comm.retry.count": 0, "distributed.comm.timeouts.connect": "1s"}),
        LocalCluster(n_workers=0, dashboard_address=None) as cluster,
    ):
        # it has one worker when the ingest begins, and is gone before that has done anything
        cluster.scale(1)
        cluster.wait_for_workers(1)
        outcomes = ingest(store, plan, cluster=Cluster(scheduler=cluster.scheduler_address))
        threading.Timer(0.5, cluster.close).start()
        with pytest.raises(SourceUnreachable, match="the Dask scheduler was lost"):
            list(outcomes)
    assert store.index.claimed() == {}


def test_what_another_machine_left_does_not_block_a_crawl_in_silence(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/stray", family / "seed1")
    store, plan = planned(root, "crawl/stray", probe_file)
    one = max(sum(size for _, size in job.record.files.values()) for job in plan.jobs) + crawl.OVERHEAD_BYTES
    stray = root / "checkpoints" / f"elsewhere.42.{'0' * 32}"
    stray.mkdir()
    (stray / "tokenizer.json").write_bytes(bytes(100_000))
    with pytest.raises(InvalidInput, match=r"elsewhere.42.0* takes 100.0 kB of the --cache-budget"):
        list(ingest(store, plan, cache_budget=one + 50_000))
    assert all(outcome.error is None for outcome in ingest(store, plan, cache_budget=one + 150_000))


def test_one_source_that_cannot_be_reached_does_not_keep_the_others_from_their_work(
    root: Path, family: Path, hub: Hub, probe_file: Path
) -> None:
    publish(hub, "crawl/closed", family / "seed1")
    hub.repository("crawl/closed").gated = True
    publish(hub, "crawl/open", family / "seed2")
    repos = ("--repo", "crawl/closed", "--repo", "crawl/open", "--repo", "crawl/absent")
    result = run("--store", root, "ingest", *repos, "--revisions", "all", "--probes", probe_file, code=1)
    assert "5 checkpoints replayed" in result.stdout
    assert "not reached: crawl/closed: crawl/closed is gated: accept its terms" in result.stderr
    assert "not reached: crawl/absent: no repository crawl/absent" in result.stderr


def test_an_error_of_the_index_in_the_background_is_raised_and_nobody_waits(
    root: Path, family: Path, hub: Hub, probe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, "crawl/index", family / "seed1")
    store, plan = planned(root, "crawl/index", probe_file)
    repository = hub.repository("crawl/index")
    del repository.commits[repository.branches.pop("step2")]  # so that a fetch fails, and gives its claim back

    def full(key: str) -> None:
        raise StoreNotWritable(f"no space left for {key}")

    monkeypatch.setattr(store.index, "release", full)
    with pytest.raises(StoreNotWritable, match="no space left"):
        list(ingest(store, plan))


def test_weights_that_are_overwritten_before_they_are_committed_are_not_taken_for_those_that_were_listed(
    root: Path, family: Path, probe_file: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for step in (0, 1):
        shutil.copytree(family / "seed1" / f"step{step}", folder / f"step{step}")
    store = open_store(root, write=True)
    request = IngestRequest(probes=read_probes(probe_file), revisions=("all",), layers=("blocks[0]",))
    plan = make_plan(store, open_sources(store, repos=[], paths=[folder]), request)
    outcomes = ingest(store, plan)
    assert next(outcomes).error is None
    time.sleep(0.5)  # the second one is held by now
    shutil.copyfile(family / "seed1" / "step8" / "model.safetensors", folder / "step1" / "model.safetensors")
    assert "was changed since it was listed" in str(next(outcomes).error)
    assert list(store.activations("run")["revision"].values) == ["step0"]
