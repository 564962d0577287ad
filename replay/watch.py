"""Keeping a store current: look, ingest what is new, wait, for as long as anybody reads the rounds."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from replay.ingest import CACHE_BUDGET, HEARTBEAT, Outcome, ingest
from replay.jobs import Cluster
from replay.listing import Advance
from replay.plan import IngestRequest, Plan, make_plan
from replay.sources import Source
from store.catalog import Store
from store.errors import AccessError, UnknownSource

__all__ = ["Round", "watch"]


@dataclass
class Round:
    """What one look at all sources found and did."""

    plans: list[Plan] = field(default_factory=list)
    """One for each source that could be reached."""
    outcomes: list[list[Outcome]] = field(default_factory=list)
    """What became of the checkpoints of each plan."""

    @property
    def n_replayed(self) -> int:
        """How many checkpoints are new in the store."""
        return sum(outcome.error is None for outcomes in self.outcomes for outcome in outcomes)


def watch(
    store: Store,
    sources: Sequence[Source],
    request: IngestRequest,
    *,
    pause: float,
    cluster: Cluster | None = None,
    cache_budget: int = CACHE_BUDGET,
    advance: Advance | None = None,
    report: Callable[[str], None] | None = None,
) -> Iterator[Round]:
    """Ingest again and again, yielding after each round, without end.

    A source that cannot be reached is left for the next round. A checkpoint that failed is not tried again by this
    watch, lest a broken upload be downloaded every time.

    Parameters
    ----------
    store
        A writable store.
    sources
        One for each run.
    request
        What to replay.
    pause
        Seconds between the end of one round and the next.
    cluster, cache_budget, advance, report
        As for `ingest`; ``advance`` is told of the pauses too.

    Raises
    ------
    ReplayError
        As `make_plan` and `ingest`, except for what may pass by itself.
    """
    advance, report = advance or (lambda *_: None), report or (lambda _: None)
    failed: set[str] = set()
    reached: set[str] = set()
    while True:
        done = Round()
        for source in sources:
            try:
                plan = make_plan(store, [source], request, advance=advance)
                reached.add(source.run)
                plan.jobs = [job for job in plan.jobs if job.key not in failed]
                outcomes = list(
                    ingest(store, plan, cluster=cluster, cache_budget=cache_budget, advance=advance, report=report)
                )
            except (AccessError, UnknownSource) as error:
                if isinstance(error, UnknownSource) and source.run not in reached:
                    raise  # it never was there
                report(f"{error}; looking again in {pause:.0f} s")
                continue
            failed |= {outcome.job.key for outcome in outcomes if outcome.error and not outcome.lost}
            done.plans.append(plan)
            done.outcomes.append(outcomes)
        yield done
        end = time.monotonic() + pause
        while (left := end - time.monotonic()) > 0:
            advance("pause", int(pause - left), int(pause), f"looking again in {left:.0f} s")
            time.sleep(min(left, HEARTBEAT))
