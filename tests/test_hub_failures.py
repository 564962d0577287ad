"""A hub that fails: what is asked again, what is not, what is downloaded twice, and what the user is told."""

import dataclasses
import math
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from hub import Hub, Reply
from huggingface_hub import constants, list_repo_refs, snapshot_download

from replay.sources import hub as hub_module
from replay.sources import retries
from replay.sources.files import sha256
from replay.sources.hub import HubSource
from replay.sources.retries import retried
from store.commits import RevisionRecord
from store.errors import (
    DamagedWeights,
    GatedSource,
    ReplayError,
    SourceUnreachable,
    StoreNotWritable,
    UnknownRevision,
    UnknownSource,
)

WEIGHTS = bytes(range(256)) * 4096 * 3
SIZE = len(WEIGHTS)  # 3 MiB


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 0.01)


@pytest.fixture
def repo(hub: Hub, tmp_path: Path) -> Iterator[str]:
    name = f"failures/{tmp_path.name}"
    files: dict[str, bytes | Path | str | None] = {
        "config.json": "{}",
        "tokenizer.json": "[]",
        "model.safetensors": WEIGHTS,
    }
    hub.commit(name, "step512", files=files)
    yield name
    hub.faults.clear()
    hub.bandwidth = None


@pytest.fixture
def told() -> list[str]:
    """What the source reported."""
    return []


@pytest.fixture
def source(repo: str, told: list[str]) -> HubSource:
    return HubSource(repo, report=told.append)


@pytest.fixture
def record(source: HubSource) -> RevisionRecord:
    return source.describe(source.list_revisions()[0])


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    return tmp_path / "scratch"


def fetch(source: HubSource, record: RevisionRecord, scratch: Path) -> bytes:
    """Fetch everything and give the weights."""
    with source.fetch(record, list(record.files), scratch) as folder:
        assert (folder / "config.json").read_text() == "{}"
        return (folder / "model.safetensors").read_bytes()


def part(scratch: Path) -> Path:
    return next(scratch.glob("model.safetensors.*.part"))


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to it"
        time.sleep(0.01)


def weights_sent(hub: Hub, repo: str) -> list[int]:
    return [line.sent for line in hub.requests(f"GET /lfs/{repo}/.*model")]


# What is tried again

PASSING: dict[str, tuple[dict[str, Any], str]] = {
    "503": ({"status": 503}, "503"),
    "500": ({"status": 500}, "500"),
    "429": ({"status": 429, "headers": {"Retry-After": "0"}}, "429"),
    "reset": ({"reset": True}, ".*reset.*"),
    "truncated": ({"truncate": 10}, ".*complete message body.*"),
}


@pytest.mark.parametrize("fault", PASSING)
@pytest.mark.parametrize("listing", ["refs", "tree"])
def test_a_listing_is_asked_for_again(hub: Hub, source: HubSource, told: list[str], listing: str, fault: str) -> None:
    keywords, said = PASSING[fault]
    hub.fail(f"{source.repo}/{listing}", times=4, **keywords)
    assert source.describe(source.list_revisions()[0]).error is None
    assert len(hub.requests(f"{source.repo}/{listing}")) == 5
    subject = source.repo if listing == "refs" else f"{source.repo} step512"
    assert len(told) == 4
    for number, line in enumerate(told):
        assert re.fullmatch(rf"{subject}: {said}, trying again in 0 s \({number + 2} of 6\)", line)


@pytest.mark.parametrize(
    ("origin", "fault"),
    [("/lfs/", fault) for fault in PASSING] + [("/", fault) for fault in PASSING if fault != "truncated"],
)
def test_a_file_is_asked_for_again(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, told: list[str], origin: str, fault: str
) -> None:
    keywords, said = PASSING[fault]
    hub.fail(f"GET {origin}{source.repo}/.*model", times=4, **keywords)
    assert fetch(source, record, scratch) == WEIGHTS
    assert len(told) == 4
    assert re.fullmatch(rf"{source.repo} step512 model.safetensors: {said}, trying again in 0 s \(5 of 6\)", told[-1])


def test_a_silent_server_is_asked_again(
    hub: Hub, source: HubSource, scratch: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail(f"{source.repo}/refs", delay=1.5)
    hub.fail(f"{source.repo}/tree", delay=1.5)
    hub.fail(f"/lfs/{source.repo}/.*model", truncate=SIZE // 2, stall=1.5)
    record = source.describe(source.list_revisions()[0])
    assert fetch(source, record, scratch) == WEIGHTS
    assert [re.sub(" in .*", "", line) for line in told] == [
        f"{source.repo}: timed out, trying again",
        f"{source.repo} step512: timed out, trying again",
        f"{source.repo} step512 model.safetensors: timed out, trying again",
    ]


@pytest.mark.parametrize(
    "headers",
    [
        lambda: {"Retry-After": "1"},
        lambda: {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=2), usegmt=True)},
        lambda: {"RateLimit": '"api";r=0;t=1'},
    ],
    ids=["seconds", "date", "rate limit"],
)
def test_a_wait_that_the_server_asks_for_is_kept(hub: Hub, source: HubSource, told: list[str], headers: Any) -> None:
    hub.fail(f"{source.repo}/refs", status=429, headers=headers())
    before = time.monotonic()
    source.list_revisions()
    assert time.monotonic() - before >= 0.9
    assert re.fullmatch(rf"{source.repo}: 429, trying again in [12] s \(2 of 6\)", told[0])


def test_a_rate_limit_that_is_not_used_up_asks_for_nothing(hub: Hub, source: HubSource, told: list[str]) -> None:
    hub.fail(f"{source.repo}/refs", status=503, headers={"RateLimit": '"api";r=7;t=300', "Retry-After": "soon"})
    source.list_revisions()
    assert told == [f"{source.repo}: 503, trying again in 0 s (2 of 6)"]


def test_waits_grow_but_not_without_end(hub: Hub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_WAIT", 1.0)
    monkeypatch.setattr(retries, "LONGEST_WAIT", 5.0)
    hub.fail(f"{repo}/refs", status=503, times=math.inf)
    waits: list[float] = []
    with pytest.raises(SourceUnreachable, match=r"answered 503 for .* after 6 attempts: try again later"):
        retried(lambda: list_repo_refs(repo), repo=repo, subject=repo, sleep=waits.append)
    assert [int(wait) for wait in waits] == [1, 2, 4, 5, 5]


# What is not tried again


def test_a_wait_that_is_too_long_is_named_and_not_kept(hub: Hub, source: HubSource, told: list[str]) -> None:
    hub.fail(f"{source.repo}/refs", status=429, headers={"Retry-After": "3600"}, times=math.inf)
    with pytest.raises(SourceUnreachable, match=r"answered 429 for .* asks to wait for 3600 s \(Retry-After\): run"):
        source.list_revisions()
    assert told == []
    assert len(hub.requests(f"{source.repo}/refs")) == 1


@pytest.mark.parametrize(
    ("status", "code", "error", "match"),
    [
        (401, "", GatedSource, "answered 401: HF_TOKEN is missing or may not read it"),
        (403, "", GatedSource, "answered 403: HF_TOKEN is missing or may not read it"),
        (403, "GatedRepo", GatedSource, "is gated: accept its terms on its page and set HF_TOKEN"),
        (401, "RepoNotFound", UnknownSource, "no repository .*: check its name; if it is private, set HF_TOKEN"),
        (404, "RepoNotFound", UnknownSource, "no repository .*: check its name"),
        (404, "RevisionNotFound", UnknownRevision, "step512( model.safetensors)? was listed and is gone from the hub"),
        (404, "EntryNotFound", UnknownRevision, "step512( model.safetensors)? was listed and is gone from the hub"),
        (404, "", UnknownRevision, "step512( model.safetensors)? was listed and is gone from the hub"),
        (400, "", SourceUnreachable, "answered 400 for .*: try again later"),
    ],
)
def test_a_refusal_is_taken_for_what_it_is(
    hub: Hub,
    source: HubSource,
    record: RevisionRecord,
    scratch: Path,
    told: list[str],
    status: int,
    code: str,
    error: type[ReplayError],
    match: str,
) -> None:
    hub.fail(f"{source.repo}/tree", status=status, headers={"X-Error-Code": code}, times=math.inf)
    hub.fail(f"{source.repo}/resolve/.*model", status=status, headers={"X-Error-Code": code}, times=math.inf)
    before = len(hub.requests(source.repo))
    with pytest.raises(error, match=match):
        source.describe(record)
    assert len(hub.requests(source.repo)) == before + 1
    with pytest.raises(error, match=match):
        fetch(source, record, scratch)
    assert len(hub.requests(f"{source.repo}.*model")) == 1
    assert told == []


def test_what_is_deleted_in_mid_crawl_is_named(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    gone = f"{source.repo} step512 .* was listed and is gone from the hub now"
    commit = hub.repository(source.repo).commits.pop(str(record.commit))
    with pytest.raises(UnknownRevision, match=gone), source.fetch(record, list(record.files), scratch):
        pass
    with pytest.raises(UnknownRevision, match=f"{source.repo} step512 was listed"):
        source.describe(record)
    rest = {name: blob for name, blob in commit.files.items() if name != "model.safetensors"}
    hub.repository(source.repo).commits[commit.sha] = dataclasses.replace(commit, files=rest)
    with pytest.raises(UnknownRevision, match=gone.replace(".*", "model.safetensors")):
        fetch(source, record, scratch)
    del hub.repositories[source.repo]
    with pytest.raises(UnknownSource, match=f"no repository {source.repo}"):
        fetch(source, record, scratch)


def test_an_answer_that_is_no_listing_is_named(hub: Hub, source: HubSource) -> None:
    hub.fail(f"{source.repo}/refs", spoil=True)
    with pytest.raises(SourceUnreachable, match="with what is no listing: check HF_ENDPOINT"):
        source.list_revisions()


def test_a_server_that_is_down_is_tried_a_few_times(
    source: HubSource, record: RevisionRecord, scratch: Path, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Hub() as closed:
        pass
    monkeypatch.setattr(constants, "ENDPOINT", closed.url)  # the client makes both of HF_ENDPOINT when imported
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.partition("/{")
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", closed.url + "".join(template[1:]))
    with pytest.raises(SourceUnreachable, match=r"cannot be reached for .* after 3 attempts: check the network"):
        source.list_revisions()
    assert [line[-8:] for line in told] == ["(2 of 3)", "(3 of 3)"]
    with pytest.raises(SourceUnreachable, match=r"step512 config.json .* after 3 attempts"):
        source.fetch(record, ["config.json"], scratch).__enter__()
    assert not scratch.exists()


def test_a_full_disk_is_no_failure_of_the_hub(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, told: list[str]
) -> None:
    scratch.mkdir()
    digest = record.files["model.safetensors"][0]
    (scratch / f"model.safetensors.{digest}.part").symlink_to("/dev/full")
    with pytest.raises(StoreNotWritable, match="no space left for"):
        fetch(source, record, scratch)
    assert len(weights_sent(hub, source.repo)) == 1
    assert told == []


# How much is asked for


def test_a_small_file_costs_one_request_and_weights_two(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    before = len(hub.requests())
    assert fetch(source, record, scratch) == WEIGHTS
    asked = sorted(f"{line.method} {line.path.partition(source.repo)[2]}" for line in hub.requests()[before:])
    path = f"resolve/{record.commit}"
    weights = f"GET /{record.commit}/model.safetensors"
    assert asked == sorted([weights, *(f"GET /{path}/{name}" for name in record.files)])


def test_a_broken_download_goes_on_where_it_broke(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    hub.fail(f"/lfs/{source.repo}/.*model", truncate=2_000_000)
    hub.fail(f"/lfs/{source.repo}/.*model", truncate=500_000, reset=True)
    assert fetch(source, record, scratch) == WEIGHTS
    sent = weights_sent(hub, source.repo)
    assert sent[0] == 2_000_000
    assert sent[1] == 500_000
    assert SIZE - 2_500_000 <= sent[2] < SIZE - 2_000_000  # a reset may lose what was under way


def test_the_next_run_goes_on_where_a_failed_one_ended(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    hub.fail(f"/lfs/{source.repo}/.*model", truncate=SIZE // 3)
    hub.fail(f"/lfs/{source.repo}/.*model", status=503, times=math.inf)
    with pytest.raises(SourceUnreachable, match=r"answered 503 for .* model.safetensors after 6 attempts: try again"):
        fetch(source, record, scratch)
    hub.faults.clear()
    n_before = len(hub.requests())
    assert fetch(HubSource(source.repo), record, scratch) == WEIGHTS
    assert weights_sent(hub, source.repo)[-1] == SIZE - SIZE // 3
    assert len(hub.requests()) == n_before + 2  # the small files were there
    assert not scratch.exists()


FETCH = """
import pickle, sys
from pathlib import Path
from replay.sources.hub import HubSource
from replay.sources.retries import retried
record = pickle.loads(bytes.fromhex(sys.argv[2]))
with HubSource(sys.argv[1]).fetch(record, list(record.files), Path(sys.argv[3])):
    pass
"""


def test_the_next_run_goes_on_where_a_killed_one_ended(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    hub.bandwidth = SIZE / 3
    command = [sys.executable, "-c", FETCH, source.repo, pickle.dumps(record).hex(), str(scratch)]
    with subprocess.Popen(command) as child:
        while not (found := list(scratch.glob("model.*.part"))) or found[0].stat().st_size < SIZE // 6:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    hub.bandwidth = None
    n_there = found[0].stat().st_size
    assert SIZE // 6 <= n_there < SIZE
    assert fetch(source, record, scratch) == WEIGHTS
    assert weights_sent(hub, source.repo)[-1] == SIZE - n_there


def test_a_download_that_gets_on_is_not_given_up(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fail(f"/lfs/{source.repo}/.*model", truncate=SIZE // 10, times=math.inf)
    with pytest.raises(SourceUnreachable, match=r"model.safetensors .* after 6 attempts"):
        fetch(source, record, scratch)
    assert part(scratch).stat().st_size == SIZE // 10 * 6
    shutil.rmtree(scratch)
    monkeypatch.setattr(hub_module, "WORTHWHILE", SIZE // 2)
    assert fetch(source, record, scratch) == WEIGHTS


def test_a_server_that_knows_no_ranges_sends_the_whole_file(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    scratch.mkdir()
    digest = record.files["config.json"][0]
    (scratch / f"config.json.{digest}.part").write_bytes(b"{")
    blob = hub.repository(source.repo).commits[str(record.commit)].files["config.json"]
    hub.fail(f"{source.repo}/resolve/.*config", whole=True)
    assert fetch(source, record, scratch) == WEIGHTS
    assert [line.sent for line in hub.requests(f"{source.repo}/resolve/.*config")] == [blob.size]


# What comes is what was listed


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_downloaded_once_more(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, told: list[str], name: str
) -> None:
    hub.fail(f"GET (/lfs/{source.repo}/.*{name}|/{source.repo}/.*{name.replace('model', 'never')})", spoil=True)
    assert fetch(source, record, scratch) == WEIGHTS
    assert told == [f"{source.repo} step512 {name}: not the file that the repository lists, downloading it once more"]


@pytest.mark.parametrize(("name", "kind"), [("model.safetensors", "sha256"), ("config.json", "git blob id")])
def test_a_file_that_is_damaged_again_is_an_error_of_its_revision(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, name: str, kind: str
) -> None:
    hub.fail(f"GET (/lfs/{source.repo}/.*model|/{source.repo}/.*config)", spoil=True, times=math.inf)
    with (
        pytest.raises(DamagedWeights, match=rf"step512 {name} is not the file that the repository lists \({kind} diff"),
        source.fetch(record, [name, "tokenizer.json"], scratch),
    ):
        pass
    assert len([line for line in hub.requests(rf"{source.repo}.*{name}") if line.status == 200]) == 2
    assert not scratch.exists()


def test_the_users_cache_is_used_and_left_alone_even_if_it_is_damaged(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    names = list(record.files)
    assert source.bytes_to_fetch(record, names) == SIZE + 4
    assert source.bytes_to_fetch(record, ["config.json"]) == 2
    cached = Path(snapshot_download(source.repo, revision=record.commit))
    assert source.bytes_to_fetch(record, names) == 0
    n_before = len(hub.requests())
    with source.fetch(record, names, scratch) as folder:
        assert folder == cached
    assert len(hub.requests()) == n_before
    (cached / "model.safetensors").write_bytes(b"cut")
    assert fetch(source, record, scratch) == WEIGHTS
    assert (cached / "model.safetensors").read_bytes() == b"cut"


def test_a_damaged_file_in_the_users_cache_is_counted_as_a_download_and_read_once(
    source: HubSource, record: RevisionRecord, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []

    def noting(path: Path) -> str:
        read.append(path)
        return sha256(path)

    monkeypatch.setattr(hub_module, "sha256", noting)
    names = list(record.files)
    weights = Path(snapshot_download(source.repo, revision=record.commit)) / "model.safetensors"
    assert source.bytes_to_fetch(record, names) == 0
    assert read == []
    assert source.bytes_to_fetch(record, names, scratch=scratch) == 0
    with source.fetch(record, names, scratch) as folder:
        assert folder == weights.parent
    assert read == [weights]
    weights.write_bytes(WEIGHTS[:-1] + b"x")
    assert source.bytes_to_fetch(record, names) == 0
    assert source.bytes_to_fetch(record, names, scratch=scratch) == SIZE + 4
    assert read == [weights, weights]
    assert fetch(source, record, scratch) == WEIGHTS
    assert read.count(weights) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_body_longer_than_listed_is_cut_there_and_refused(
    name: str, hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, tmp_path: Path
) -> None:
    digest, size = record.files[name]
    shorter = dataclasses.replace(record, files=record.files | {name: [digest, size - 1]})
    scratch.mkdir()
    (scratch / f"{name}.{digest}.part").symlink_to(tmp_path / "came")  # which stays when the folder is removed
    with (
        pytest.raises(DamagedWeights, match=rf"step512 {name} is not the file .* \(longer than {size - 1} bytes\)"),
        source.fetch(shorter, [name], scratch),
    ):
        pass
    assert (tmp_path / "came").stat().st_size == size - 1
    assert not scratch.exists()


def test_an_empty_file_is_there_without_a_request(hub: Hub, tmp_path: Path, scratch: Path) -> None:
    name = f"empty/{tmp_path.name}"
    hub.commit(name, "step1", files={"config.json": "{}", "model.safetensors": b"", "merges.txt": ""})
    source = HubSource(name)
    record = source.describe(source.list_revisions()[0])
    with source.fetch(record, ["model.safetensors", "config.json"], scratch) as folder:
        assert (folder / "model.safetensors").read_bytes() == b""
    assert not hub.requests(f"{name}/.*model")


def test_files_are_asked_for_as_they_are(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    answer = hub.answer

    def noting(target: str, headers: Message, body: bytes) -> Reply:
        asked.append(headers.get("Accept-Encoding"))
        return answer(target, headers, body)

    monkeypatch.setattr(hub, "answer", noting)
    assert fetch(source, record, scratch) == WEIGHTS
    assert asked == ["identity"] * 4


def test_the_token_goes_to_the_hub_and_not_to_where_it_redirects(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository(source.repo).gated = True
    monkeypatch.setenv("HF_TOKEN", hub.token)
    n_before = len(hub.requests())
    assert fetch(source, record, scratch) == WEIGHTS
    asked = hub.requests()[n_before:]
    assert [line.authorized for line in asked if line.path.startswith("/lfs/")] == [False]
    assert all(line.authorized for line in asked if not line.path.startswith("/lfs/"))


# Threads and processes


def test_the_first_file_that_fails_ends_the_others(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    hub.bandwidth = SIZE / 3
    hub.fail(f"{source.repo}/resolve/.*tokenizer", status=403, delay=0.2)
    with pytest.raises(GatedSource):
        fetch(source, record, scratch)
    assert part(scratch).stat().st_size < SIZE // 2


def pool_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("download")]


def test_a_download_that_is_stopped_ends_at_its_next_block_and_keeps_what_came(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    hub.bandwidth = SIZE / 6
    stopped = threading.Event()

    def stop() -> None:
        until(lambda: [path for path in scratch.glob("model.*.part") if path.stat().st_size > SIZE // 12])
        stopped.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    with (
        pytest.raises(SourceUnreachable, match=f"{source.repo} step512: the download was stopped"),
        source.fetch(record, list(record.files), scratch, stopped=stopped),
    ):
        pass
    assert pool_threads() == []
    stopper.join()
    hub.bandwidth = None
    n_there = part(scratch).stat().st_size
    assert SIZE // 12 < n_there < SIZE // 2
    assert fetch(source, record, scratch) == WEIGHTS
    assert weights_sent(hub, source.repo)[-1] == SIZE - n_there


def test_a_wait_between_two_attempts_ends_when_it_is_stopped(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path, told: list[str]
) -> None:
    stopped = threading.Event()

    def stop(line: str) -> None:
        told.append(line)
        stopped.set()

    source.report = stop
    hub.fail(f"{source.repo}/resolve/.*model", status=429, headers={"Retry-After": "600"})
    ended: list[str] = []

    def go() -> None:
        try:
            source.fetch(record, ["model.safetensors"], scratch, stopped=stopped).__enter__()
        except SourceUnreachable as error:
            ended.append(str(error))

    threading.Thread(target=go, daemon=True).start()
    until(lambda: ended)
    assert "was stopped" in ended[0]
    assert len(told) == len(hub.requests(f"{source.repo}/resolve/.*model")) == 1
    assert pool_threads() == []


def test_what_is_stopped_already_asks_for_nothing(
    hub: Hub, source: HubSource, record: RevisionRecord, scratch: Path
) -> None:
    stopped = threading.Event()
    stopped.set()
    n_before = len(hub.requests())
    with (
        pytest.raises(SourceUnreachable, match="was stopped"),
        source.fetch(record, ["model.safetensors"], scratch, stopped=stopped),
    ):
        pass
    assert len(hub.requests()) == n_before
    assert not scratch.exists()


def test_a_source_goes_to_another_process_without_its_listener(source: HubSource, record: RevisionRecord) -> None:
    source.report = lambda line: None
    copy = pickle.loads(pickle.dumps(source))
    assert copy.report is None
    assert copy.describe(copy.list_revisions()[0]) == record
