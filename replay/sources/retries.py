"""Requests to a hub that fail: which are tried again, how long to wait before, and what to say in the end."""

import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

from store.errors import GatedSource, ReplayError, SourceUnreachable, UnknownRevision, UnknownSource

if TYPE_CHECKING:
    from tenacity import RetryCallState

__all__ = ["Report", "retried"]

Report = Callable[[str], None]
"""Told in one line what went wrong and is tried again."""

ATTEMPTS = 6
"""Attempts of one request whose answer says that it may work later, or breaks off."""

CONNECT_ATTEMPTS = 3
"""Attempts where there is no connection at all: no name, no route, nobody listening."""

FIRST_WAIT = 1.0
"""Seconds before the second attempt, doubled before each further one; up to as much is added at random."""

LONGEST_WAIT = 60.0
"""Seconds at most between two attempts, unless the server asks for more."""

LONGEST_RETRY_AFTER = 900.0
"""Seconds that a server may ask for; one that wants more ends the command."""

Answer = TypeVar("Answer")


def retried(
    call: Callable[[], Answer],
    *,
    repo: str,
    subject: str,
    report: Report | None = None,
    sleep: Callable[[float], Any] = time.sleep,
) -> Answer:
    """Return what ``call`` returns, calling it again after a failure that may pass.

    These may pass: 408, 429 and 5xx, a connection that is reset, cut short or silent for too long, and, with fewer
    attempts, one that is not made. Waits grow exponentially with jitter; ``Retry-After`` and ``RateLimit`` are
    honoured.

    Parameters
    ----------
    call
        One request.
    repo
        Repository that it is about.
    subject
        What it is about, for reports and errors: the repository, or one of its revisions or files.
    report
        Told of each failure before the wait.
    sleep
        Waits for a number of seconds.

    Raises
    ------
    AccessError
        If the server cannot be reached, asks to wait for longer than `LONGEST_RETRY_AFTER`, or wants a token.
    NotFound
        If there is no such repository, or what was listed is gone.
    OSError
        As ``call`` raises it where it writes a file.
    """
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined] # its __all__ is made when it is imported
    from tenacity import Retrying, retry_if_exception, wait_exponential, wait_random

    def n_allowed(error: BaseException | None) -> int:
        unconnected = isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout, httpx.ProxyError))
        return CONNECT_ATTEMPTS if unconnected else ATTEMPTS

    def passes(error: BaseException) -> bool:
        if (status := _status(error)) is not None:
            may_pass = status in (408, 429) or status >= 500
            return may_pass and (_asked_wait(error) or 0) <= LONGEST_RETRY_AFTER
        broken = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
        return isinstance(error, broken)

    def wait(state: "RetryCallState") -> float:
        asked = _asked_wait(_failure(state))
        seconds = wait_exponential(FIRST_WAIT, LONGEST_WAIT)(state) if asked is None else asked
        return seconds + wait_random(0, FIRST_WAIT)(state)  # or all that failed together come back together

    def tell(state: "RetryCallState") -> None:
        if report is not None:
            error = _failure(state)
            report(
                f"{subject}: {_status(error) or _first_line(error)}, trying again in {state.upcoming_sleep:.0f} s "
                f"({state.attempt_number + 1} of {n_allowed(error)})"
            )

    attempts = Retrying(
        retry=retry_if_exception(passes),
        stop=lambda state: state.attempt_number >= n_allowed(_failure(state)),
        wait=wait,
        before_sleep=tell,
        sleep=sleep,
        reraise=True,
    )
    try:
        return attempts(call)
    except ReplayError:
        raise
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        n_made = attempts.statistics["attempt_number"]
        raise _explained(error, repo=repo, subject=subject, n_attempts=n_made) from error


def _failure(state: "RetryCallState") -> BaseException:
    error = state.outcome.exception() if state.outcome else None
    if error is None:
        raise RuntimeError("asked about a call that did not fail")
    return error


def _status(error: BaseException) -> int | None:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _asked_wait(error: BaseException) -> float | None:
    """Return the seconds that the answer asks to wait for; None if it says nothing of it."""
    from huggingface_hub.utils import parse_ratelimit_headers  # type: ignore[attr-defined] # as above

    headers = getattr(getattr(error, "response", None), "headers", {})
    asked = []
    limit = parse_ratelimit_headers(headers)
    if limit is not None and limit.remaining == 0:  # the headers are on every answer
        asked.append(float(limit.reset_in_seconds))
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        asked.append(float(text))
    elif text:
        try:
            until = parsedate_to_datetime(text)
        except ValueError:
            return max(asked, default=None)
        asked.append(max(0.0, (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()))
    return max(asked, default=None)


def _explained(error: Exception, *, repo: str, subject: str, n_attempts: int) -> ReplayError:
    from huggingface_hub import errors

    status, tried = _status(error), f" after {n_attempts} attempts" if n_attempts > 1 else ""
    asked = _asked_wait(error)
    if isinstance(error, errors.GatedRepoError):
        return GatedSource(f"{repo} is gated: accept its terms on its page and set HF_TOKEN (or run `hf auth login`)")
    if isinstance(error, errors.RepositoryNotFoundError):
        return UnknownSource(f"no repository {repo} at {_endpoint()}: check its name; if it is private, set HF_TOKEN")
    if status == 404 and subject != repo:
        return UnknownRevision(f"{subject} was listed and is gone from the hub now: run again to list what is there")
    if status == 404:
        return UnknownSource(f"{_endpoint()} answered 404 for {repo}: check its name, and HF_ENDPOINT if you set it")
    if status in (401, 403):
        return GatedSource(f"{subject} answered {status}: HF_TOKEN is missing or may not read it")
    if status is not None and asked is not None and asked > LONGEST_RETRY_AFTER:
        return SourceUnreachable(
            f"{_endpoint()} answered {status} for {subject} and asks to wait for {asked:.0f} s (Retry-After): run the "
            "same command again then"
        )
    if status is not None:
        return SourceUnreachable(f"{_endpoint()} answered {status} for {subject}{tried}: try again later")
    if isinstance(error, ValueError):
        return SourceUnreachable(f"{_endpoint()} answered for {subject} with what is no listing: check HF_ENDPOINT")
    return SourceUnreachable(
        f"{_endpoint()} cannot be reached for {subject} ({_first_line(error)}){tried}: check the network, or set "
        "HF_HUB_OFFLINE=1 to use what is in the local cache"
    )


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT") or "the hub"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
