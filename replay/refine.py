"""Further revisions where they pay: the interval that changes most per unit of log step, bisected again and again."""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from replay.analyses.floors import precision_floor
from replay.analyses.selection import Choice, History, select_layers
from replay.analyses.series import Series, read_series
from replay.factories import ModelFactory, read_factory
from replay.ingest import CACHE_BUDGET, ingest
from replay.jobs import Cluster
from replay.listing import Advance, get_listing
from replay.plan import IngestRequest, choose_probes, make_plan
from replay.sources import Source, open_sources
from store.catalog import Store
from store.commits import get_revisions
from store.errors import InvalidInput, Unavailable
from store.keys import factory_key

__all__ = ["METRICS", "Gap", "Refinement", "Round", "coverage", "find_gap", "refine"]

METRICS = ("stable_rank", "participation_ratio")
"""What is looked at unless something else is asked for."""

SURE = 2.0
"""Standard errors of a difference that a change must exceed to be worth a revision."""

FLOORS = 3.0
"""Precision floors that it must exceed too."""

SHARE = 0.1
"""Share of the range of its series that it must exceed too: wiggles of the end of a run are not worth a revision."""


@dataclass(frozen=True)
class Gap:
    """An interval between two steps that are stored, worth a look inside."""

    series: Series
    """The one that changes most over it."""
    before: int
    """Last step before it."""
    after: int
    """First step after it."""
    rate: float
    """Change over it per unit of log(1 + step), as a share of the range of the whole series, mean over all series."""
    middle: int
    """Step of the source nearest to its middle in log(1 + step)."""


@dataclass(frozen=True)
class Round:
    """One step that was looked into."""

    gap: Gap
    """Why."""
    ingested: tuple[str, ...]
    """Runs that have it now."""
    failures: dict[str, str]
    """Runs whose checkpoint could not be had, and why."""


@dataclass(frozen=True)
class Refinement:
    """Runs, and what is to be found out about them."""

    choice: Choice = field(default_factory=Choice)
    """Runs, layers and probes to look at."""
    metrics: Sequence[str] = METRICS
    """Names of series, from `replay.analyses.series`."""
    budget: int = 10
    """Further revisions of each run, at most."""
    device: str = "auto"
    """Device of the replay as torch names it."""
    step_regex: re.Pattern[str] | None = None
    """Pattern of revision names of no known suite."""

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise InvalidInput(f"the budget is {self.budget}: expected 1 or more further revisions of each run")


def find_gap(
    series: Sequence[Series],
    steps: Mapping[str, Collection[int]],
    *,
    floors: Mapping[tuple[str, str, str], float] | None = None,
) -> Gap | None:
    """Return the interval that changes most per unit of log step and can be looked into, or None.

    Changes are shares of the range of their series, and an interval's rate is the mean over all series, so that one
    that wiggles does not lead. A change counts as none that is within its noise: two standard errors of the difference
    of its ends (as if of different probes, which is cautious), where they are known, three precision floors, and a
    tenth of the range. What happens and goes back within one interval is not seen.

    Parameters
    ----------
    series
        Values over the steps that are stored.
    steps
        Steps that the source of each run has.
    floors
        Change of a metric under one rounding of the stored weights, by (metric, run, layer).
    """
    found: dict[tuple[int, int], list[Gap]] = defaultdict(list)
    for each in series:
        for gap in _gaps(each, steps, (floors or {}).get((each.metric, each.run, each.layer))):
            found[gap.before, gap.after].append(gap)
    means = [
        replace(max(gaps, key=lambda gap: gap.rate), rate=sum(gap.rate for gap in gaps) / len(series))
        for gaps in found.values()
    ]
    return max(means, key=lambda gap: (gap.rate, -gap.before), default=None)


def _gaps(series: Series, steps: Mapping[str, Collection[int]], floor: float | None) -> Iterator[Gap]:
    there = np.isfinite(series.values)
    if there.sum() < 2:
        return
    at, values = series.steps[there], series.values[there]
    error = np.zeros(len(at)) if series.error is None else np.nan_to_num(series.error[there])
    span = float(np.ptp(values))
    listed = sorted(set(steps[series.run]) if series.run else set.intersection(*map(set, steps.values())))
    for i in range(len(at) - 1):
        before, after = int(at[i]), int(at[i + 1])
        inside = [step for step in listed if before < step < after]
        change = abs(float(values[i + 1] - values[i]))
        noise = max(SURE * float(np.hypot(error[i], error[i + 1])), FLOORS * (floor or 0.0), SHARE * span)
        if not inside or change <= noise:
            continue
        width = np.log1p(after) - np.log1p(before)
        centre = np.log1p(before) + width / 2
        middle = min(inside, key=lambda step: abs(np.log1p(step) - centre))
        yield Gap(series, before, after, change / span / width, middle)


def refine(
    store: Store,
    asked: Refinement,
    *,
    cluster: Cluster | None = None,
    cache_budget: int = CACHE_BUDGET,
    advance: Advance | None = None,
    report: Callable[[str], None] | None = None,
) -> Generator[Round]:
    """Ingest one step after another where `find_gap` says, yielding each, until budget, noise or source is exhausted.

    A step is ingested for every run that has it, so that runs stay comparable, with the probes, precision and layers
    that the store has of the runs already. Revisions that an audit holds for faulty are passed over.

    Parameters
    ----------
    store
        A writable store with at least two checkpoints of each run.
    asked
        What to find out, and at which price.
    cluster, cache_budget, advance, report
        As for `replay.ingest.ingest`.

    Raises
    ------
    Unavailable
        If a run has fewer than two checkpoints to go by.
    ReplayError
        As `read_series`, `make_plan` and `ingest`.
    """
    cluster, advance, report = cluster or Cluster(), advance or (lambda *_: None), report or (lambda _: None)
    selection = select_layers(store, asked.choice)
    for run, history in selection.histories.items():
        if len(history.steps(selection.layers)) < 2:
            raise Unavailable(f"{run} has one checkpoint, and between two something can change: ingest two or more")
    choice = replace(asked.choice, layers=selection.layers, probes=selection.capture.probes)
    probes = choose_probes(store, selection.capture.probes)
    factories = {run: _factory(store, run) for run in selection.runs}
    sources = {run: _source(store, run, factories[run], asked, report) for run in selection.runs}
    listed = {run: _steps(store, source) for run, source in sources.items()}
    how: dict[str, Any] = {"choice": choice, "cluster": cluster, "advance": _of_analysis(advance)}
    floors = precision_floor(store, metrics=asked.metrics, **how)
    for _ in range(asked.budget):
        gap = find_gap(read_series(store, asked.metrics, **how), listed, floors=floors)
        if gap is None:
            return
        done = Round(gap, (), {})
        for run, source in sources.items():
            name = listed[run].pop(gap.middle, None)  # not again, even if it fails
            if name is None:
                continue
            request = IngestRequest(
                probes=probes,
                revisions=(name,),
                layers=_stored_layers(selection.histories[run]),
                max_length=selection.capture.max_length,
                dtype=selection.capture.dtype,
                device=asked.device,
                step_regex=asked.step_regex,
                factory=factories[run],
                loss="probe_loss" in asked.metrics,
                weight_ranks="weight_stable_rank" in asked.metrics,
            )
            plan = make_plan(store, [source], request, advance=advance)
            outcomes = ingest(store, plan, cluster=cluster, cache_budget=cache_budget, advance=advance, report=report)
            reasons = [*(outcome.error for outcome in outcomes), *(record.error for record in plan.runs[0].failed)]
            reason = next(filter(None, reasons), None)
            if reason is None:
                done = replace(done, ingested=(*done.ingested, run))
            else:
                done.failures[run] = f"{name}: {reason}"
        yield done


def coverage(store: Store, choice: Choice) -> dict[str, tuple[int, int]]:
    """Return how many steps of each run are stored, and how many its source had when it was last listed."""
    selection = select_layers(store, choice)
    counts = {}
    for run, history in selection.histories.items():
        stored = set(history.steps(selection.layers))
        listed = {record.step for record in get_listing(store, run) or () if record.step is not None}
        counts[run] = (len(stored), len(stored | listed))
    return counts


def _factory(store: Store, run: str) -> ModelFactory | None:
    """Return what built the models of a run that was ingested with a factory; `make_plan` tells if it has changed."""
    for config in sorted({record.config for record in get_revisions(store, run) if record.config and record.weights}):
        known = store.index.fact(factory_key(config))
        if known is not None:
            return read_factory(known["text"], prefix=known["prefix"])
    return None


def _source(
    store: Store, run: str, factory: ModelFactory | None, asked: Refinement, report: Callable[[str], None]
) -> Source:
    row = store.runs().set_index("run").loc[run]
    where = str(row["location"])
    repos, paths = ([], [Path(where)]) if row["source"] == "folder" else ([where], [])
    sources = open_sources(store, repos=repos, paths=paths, step_regex=asked.step_regex, report=report, factory=factory)
    return sources[0]


def _steps(store: Store, source: Source) -> dict[int, str]:
    """Return the sound revisions of a source by step; the first that has a step keeps it."""
    faulty = store.flagged(source.run)
    names: dict[int, str] = {}
    for record in source.list_revisions():
        if record.step is not None and record.name not in faulty:
            names.setdefault(record.step, record.name)
    return names


def _stored_layers(history: History) -> tuple[str, ...]:
    """Return the layers that every checkpoint of a run has."""
    steps = {step for step, _ in history.slices}
    layers = dict.fromkeys(layer for _, layer in history.slices)
    return tuple(layer for layer in layers if all((step, layer) in history.slices for step in steps))


def _of_analysis(advance: Advance) -> Callable[[str, int, int], None]:
    return lambda what, done, total: advance(what, done, total, "")
