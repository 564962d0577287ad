"""Step names of every training suite, and the ``--revisions`` expressions that choose among a run's revisions."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, Protocol, TypeVar

from store.errors import InvalidSelection, UnknownRevision

__all__ = [
    "DEFAULT_REVISIONS",
    "Named",
    "SortKey",
    "StepName",
    "compile_step_pattern",
    "order",
    "parse_step",
    "select",
    "sort_key",
]

DEFAULT_REVISIONS: Final = "log:20"
"""The expression that is meant when none is given."""


class SortKey(NamedTuple):
    """The place of a revision in its run: training order, and at the end what has no place."""

    certainty: int
    """0 where ``step`` is a step, 1 where it is an index or an epoch, 2 where nothing is known."""
    stage: int
    step: int
    name: str


class Named(Protocol):
    """What `select` needs to know of a revision; its ``step`` is believed before the name is."""

    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int | None: ...


NamedT = TypeVar("NamedT", bound=Named)


@dataclass(frozen=True)
class StepName:
    """What the name of a revision, file or repository says about the place of a checkpoint in its run."""

    suite: str
    """Whose convention the name follows; ``user`` for a pattern of the user's."""
    step: int | None = None
    """Optimizer steps taken."""
    index: int | None = None
    """Place in a published series whose steps are not known from the name (``ckpt_000``)."""
    tokens: int | None = None
    """Tokens seen; a name gives it rounded to billions or so."""
    epoch: int | None = None
    """Epochs, counted as the trainer counts them."""
    stage: int | None = None
    """Training stage, counted from 1; steps may start again in each."""
    kind: str | None = None
    """What distinguishes checkpoints of one stage (``anneal``, ``ingredient2``)."""


_SUITES: Final = [
    (suite, re.compile(pattern))
    for suite, pattern in [
        (
            "olmo",
            r"(?:stage(?P<stage>\d+)-)?(?:(?P<kind>ingredient\d+)-)?step(?P<step>\d+)-tokens(?P<tokens>\d+[MBT])",
        ),
        ("olmo", r"stage(?P<stage>\d+)-(?:(?P<kind>ingredient\d+)-)?step-?(?P<step>\d+)"),
        ("fineweb", r"step-(?P<step>\d+)-(?P<tokens>\d+[MBT])T"),
        ("lightning", r"(?:.*?[-_])?epoch=(?P<epoch>\d+)-step=(?P<step>\d+)(?:-.*)?(?:\.ckpt)?"),
        ("lightning", r"(?:.*?[-_])?step=(?P<step>\d+)(?:-.*)?(?:\.ckpt)?"),
        ("lightning", r"(?:.*?[-_])?epoch=(?P<epoch>\d+)(?:-.*)?(?:\.ckpt)?"),
        ("multiberts", r"multiberts-seed_\d+-step_(?P<step>\d+k?)"),
        ("bloom", r"global_?step[-_]?(?P<step>\d+)"),
        ("trainer", r"checkpoint[-_](?P<step>\d+)"),
        ("megatron", r"(?:(?P<kind>[a-z]+)_)?iter_(?P<step>\d+)"),
        ("amber", r"ckpt_(?P<index>\d+)"),
        ("pythia", r"step(?P<step>\d+)"),
        ("generic", r"(?:.*[-_])?steps?[-_=]?(?P<step>\d+[kKmM]?)(?:\.(?:pt|pth|bin|ckpt|safetensors))?"),
    ]
]

# The stages that Megatron's names write as words: annealing goes on from where pretraining ended.
_STAGES: Final = {"pretrain": 1, "anneal": 2}
_USER_GROUPS: Final = ("step", "tokens", "epoch", "stage")
_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_LARGEST: Final = 2**63 - 1  # what the index can hold


def parse_step(name: str, *, pattern: re.Pattern[str] | str | None = None) -> StepName | None:
    """Read the step, or what else places a checkpoint in its run, from its name.

    Parameters
    ----------
    name
        Name of a branch, folder, file or repository. Without `pattern` only the part after the last ``/`` counts.
    pattern
        A regular expression to use instead of the built-in conventions; see `compile_step_pattern`. It has to match
        the whole name.

    Returns
    -------
    StepName or None
        None for names that hold no such place: ``main``, ``fp32``, ``v1.0``.

    Raises
    ------
    InvalidSelection
        The pattern cannot be used, or took something for a step that is not a whole number.
    """
    if pattern is not None:
        return _parse_by_user_pattern(name, compile_step_pattern(pattern))
    leaf = name.rstrip("/").rpartition("/")[2]
    for suite, regex in _SUITES:
        if match := regex.fullmatch(leaf):
            groups = match.groupdict()
            kind = groups.pop("kind", None)
            counts = {field: _count(text) for field, text in groups.items() if text is not None}
            if None in counts.values():
                return None
            counts.setdefault("stage", _STAGES.get(kind or ""))
            return StepName(suite=suite, kind=kind, **counts)
    return None


def compile_step_pattern(pattern: re.Pattern[str] | str) -> re.Pattern[str]:
    r"""Compile and check a user's pattern for step names, as given to ``--step-regex``.

    The named group ``step`` is required, ``tokens``, ``epoch`` and ``stage`` are optional. What a group captures is a
    whole number, with a unit ``k``, ``M``, ``B`` or ``T`` if need be: ``(?P<step>\d+k)``.

    Raises
    ------
    InvalidSelection
        The expression is no regular expression, or its named groups are not these.
    """
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidSelection(f"step regex {_quote(pattern)} is not a regular expression: {error}") from None
    if "step" not in compiled.groupindex:
        raise InvalidSelection(
            rf"step regex {_quote(pattern)} has no group named step; write (?P<step>\d+) where the number stands"
        )
    if unknown := [group for group in compiled.groupindex if group not in _USER_GROUPS]:
        raise InvalidSelection(
            f"step regex {_quote(compiled.pattern)} has a group named {unknown[0]}; known are {', '.join(_USER_GROUPS)}"
        )
    return compiled


def sort_key(name: str, *, step: int | None = None, pattern: re.Pattern[str] | str | None = None) -> SortKey:
    """Give the key that puts a revision in training order: by stage, step and name.

    Names without a step come last, those with an index or an epoch before the others.

    Parameters
    ----------
    name, pattern
        As for `parse_step`.
    step
        The step where it is known better than from the name.
    """
    parsed = parse_step(name, pattern=pattern)
    return _key(name, step if step is not None or parsed is None else parsed.step, parsed)


def order(names: Iterable[str], *, pattern: re.Pattern[str] | str | None = None) -> list[str]:
    """Sort names in training order; see `sort_key`."""
    return sorted(names, key=lambda name: sort_key(name, pattern=pattern))


def select(
    revisions: Sequence[NamedT],
    specs: str | Sequence[str] = DEFAULT_REVISIONS,
    *,
    pattern: re.Pattern[str] | str | None = None,
) -> list[NamedT]:
    """Choose revisions by one or more expressions.

    - ``main``, ``step512``: the revision of this name. Names go before all that follows: a branch called ``all`` is
      that branch, and ``*`` is everything.
    - ``all``: every revision, with a step or without.
    - ``512``: the step.
    - ``step*``: the names that match, as file names do in a shell.
    - ``0..4000``: steps, both ends included. An end is a number, a name with a step or, for no limit, nothing.
    - ``every:1000``: the steps that are multiples of 1000.
    - ``log:20``: 20 steps spread evenly on a logarithmic scale, the first and the last among them.
    - ``last:5``: the last 5 steps.
    - ``step0,log:5``: several of these.

    Where several training stages count their steps anew, ``log`` spreads over their sum, and a range whose end names a
    stage is limited by stage and step. Where no revision has a step, ``log`` spreads over the index or the epoch in
    the names; without those either it is ``main``, or everything if there is no ``main`` and the count allows it.

    Parameters
    ----------
    revisions
        What there is, in any order, each name once.
    specs
        One expression, or several whose union is meant.
    pattern
        The user's pattern for step names, if any; see `compile_step_pattern`.

    Returns
    -------
    list
        The chosen ones in training order, those without a step last.

    Raises
    ------
    InvalidSelection
        An expression cannot be read, or selects nothing.
    UnknownRevision
        A name, glob or end of a range that fits no revision.
    """
    expressions = [specs] if isinstance(specs, str) else list(specs)
    if not expressions:
        raise InvalidSelection("no revisions were asked for; give a name, a range, all or log:20")
    if not revisions:
        raise InvalidSelection("there is nothing to select from: the source has no revisions")
    candidates = _Candidates(revisions, pattern)
    chosen: set[int] = set()
    for expression in expressions:
        for part in candidates.parts(expression):
            found = candidates.find(part)
            if not found:
                raise InvalidSelection(f"revisions {_quote(part)} selects nothing; {candidates.described_steps()}")
            chosen.update(found)
    return [revisions[candidates.origin[i]] for i in sorted(chosen)]


class _Candidates:
    """The revisions in training order, addressed by their place in it."""

    def __init__(self, revisions: Sequence[Named], pattern: re.Pattern[str] | str | None) -> None:
        self.pattern = None if pattern is None else compile_step_pattern(pattern)
        keys = [_key(r.name, r.step, parse_step(r.name, pattern=self.pattern)) for r in revisions]
        self.origin = sorted(range(len(revisions)), key=keys.__getitem__)
        self.keys = [keys[i] for i in self.origin]
        self.names = [key.name for key in self.keys]
        self.stepped = [i for i, key in enumerate(self.keys) if key.certainty == _STEP]

    def parts(self, expression: str) -> Iterator[str]:
        """Split at the commas, unless a revision is called so."""
        whole = expression.strip()
        for part in [whole] if whole in self.names else whole.split(","):
            if not part.strip():
                raise InvalidSelection(f"revisions {_quote(expression)}: nothing stands where a revision should")
            yield part.strip()

    def find(self, part: str) -> list[int]:
        if part in self.names:
            return [self.names.index(part)]
        if part == "all":
            return list(range(len(self.names)))
        if ".." in part:
            return self.find_range(part)
        if match := re.fullmatch(r"(\w+):(.*)", part, re.DOTALL):
            return self.find_counted(part, *match.groups())
        if any(character in part for character in "*?["):
            found = [i for i, name in enumerate(self.names) if fnmatchcase(name, part)]
        else:
            step = _whole_number(part)
            found = [i for i in self.stepped if self.keys[i].step == step]
        if not found:
            raise UnknownRevision(f"no revision {_quote(part)}; {self.names_near(part)}")
        return found

    def find_range(self, part: str) -> list[int]:
        first, _, last = (end.strip() for end in part.partition(".."))
        if last.startswith(".") or ".." in last:
            raise InvalidSelection(f"revisions {_quote(part)}: a range has two ends and two dots, as in 0..4000")
        low = self.range_end(part, first) if first else None
        high = self.range_end(part, last) if last else None
        if low and high and len(low) == len(high) and low > high:
            backwards = f"{_quote(first)} comes after {_quote(last)}"
            raise InvalidSelection(f"revisions {_quote(part)}: {backwards}; write {_quote(f'{last}..{first}')}")
        self.require_steps(part)
        return [
            i
            for i in self.stepped
            if (low is None or self.place(i, like=low) >= low) and (high is None or self.place(i, like=high) <= high)
        ]

    def place(self, i: int, *, like: tuple[int, ...]) -> tuple[int, ...]:
        """Give (stage, step) or (step,), whichever the end of a range is."""
        return (self.keys[i].stage, self.keys[i].step)[-len(like) :]

    def range_end(self, part: str, end: str) -> tuple[int, ...]:
        """Give (stage, step) for a name that has a stage, else (step,)."""
        parsed = parse_step(end, pattern=self.pattern)
        listed = self.keys[self.names.index(end)] if end in self.names else None
        if listed is not None and listed.certainty == _STEP:
            step: int | None = listed.step
        elif (step := _whole_number(end)) is None and listed is None and parsed is not None:
            step = parsed.step
        if step is not None:
            return (step,) if parsed is None or parsed.stage is None else (parsed.stage, step)
        if listed is not None:
            raise InvalidSelection(f"revisions {_quote(part)}: {_quote(end)} has no step, so no range ends there")
        raise UnknownRevision(
            f"revisions {_quote(part)}: {_quote(end)} is no step and no revision; {self.names_near(end)}"
        )

    def find_counted(self, part: str, word: str, argument: str) -> list[int]:
        if word not in ("every", "log", "last"):
            raise InvalidSelection(f"revisions {_quote(part)}: {_quote(word)} is not one of every:N, log:N, last:N")
        count = _whole_number(argument)
        if count is None:
            raise InvalidSelection(f"revisions {_quote(part)}: {_quote(argument)} is not a whole number")
        if count == 0:
            raise InvalidSelection(f"revisions {_quote(part)}: the number has to be 1 or more")
        if word == "log":
            return self.find_spread(part, count)
        self.require_steps(part)
        return self.stepped[-count:] if word == "last" else [i for i in self.stepped if self.keys[i].step % count == 0]

    def find_spread(self, part: str, count: int) -> list[int]:
        placed = self.stepped or [i for i, key in enumerate(self.keys) if key.certainty == _INDEX]
        if placed:
            return [placed[j] for j in _spread(self.training_progress(placed), count)]
        if "main" in self.names:
            return [self.names.index("main")]
        if len(self.names) > count:
            self.require_steps(part)
        return list(range(len(self.names)))

    def training_progress(self, places: list[int]) -> list[int]:
        """Add to each step the steps of the stages before its own, if it does not count them itself."""
        progress: list[int] = []
        before, previous = 0, 0
        for step in (self.keys[i].step for i in places):
            if step < previous:
                before = progress[-1]
            progress.append(before + step)
            previous = step
        return progress

    def require_steps(self, part: str) -> None:
        if not self.stepped:
            raise InvalidSelection(
                f"revisions {_quote(part)} needs steps and no revision has one ({_capped(self.names)}); "
                "name them, use a glob, or give --step-regex"
            )

    def names_near(self, wanted: str) -> str:
        likeness = {name: SequenceMatcher(None, wanted, name).ratio() for name in self.names}
        return f"there are {_capped(sorted(self.names, key=lambda name: -likeness[name]))}"

    def described_steps(self) -> str:
        steps = [self.keys[i].step for i in self.stepped]
        return f"there are {len(steps)} revisions with a step, from {min(steps)} to {max(steps)}"


def _parse_by_user_pattern(name: str, pattern: re.Pattern[str]) -> StepName | None:
    match = pattern.fullmatch(name)
    if match is None:
        return None
    counts: dict[str, int | None] = {}
    for group, text in match.groupdict().items():
        counts[group] = None if text is None else _count(text)
        if text is not None and counts[group] is None:
            raise InvalidSelection(
                f"step regex {_quote(pattern.pattern)} takes {_quote(text)} for the {group} of {_quote(name)}, "
                "which is not a whole number"
            )
    return StepName(suite="user", kind=None, **counts)


_STEP, _INDEX, _NOTHING = range(3)  # SortKey.certainty


def _key(name: str, step: int | None, parsed: StepName | None) -> SortKey:
    # Names of a first stage may lack it where those of the second have it: OLMo-2-1124-7B has both forms of stage 1.
    stage = parsed.stage if parsed is not None and parsed.stage is not None else 1
    if step is not None:
        return SortKey(_STEP, stage, step, name)
    if parsed is not None and parsed.index is not None:
        return SortKey(_INDEX, stage, parsed.index, name)
    if parsed is not None and parsed.epoch is not None:
        return SortKey(_INDEX, stage, parsed.epoch, name)
    return SortKey(_NOTHING, 0, 0, name)


def _spread(positions: Sequence[int], count: int) -> list[int]:
    """Choose `count` of the ascending positions, evenly on a logarithmic scale, the first and the last among them.

    First the nearest to each of `count` equidistant marks. Where a run has fewer checkpoints than marks (the early
    steps of a run saved every 1000), several marks share one; the rest then go where the gaps are widest, so that the
    count is always met.
    """
    if count >= len(positions):
        return list(range(len(positions)))
    if count == 1:
        return [len(positions) - 1]
    x = [math.log(position or 0.5) for position in positions]  # 0 is as far before 1 as 1 is before 2
    chosen = {0, len(x) - 1}
    for k in range(1, count - 1):
        mark = x[0] + (x[-1] - x[0]) * k / (count - 1)
        distances = [abs(value - mark) for value in x]
        chosen.add(distances.index(min(distances)))
    gaps = [min(abs(value - x[i]) for i in chosen) for value in x]
    while len(chosen) < count:
        widest = max((i for i in range(len(x)) if i not in chosen), key=gaps.__getitem__)
        chosen.add(widest)
        gaps = [min(gap, abs(value - x[widest])) for gap, value in zip(gaps, x, strict=True)]
    return sorted(chosen)


def _whole_number(text: str) -> int | None:
    return _count(text) if text.isdecimal() else None


def _count(text: str) -> int | None:
    """Read a whole number with an optional unit; None for anything else and for more than the index can hold."""
    match = re.fullmatch(r"(\d{1,18})([kmbt]?)", text, re.IGNORECASE)
    if match is None:
        return None
    count = int(match[1]) * _UNITS[match[2].lower()]
    return count if count <= _LARGEST else None


def _capped(names: Sequence[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f", … and {rest} more" if rest > 0 else "")


def _quote(text: object) -> str:
    return f'"{" ".join(str(text).split())}"'
