"""Which checkpoints and layers an analysis is about: sound, comparable, named by run, step and layer."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from replay.revisions import parse_step, sort_key
from store.catalog import CaptureInfo, Store
from store.errors import InvalidInput, Unavailable, UnknownLayer, UnknownRun
from store.names import layer_order, match_layers, suggest
from store.schema import Activation, Revision

__all__ = [
    "Choice",
    "History",
    "Selection",
    "Slice",
    "StepJoin",
    "choose_runs",
    "choose_steps",
    "join_on_step",
    "select_layers",
]


@dataclass(frozen=True)
class Slice:
    """One layer of one checkpoint."""

    replay: str
    """Replay key of the checkpoint."""
    layer: str
    """Layer name."""
    segment: str
    """Segment that holds its activations."""
    array: str
    """Array of that segment."""
    position: int
    """Position along the layer axis."""
    n_probes: int
    """Probes, the rows of its activations."""
    width: int
    """Features, the columns of its activations."""

    @property
    def point(self) -> tuple[str, str]:
        """What its measurements are kept under."""
        return self.replay, self.layer


@dataclass(frozen=True)
class Choice:
    """What a person chose to look at."""

    runs: Sequence[str] = ("*",)
    """Names or globs of runs; all by default."""
    layers: Sequence[str] | None = None
    """Stored layers, names or globs; every pooled layer that all runs have by default."""
    probes: str | None = None
    """Name of the probe set, where the runs share several; the one used last by default."""
    include_flagged: bool = False
    """Whether revisions that an audit holds for faulty are taken for what their names say."""


@dataclass
class History:
    """What one run has to look at: its pooled layers at each step."""

    revisions: dict[int, Revision] = field(default_factory=dict)
    slices: dict[tuple[int, str], Slice] = field(default_factory=dict)
    doubles: list[str] = field(default_factory=list)
    """Revisions at a step that another one, with other weights, already holds, or another stage."""
    flagged: dict[str, str] = field(default_factory=dict)
    """Revisions that an audit holds for faulty, and why."""
    stepless: list[str] = field(default_factory=list)
    """Revisions of which no step is known."""

    def steps(self, layers: Iterable[str]) -> list[int]:
        """Return the steps at which any of ``layers`` is stored, ascending."""
        wanted = set(layers)
        return sorted({step for step, layer in self.slices if layer in wanted})


class StepJoin(NamedTuple):
    """The steps that all runs have, and those left out."""

    steps: list[int]
    """Common steps, ascending."""
    dropped: dict[str, list[int]]
    """The steps of each run that another run lacks; runs that lose none are not named."""


@dataclass(frozen=True)
class Selection:
    """Runs replayed with one probe set at one precision, and the layers they share."""

    choice: Choice
    capture: CaptureInfo
    histories: dict[str, History]
    """What each run has, in the order of their names."""
    layers: list[str]
    """In the order of the forward pass."""

    @property
    def runs(self) -> list[str]:
        """Names of the runs."""
        return list(self.histories)

    def join(self) -> StepJoin:
        """Match the runs on their training step.

        Raises
        ------
        Unavailable
            If there are fewer than two runs.
        InvalidInput
            If no step is common to all of them.
        """
        try:
            return join_on_step({run: history.steps(self.layers) for run, history in self.histories.items()})
        except InvalidInput as error:
            if not self.choice.include_flagged and any(history.flagged for history in self.histories.values()):
                error.add_note(_left_out(self.histories))
            raise

    def steps(self) -> list[int]:
        """Return the steps at which any run has any of the layers, ascending."""
        return sorted({step for history in self.histories.values() for step in history.steps(self.layers)})

    def cells(self) -> dict[tuple[str, int, str], Slice]:
        """Return the points by run, step and layer, in this order."""
        return {
            (run, step, layer): history.slices[step, layer]
            for run, history in self.histories.items()
            for step in history.steps(self.layers)
            for layer in self.layers
            if (step, layer) in history.slices
        }

    def paths(self) -> dict[tuple[str, str], dict[int, Slice]]:
        """Return the points of each run and layer by step, ascending."""
        return {
            (run, layer): {
                step: history.slices[step, layer]
                for step in history.steps(self.layers)
                if (step, layer) in history.slices
            }
            for run, history in self.histories.items()
            for layer in self.layers
        }

    def made_from(self, steps: Sequence[int]) -> dict[str, list[list[str]]]:
        """Return the revision, commit and weights of each run at each of ``steps``; empty where it has none."""
        return {
            what: [
                [getattr(history.revisions.get(step), attribute, None) or "" for step in steps]
                for history in self.histories.values()
            ]
            for what, attribute in (("revision", "name"), ("commit", "commit"), ("weights", "weights"))
        }

    def parameters(self) -> dict[str, Any]:
        """Return what of the selection a result is computed from, in plain JSON types."""
        return {
            "runs": self.runs,
            "layers": self.layers,
            "probes": self.capture.probes,
            "probe_set": self.capture.probe_set,
            "max_length": self.capture.max_length,
            "dtype": self.capture.dtype,
        }

    def remarks(self, dropped: Mapping[str, Sequence[int]] | None = None) -> dict[str, Any]:
        """Return what was left out and why: it changes what is said of a result, not its numbers."""
        left_out = {
            run: [history.revisions[step].name for step in (dropped or {}).get(run, ())] + history.doubles
            for run, history in self.histories.items()
        }
        return {
            "dropped": {run: names for run, names in left_out.items() if names},
            "flagged": {run: history.flagged for run, history in self.histories.items() if history.flagged},
            "include_flagged": self.choice.include_flagged,
        }


def select_layers(store: Store, choice: Choice) -> Selection:
    """Return what the store holds of what a person chose.

    Raises
    ------
    Unavailable
        If all that one of the runs has is flagged.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set or no layer.
    """
    names = choose_runs(store, choice.runs)
    capture = _shared_capture(store, names, choice.probes)
    n_probes = store.n_probes(capture.probe_set)
    histories = {
        name: _history(store, name, capture, n_probes, include_flagged=choice.include_flagged) for name in names
    }
    for name, history in histories.items():
        if history.flagged and not history.slices:
            raise Unavailable(f"nothing of {name} is sound: {_left_out({name: history})}")
    depths = {store.n_blocks(name) for name in names}
    layers = _shared_layers(histories, choice.layers, depths.pop() if len(depths) == 1 else None)
    return Selection(choice, capture, histories, layers)


def choose_runs(store: Store, patterns: Sequence[str], *, replayed: bool = True) -> list[str]:
    """Return the replayed runs that names or globs choose, in order; or any runs.

    Raises
    ------
    UnknownRun
        If a pattern chooses none.
    """
    table = store.runs()
    there = list(table["run"][table["replayed"] > 0] if replayed else table["run"])
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in there if name == pattern or fnmatch.fnmatchcase(name, pattern)}
        if not found:
            what = "replayed run" if replayed else "run"
            raise UnknownRun(f"no {what} {pattern!r} in {store.root}; {suggest(pattern, there)}")
        chosen |= found
    return sorted(chosen)


def choose_steps(
    selection: Selection, wanted: Sequence[int], *, all_by_default: bool
) -> tuple[list[int], dict[str, list[int]]]:
    """Return the steps to look at, which all runs have, and what each run has beyond those all have.

    Parameters
    ----------
    selection
        Runs and layers.
    wanted
        Steps that a person named.
    all_by_default
        Whether none named means all of them, or the last one.

    Raises
    ------
    InvalidInput
        If the runs have no step in common, or lack one that was named.
    """
    histories = list(selection.histories.values())
    one = len(histories) == 1
    there, dropped = StepJoin(histories[0].steps(selection.layers), {}) if one else selection.join()
    unknown = sorted(set(wanted) - set(there))
    if unknown:
        nearest = sorted({min(there, key=lambda step: abs(step - asked)) for asked in unknown})
        raise InvalidInput(
            f"step {', '.join(map(str, unknown))} is not there in all of {', '.join(selection.runs)}: they share "
            f"{_span(there)}, nearest {', '.join(map(str, nearest))}"
        )
    if wanted:
        return sorted(set(wanted)), {}
    return (there if all_by_default else there[-1:]), dropped


def join_on_step(steps_by_run: Mapping[str, Sequence[int]]) -> StepJoin:
    """Match runs on their training step, never on the position in a list.

    Parameters
    ----------
    steps_by_run
        The steps of each run, in any order.

    Raises
    ------
    Unavailable
        If there are fewer than two runs.
    InvalidInput
        If no step is common to all of them.
    """
    if len(steps_by_run) < 2:
        raise Unavailable(f"spread needs two runs or more, and there are {len(steps_by_run)}")
    common = set.intersection(*(set(steps) for steps in steps_by_run.values()))
    if not common:
        listed = "; ".join(f"{run} has {_span(steps)}" for run, steps in list(steps_by_run.items())[:5])
        more = f"; and {len(steps_by_run) - 5} more runs" if len(steps_by_run) > 5 else ""
        raise InvalidInput(f"no step is common to all {len(steps_by_run)} runs: {listed}{more}")
    dropped = {run: sorted(set(steps) - common) for run, steps in steps_by_run.items()}
    return StepJoin(sorted(common), {run: steps for run, steps in dropped.items() if steps})


def _shared_capture(store: Store, runs: Sequence[str], probes: str | None) -> CaptureInfo:
    there = {run: store.captures(run) for run in runs}
    common = [
        info
        for info in there[runs[0]]
        if all(info.key in {c.key for c in captures} for captures in there.values()) and probes in (None, info.probes)
    ]
    if not common:
        has = "; ".join(f"{run}: {', '.join(f'{c.probes} ({c.dtype})' for c in there[run])}" for run in runs)
        wanted = f"probes {probes!r}" if probes else "one probe set at one precision"
        raise InvalidInput(f"the runs were not all replayed with {wanted}, so they cannot be compared; they have {has}")
    return common[-1]


def _history(store: Store, run: str, capture: CaptureInfo, n_probes: int, *, include_flagged: bool) -> History:
    history, flagged = History(), store.flagged(run)
    branches: dict[int, tuple[int, str | None]] = {}
    for row in store.slices(run, capture, Activation):
        revision = row.Revision
        if revision.step is None:
            history.stepless.append(revision.name)
        if revision.step is None or row.level != "probe":
            continue
        # Training order: where stages restart their count, the first keeps the step, even if nothing of it is sound.
        branch = _branch(revision)
        foreign = branches.setdefault(revision.step, branch) != branch
        if revision.name in flagged:
            history.flagged[revision.name] = flagged[revision.name]
            if not include_flagged:
                continue
        first = history.revisions.get(revision.step)
        if first is None and not foreign:
            first = history.revisions[revision.step] = revision
        if first is not None and first.name == revision.name:
            piece = Slice(row.key, row.layer, row.segment, row.array, row.position, n_probes, row.width)
            history.slices[revision.step, row.layer] = piece
        elif (first is None or first.weights != revision.weights) and revision.name not in history.doubles:
            history.doubles.append(revision.name)
    return history


def _branch(revision: Revision) -> tuple[int, str | None]:
    """Return the stage of a revision, and which of its branches."""
    parsed = parse_step(revision.name)
    return revision.stage or sort_key(revision.name).stage or 1, None if parsed is None else parsed.kind


def _shared_layers(histories: Mapping[str, History], wanted: Sequence[str] | None, n_blocks: int | None) -> list[str]:
    per_run = {run: {layer for _, layer in history.slices} for run, history in histories.items()}
    shared = set.intersection(*per_run.values())
    stepless = {run: history.stepless[0] for run, history in histories.items() if history.stepless}
    if lost := [run for run in stepless if not per_run[run]]:
        raise InvalidInput(
            f"none of the revisions of {', '.join(lost)} has a training step ({stepless[lost[0]]}, for one): ingest "
            "again with a pattern of their names, --step-regex '(?P<step>…)'"
        )
    if not shared:
        has = "; ".join(f"{run}: {', '.join(sorted(layers)[:3])}" for run, layers in per_run.items())
        raise UnknownLayer(f"the runs have no pooled layer in common; they have {has or 'none'}")
    return sorted(match_layers(wanted, shared, n_blocks=n_blocks), key=layer_order)


def _left_out(histories: Mapping[str, History]) -> str:
    counts = ", ".join(f"{len(history.flagged)} of {run}" for run, history in histories.items() if history.flagged)
    return f"revisions left out as flagged: {counts}; `replay audit` tells why, --include-flagged takes them in"


def _span(steps: Sequence[int]) -> str:
    return f"{len(steps)} ({min(steps)} to {max(steps)})" if steps else "none"
