"""Checkpoints of a hub repository, through the unmodified huggingface_hub client."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from replay.revisions import parse_step, sort_key
from replay.sources.files import describe_files, is_weight_file, sha256
from store.commits import RevisionRecord
from store.errors import (
    DamagedWeights,
    GatedSource,
    InvalidInput,
    SourceUnreachable,
    UnknownRevision,
    UnknownSource,
)
from store.segments import NO_ROOM, NOT_ALLOWED, refusal

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["HubSource"]


class HubSource:
    """The branches and tags of one repository.

    Names are resolved to commit shas once; every later request speaks of a sha only, so that nothing can move under a
    run. ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` are read by the client itself.

    Parameters
    ----------
    repo
        Repository id, ``org/name``.
    step_regex
        Pattern with a group ``step`` for revision names of no known suite.
    known
        What an earlier listing said, to go on with while offline.

    Raises
    ------
    InvalidInput
        If ``repo`` is not a repository id.
    """

    kind = "hub"

    def __init__(
        self, repo: str, *, step_regex: re.Pattern[str] | None = None, known: Sequence[RevisionRecord] = ()
    ) -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
            raise InvalidInput(
                f"--repo {repo!r} is no repository id: expected ORG/NAME, such as EleutherAI/pythia-160m"
            )
        self.repo = self.location = self.run = repo
        self._step_regex = step_regex
        self._known = {record.name: record for record in known}

    def list_revisions(self) -> list[RevisionRecord]:
        """Return one record a branch or tag, ordered by step; one request.

        Offline, those that the user's own cache holds and those of an earlier listing.
        """
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            commits = self._cached_refs()
        else:
            with self._explained():
                refs = self._api().list_repo_refs(self.repo)
            commits = {ref.name: ref.target_commit for ref in (*refs.tags, *refs.branches)}
        records = []
        for name, commit in commits.items():
            record, parsed = RevisionRecord(name=name, commit=commit), parse_step(name, pattern=self._step_regex)
            if parsed is not None:
                record = replace(record, step=parsed.step, tokens=parsed.tokens, epoch=parsed.epoch, stage=parsed.stage)
            records.append(record)
        return sorted(records, key=lambda record: sort_key(record.name, step=record.step, pattern=self._step_regex))

    def describe(self, record: RevisionRecord) -> RevisionRecord:
        """Return ``record`` with the digests that the repository's tree names, before any download; one request."""
        from huggingface_hub import constants
        from huggingface_hub.hf_api import RepoFile

        if constants.HF_HUB_OFFLINE:
            known = self._known.get(record.name)
            if known is not None and known.commit == record.commit and known.weights:
                return known
            return describe_files(record, self._cached_files(record))
        with self._explained():
            tree = list(self._api().list_repo_tree(self.repo, revision=record.commit))
        files = {
            entry.path: (entry.lfs.sha256 if entry.lfs else entry.blob_id, entry.size)
            for entry in tree
            if isinstance(entry, RepoFile)
        }
        return describe_files(record, files)

    @contextmanager
    def fetch(self, record: RevisionRecord, names: list[str], scratch: Path) -> Iterator[Path]:
        """Hold a folder with the files: the user's own cache if it has them all, else downloaded into ``scratch``."""
        cached = self._in_user_cache(record, names)
        if cached is not None:
            self._verify(record, names, cached)
            yield cached
            return
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise SourceUnreachable(f"{self.repo} {record.name} is not in the local cache and HF_HUB_OFFLINE is set")
        try:
            with self._explained():
                folder = self._api().snapshot_download(
                    self.repo, revision=record.commit, allow_patterns=names, cache_dir=scratch, max_workers=4
                )
        finally:
            if not any(path.is_file() for path in scratch.rglob("*")):
                shutil.rmtree(scratch, ignore_errors=True)  # nothing to go on from
        try:
            self._verify(record, names, Path(folder))
            yield Path(folder)
        finally:
            # What was fetched whole is not kept; only a kill leaves it, and the next run goes on from there.
            shutil.rmtree(scratch, ignore_errors=True)

    def _api(self) -> "HfApi":
        from huggingface_hub import HfApi
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # the plan and our own bar say it once for all files
        return HfApi(library_name="replay")

    def _verify(self, record: RevisionRecord, names: list[str], folder: Path) -> None:
        for name in names:
            path = folder / name
            if not path.is_file():
                raise DamagedWeights(f"{name} of {record.name} was not delivered")
            if is_weight_file(name) and sha256(path) != record.files[name][0]:
                raise DamagedWeights(
                    f"{name} of {record.name} is not the file that the repository lists (sha256 differs)"
                )

    def _in_user_cache(self, record: RevisionRecord, names: list[str]) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        found = [try_to_load_from_cache(self.repo, name, revision=record.commit) for name in names]
        if found and all(isinstance(path, str) for path in found):
            return Path(str(found[0])).parent
        return None

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
            digest = sha256(path) if is_weight_file(path.name) and len(blob.name) != 64 else blob.name
            files[path.name] = (digest, blob.stat().st_size)
        return files

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 (the client raises its own, its transport's and the system's errors)
            self._raise(error)

    def _raise(self, error: BaseException) -> NoReturn:
        from huggingface_hub import errors

        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
            chain.append(cause)  # the client wraps what really happened
        for cause in chain:
            if isinstance(cause, OSError) and cause.errno in NO_ROOM | NOT_ALLOWED:
                raise refusal(cause, Path(cause.filename or f"the download of {self.repo}")) from error
            status = getattr(getattr(cause, "response", None), "status_code", None)
            if isinstance(cause, errors.GatedRepoError):
                raise GatedSource(
                    f"{self.repo} is gated: accept its terms on its page and set HF_TOKEN (or run `hf auth login`)"
                ) from error
            if isinstance(cause, errors.RepositoryNotFoundError):
                raise UnknownSource(
                    f"no repository {self.repo} at {_endpoint()}: check its name; if it is private, set HF_TOKEN"
                ) from error
            if isinstance(cause, errors.RevisionNotFoundError):
                raise UnknownRevision(f"{self.repo} no longer has a revision that it listed: run again") from error
            if isinstance(cause, errors.RemoteEntryNotFoundError):
                raise DamagedWeights(f"{self.repo} no longer has a file that it listed: {cause}") from error
            if status in (401, 403):
                raise GatedSource(f"{self.repo} answered {status}: HF_TOKEN is missing or may not read it") from error
            if status is not None:
                raise SourceUnreachable(f"{_endpoint()} answered {status} for {self.repo}: try again later") from error
        raise SourceUnreachable(
            f"{_endpoint()} cannot be reached for {self.repo} ({_first_line(chain[-1])}): check the network, or set "
            "HF_HUB_OFFLINE=1 to use what is in the local cache"
        ) from error


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "the hub"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
