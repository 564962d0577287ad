"""What several commands print: tables, sizes, a progress bar on stderr."""

import math
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["check_target", "interruptible", "note", "print_frame", "print_table", "progress"]

PIPE_WIDTH = 10_000
"""A table that goes to a file or a pipe is never cut."""


PATIENCE = 3
"""Seconds that an interrupted command has to come to a place where it may end."""


def note(text: str) -> None:
    """Print one line on stderr."""
    click.echo(text, err=True)


def check_target(path: Path | None, *suffixes: str) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises
    ------
    InvalidInput
        If its folder does not exist, it is a folder, or it has none of ``suffixes`` (any will do if none is given).
    """
    from store.errors import InvalidInput

    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise InvalidInput(f"{path} {what}: name a file in a folder that exists")
    if suffixes and path.suffix.lower() not in suffixes:
        raise InvalidInput(f"{path} ends in {path.suffix or 'no suffix'!r}: expected one of {', '.join(suffixes)}")


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, err: bool = False) -> None:
    """Print rows under a header, numbers to the right."""
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        numeric = all(isinstance(row[number], (int, float)) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    stream = sys.stderr if err else sys.stdout
    Console(file=stream, width=None if stream.isatty() else PIPE_WIDTH, highlight=False, markup=False).print(table)


def print_frame(frame: "pd.DataFrame", *, as_json: bool, columns: Sequence[str] | None = None) -> None:
    """Print a table of the store: everything as JSON, or ``columns`` for a person."""
    if as_json:
        click.echo(frame.to_json(orient="records", indent=2))
        return
    shown = frame if columns is None else frame[list(columns)]
    print_table(list(shown.columns), shown.astype(object).where(shown.notna(), None).itertuples(index=False))


@contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Hold a check that raises KeyboardInterrupt once SIGINT or SIGTERM has come, to be called between pieces of work.

    So a signal ends the work where it may end. If nobody calls the check for `PATIENCE` seconds, or a second signal
    comes, it ends wherever it is.
    """
    asked = False

    def ask(number: int, _frame: object) -> None:
        nonlocal asked
        if asked or number == signal.SIGALRM:
            raise KeyboardInterrupt
        asked = True
        signal.alarm(PATIENCE)

    def check() -> None:
        if asked:
            raise KeyboardInterrupt

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}
    try:
        yield check
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def progress(check: Callable[[], None] = lambda: None) -> Iterator[Callable[..., None]]:
    """Hold a bar on stderr with the time left; silent where stderr is no terminal.

    It is told what is done, how much of it, how much there is, and if wanted which part is under way; each time it
    calls ``check``.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        tasks: dict[str, Any] = {}

        def advance(what: str, done: int, total: int, part: str = "") -> None:
            check()
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done, total=total, description=part or what)

        yield advance


def _cell(value: object) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
