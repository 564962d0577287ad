"""Scalars of training - loss, accuracy, learning rate, gradient norm - from the logs that trainers leave behind.

A log has one number a name and step; a revision gets the last one that was logged at its step or before. Because a log
may end before training does, that one has to be recent: no further back than twice the interval before it, so that a
log whose interval doubles is still followed. A value that was logged as no number (a loss of NaN) is no value, nor is
the one before it.
"""

import csv
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from store.catalog import Store
from store.commits import RevisionRecord, get_revisions, put_scalars
from store.errors import InvalidInput
from store.keys import content_key

__all__ = ["Given", "Log", "add_logged", "give_again", "give_scalars", "read_given", "read_logs", "trainer_log"]

AXES = ("step", "tokens", "epoch")
"""Columns that say when something was logged; the first that there is counts."""

NO_SCALARS = {*AXES, "num_input_tokens_seen", "total_flos", "run"}
"""Names in logs that are no scalars of training."""

TIMINGS = ("_runtime", "_per_second", "_preparation_time")
"""How names end under which a Trainer logs how fast the machine was."""

LIGHTNING = ("metrics.csv", "hparams.yaml")
"""The two files that Lightning's CSVLogger always writes into one folder."""

FOUND = ("log.csv", "metrics.csv", "csv/metrics.csv", "lightning_logs/version_*/metrics.csv")
"""Where a log is looked for in the folder of a run."""


@dataclass(frozen=True)
class Log:
    """What one run logged."""

    origin: str
    """The file it is from."""
    axis: str
    """What it is logged over: ``step``, ``tokens`` or ``epoch``."""
    entries: dict[str, dict[float, float]]
    """By name, the place on the axis and the value there; NaN or infinite where what was logged is no number."""

    def at(self, place: float) -> dict[str, float]:
        """Return by name the last value logged at ``place`` or before, where it is recent and finite."""
        found = {}
        for name, entries in self.entries.items():
            places = sorted(entries)
            last = bisect_right(places, place) - 1
            if (
                last >= 0
                and place - places[last] <= 2 * _interval(places, last)
                and math.isfinite(entries[places[last]])
            ):
                found[name] = entries[places[last]]
        return found

    def match(self, records: Sequence[RevisionRecord]) -> dict[str, dict[str, float]]:
        """Return the scalars of each revision that has any, by its name."""
        places = {record.name: getattr(record, self.axis) for record in records}
        found = {name: self.at(place) for name, place in places.items() if place is not None}
        return {name: scalars for name, scalars in found.items() if scalars}


@dataclass(frozen=True)
class Given:
    """A file of scalars that a person named."""

    path: Path
    run: str | None
    """The run it was said to be of."""
    logs: dict[str, Log]
    """By run; under an empty name where the file has no column ``run``."""


def trainer_log(state: Mapping[str, Any]) -> Log:
    """Return what a Trainer's ``trainer_state.json`` has in its ``log_history``, without timings and totals.

    Raises
    ------
    TypeError, ValueError
        If it is not what a Trainer writes.
    """
    entries: dict[str, dict[float, float]] = {}
    for entry in state.get("log_history", []):
        logged = dict(entry)
        if "train_runtime" in logged:  # the summary at the end: means over the whole training
            continue
        for name, value in logged.items():
            if name in NO_SCALARS or name.endswith(TIMINGS) or isinstance(value, bool):
                continue
            if isinstance(value, int | float):
                entries.setdefault(name, {})[float(logged.get("step", 0))] = float(value)
    return Log("trainer_state.json", "step", entries)


def read_logs(path: Path) -> dict[str, Log]:
    """Read a table of scalars in CSV form: a column ``step`` (or ``tokens``, or ``epoch``), and one a scalar.

    Empty cells are nothing logged. A column without any number is no scalar. Where a step stands twice, as after
    training was resumed from a checkpoint, the later row counts. Rows of Lightning's CSVLogger count batches from 0,
    while checkpoints count finished steps: row s belongs to step s + 1. They are known by the ``hparams.yaml`` beside
    them.

    Returns
    -------
    dict
        By run; under an empty name where there is no column ``run``.

    Raises
    ------
    InvalidInput
        If it cannot be read, has no such column or no number, or a cell is not what its column holds.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            header = [name.strip() for name in next(reader, [])]
            rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InvalidInput(f"{path} cannot be read as CSV ({why})") from error
    rows = [(line, row) for line, row in rows if any(row)]
    axis = next((name for name in AXES if name in header), None)
    if axis is None:
        raise InvalidInput(f"{path} has no column step, tokens or epoch: it has {', '.join(header) or 'no header'}")
    if len(set(header)) < len(header):
        raise InvalidInput(f"{path} has two columns of one name: {', '.join(header)}")
    for line, row in rows:
        if len(row) != len(header):
            raise InvalidInput(f"{path} line {line} has {len(row)} cells: expected {len(header)}, one a column")
    late = axis == "step" and path.name == LIGHTNING[0] and (path.parent / LIGHTNING[1]).is_file()
    places = [_number(path, line, axis, row[header.index(axis)], whole=axis != "epoch") + late for line, row in rows]
    runs = [row[header.index("run")] if "run" in header else "" for _, row in rows]
    logs = {run: Log(str(path), axis, {}) for run in dict.fromkeys(runs)}
    for name, cells in _scalar_columns(path, header, rows):
        for run, place, value in zip(runs, places, cells, strict=True):
            if value is not None:
                logs[run].entries.setdefault(name, {})[place] = value
    if not any(log.entries for log in logs.values()):
        raise InvalidInput(f"{path} holds no number beside its {axis}: expected a column a scalar")
    return logs


def read_given(texts: Sequence[str]) -> list[Given]:
    """Read what ``--scalars`` names: a file, or ``RUN=FILE``.

    Raises
    ------
    InvalidInput
        As `read_logs`.
    """
    given = []
    for text in texts:
        run, equals, file = text.partition("=")
        named = bool(equals) and not Path(text).exists()
        path = Path(file if named else text)
        given.append(Given(path, run if named else None, read_logs(path)))
    return given


def give_scalars(store: Store, runs: Sequence[str], given: Sequence[Given]) -> list[str]:
    """Add scalars that a person gave to the revisions of runs in a store, and say what was added, a line a run.

    They win over what the source of a run brings along, now and later. Given again, a name replaces its older values.
    The logs are kept, for revisions that are ingested later: `give_again`.

    Parameters
    ----------
    store
        A writable store.
    runs
        Names of runs it has.
    given
        From `read_given`. A file with a column ``run`` is of the runs it names, in full or by what follows the last
        slash; another is of the run it was said to be of, or of the only one.

    Raises
    ------
    InvalidInput
        If a file is of none of the runs, or none of its values is of a step at which the run has a revision; nothing
        is added then.
    """
    added = []
    for file in given:
        for run, log in _of_runs(file, runs):
            records = get_revisions(store, run)
            found = log.match(records)
            if not found:
                raise InvalidInput(_no_match(run, log, records))
            added.append((run, log, found, len(records)))
    lines = []
    for run, log, found, n_revisions in added:
        put_scalars(store, run, found)
        _keep_log(store, run, log)
        names = ", ".join(name for name in log.entries if any(name in scalars for scalars in found.values()))
        lines.append(f"{run}: {names} at {len(found)} of {n_revisions} revisions, from {log.origin}")
    return lines


def give_again(store: Store, run: str) -> None:
    """Add what was given of a run to the revisions that it has by now."""
    records, found = get_revisions(store, run), dict[str, dict[str, float]]()
    for log in _kept_logs(store, run):
        for name, scalars in log.match(records).items():
            found.setdefault(name, {}).update(scalars)
    if any(found[record.name].items() - record.scalars.items() for record in records if record.name in found):
        put_scalars(store, run, found)


def add_logged(
    folder: Path, records: Sequence[RevisionRecord], *, report: Callable[[str], None]
) -> list[RevisionRecord]:
    """Return the records of a run with the scalars of the log in its folder, under those they have already.

    Looked for are ``log.csv`` and the ``metrics.csv`` of Lightning's CSVLogger, in the folder of the run or, where
    that is called ``checkpoints``, in the one above. ``report`` is told where there is a log that cannot be used.
    """
    base = folder.parent if folder.name == "checkpoints" else folder
    paths = sorted(path for pattern in FOUND for path in base.glob(pattern))
    if len(paths) > 1:
        report(f"{folder} has several logs, {', '.join(map(str, paths))}: name one with --scalars")
    if len(paths) != 1:
        return list(records)
    try:
        logs = read_logs(paths[0])
    except InvalidInput as error:
        report(f"no scalars are taken from a log: {error}")
        return list(records)
    log = logs.get("", logs.get(folder.name))
    found = {} if log is None else log.match(records)
    return [replace(record, scalars={**found.get(record.name, {}), **record.scalars}) for record in records]


def _keep_log(store: Store, run: str, log: Log) -> None:
    """Keep a log that was given, in place of those that it has all entries of."""
    older = [kept for kept in _kept_logs(store, run) if not _covers(log, kept)]
    written = [
        {
            "origin": kept.origin,
            "axis": kept.axis,
            "entries": {
                name: [[place, value if math.isfinite(value) else None] for place, value in entries.items()]
                for name, entries in kept.entries.items()
            },
        }
        for kept in (*older, log)
    ]
    store.index.remember(_logs_key(run), {"logs": written})


def _covers(log: Log, older: Log) -> bool:
    return log.axis == older.axis and all(
        entries.keys() <= log.entries.get(name, {}).keys() for name, entries in older.entries.items()
    )


def _kept_logs(store: Store, run: str) -> list[Log]:
    """Return the logs that were given of a run, in the order in which they were."""
    return [
        Log(
            kept["origin"],
            kept["axis"],
            {
                name: {place: math.nan if value is None else value for place, value in entries}
                for name, entries in kept["entries"].items()
            },
        )
        for kept in (store.index.fact(_logs_key(run)) or {}).get("logs", [])
    ]


def _logs_key(run: str) -> str:
    return content_key("given logs", run=run)


def _interval(places: Sequence[float], at: int) -> float:
    """Return how far the entry before is; of the first, the one after; of the only one, the start of training."""
    if at > 0:
        return places[at] - places[at - 1]
    return places[1] - places[0] if len(places) > 1 else places[0]


def _scalar_columns(
    path: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]
) -> Iterator[tuple[str, list[float | None]]]:
    for column, name in enumerate(header):
        if name in NO_SCALARS or not name:
            continue
        cells = [(line, row[column]) for line, row in rows]
        if any(_is_number(cell) for _, cell in cells):
            yield name, [_number(path, line, name, cell) if cell else None for line, cell in cells]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(path: Path, line: int, column: str, cell: str, *, whole: bool = False) -> float:
    if (
        not _is_number(cell)
        or (whole and not float(cell).is_integer())
        or (column in AXES and not 0 <= float(cell) < 1e18)
    ):
        wanted = ("a whole number" if whole else "a number") + (" of 0 or more" if column in AXES else "")
        raise InvalidInput(f"{path} line {line}: {column} is {cell!r}: expected {wanted}")
    return float(cell)


def _of_runs(file: Given, runs: Sequence[str]) -> Iterator[tuple[str, Log]]:
    if file.run is not None and file.run not in runs:
        raise InvalidInput(f"--scalars {file.run}={file.path}: no run {file.run!r} is ingested here: {', '.join(runs)}")
    wanted = list(runs) if file.run is None else [file.run]
    if "" in file.logs:
        if len(wanted) > 1:
            raise InvalidInput(
                f"{file.path} has no column run, and there are {len(wanted)} runs: give --scalars RUN=FILE for each, "
                f"RUN one of {', '.join(wanted)}"
            )
        yield wanted[0], file.logs[""]
        return
    found = [(run, file.logs.get(run) or file.logs.get(run.rpartition("/")[2])) for run in wanted]
    if not any(log for _, log in found):
        raise InvalidInput(f"{file.path} is of the runs {', '.join(file.logs)}: expected one of {', '.join(wanted)}")
    yield from ((run, log) for run, log in found if log)


def _no_match(run: str, log: Log, records: Sequence[RevisionRecord]) -> str:
    logged = [place for entries in log.entries.values() for place in entries]
    there = [getattr(record, log.axis) for record in records if getattr(record, log.axis) is not None]
    has = f"{min(there):g} to {max(there):g}" if there else "none known"
    return (
        f"{log.origin} has {log.axis} {min(logged):g} to {max(logged):g}, and {run} revisions at {log.axis} {has}: "
        "none has a value at or shortly before it"
    )
