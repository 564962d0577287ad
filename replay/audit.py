"""What is wrong with a published history, by the hashes of its files and, where known, the values of its weights.

Nothing is downloaded: a source's listing names the sha256 of every weight file. A **fault** makes a trajectory wrong
when its revision is taken for what its name says; a **note** is worth knowing.

kind       level       what it says
alias      note        another name of a checkpoint: ``main`` of the last step, a tag
main       note        ``main`` is not the last step
final      fault       an earlier step with the final weights
duplicate  fault       different steps with equal weights
shard      fault       weight files in common with a revision at another step (a note if all have them in common)
missing    fault       no config, no weights, or not all of their shards
size       fault/note  much smaller than the others; of another precision, or larger; not of plain files
config     note        config.json, or the model of plain files, differs from that of the step before
tokenizer  note        the tokenizer differs from that of the step before; there is none
gap        fault       the run's own grid of steps lacks one
outlier    note        a step between those of the grid
gone       note        revisions of the store that the source does not list any more
departure  fault       the values of the weights leave the run's path for those of another step
nonfinite  fault       weights that are NaN or infinite
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields, replace
from itertools import groupby, pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select

from replay.grids import find_grids
from replay.listing import get_listing
from replay.revisions import parse_step, sort_key
from replay.sources.files import CONFIG, is_weight_file, tokenizer_files
from replay.weighing import VERSION as WEIGHING_VERSION
from replay.weighing import find_upload_faults, read_weighing
from store.catalog import Store
from store.commits import FindingRecord, RevisionRecord, get_revisions, put_findings
from store.errors import UnknownRun
from store.keys import content_key
from store.names import suggest
from store.schema import Replay, Run

if TYPE_CHECKING:
    from replay.weighing import Weighing

__all__ = ["BASES", "VERSION", "Audit", "audit_hashes", "audit_run", "audit_values", "refresh_audit"]

VERSION = 2
"""Raised whenever an audit may say something else of the same: what was audited before is then audited anew."""

FAULT, NOTE = "fault", "note"

BASES = ("hashes", "values")
"""What findings rest on."""

NOT_TRAINED = 0.9
"""Share of a run's different weights that have a file in common from which on it is taken for one of frozen tensors."""

UNCLEAR = "hashes cannot tell whose they are"

SIZE_TOLERANCE = 0.01
"""Relative difference of two sizes that says nothing: headers and containers differ."""

PRECISIONS = (0.25, 0.5, 2.0, 4.0)
"""Ratios of size between float16, float32 and float64."""

LEAST_SIZES = 3
"""Revisions that tell which size of the weights is usual."""

LEAST_PATH = 3
"""Checkpoints from which on their values tell a path."""


class Audit(NamedTuple):
    """What was looked at."""

    run: str
    """Name of the run."""
    n_revisions: int
    """Revisions of it that were described."""
    n_unique: int
    """Different weights among them, whatever their configs."""
    n_weighed: int
    """How many of these weights the values are known of."""
    findings: list[FindingRecord]
    """All that the hashes and the values say."""


def audit_run(store: Store, run: str) -> Audit:
    """Audit what the store knows of a run and record the findings in place of earlier ones; asks nobody else.

    Audited are the revisions that the source had when it was last listed; those of them that were not described hold
    their places. One that is not listed any more is no evidence; if it has been replayed, its own faults are told all
    the same. Of a folder it stays a part of the run then, as trainers remove their older checkpoints. A run that never
    was listed is audited as a choice, in which no step is missed.

    Raises
    ------
    UnknownRun
        If the store has no such run.
    """
    return _audit(store, run, _look(store, run))


def refresh_audit(store: Store, run: str) -> None:
    """Audit a run if there is anything else to look at than the last time.

    Raises
    ------
    UnknownRun
        If the store has no such run.
    """
    subject = _look(store, run)
    if store.index.fact(_key(run)) != {"digest": subject.digest}:
        _audit(store, run, subject)


def audit_hashes(records: Iterable[RevisionRecord], *, complete: bool) -> list[FindingRecord]:
    """Return what the hashes of a run's files say of its history.

    Weights are compared by the sha256 of each weight file, so that another config does not hide equal weights. Stages
    that count their steps anew are looked at one by one; between them no more than equal weights are noticed.

    Parameters
    ----------
    records
        The revisions of one run in any order. One that has neither ``weights`` nor ``error`` was not described: it
        holds its place among the steps and nothing is said of it.
    complete
        Whether these are all revisions that the source has. Among chosen ones nothing is missed. The last one
        described is the final one only where no other comes later, or ``main`` holds its weights.

    Returns
    -------
    list of FindingRecord
        On basis ``hashes``, faults first, each list in training order; the same whatever the order of `records`.
    """
    history = _History(records, complete=complete)
    findings = [
        *_missing(history),
        *(found for group in history.groups for found in _audit_group(history, group)),
        *_equal_across_stages(history),
        *_other_names(history),
        *_without_tokenizer(history),
    ]
    return sorted(findings, key=lambda found: (found.level != FAULT, history.places.get(str(found.revision), -1)))


def audit_values(
    store: Store, records: Sequence[RevisionRecord], hashes: Sequence[FindingRecord]
) -> list[FindingRecord]:
    """Return what the stored statistics of a run's weights say of its history; nothing where there are none.

    Parameters
    ----------
    store
        The store.
    records
        The revisions of one run.
    hashes
        What `audit_hashes` says of them. Known copies are left out, but not those of which it could not tell which
        one is right.

    Returns
    -------
    list of FindingRecord
        On basis ``values``, in training order.
    """
    digests = {record.weights for record in records if record.weights}
    datasets = store.weighings(digests, version=WEIGHING_VERSION)
    stored = {digest: read_weighing(dataset) for digest, dataset in datasets.items()}
    findings = []
    for record in records:
        n_bad = int(stored[record.weights].nonfinite.sum()) if record.weights in stored else 0
        if n_bad:
            text = f"{record.name} has {n_bad:,} weights that are NaN or infinite"
            findings.append(FindingRecord(record.name, "nonfinite", FAULT, text))
    copies = {found.revision for found in hashes if found.kind in ("final", "duplicate")} - _unsettled(hashes)
    history = _History(records, complete=False)
    for group in history.groups:
        members = {m.step: m for m in group.described[::-1] if m.record.weights in stored and m.name not in copies}
        path = [members[step] for step in sorted(members)]
        findings += _departures(path, [stored[str(member.record.weights)] for member in path])
    return sorted(findings, key=lambda found: history.places[str(found.revision)])


def _departures(path: Sequence["_Member"], weighings: Sequence["Weighing"]) -> Iterator[FindingRecord]:
    """Say which revisions leave the path, compared on what they have in common where some were fetched in part."""
    contents = [_content(weighing) for weighing in weighings]
    told: set[str] = set()
    for shared in sorted(dict.fromkeys(contents), key=len, reverse=True):
        able = [number for number, content in enumerate(contents) if set(shared) <= set(content)]
        if len(able) < LEAST_PATH:
            continue
        width = min(weighings[number].sample.shape[1] for number in able)
        parts = [_part(weighings[number], shared, width) for number in able]
        for fault in find_upload_faults([path[number].step for number in able], parts):
            name, like = path[able[fault.revision]].name, path[able[fault.like]].name
            if name not in told:
                told.add(name)
                text = f"{name}: {fault.text.partition(': ')[2]}"
                yield FindingRecord(name, "departure", FAULT, text, (like,))


def _content(weighing: "Weighing") -> tuple[tuple[str, int], ...]:
    return tuple(zip(weighing.groups, weighing.entries.tolist(), strict=True))


def _part(weighing: "Weighing", content: Sequence[tuple[str, int]], width: int) -> "Weighing":
    """Return the statistics of some groups, their samples without what lies beyond the last entry of all."""
    if content == _content(weighing) and width == weighing.sample.shape[1]:
        return weighing
    rows = [weighing.groups.index(group) for group, _ in content]
    arrays = {field.name: getattr(weighing, field.name)[rows] for field in fields(weighing)[1:]}
    arrays["sample"] = arrays["sample"][:, :width]
    return replace(weighing, groups=tuple(group for group, _ in content), **arrays)


class _Subject(NamedTuple):
    """All that an audit of a run looks at."""

    run_id: int
    records: list[RevisionRecord]
    is_listed: bool
    gone: list[RevisionRecord]
    replayed: list[str]  # names of those that are gone of which the store has activations
    weighings: dict[str, str]

    @property
    def digest(self) -> str:
        seen = [
            [(r.name, r.step, r.stage, r.config, r.weights, r.error, r.files) for r in records]
            for records in (self.records, self.gone)
        ]
        return content_key(
            "audit",
            version=VERSION,
            records=seen,
            is_listed=self.is_listed,
            replayed=self.replayed,
            weighings=self.weighings,
        )


def _look(store: Store, run: str) -> _Subject:
    with store.index.read() as session:
        runs = {row.name: row for row in session.execute(select(Run.name, Run.id, Run.source))}
    if run not in runs:
        raise UnknownRun(f"no run {run!r} in {store.root}; {suggest(run, sorted(runs))}")
    rows, listed = {record.name: record for record in get_revisions(store, run)}, get_listing(store, run)
    records = [rows.pop(record.name, record) for record in (list(rows.values()) if listed is None else listed)]
    gone = sorted(rows.values(), key=lambda record: record.name)
    with store.index.read() as session:
        weights = [record.weights for record in gone if record.weights]
        held = set(session.scalars(select(Replay.weights).where(Replay.weights.in_(weights))))
    if runs[run].source == "folder":  # a trainer keeps its last checkpoints only: what was replayed still is the run
        records += [record for record in gone if record.weights in held]
        gone = [record for record in gone if record.weights not in held]
    replayed = [record.name for record in gone if record.weights in held]
    digests = {record.weights for record in (*records, *gone) if record.weights}
    weighings = store.weighing_segments(digests, version=WEIGHING_VERSION)
    return _Subject(runs[run].id, records, listed is not None, gone, replayed, weighings)


def _audit(store: Store, run: str, subject: _Subject) -> Audit:
    records, gone = subject.records, subject.gone
    hashes, values = _findings(store, records, complete=subject.is_listed)
    if gone:
        names = sorted((record.name for record in gone), key=sort_key)
        text = f"not listed any more, of those that the store knows: {_capped(names)}"
        hashes.append(FindingRecord(None, "gone", NOTE, text, tuple(names)))
    if subject.replayed:  # what the store holds of them is no better for being withdrawn
        for found, every in zip(
            (hashes, values), _findings(store, [*records, *gone], complete=subject.is_listed), strict=True
        ):
            found += [f for f in every if f.level == FAULT and f.revision in subject.replayed]
    for basis, findings in zip(BASES, (hashes, values), strict=True):
        put_findings(store, subject.run_id, basis, findings)
    store.index.remember(_key(run), {"digest": subject.digest})
    described = [record for record in records if record.weights or record.error]
    return Audit(
        run=run,
        n_revisions=len(described),
        n_unique=len({_weights(record) for record in described if record.weights}),
        n_weighed=len({_weights(record) for record in described if record.weights in subject.weighings}),
        findings=hashes + values,
    )


def _findings(
    store: Store, records: Sequence[RevisionRecord], *, complete: bool
) -> tuple[list[FindingRecord], list[FindingRecord]]:
    hashes = audit_hashes(records, complete=complete)
    values = audit_values(store, records, hashes)
    return _settled(hashes, values), values


def _key(run: str) -> str:
    return content_key("audited", run=run)


def _unsettled(hashes: Iterable[FindingRecord]) -> set[str | None]:
    """Return the revisions with equal weights of which none is known to be right."""
    others = {found.revision: found.others for found in hashes if found.kind == "duplicate"}
    return {name for name, rest in others.items() if all(other in others for other in rest)}


def _settled(hashes: Sequence[FindingRecord], values: Iterable[FindingRecord]) -> list[FindingRecord]:
    """Return the findings with the one revision taken off that holds shared weights rightly, as their values tell."""
    unsettled, wrong = _unsettled(hashes), {found.revision for found in values if found.kind == "departure"}
    settled = []
    for found in hashes:
        right = {found.revision, *found.others} - wrong
        if found.kind != "duplicate" or found.revision not in unsettled or len(right) != 1:
            settled.append(found)
        elif found.revision not in right:
            owner = str(*right)
            text = f"{found.revision} holds the weights of {owner}, where their values fit"
            settled.append(replace(found, text=text, others=(owner,)))
    return settled


class _Member(NamedTuple):
    """A revision at its place in a group."""

    step: int
    record: RevisionRecord

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def weights(self) -> frozenset[str]:
        return _weights(self.record)


class _Group:
    """The revisions of one stage, and of one branch of it, in order of their steps."""

    def __init__(self, members: Sequence[_Member], *, unit: str) -> None:
        self.members = members
        self.unit = unit  # "number" where names tell no more than a place in a series
        self.steps = sorted({member.step for member in members})
        self.described = [member for member in members if member.weights]

    def in_a_row(self, steps: Sequence[int]) -> bool:
        first = self.steps.index(steps[0])
        return self.steps[first : first + len(steps)] == list(steps)


class _History:
    """A run's revisions in training order: those with a step by group, and the other names."""

    def __init__(self, records: Iterable[RevisionRecord], *, complete: bool) -> None:
        self.complete = complete
        ordered = sorted((_place(record), record.name, record) for record in records)
        self.records = [record for *_, record in ordered]
        self.places = {record.name: number for number, record in enumerate(self.records)}
        self.groups = []
        self.names = [record for place, _, record in ordered if place[0] == _NOWHERE]
        for (certainty, *_), rows in groupby(ordered, key=lambda row: row[0][:3]):
            if certainty != _NOWHERE:
                members = [_Member(place[3], record) for place, _, record in rows]
                self.groups.append(_Group(members, unit="number" if certainty else "step"))
        self.main = next((_weights(r) for r in self.names if r.name == "main" and r.weights), frozenset())
        self.lasts = {id(group): last for group in self.groups if (last := self._last(group)) is not None}
        self.ends = {
            member.name
            for group in self.groups
            for member in group.members
            if id(group) in self.lasts and member.step == self.lasts[id(group)].step
        }
        self.faulty: set[str] = set()

    def _last(self, group: _Group) -> _Member | None:
        last = group.described[-1] if group.described else None
        if last is None or last.weights == self.main:
            return last
        later = [member.record for member in group.members if member.step > last.step]
        return last if self.complete and all(record.error for record in later) else None

    def holders(self, weights: frozenset[str]) -> list[_Member]:
        """Return the steps that hold these weights; those at fault only if there is no other."""
        same = [member for group in self.groups for member in group.described if member.weights == weights]
        return [member for member in same if member.name not in self.faulty] or same


def _missing(history: _History) -> Iterator[FindingRecord]:
    for record in history.records:
        if record.weights is None and record.error is not None:
            yield FindingRecord(record.name, "missing", FAULT, f"{record.name} cannot be used: {record.error}")


def _audit_group(history: _History, group: _Group) -> Iterator[FindingRecord]:
    for members in _alike(group.described):
        yield from _equal_weights(history, group, members)
    yield from _equal_files(history, group)
    yield from _odd_sizes(group)
    for before, after in pairwise(group.described):
        yield from _changes(before.record, after.record)
    if history.complete:
        yield from _off_grid(group)


def _equal_weights(history: _History, group: _Group, members: Sequence[_Member]) -> Iterator[FindingRecord]:
    """Say which of the revisions with one set of weights are at fault."""
    last, steps = history.lasts.get(id(group)), sorted({member.step for member in members})
    first = members[0].name
    faulty, kind, text = steps[:0], "duplicate", f"still holds the weights of {first}"
    others: tuple[str, ...] = (first,)
    if last is not None and last.weights == members[0].weights:
        kind, faulty, others, text = "final", steps[:-1], (last.name,), f"holds the final weights, those of {last.name}"
    elif members[0].weights == history.main:
        # Main is one of them, or the last step of another stage, with which this one may begin.
        elsewhere = any(member.name in history.ends for member in history.holders(history.main))
        kind, others, text = "final", ("main",), "holds the final weights, those of main"
        faulty = [step for step in steps if step != group.steps[0]] if elsewhere else steps if len(steps) > 1 else []
    elif group.in_a_row(steps):
        faulty = steps[1:]
    else:
        faulty, others = steps, ()
        text = _one_of(members)
    names: dict[int, str] = {}
    for member in members:
        if member.step in faulty:
            history.faulty.add(member.name)
            rest = others or tuple(other.name for other in members if other != member)
            yield FindingRecord(member.name, kind, FAULT, f"{member.name} {text}", rest)
        elif (name := names.setdefault(member.step, member.name)) != member.name:
            text_of_name = f"{member.name} is another name of {name}: same {group.unit}, same weights"
            yield FindingRecord(member.name, "alias", NOTE, text_of_name, (name,))


def _equal_across_stages(history: _History) -> Iterator[FindingRecord]:
    """Say which revisions of different stages have equal weights; each stage may begin with what another ended with."""
    stage_of = {
        member.name: number
        for number, group in enumerate(history.groups)
        for member in group.described
        if group.unit == "step" and member.step != group.steps[0] and member.name not in history.faulty
    }
    everyone = (member for group in history.groups for member in group.described if member.name in stage_of)
    for members in _alike(everyone):
        if len({stage_of[member.name] for member in members}) > 1:
            for member in members:
                history.faulty.add(member.name)
                rest = tuple(other.name for other in members if other != member)
                yield FindingRecord(member.name, "duplicate", FAULT, f"{member.name} {_one_of(members)}", rest)


def _one_of(members: Sequence[_Member]) -> str:
    names = _capped([member.name for member in members])
    return f"is one of {len(members)} revisions with equal weights, {names}; {UNCLEAR}"


def _equal_files(history: _History, group: _Group) -> Iterator[FindingRecord]:
    """Say which revisions have some weight files, and not all, in common with another step."""
    sets = [members for members in _alike(group.described) if len(members[0].weights) > 1]
    holders: dict[str, list[_Member]] = {}
    for member in (member for members in sets for member in members):
        for digest in member.weights:
            holders.setdefault(digest, []).append(member)
    frozen: dict[str, int] = {}
    shared: dict[str, list[tuple[str, set[str], bool]]] = {}
    for digest, members in holders.items():
        n_sets = len(_alike(members))
        if n_sets > 1 and n_sets >= NOT_TRAINED * len(sets):
            frozen[_file_of(members[0].record, digest)] = n_sets
        elif n_sets > 1:
            wrong, owners = _whose(history, group, sorted(members, key=lambda member: history.places[member.name]))
            for member in wrong:
                file = _file_of(member.record, digest)
                rest = {owner.name for owner in owners} - {member.name}
                shared.setdefault(member.name, []).append((file, rest, member in owners))
    for name, files in sorted(shared.items(), key=lambda item: history.places[item[0]]):
        others = sorted(set().union(*(rest for _, rest, _ in files)), key=history.places.__getitem__)
        unclear = f"; {UNCLEAR}" if any(unclear for *_, unclear in files) else ""
        what = f"{_capped(sorted(file for file, *_ in files))} of {_capped(others)}"
        yield FindingRecord(name, "shard", FAULT, f"{name} has {what} beside files of its own{unclear}", tuple(others))
    if frozen:
        least = min(frozen.values())
        among = f"all {len(sets)}" if least == len(sets) else f"{least} of {len(sets)}"
        text = f"{_capped(sorted(frozen))}: equal in {among} different weights, so its tensors are not trained"
        yield FindingRecord(None, "shard", NOTE, text)


def _whose(history: _History, group: _Group, members: list[_Member]) -> tuple[list[_Member], list[_Member]]:
    """Return those at fault of the revisions, in training order, that have a file in common, and whose it is."""
    last = history.lasts.get(id(group))
    finals = {history.main} if last is None else {history.main, last.weights}
    if final := [member for member in members if member.weights in finals]:
        return [member for member in members if member.weights not in finals], final[-1:]
    if group.in_a_row(sorted({member.step for member in members})):
        return [member for member in members if member.step != members[0].step], members[:1]
    return members, members


def _odd_sizes(group: _Group) -> Iterator[FindingRecord]:
    by_format: dict[str, dict[str, int]] = {}
    for member in group.described:
        files = _weight_files(member.record)
        if CONFIG not in member.record.files:  # a plain file, whose bytes may be those of an optimizer as well
            continue
        sizes = by_format.setdefault(min(files).rpartition(".")[2], {})
        sizes[member.name] = sum(n_bytes for _, n_bytes in files.values())
    configs = {member.name: member.record.config for member in group.described}
    for sizes in by_format.values():
        usual = median(sizes.values())
        usual_configs = {configs[name] for name, size in sizes.items() if _near(size, usual)}
        for name, size in sizes.items() if len(sizes) >= LEAST_SIZES else ():
            if _near(size, usual):
                continue
            level, why = NOTE, "larger than the others"
            if any(_near(size, ratio * usual) for ratio in PRECISIONS):
                why = "another precision"
            elif configs[name] not in usual_configs:
                why = "its config.json differs as well"
            elif size < usual:
                level, why = FAULT, "cut short"
            text = f"{name} has {size:,} bytes of weights, {usual:,.0f} are usual: {why}"
            yield FindingRecord(name, "size", level, text)


def _changes(before: RevisionRecord, after: RevisionRecord) -> Iterator[FindingRecord]:
    tokenizers = [{name: record.files[name][0] for name in tokenizer_files(record.files)} for record in (before, after)]
    if before.config != after.config:
        what = CONFIG if CONFIG in after.files else "model (--model)"
        text = f"{after.name} has another {what} than {before.name}"
        yield FindingRecord(after.name, "config", NOTE, text, (before.name,))
    if all(tokenizers) and tokenizers[0] != tokenizers[1]:
        text = f"{after.name} has another tokenizer than {before.name}"
        yield FindingRecord(after.name, "tokenizer", NOTE, text, (before.name,))


def _other_names(history: _History) -> Iterator[FindingRecord]:
    """Say what each name without a step is: the last step, another one, the same as another name."""
    last = next((history.lasts[id(group)] for group in history.groups[::-1] if id(group) in history.lasts), None)
    seen: dict[frozenset[str], str] = {}
    for record in sorted((r for r in history.names if r.weights), key=lambda record: record.name != "main"):
        weights = _weights(record)
        holders = sorted(history.holders(weights), key=lambda member: member.name not in history.ends)
        names = tuple(member.name for member in holders)
        first = seen.setdefault(weights, record.name)
        if record.name == "main" and last is not None and not history.ends.intersection(names):
            what = f"the weights of {_capped(names)}" if names else "weights of no step"
            text = f"main holds {what}, not those of the last one, {last.name}"
            yield FindingRecord(record.name, "main", NOTE, text, names or (last.name,))
        elif names:
            text = f"{record.name} holds the weights of {names[0]}{', the last one' * (names[0] in history.ends)}"
            yield FindingRecord(record.name, "alias", NOTE, text, names[:1])
        elif first != record.name:
            text = f"{record.name} is another name of {first}: same weights"
            yield FindingRecord(record.name, "alias", NOTE, text, (first,))
        for member in holders[:1]:
            yield from _changes(member.record, record)


def _without_tokenizer(history: _History) -> Iterator[FindingRecord]:
    described = [record for record in history.records if record.weights]
    without = tuple(record.name for record in described if not tokenizer_files(record.files))
    if 0 < len(without) < len(described):  # a history that has none is of a model that reads no text
        text = f"{len(without)} of {len(described)} revisions have no tokenizer: {_capped(without)}"
        yield FindingRecord(None, "tokenizer", NOTE, text, without)


def _off_grid(group: _Group) -> Iterator[FindingRecord]:
    names: dict[int, list[str]] = {}
    for member in group.members:
        names.setdefault(member.step, []).append(member.name)
    for grid in find_grids(group.steps):
        for step in grid.missing:
            before, after = max(s for s in names if s < step), min(s for s in names if s > step)
            text = f"{group.unit} {step} is missing: {grid.rule}"
            yield FindingRecord(None, "gap", FAULT, text, (*names[before], *names[after]))
        for name in (name for step in grid.outliers for name in names[step]):
            yield FindingRecord(name, "outlier", NOTE, f"{name} does not lie on the grid: {grid.rule}")


def _alike(members: Iterable[_Member]) -> list[list[_Member]]:
    found: dict[frozenset[str], list[_Member]] = {}
    for member in members:
        found.setdefault(member.weights, []).append(member)
    return list(found.values())


def _place(record: RevisionRecord) -> tuple[int, int, str, int]:
    """Return whether a record has a step, its stage, the branch of its stage, and its step."""
    parsed, key = parse_step(record.name), sort_key(record.name)
    if record.step is not None:
        return _STEP, record.stage or key.stage or 1, (parsed and parsed.kind) or "", record.step
    if parsed is not None and parsed.step is None:
        return _NUMBER, key.stage, parsed.kind or "", key.step
    return _NOWHERE, 0, "", 0


_STEP, _NUMBER, _NOWHERE = range(3)


def _weight_files(record: RevisionRecord) -> dict[str, tuple[str, int]]:
    """Return sha256 and bytes of each weight file, without the index of shards, which is no weight."""
    return {name: (digest, n_bytes) for name, (digest, n_bytes) in record.files.items() if is_weight_file(name)}


def _weights(record: RevisionRecord) -> frozenset[str]:
    return frozenset(digest for digest, _ in _weight_files(record).values()) if record.weights else frozenset()


def _file_of(record: RevisionRecord, digest: str) -> str:
    return next(name for name, (other, _) in _weight_files(record).items() if other == digest)


def _near(size: float, usual: float) -> bool:
    return abs(size - usual) <= SIZE_TOLERANCE * usual


def _capped(names: Sequence[str], limit: int = 8) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
