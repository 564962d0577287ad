"""What the analyses print and write of their results."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import check_target, note

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["check_targets", "number", "present", "print_remarks", "records", "tabulate"]

SHOWN_FLAGGED = 3
"""Flagged revisions of a run whose reason is told; the others are named."""

SHOWN_REASONS = 8
"""Undefined values whose reason is told; the others are counted."""


def check_targets(csv: Path | None, plot: Path | None) -> None:
    """Refuse files that could not be written, before any work is done for them."""
    from replay.plots.figure import SUFFIXES

    check_target(csv, ".csv")
    check_target(plot, *SUFFIXES)


def present(
    result: "xr.Dataset",
    *,
    table: "Callable[[xr.Dataset], pd.DataFrame]",
    draw: "Callable[[xr.Dataset, Path], None]",
    show: "Callable[[xr.Dataset], None]",
    also: "Callable[[xr.Dataset], dict[str, Any]]" = lambda _: {},
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """Write a result's files, print it, and say what was left out.

    Parameters
    ----------
    result
        A stored result.
    table
        Makes the long table of ``csv`` and ``as_json``.
    draw
        Draws it to a file.
    show
        Prints it for a person.
    also
        Gives what ``as_json`` has beside the table.
    as_json, csv, plot
        What was asked for.
    """
    if csv is not None:
        table(result).to_csv(csv, index=False)
    if plot is not None:
        draw(result, plot)
    if as_json:
        document = {**result.attrs, "rows": records(table(result)), **also(result)}
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        show(result)
    for written in (csv, plot):
        if written is not None:
            note(f"written: {written}")
    print_remarks(result)


def records(table: "pd.DataFrame") -> list[dict[Any, Any]]:
    """Return the rows of a table for JSON, None where a value is undefined."""
    rows = table.astype(object)
    return rows.where(rows.notna(), None).to_dict("records")


def tabulate(result: "xr.Dataset", names: list[str]) -> "pd.DataFrame":
    """Return variables over the same axes as one long table, a row a cell."""
    return result[names].to_dataframe().reset_index()[[*map(str, result[names[0]].dims), *names]]


def number(value: float, form: str = ".3f") -> str:
    """Return a number for a table; a dash where it is undefined."""
    return "-" if value != value else format(value, form)


def print_remarks(result: "xr.Dataset") -> None:
    """Say on stderr what was left out, what is the same, and what is undefined, with the reasons."""
    for run, names in result.attrs.get("dropped", {}).items():
        note(f"left out: {run} {', '.join(names)}: another run lacks the step, or another revision holds it")
    what = "taken in" if result.attrs.get("include_flagged") else "left out"
    for run, reasons in result.attrs.get("flagged", {}).items():
        for name, reason in list(reasons.items())[:SHOWN_FLAGGED]:
            note(f"flagged: {run} {name}: {reason.removeprefix(name).lstrip(': ')}; {what} (see `replay audit`)")
        if len(reasons) > SHOWN_FLAGGED:
            note(f"flagged: {run} {', '.join(list(reasons)[SHOWN_FLAGGED:])}; {what} too")
    for one, other in result.attrs.get("identical", ()):
        note(f"identical: {one} and {other} hold the same checkpoints, so their distance is 0")
    for *where, n_parts, n_isolated in result.attrs.get("disconnected", [])[:SHOWN_REASONS]:
        lone = f", {n_isolated} of its probes are linked to none" if n_isolated else ""
        note(f"disconnected: {_place(where)}: a graph falls into {n_parts} parts{lone}; a larger --knn may join them")
    undefined: list[list[Any]] = result.attrs.get("unavailable", [])
    for *where, reason in undefined[:SHOWN_REASONS]:
        note(f"unavailable: {_place(where)}: {reason}")
    if len(undefined) > SHOWN_REASONS:
        note(f"unavailable: {len(undefined) - SHOWN_REASONS} more, all in --json")


def _place(parts: list[Any]) -> str:
    return ", ".join(f"step {part}" if isinstance(part, int) else str(part) for part in parts if part is not None)
