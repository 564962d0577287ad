"""The hub emulator, seen by the unmodified client in a process of its own and by plain HTTP."""

import hashlib
import http.client
import json
import math
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from hub import Hub, publish

CLIENT = """
import json, sys, warnings
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, list_repo_refs, snapshot_download

api, seen, sha = HfApi(), {}, sys.argv[1]

def attempt(name, call, *args, **kwargs):
    try:
        seen[name] = call(*args, **kwargs)
    except Exception as error:
        response = getattr(error, "response", None)
        seen[name] = [type(error).__name__, None if response is None else response.status_code]

refs = list_repo_refs("org/tiny")
seen["branches"] = {ref.name: ref.target_commit for ref in refs.branches}
seen["tags"] = {ref.name: ref.target_commit for ref in refs.tags}
tree = list(api.list_repo_tree("org/tiny", recursive=True, revision=sha))
seen["tree"] = {entry.path: getattr(entry, "size", None) for entry in tree}
seen["digests"] = {entry.path: entry.lfs.sha256 for entry in tree if getattr(entry, "lfs", None)}
seen["top"] = [entry.path for entry in api.list_repo_tree("org/tiny", revision="step10")]
seen["below"] = [entry.path for entry in api.list_repo_tree("org/tiny", "extra", revision="step10")]
seen["slashed"] = [entry.path for entry in api.list_repo_tree("org/tiny", revision="runs/a")]
infos = api.get_paths_info("org/tiny", ["model.safetensors", "absent.bin"], revision=sha)
seen["paths"] = [[info.path, info.size, info.lfs.sha256] for info in infos]
seen["commits"] = [commit.commit_id for commit in api.list_repo_commits("org/tiny", revision="step10")]
found = api.list_models(author="org", search="t", expand=["sha"])
seen["found"] = {info.id: info.sha for info in found}
seen["some"] = [info.id for info in api.list_models(author="org", limit=1)]
seen["opened"] = [info.id for info in api.list_models(author="org", search="PRIVATE", token="hf_local")]
seen["info"] = api.model_info("org/tiny", revision="step10").sha

folder = Path(snapshot_download("org/tiny", revision=sha))
seen["folder"] = folder.name
seen["files"] = {path.relative_to(folder).as_posix(): path.read_bytes().hex() for path in folder.rglob("*.*")}
seen["resumed"] = len(Path(hf_hub_download("org/tiny", "model.bin", revision="cut")).read_bytes())
attempt("unknown repository", list_repo_refs, "org/none")
attempt("unknown repository with a token", list_repo_refs, "org/none", token="hf_local")
attempt("unknown revision", api.model_info, "org/tiny", revision="step11")
attempt("unknown commit", snapshot_download, "org/tiny", revision="0" * 40)
attempt("unknown file", hf_hub_download, "org/tiny", "absent.bin", revision=sha)
attempt("gated", hf_hub_download, "org/gated", "config.json")
attempt("gated with a wrong token", hf_hub_download, "org/gated", "config.json", token="hf_wrong")
attempt("gated with the token", lambda: len(hf_hub_download("org/gated", "config.json", token="hf_local")) > 0)
attempt("gated refs", lambda: [ref.name for ref in list_repo_refs("org/gated").branches])
attempt("private", list_repo_refs, "org/private")
attempt("private with the token", lambda: len(list_repo_refs("org/private", token="hf_local").branches))
attempt("busy refs", list_repo_refs, "org/busy")
attempt("busy tree", lambda: len(list(api.list_repo_tree("org/busy"))))
attempt("broken", hf_hub_download, "org/busy", "model.bin")
print(json.dumps(seen))
"""

WEIGHTS = bytes(range(256)) * 4096  # 1 MiB
LARGE = WEIGHTS * 12  # the client keeps what it has of a broken download in pieces of 10 MiB


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("step10")
    (folder / "extra" / "deep").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "gpt_neox"}')
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "extra" / "deep" / "notes.txt").write_text("notes")
    (folder / "extra" / "notes.txt").write_text("more notes")
    return folder


@pytest.fixture(scope="module")
def hub(folder: Path) -> Iterator[Hub]:
    with Hub(page=2) as hub:
        first = hub.commit("org/tiny", "step10", files={"stale.bin": b"x", "config.json": "{}"}, title="first")
        sha = hub.commit("org/tiny", "step10", folder=folder, files={"stale.bin": None}, tag="v1")
        assert first != sha
        hub.point("org/tiny", "main", sha)
        hub.commit("org/tiny", "runs/a", files={"config.json": "{}"})
        hub.commit("org/tiny", "cut", files={"model.bin": LARGE})
        hub.commit("org/gated", files={"config.json": "{}"})
        hub.repository("org/gated").gated = True
        hub.commit("org/private", files={"config.json": "{}"})
        hub.repository("org/private").private = True
        hub.commit("org/busy", files={"model.bin": b"weights"})
        for repo in ("org/tools", "org/trio", "other/tiny"):
            hub.commit(repo, files={"config.json": "{}"})
        yield hub


@pytest.fixture(scope="module")
def seen(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the client saw, after the faults that were waiting for it."""
    hub.fail(r"GET /lfs/org/tiny/.*model\.bin", truncate=11 << 20)
    hub.fail(r"/api/models/org/busy/refs", status=429, headers={"Retry-After": "1"})
    hub.fail(r"/api/models/org/busy/tree", status=429, headers={"Retry-After": "0"})
    hub.fail(r"GET /lfs/org/busy", status=503)
    sha = hub.repository("org/tiny").branches["step10"]
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, sha],
        env=hub.environ(tmp_path_factory.mktemp("cache")),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def get(url: str, **headers: str) -> tuple[int, bytes, Message]:
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


# The client


def test_the_client_lists_branches_and_tags_with_their_commits(hub: Hub, seen: dict[str, Any]) -> None:
    assert seen["branches"] == hub.repository("org/tiny").branches
    assert seen["tags"] == {"v1": seen["branches"]["step10"]}
    assert seen["branches"]["main"] == seen["branches"]["step10"]


def test_the_client_sees_the_whole_tree_over_several_pages(hub: Hub, folder: Path, seen: dict[str, Any]) -> None:
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
    assert seen["tree"] == sizes | {"extra": None, "extra/deep": None}
    assert len(hub.requests(rf"tree/{seen['info']}\?.*cursor=")) >= 2


def test_the_client_lists_one_folder_when_not_recursive(seen: dict[str, Any]) -> None:
    assert seen["top"] == ["extra", "config.json", "model.safetensors"]
    assert seen["below"] == ["extra/deep", "extra/notes.txt"]


def test_the_tree_gives_the_digest_that_the_file_has(folder: Path, seen: dict[str, Any]) -> None:
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert seen["digests"] == {"model.safetensors": digest}
    assert seen["paths"] == [["model.safetensors", len(WEIGHTS), digest]]


def test_a_branch_may_have_a_slash_in_its_name(seen: dict[str, Any]) -> None:
    assert seen["slashed"] == ["config.json"]


def test_the_client_reads_a_branchs_history_and_latest_commit(seen: dict[str, Any]) -> None:
    assert len(seen["commits"]) == 2
    assert seen["commits"][0] == seen["info"] == seen["branches"]["step10"]


def test_the_client_finds_repositories_by_owner_and_name_over_several_pages(hub: Hub, seen: dict[str, Any]) -> None:
    sha = {repo: hub.repository(repo).branches["main"] for repo in ("org/gated", "org/tiny", "org/tools", "org/trio")}
    assert seen["found"] == sha
    assert [line.status for line in hub.requests(r"GET /api/models[?].*search=t.*cursor=2")] == [200]
    assert seen["some"] == ["org/busy"]
    assert seen["opened"] == ["org/private"]


def test_a_snapshot_of_a_commit_holds_the_bytes_of_the_folder(folder: Path, seen: dict[str, Any]) -> None:
    assert seen["folder"] == seen["branches"]["step10"]
    there = {path.relative_to(folder).as_posix(): path.read_bytes().hex() for path in folder.rglob("*.*")}
    assert seen["files"] == there


def test_a_body_cut_short_is_resumed_where_it_ended(hub: Hub, seen: dict[str, Any]) -> None:
    assert seen["resumed"] == len(LARGE)
    served = hub.requests(r"GET /lfs/org/tiny/.*model\.bin")
    assert [(line.status, line.sent >> 20) for line in served] == [(200, 11), (206, 2)]


@pytest.mark.parametrize(
    ("attempt", "outcome"),
    [
        ("unknown repository", ["RepositoryNotFoundError", 401]),
        ("unknown repository with a token", ["RepositoryNotFoundError", 404]),
        ("unknown revision", ["RevisionNotFoundError", 404]),
        ("unknown commit", ["RevisionNotFoundError", 404]),
        ("unknown file", ["RemoteEntryNotFoundError", 404]),
        ("gated", ["GatedRepoError", 401]),
        ("gated with a wrong token", ["GatedRepoError", 403]),
        ("gated with the token", True),
        ("gated refs", ["main"]),
        ("private", ["RepositoryNotFoundError", 401]),
        ("private with the token", 1),
        ("busy refs", ["HfHubHTTPError", 429]),
        ("busy tree", 1),
        ("broken", ["HfHubHTTPError", 503]),
    ],
)
def test_the_client_takes_an_answer_for_what_it_is(seen: dict[str, Any], attempt: str, outcome: object) -> None:
    assert seen[attempt] == outcome


# Plain HTTP


@pytest.fixture
def fresh() -> Iterator[Hub]:
    with Hub() as hub:
        hub.commit("org/one", files={"model.bin": WEIGHTS, "config.json": "0123456789"})
        yield hub


@pytest.mark.parametrize(
    ("asked", "status", "body", "said"),
    [
        ("bytes=2-4", 206, b"234", "bytes 2-4/10"),
        ("bytes=7-", 206, b"789", "bytes 7-9/10"),
        ("bytes=-2", 206, b"89", "bytes 8-9/10"),
        ("bytes=5-99", 206, b"56789", "bytes 5-9/10"),
        ("bytes=10-", 416, b"", "bytes */10"),
        ("nonsense", 200, b"0123456789", None),
    ],
)
def test_a_range_of_a_file_is_served(fresh: Hub, asked: str, status: int, body: bytes, said: str | None) -> None:
    answer = get(f"{fresh.url}/org/one/resolve/main/config.json", Range=asked)
    assert answer[:2] == (status, body)
    assert answer[2]["Content-Range"] == said


def test_weights_come_from_a_second_origin_by_a_redirect_that_knows_them(fresh: Hub) -> None:
    connection = http.client.HTTPConnection(fresh.url.removeprefix("http://"))
    connection.request("HEAD", "/org/one/resolve/main/model.bin")
    response = connection.getresponse()
    connection.close()
    assert response.status == 302
    assert response.headers["Location"].startswith(fresh.storage_url)
    assert response.headers["X-Linked-Size"] == str(len(WEIGHTS))
    assert response.headers["X-Linked-ETag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
    assert response.headers["X-Repo-Commit"] == fresh.repository("org/one").branches["main"]


def test_the_log_counts_requests_and_bytes(fresh: Hub) -> None:
    get(f"{fresh.url}/org/one/resolve/main/model.bin")
    get(f"{fresh.url}/org/one/resolve/main/config.json")
    assert fresh.bytes_served(r"model\.bin") == len(WEIGHTS)
    assert fresh.bytes_served() == len(WEIGHTS) + 10
    assert [line.status for line in fresh.requests("^GET .*model")] == [302, 200]


def test_a_fault_strikes_as_often_as_told(fresh: Hub) -> None:
    fresh.fail("config", status=503, headers={"Retry-After": "7"}, times=2)
    answers = [get(f"{fresh.url}/org/one/resolve/main/config.json") for _ in range(3)]
    assert [answer[0] for answer in answers] == [503, 503, 200]
    assert answers[0][2]["Retry-After"] == "7"


def test_a_body_can_be_cut(fresh: Hub) -> None:
    fresh.fail("GET /lfs", truncate=10)
    with pytest.raises(http.client.IncompleteRead) as caught:
        get(f"{fresh.url}/org/one/resolve/main/model.bin")
    assert len(caught.value.partial) == 10


def test_a_fault_may_last(fresh: Hub) -> None:
    fresh.fail("config", status=500, times=math.inf)
    assert {get(f"{fresh.url}/org/one/resolve/main/config.json")[0] for _ in range(20)} == {500}


def test_a_body_can_be_spoiled_and_a_range_ignored(fresh: Hub) -> None:
    fresh.fail("config", spoil=True)
    fresh.fail("config", whole=True)
    bodies = [get(f"{fresh.url}/org/one/resolve/main/config.json", Range="bytes=8-")[1] for _ in range(3)]
    assert bodies == [b"99", b"0123456789", b"89"]


def test_a_server_can_fall_silent_in_the_middle(fresh: Hub) -> None:
    fresh.fail("GET /lfs", truncate=1000, stall=1.0)
    connection = http.client.HTTPConnection(fresh.storage_url.removeprefix("http://"), timeout=0.2)
    connection.request("GET", f"/lfs/org/one/{fresh.repository('org/one').branches['main']}/model.bin")
    response = connection.getresponse()
    assert len(response.read(1000)) == 1000
    with pytest.raises(TimeoutError):
        response.read(1)
    connection.close()


@pytest.mark.parametrize("truncate", [None, 1000])
def test_a_connection_can_be_reset(fresh: Hub, truncate: int | None) -> None:
    fresh.fail("GET /lfs", reset=True, truncate=truncate)
    with pytest.raises(OSError, match="reset by peer"):
        get(f"{fresh.url}/org/one/resolve/main/model.bin")
    assert get(f"{fresh.url}/org/one/resolve/main/model.bin")[0] == 200


def test_an_answer_can_be_late_and_slow(fresh: Hub) -> None:
    fresh.fail("config", delay=0.05)
    fresh.bandwidth = 100.0
    before = time.monotonic()
    assert get(f"{fresh.url}/org/one/resolve/main/config.json")[1] == b"0123456789"
    assert time.monotonic() - before >= 0.05 + 10 / 100


def test_a_hub_that_is_closed_answers_no_more() -> None:
    with Hub() as hub:
        connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))
        connection.request("GET", "/")
        assert connection.getresponse().read()
    connection.request("GET", "/")
    with pytest.raises(ConnectionError):
        connection.getresponse()
    connection.close()


# By hand


def test_folders_are_published_as_branches_with_the_last_step_as_main(tmp_path: Path) -> None:
    for name in ("step2", "step10", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(name)
    with Hub() as hub:
        assert publish(hub, "local/run", tmp_path) == ["step2", "step10", "notes", "main"]
        branches = hub.repository("local/run").branches
    assert branches["main"] == branches["step10"] != branches["step2"]


def test_a_folder_of_files_is_published_as_main(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Hub() as hub:
        assert publish(hub, "local/one", tmp_path) == ["main"]


def test_the_script_serves_until_it_is_ended(tmp_path: Path) -> None:
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "config.json").write_text("{}")
    command = [sys.executable, str(Path(__file__).with_name("hub.py")), "--repo", f"local/run={tmp_path}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        match = re.search(r"HF_ENDPOINT=(\S+)", process.stdout.readline())
        try:
            assert match is not None
            refs = json.loads(get(f"{match[1]}/api/models/local/run/refs")[1])
        finally:
            process.terminate()
    assert [branch["name"] for branch in refs["branches"]] == ["step1", "main"]
