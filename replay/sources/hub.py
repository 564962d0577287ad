"""Checkpoints of a hub repository, asked for through the huggingface_hub client's session, headers and errors."""

import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any, TypeVar

from replay.revisions import parse_step, sort_key
from replay.sources.files import CONFIG, Wanted, describe_files, is_of_a_set, sha256
from replay.sources.ranges import fetch_tensors, partial_files, plan_tensors
from replay.sources.retries import Report, retried
from store.commits import RevisionRecord
from store.errors import DamagedWeights, InvalidInput, NotFound, SourceUnreachable
from store.keys import git_blob_id
from store.segments import refusal

__all__ = ["HubSource", "get_pages", "step_record"]

CONCURRENT_FILES = 4
"""Files of one checkpoint that are downloaded at a time."""

WORTHWHILE = 10 << 20
"""Bytes that all attempts at a file have to bring together for it to be given as many again."""

STOP_SECONDS = 0.1
"""How long it may take to see that a download shall stop."""

Answer = TypeVar("Answer")

_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class HubSource:
    """The branches and tags of one repository.

    Names are resolved to commit shas once; every later request speaks of a sha only, so that nothing can move under a
    run. ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME``, ``HF_HUB_DOWNLOAD_TIMEOUT`` and ``HF_HUB_OFFLINE`` do what they
    do for every client of the hub. A request that fails for a while is tried again; see `retried`.

    Parameters
    ----------
    repo
        Repository id, ``org/name``.
    step_regex
        Pattern with a group ``step`` for revision names of no known suite.
    known
        What an earlier listing said, to go on with while offline.
    report
        Told of each failure that is tried again, from any thread. It stays behind when the source is pickled.

    Raises
    ------
    InvalidInput
        If ``repo`` is not a repository id.
    """

    kind = "hub"

    def __init__(
        self,
        repo: str,
        *,
        step_regex: re.Pattern[str] | None = None,
        known: Sequence[RevisionRecord] = (),
        report: Report | None = None,
    ) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise InvalidInput(
                f"--repo {repo!r} is no repository id: expected ORG/NAME, such as EleutherAI/pythia-160m"
            )
        self.repo = self.location = self.run = repo
        self.report = report
        self._step_regex = step_regex
        self._known = {record.name: record for record in known}
        self._checked: dict[tuple[str, int, int, str], bool] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"report": None}

    def list_revisions(self) -> list[RevisionRecord]:
        """Return one record a branch or tag, ordered by step; one request.

        Offline, those that the user's own cache holds and those of an earlier listing.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            commits = self._cached_refs()
        else:
            refs = next(get_pages(f"models/{self.repo}/refs", repo=self.repo, subject=self.repo, report=self.report))
            commits = {ref["name"]: ref["targetCommit"] for ref in (*refs.get("tags", ()), *refs.get("branches", ()))}
        records = [step_record(name, commit, step_regex=self._step_regex) for name, commit in commits.items()]
        return sorted(records, key=lambda record: sort_key(record.name, step=record.step, pattern=self._step_regex))

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with the digests that the repository's tree names, before any download; one request.

        Raises
        ------
        UnknownRevision
            If the revision was deleted since it was listed.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            known = self._known.get(record.name)
            if known is not None and known.commit == record.commit and known.weights:
                return known
            return _describe(record, self._cached_files(record))
        pages = get_pages(
            f"models/{self.repo}/tree/{record.commit}",
            repo=self.repo,
            subject=f"{self.repo} {record.name}",
            report=self.report,
        )
        files = {
            entry["path"]: (entry["lfs"]["oid"] if entry.get("lfs") else entry["oid"], entry["size"])
            for page in pages
            for entry in page
            if entry["type"] == "file"
        }
        return _describe(record, files)

    @contextmanager
    def fetch(
        self,
        record: RevisionRecord,
        names: list[str],
        scratch: Path,
        *,
        wanted: Wanted | None = None,
        stopped: Event | None = None,
    ) -> Iterator[Path]:
        """Hold a folder with the files: the user's own cache if it has them all, else downloaded into ``scratch``.

        A small file costs one request, a weight file that and the one it is redirected to. What is in ``scratch``
        already, be it a part of a file, is not downloaded again; what belongs to another fetch is removed from it.

        Raises
        ------
        UnknownRevision
            If the revision or one of the files was deleted since it was listed.
        DamagedWeights
            If a file is not what was listed, also after a second download.
        SourceUnreachable
            If the hub cannot be reached, or ``stopped`` was set.
        StoreError
            If ``scratch`` cannot be written.
        """
        from huggingface_hub import constants

        cached = self._in_user_cache(record, names)
        if cached is not None and self._is_listed(cached, record, names):
            yield cached
            return
        if constants.HF_HUB_OFFLINE:
            what = "damaged" if cached else "not"
            raise SourceUnreachable(
                f"{self.repo} {record.name} is {what} in the local cache and HF_HUB_OFFLINE is set: unset it once"
            )
        whole = names if wanted is None else [name for name in names if name == CONFIG]
        own = {*whole, *(_part(name, record) for name in whole)}
        try:
            _sweep(scratch, own if wanted is None else own | partial_files(record.files))
            self._run(record, [partial(self._download, record, name, scratch) for name in whole], stopped)
            if wanted is not None:
                self._run(record, [partial(self._take, fetch_tensors, record, wanted, scratch)], stopped)
        except (DamagedWeights, NotFound):
            shutil.rmtree(scratch, ignore_errors=True)
            raise
        except OSError as error:
            raise refusal(error, Path(error.filename or scratch)) from error
        finally:
            if not any(path.is_file() and path.stat().st_size for path in scratch.rglob("*")):
                shutil.rmtree(scratch, ignore_errors=True)  # nothing to go on from
        yield scratch
        # What was used is not kept; only an interruption or a kill leaves it, and the next run goes on there.
        shutil.rmtree(scratch, ignore_errors=True)

    def check(self, record: RevisionRecord, names: Sequence[str]) -> None:
        """Do nothing: downloads stand where only this program writes, and the client's cache replaces files whole."""

    def bytes_to_fetch(
        self,
        record: RevisionRecord,
        names: Sequence[str],
        *,
        wanted: Wanted | None = None,
        scratch: Path | None = None,
        stopped: Event | None = None,
    ) -> int:
        """Return the size of the files ``names``, or of the tensors; 0 if the user's own cache has the files.

        With ``scratch`` they are read, once, for `fetch` downloads them if they are not what was listed.
        """
        cached = self._in_user_cache(record, names)
        if cached is not None and (scratch is None or self._is_listed(cached, record, names)):
            return 0
        if wanted is None or scratch is None:
            return sum(int(record.files[name][1]) for name in names)
        (planned,) = self._run(record, [partial(self._take, plan_tensors, record, wanted, scratch)], stopped)
        return planned.n_fetched + int(record.files[CONFIG][1])

    def _run(
        self, record: RevisionRecord, calls: Sequence[Callable[[Event], Answer]], stopped: Event | None
    ) -> list[Answer]:
        """Return the answers of calls made side by side; if one fails or ``stopped`` is set all end before it does."""

        def look() -> None:
            if stopped is not None and stopped.is_set():
                raise SourceUnreachable(f"{self.repo} {record.name}: the download was stopped")

        look()
        ending = Event()
        with ThreadPoolExecutor(CONCURRENT_FILES, thread_name_prefix="download") as pool:
            futures = [pool.submit(call, ending) for call in calls]
            try:
                running = set(futures)
                while running:
                    look()
                    seconds = None if stopped is None else STOP_SECONDS
                    done, running = wait(running, timeout=seconds, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
            finally:
                ending.set()  # the others end at their next block, or in the middle of a wait
                pool.shutdown(wait=False, cancel_futures=True)
        return [future.result() for future in futures]

    def _take(
        self, call: Callable[..., Answer], record: RevisionRecord, wanted: Wanted, scratch: Path, ending: Event
    ) -> Answer:
        return self._persist(
            partial(
                call,
                self.repo,
                commit=str(record.commit),
                files=record.files,
                wanted=wanted,
                folder=scratch,
                stopped=ending,
            ),
            subject=f"{self.repo} {record.name}",
            n_there=lambda: sum(path.stat().st_size for path in scratch.glob("*")),
            ending=ending,
        )

    def _download(self, record: RevisionRecord, name: str, scratch: Path, ending: Event) -> None:
        digest, size = record.files[name]
        subject = f"{self.repo} {record.name} {name}"
        if (scratch / name).is_file() and _has_digest(scratch / name, digest):
            return
        part = scratch / _part(name, record)
        scratch.mkdir(parents=True, exist_ok=True)
        part.touch()
        append = partial(_append, part, int(size), url=self._url(record, name), subject=subject, ending=ending)
        for chance in ("first", "last"):
            self._persist(append, subject=subject, n_there=lambda: part.stat().st_size, ending=ending)
            if _has_digest(part, digest):
                part.replace(scratch / name)
                return
            part.write_bytes(b"")
            if chance == "first" and self.report is not None:
                self.report(f"{subject}: not the file that the repository lists, downloading it once more")
        kind = "sha256" if len(digest) == 64 else "git blob id"
        raise DamagedWeights(f"{subject} is not the file that the repository lists ({kind} differs)")

    def _persist(
        self, call: Callable[[], Answer], *, subject: str, n_there: Callable[[], int], ending: Event
    ) -> Answer:
        """Return what ``call`` returns, giving it more attempts as long as they bring `WORTHWHILE` bytes together."""
        while True:
            n_before = n_there()
            try:
                return retried(call, repo=self.repo, subject=subject, report=self.report, sleep=ending.wait)
            except SourceUnreachable:
                if ending.is_set() or n_there() < n_before + WORTHWHILE:
                    raise

    def _url(self, record: RevisionRecord, name: str) -> str:
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo, name, revision=record.commit)

    def _in_user_cache(self, record: RevisionRecord, names: Sequence[str]) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(self.repo, name, revision=record.commit) for name in names]
        if found and all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
        return None

    def _is_listed(self, cached: Path, record: RevisionRecord, names: Sequence[str]) -> bool:
        """Return whether files of the user's own cache are what was listed; each is read once, unless it changes."""
        for name in names:
            path, digest = cached / name, record.files[name][0]
            stat = path.stat()
            state = (str(path), stat.st_size, stat.st_mtime_ns, digest)
            if state not in self._checked:
                self._checked[state] = _has_digest(path, digest)
            if not self._checked[state]:
                return False
        return True

    def _user_cache(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.repo, repo_type="model")

    def _cached_refs(self) -> dict[str, str]:
        refs = self._user_cache() / "refs"
        found = {p.relative_to(refs).as_posix(): p.read_text().strip() for p in refs.rglob("*") if p.is_file()}
        found |= {name: str(record.commit) for name, record in self._known.items() if name not in found}
        if not found:
            raise SourceUnreachable(f"{self.repo} is not in the local cache and HF_HUB_OFFLINE is set: unset it once")
        return found

    def _cached_files(self, record: RevisionRecord) -> dict[str, tuple[str, int]]:
        folder = self._user_cache() / "snapshots" / str(record.commit)
        files = {}
        for path in folder.iterdir() if folder.is_dir() else ():
            # The cache names a blob by its etag: the sha256 of a large file, the git id of a small one.
            blob = path.resolve()
            digest = blob.name
            if is_of_a_set(path.name) and len(digest) != 64:
                digest = sha256(path)
            elif not _DIGEST.fullmatch(digest):
                digest = git_blob_id(path.read_bytes())
            files[path.name] = (digest, blob.stat().st_size)
        return files


def step_record(name: str, commit: str, *, step_regex: re.Pattern[str] | None) -> RevisionRecord:
    """Return the record of a revision of which its name and commit are known, with what the name says of its step."""
    record, parsed = RevisionRecord(name=name, commit=commit), parse_step(name, pattern=step_regex)
    if parsed is None:
        return record
    return replace(record, step=parsed.step, tokens=parsed.tokens, epoch=parsed.epoch, stage=parsed.stage)


def get_pages(
    path: str, *, repo: str, subject: str, report: Report | None, query: Mapping[str, str] | None = None
) -> Iterator[Any]:
    """Yield the pages of a listing of the hub, each asked for when it is needed and again while it fails.

    The client's own methods for these wait for a silent server without end, and for a busy one without saying so.

    Parameters
    ----------
    path
        Path below ``/api``.
    repo, subject, report
        As for `retried`.
    query
        Parameters of the first page.

    Raises
    ------
    AccessError, NotFound
        As `retried` does; also if the next page is said to be elsewhere, where the token would go along.
    """
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers, httpx  # type: ignore[attr-defined] # made at run time

    def get(url: str, params: Mapping[str, str] | None) -> tuple[Any, str | None]:
        response = get_session().get(
            url,
            params=params,
            headers=build_hf_headers(library_name="replay"),
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        )
        hf_raise_for_status(response)
        link = response.links.get("next", {}).get("url")
        if link is None:
            return response.json(), None
        following, hub = response.url.join(link), httpx.URL(constants.ENDPOINT)
        if (following.scheme, following.host, following.port) != (hub.scheme, hub.host, hub.port):
            raise SourceUnreachable(
                f"{constants.ENDPOINT} says that the listing of {subject} goes on at {following.join('/')}, another "
                "server: refused, check HF_ENDPOINT"
            )
        return response.json(), str(following)

    following: str | None = f"{constants.ENDPOINT}/api/{path}"
    while following is not None:
        url, params = following, query
        page, following = retried(lambda: get(url, params), repo=repo, subject=subject, report=report)  # noqa: B023 (called at once)
        query = None  # the next page's address has it already
        yield page


def _describe(record: RevisionRecord, files: Mapping[str, tuple[str, int]]) -> RevisionRecord:
    """Do as `describe_files`, and refuse digests that are none: they become names of files."""
    described = describe_files(record, files)
    for name, (digest, _) in described.files.items():
        if not _DIGEST.fullmatch(digest):
            return replace(record, error=f"the hub lists {name} with {digest!r}, which is no sha1 or sha256 in hex")
    return described


def _part(name: str, record: RevisionRecord) -> str:
    return f"{name}.{record.files[name][0]}.part"


def _sweep(folder: Path, own: Collection[str]) -> None:
    """Remove what another fetch left in a folder: it takes room, and could be loaded in place of what is fetched."""
    for path in folder.glob("*"):
        if path.name not in own:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _append(part: Path, size: int, *, url: str, subject: str, ending: Event) -> None:
    """Download what is missing of a file that shall have ``size`` bytes, in one request."""
    from huggingface_hub import constants, get_session, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers, httpx  # type: ignore[attr-defined] # made at run time

    n_there = part.stat().st_size
    if n_there >= size:
        return
    if ending.is_set():
        raise SourceUnreachable(f"{subject}: the download was stopped")
    headers = build_hf_headers(library_name="replay") | {"Accept-Encoding": "identity"}
    if n_there:
        headers["Range"] = f"bytes={n_there}-"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with (
        part.open("ab") as file,
        get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response,
    ):
        if n_there and response.status_code in (200, 416):
            file.truncate(0)  # the whole file comes, or there is none that this could be a part of
            n_there = 0
        hf_raise_for_status(response)
        for block in response.iter_bytes():
            if ending.is_set():
                raise SourceUnreachable(f"{subject}: the download was stopped")
            file.write(block[: size - n_there])
            n_there += len(block)
            if n_there > size:
                raise DamagedWeights(f"{subject} is not the file that the repository lists (longer than {size} bytes)")
    if part.stat().st_size < size:
        raise httpx.RemoteProtocolError(f"{part.stat().st_size} of {size} bytes came")


def _has_digest(path: Path, digest: str) -> bool:
    """Return whether a file has a sha256 or, if the digest is a short one, a git blob id."""
    return (sha256(path) if len(digest) == 64 else git_blob_id(path.read_bytes())) == digest
