"""Watching a hub: new checkpoints and analyses come by themselves, a lost hub is waited out, a signal ends it."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub import Hub
from test_ingest import run

from store.catalog import Store

PAUSE = "1s"


class Watcher:
    """A ``replay watch`` in a process of its own, and what it has said so far."""

    def __init__(self, root: Path, hub: Hub, cache: Path, *given: object) -> None:
        command = [sys.executable, "-m", "cli", "--store", root, "watch", "--every", PAUSE, "--layers", "blocks[0]"]
        self.process = subprocess.Popen(
            [*map(str, command), *map(str, given)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=hub.environ(cache) | {"PYTHONUNBUFFERED": "1"},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def until(self, condition: Callable[[str], object], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not condition("".join(self.lines)):
            assert time.monotonic() < end, self.lines
            assert self.process.poll() is None, self.lines
            time.sleep(0.05)

    def end(self, number: signal.Signals) -> str:
        self.process.send_signal(number)
        self.process.wait(30)
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        return "".join(self.lines)


@pytest.fixture
def watching(root: Path, hub: Hub, tmp_path: Path) -> Iterator[Callable[..., Watcher]]:
    watchers: list[Watcher] = []

    def start(*given: object) -> Watcher:
        watchers.append(Watcher(root, hub, tmp_path / "cache", *given))
        return watchers[-1]

    yield start
    for watcher in watchers:
        if watcher.process.poll() is None:
            watcher.end(signal.SIGKILL)


def test_new_checkpoints_are_ingested_and_analysed_as_they_appear(
    root: Path, family: Path, hub: Hub, probe_file: Path, watching: Callable[..., Watcher]
) -> None:
    for seed in (1, 2):
        for step in (0, 1):
            hub.commit(f"watch/seed{seed}", f"step{step}", folder=family / f"seed{seed}" / f"step{step}")
    repos = ("--repo", "watch/seed1", "--repo", "watch/seed2")
    watcher = watching(*repos, "--probes", probe_file, "--analyze", "spread")
    watcher.until(lambda said: "spread: 2 steps" in said)
    for seed in (1, 2):
        hub.commit(f"watch/seed{seed}", "step2", folder=family / f"seed{seed}" / "step2")
    watcher.until(lambda said: "spread: 3 steps" in said)
    said = watcher.end(signal.SIGTERM)
    assert watcher.process.returncode == 0
    assert said.endswith("stopped; everything that was committed is kept\n")
    assert "Traceback" not in said
    assert list(Store(root).result("spread")["step"].values) == [0, 1, 2]


def test_a_hub_that_is_lost_is_waited_for_and_a_broken_upload_not_downloaded_for_ever(
    root: Path, family: Path, hub: Hub, probe_file: Path, watching: Callable[..., Watcher]
) -> None:
    hub.commit("watch/lost", "step0", folder=family / "seed1" / "step0")

    hub.fail("/api/models/watch/lost/refs", status=401, headers={"X-Error-Code": "GatedRepo"}, times=2)
    watcher = watching("--repo", "watch/lost", "--probes", probe_file)
    watcher.until(lambda said: "looking again in 1 s" in said)
    watcher.until(lambda said: "1 checkpoints replayed" in said)
    broken: dict[str, bytes | Path | str | None] = {
        "config.json": family / "seed1" / "step0" / "config.json",
        "model.safetensors": b"no weights",
    }
    hub.commit("watch/lost", "step1", files=broken)
    watcher.until(lambda said: "failed: watch/lost step1" in said)
    before = len(hub.requests("GET /lfs/watch/lost/.*safetensors"))
    looks = len(hub.requests("GET /api/models/watch/lost/refs"))
    watcher.until(lambda _: len(hub.requests("GET /api/models/watch/lost/refs")) > looks + 2)
    assert len(hub.requests("GET /lfs/watch/lost/.*safetensors")) == before
    said = watcher.end(signal.SIGINT)
    assert watcher.process.returncode == 0
    assert said.count("failed: watch/lost step1") == 1
    assert "Traceback" not in said


def test_a_mistake_ends_a_watch_at_once(root: Path, family: Path) -> None:
    path = ("--path", family / "seed1")
    assert "'soon' is no duration" in run("--store", root, "watch", *path, "--every", "soon", code=1).stderr
    assert "nothing to ingest" in run("--store", root, "watch", code=1).stderr
    assert "step77" in run("--store", root, "watch", *path, "--revisions", "step77", code=1).stderr
