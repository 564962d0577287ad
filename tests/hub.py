"""A small model hub on 127.0.0.1 that the unmodified Hugging Face client takes for the real one.

In a test::

    with Hub() as hub:
        hub.commit("org/tiny", "step10", folder=path)
        subprocess.run([...], env=hub.environ(cache))

The client reads ``HF_ENDPOINT`` when it is imported, so that a process that has imported it needs ``endpoint=hub.url``.
By hand, where ``runs/tiny`` holds the folders ``step0``, ``step10`` and so on::

    python tests/hub.py --repo local/tiny=runs/tiny
"""

import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, quote, unquote, urlencode, urlsplit

import click

Content = bytes | Path

_LFS_SUFFIXES = frozenset({".bin", ".ckpt", ".gz", ".h5", ".msgpack", ".npy", ".npz", ".pt", ".pth", ".safetensors"})
_LFS_SIZE = 10 << 20
_BLOCK = 1 << 18
_API = re.compile(r"/api/models/([^/]+/[^/]+)(?:/(refs|revision|tree|paths-info|commits)(?:/([^/]+))?(?:/(.*))?)?/?")
_RESOLVE = re.compile(r"/([^/]+/[^/]+)/(resolve)/([^/]+)/(.+)")
_STORED = re.compile(r"/lfs/([^/]+/[^/]+)/([^/]+)/(.+)")


@dataclass(frozen=True)
class Blob:
    """One version of a file; files on disk are served from where they are."""

    content: Content
    size: int
    oid: str
    """Git's name for it; of its pointer if it is an LFS file."""
    sha256: str | None
    """Only LFS files have one."""
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    """A tree of files and where it came from."""

    sha: str
    files: Mapping[str, Blob]
    title: str
    date: str
    parent: str | None


@dataclass
class Repository:
    """Branches, tags and commits of one model."""

    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def find(self, revision: str) -> Commit | None:
        return self.commits.get(self.branches.get(revision) or self.tags.get(revision) or revision)


@dataclass
class Fault:
    """What goes wrong with the next requests whose ``METHOD path``, on either origin, the pattern is found in."""

    pattern: str
    times: float = 1
    """Requests still to be spoiled; ``math.inf`` for all."""
    status: int | None = None
    """Answered instead, with the headers (``Retry-After``)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    truncate: int | None = None
    """Bytes of body sent under the full ``Content-Length`` before the connection is closed."""
    delay: float = 0.0
    """Seconds before the answer."""
    stall: float = 0.0
    """Seconds of silence after the truncated body, before the connection is closed."""
    reset: bool = False
    """Reset the connection: instead of an answer, or after the truncated body."""
    spoil: bool = False
    """Send another first byte of the body."""
    whole: bool = False
    """Know nothing of ranges."""


@dataclass
class Request:
    """One line of the log."""

    method: str
    path: str
    status: int = 0
    """0 if the connection was cut before there was one."""
    sent: int = 0
    """Bytes of body."""
    authorized: bool = False
    """Whether it brought a token."""


@dataclass(frozen=True)
class Reply:
    """What a request is answered with; `start` and `stop` cut a range out of the content."""

    status: int
    headers: Mapping[str, str]
    content: Content = b""
    start: int = 0
    stop: int = 0

    def blocks(self, size: int) -> Iterator[bytes]:
        if isinstance(self.content, bytes):
            yield from (self.content[at : min(at + size, self.stop)] for at in range(self.start, self.stop, size))
            return
        with self.content.open("rb") as file:
            file.seek(self.start)
            for at in range(self.start, self.stop, size):
                yield file.read(min(size, self.stop - at))


class Hub:
    """Repositories, their faults and a log of all requests, served while the context is open.

    Parameters
    ----------
    port
        Of the hub itself; 0 takes a free one. LFS files come from a second origin, as they do in the real one.
    token
        The only access token that opens gated and private repositories.
    page
        Entries of a listing on one page.
    bandwidth
        Bytes per second and response; no limit if None. May be set at any time.
    """

    def __init__(
        self, *, port: int = 0, token: str = "hf_local", page: int = 1000, bandwidth: float | None = None
    ) -> None:
        self.repositories: dict[str, Repository] = {}
        self.token = token
        self.page = page
        self.bandwidth = bandwidth
        self.log: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.Lock()
        self._servers = [_Server(self, port), _Server(self, 0)]
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def __enter__(self) -> Self:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def repository(self, repo: str) -> Repository:
        """Give a repository, made if there is none; set its ``gated`` or ``private`` to close it."""
        return self.repositories.setdefault(repo, Repository())

    def commit(
        self,
        repo: str,
        branch: str = "main",
        *,
        folder: Path | None = None,
        files: Mapping[str, Content | str | None] | None = None,
        tag: str | None = None,
        title: str = "Upload checkpoint",
    ) -> str:
        """Put files on top of a branch and give the new commit's sha; a file that is None is deleted.

        A branch that does not exist starts empty. No ``main`` is made unless it is committed to or pointed at.
        """
        repository = self.repository(repo)
        parent = repository.branches.get(branch)
        tree = dict(repository.commits[parent].files) if parent else {}
        given: dict[str, Content | str | None] = {}
        if folder is not None:
            given |= {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
        for name, content in (given | dict(files or {})).items():
            tree.pop(name, None)
            if content is not None:
                tree[name] = _blob(name, content)
        oids = {name: blob.oid for name, blob in sorted(tree.items())}
        identity = json.dumps([repo, branch, parent, title, oids]).encode()
        sha = hashlib.sha1(identity).hexdigest()
        date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        repository.commits[sha] = Commit(sha, tree, title, date, parent)
        self.point(repo, branch, sha)
        if tag:
            repository.tags[tag] = sha
        return sha

    def point(self, repo: str, branch: str, sha: str) -> None:
        """Let a branch name a commit, as ``main`` may name that of the last step."""
        self.repositories[repo].branches[branch] = sha

    def fail(self, pattern: str, **fault: Any) -> None:
        """Spoil the next requests that match; the keywords are the fields of `Fault`."""
        self.faults.append(Fault(pattern, **fault))

    def requests(self, pattern: str = "") -> list[Request]:
        """Give the log's lines whose ``METHOD path`` the pattern is found in, oldest first."""
        with self.lock:
            return [line for line in self.log if re.search(pattern, f"{line.method} {line.path}")]

    def bytes_served(self, pattern: str = "") -> int:
        """Count the bytes of body in the answers to the matching requests."""
        return sum(line.sent for line in self.requests(pattern))

    def environ(self, cache: Path, **more: str) -> dict[str, str]:
        """Give the environment of a process whose client shall use this hub, this cache and no token."""
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_")
        return {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "DISABLE_SAFETENSORS_CONVERSION": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            **more,
        }

    def answer(self, target: str, headers: Message, body: bytes) -> Reply:
        """Answer a request to either origin."""
        url = urlsplit(target)
        if match := _STORED.fullmatch(url.path):  # as the real one's signed links, open to whoever was given one
            repo, sha, path = (unquote(part) for part in match.groups())
            return _file(self.repositories[repo].commits[sha].files[path], headers, {})
        match = _RESOLVE.fullmatch(url.path) or _API.fullmatch(url.path)
        if match is None:
            return self._search(url, headers) if url.path == "/api/models" else _error(404, "", "No such page")
        repo, verb, revision, path = (unquote(part or "") for part in match.groups())
        repository = self.repositories.get(repo)
        if repository is None or (repository.private and not self._authorized(headers)):
            return _error(404 if "Authorization" in headers else 401, "RepoNotFound", "Repository not found")
        commit = repository.find(revision or "main")
        if verb == "refs":
            return _json(_refs(repository))
        if commit is None:
            return _error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if verb == "resolve" and repository.gated and not self._authorized(headers):
            return _error(403 if "Authorization" in headers else 401, "GatedRepo", f"Access to {repo} is restricted")
        if verb == "resolve":
            return self._resolve(repo, commit, path, headers)
        if verb == "tree":
            return self._tree(url, commit, path)
        if verb == "paths-info":
            asked = parse_qs(body.decode()).get("paths", [])
            return _json([entry for entry in _entries(commit, "", recursive=True) if entry["path"] in asked])
        return _json(_history(repository, commit) if verb == "commits" else _model_info(repo, repository, commit))

    def _resolve(self, repo: str, commit: Commit, path: str, headers: Message) -> Reply:
        blob = commit.files.get(path)
        if blob is None:
            return _error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.sha})
        if blob.sha256 is None:
            return _file(blob, headers, {"X-Repo-Commit": commit.sha})
        linked = {
            "Location": f"{self.storage_url}/lfs/{repo}/{commit.sha}/{quote(path)}",
            "ETag": f'"{blob.oid}"',
            "X-Repo-Commit": commit.sha,
            "X-Linked-ETag": f'"{blob.sha256}"',
            "X-Linked-Size": str(blob.size),
        }
        return Reply(302, linked)

    def _tree(self, url: SplitResult, commit: Commit, folder: str) -> Reply:
        query = _query(url)
        entries = _entries(commit, folder, recursive=query.get("recursive", "").lower() in ("1", "true"))
        if folder and not entries:
            return _error(404, "EntryNotFound", f"{folder} does not exist")
        return self._page(url, entries, self.page)

    def _authorized(self, headers: Message) -> bool:
        return headers.get("Authorization") == f"Bearer {self.token}"

    def _search(self, url: SplitResult, headers: Message) -> Reply:
        """List the models whose owner and name are asked for, with no more of each than was asked for."""
        query = _query(url)
        found = []
        for repo, repository in sorted(self.repositories.items()):
            owner, commit = repo.partition("/")[0], repository.find("main")
            if query.get("author", owner) != owner or query.get("search", "").lower() not in repo.lower():
                continue
            if commit is not None and (self._authorized(headers) or not repository.private):
                info = _model_info(repo, repository, commit)
                wanted = {"id", *parse_qs(url.query).get("expand", ("private", "tags"))}
                found.append({name: value for name, value in info.items() if name in wanted})
        return self._page(url, found, min(self.page, int(query.get("limit", "1000"))))

    def _page(self, url: SplitResult, entries: list[dict[str, Any]], size: int) -> Reply:
        at = int(_query(url).get("cursor", "0"))
        rest = {}
        if (after := at + size) < len(entries):
            following = urlencode(parse_qs(url.query) | {"cursor": [str(after)]}, doseq=True)
            rest["Link"] = f'<{self.url}{url.path}?{following}>; rel="next"'
        return _json(entries[at:after], rest)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: Hub, port: int) -> None:
        self.hub = hub
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def server_close(self) -> None:
        super().server_close()
        for connection in list(self.connections):  # clients keep theirs open; without this their threads would stay
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is part of the tests
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
        pass

    def do_GET(self) -> None:
        hub = self.server.hub
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        line = Request(self.command, self.path, authorized="Authorization" in self.headers)
        with hub.lock:
            hub.log.append(line)
            asked = f"{self.command} {self.path}"
            fault = next((f for f in hub.faults if f.times > 0 and re.search(f.pattern, asked)), Fault(""))
            fault.times -= 1
        time.sleep(fault.delay)
        if fault.reset and fault.truncate is None:
            return self.reset()
        if fault.whole:
            del self.headers["Range"]
        reply = hub.answer(self.path, self.headers, body)
        if fault.status is not None:
            reply = _json({}, fault.headers, status=fault.status)
        self.send(reply, line, fault)
        time.sleep(fault.stall)
        return self.reset() if fault.reset else None

    do_HEAD = do_POST = do_GET

    def send(self, reply: Reply, line: Request, fault: Fault) -> None:
        line.status = reply.status
        self.send_response(reply.status)
        for name, value in {"Content-Length": str(reply.stop - reply.start), **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        bandwidth = self.server.hub.bandwidth
        left = reply.stop - reply.start if fault.truncate is None else fault.truncate
        size = _BLOCK if bandwidth is None else max(1, min(_BLOCK, int(bandwidth / 20)))
        for number, block in enumerate(reply.blocks(size)):
            part = bytes([block[0] ^ 1]) + block[1:left] if fault.spoil and number == 0 else block[:left]
            if bandwidth is not None:
                time.sleep(len(part) / bandwidth)
            line.sent += len(part)  # before it is written: whoever has read the last byte may look at the log
            self.wfile.write(part)
            left -= len(part)
            if left == 0:
                break
        self.close_connection = self.close_connection or fault.truncate is not None

    def reset(self) -> None:
        """Close without a word: the peer sees a reset and no end of stream."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


def _blob(name: str, content: Content | str) -> Blob:
    content = content.encode() if isinstance(content, str) else content
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if Path(name).suffix not in _LFS_SUFFIXES and size < _LFS_SIZE:
        return Blob(content, size, _git_oid(content if isinstance(content, bytes) else content.read_bytes()), None)
    if isinstance(content, bytes):
        sha256 = hashlib.sha256(content).hexdigest()
    else:
        with content.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    return Blob(content, size, _git_oid(pointer), sha256, len(pointer))


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _query(url: SplitResult) -> dict[str, str]:
    return {name: values[-1] for name, values in parse_qs(url.query).items()}


def _json(value: Any, headers: Mapping[str, str] | None = None, *, status: int = 200) -> Reply:
    content = json.dumps(value).encode()
    return Reply(status, {"Content-Type": "application/json", **(headers or {})}, content, stop=len(content))


def _error(status: int, code: str, text: str, headers: Mapping[str, str] | None = None) -> Reply:
    return _json({"error": text}, {"X-Error-Code": code, "X-Error-Message": text, **(headers or {})}, status=status)


def _file(blob: Blob, asked: Message, headers: Mapping[str, str]) -> Reply:
    sent = {"ETag": f'"{blob.sha256 or blob.oid}"', "Accept-Ranges": "bytes", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.get("Range", ""))
    if match is None or match.groups() == ("", ""):
        return Reply(200, sent, blob.content, 0, blob.size)
    first, last = match.groups()
    start = int(first) if first else max(0, blob.size - int(last))
    stop = min(int(last) + 1, blob.size) if first and last else blob.size
    if start >= stop:
        return Reply(416, {"Content-Range": f"bytes */{blob.size}"})
    return Reply(206, {**sent, "Content-Range": f"bytes {start}-{stop - 1}/{blob.size}"}, blob.content, start, stop)


def _refs(repository: Repository) -> dict[str, Any]:
    def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": sha} for name, sha in names.items()]

    heads, tags = listed("heads", repository.branches), listed("tags", repository.tags)
    return {"branches": heads, "tags": tags, "converts": [], "pullRequests": []}


def _entries(commit: Commit, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
    """List the folders, then the files below a folder."""
    prefix = f"{folder}/" if folder else ""
    folders: dict[str, dict[str, Any]] = {}
    files: list[dict[str, Any]] = []
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            inner = prefix + "/".join(parts[:depth])
            folders[inner] = {"type": "directory", "path": inner, "size": 0, "oid": _git_oid(inner.encode())}
        if recursive or len(parts) == 1:
            entry: dict[str, Any] = {"type": "file", "path": path, "size": blob.size, "oid": blob.oid}
            if blob.sha256:
                entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
            files.append(entry)
    return [*folders.values(), *files]


def _history(repository: Repository, commit: Commit | None) -> list[dict[str, Any]]:
    listed = []
    while commit is not None:
        authors = [{"user": "local"}]
        listed.append({"id": commit.sha, "title": commit.title, "message": "", "date": commit.date, "authors": authors})
        commit = repository.commits[commit.parent] if commit.parent else None
    return listed


def _model_info(repo: str, repository: Repository, commit: Commit) -> dict[str, Any]:
    return {
        "id": repo,
        "sha": commit.sha,
        "private": repository.private,
        "gated": "manual" if repository.gated else False,
        "lastModified": commit.date,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }


def publish(hub: Hub, repo: str, folder: Path) -> list[str]:
    """Serve each subfolder as a branch and the last one in training order also as ``main``; give the branches.

    A folder without subfolders is one model: its files are ``main``.
    """
    from replay.revisions import order, parse_step

    names = order(path.name for path in folder.iterdir() if path.is_dir())
    if not names:
        hub.commit(repo, "main", folder=folder)
        return ["main"]
    shas = {name: hub.commit(repo, name, folder=folder / name) for name in names}
    if "main" not in shas:
        stepped = [name for name in names if (parsed := parse_step(name)) and parsed.step is not None]
        hub.point(repo, "main", shas[(stepped or names)[-1]])
    return list(hub.repositories[repo].branches)


@click.command()
@click.option(
    "--repo",
    "repos",
    metavar="ORG/NAME=FOLDER",
    multiple=True,
    required=True,
    help="Serve each subfolder as a branch, the last step also as main. Repeatable.",
)
@click.option("--port", default=0, show_default="a free one", help="Port of the hub on 127.0.0.1.")
@click.option("--bandwidth", type=float, help="Bytes per second of each response.")
def main(repos: tuple[str, ...], port: int, bandwidth: float | None) -> None:
    """Serve folders of checkpoints as repositories of a model hub on this machine."""
    with contextlib.suppress(KeyboardInterrupt), Hub(port=port, bandwidth=bandwidth) as hub:
        for given in repos:
            repo, _, folder = given.partition("=")
            if repo.count("/") != 1 or not Path(folder).is_dir() or not folder:
                raise click.BadParameter(f"{given!r} is not ORG/NAME=FOLDER with a folder that exists")
            branches = publish(hub, repo, Path(folder).resolve())
            click.echo(f"{repo}: {', '.join(branches)}", err=True)
        click.echo(f"export HF_ENDPOINT={hub.url} HF_HUB_DISABLE_XET=1")
        click.echo("Serving until interrupted.", err=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
