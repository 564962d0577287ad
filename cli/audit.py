"""``replay audit``: what is wrong with a published history."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import check_target, note, print_table, progress

if TYPE_CHECKING:
    from store.catalog import Store

__all__ = ["audit"]

SHOWN_NAMES = 4
"""Revisions named in one row of the table; ``--json`` has each."""


@click.command()
@click.option(
    "--repo", "repos", multiple=True, metavar="ORG/NAME", help="Hub repository to list and audit; repeatable."
)
@click.option(
    "--path", "paths", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder of step*/ or checkpoint-*/ folders to hash and audit; repeatable.",
)  # fmt: skip
@click.option(
    "--runs", multiple=True, metavar="GLOB",
    help="Runs in the store, names or globs, by what is known of them; all if neither --repo nor --path is given.",
)  # fmt: skip
@click.option("--step-regex", metavar="REGEX", help="Reads other revision names; needs a group (?P<step>…).")
@click.option(
    "--csv", type=click.Path(path_type=Path), metavar="FILE",
    help="Write norms and distances of each tensor group at each step, where an ingest has seen the weights.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Everything, for a program.")
@click.option("--strict", is_flag=True, help="Exit with 1 if there is any fault.")
@click.pass_obj
def audit(
    store: Path,
    *,
    repos: tuple[str, ...],
    paths: tuple[Path, ...],
    runs: tuple[str, ...],
    step_regex: str | None,
    csv: Path | None,
    as_json: bool,
    strict: bool,
) -> None:
    """Find wrong uploads, copies and missing steps in a history before anything is downloaded."""
    from replay.analyses.selection import choose_runs
    from replay.audit import audit_run
    from replay.listing import list_run
    from replay.opening import open_store
    from replay.revisions import compile_step_pattern
    from replay.sources import open_sources
    from store.catalog import Store
    from store.errors import InvalidInput

    check_target(csv, ".csv")
    listed = bool(repos or paths)
    if listed and runs:
        raise InvalidInput("--runs names runs in the store: give either it or --repo and --path")
    if step_regex is not None and not listed:
        raise InvalidInput("--step-regex reads the names of a listing: give --repo or --path with it")
    pattern = None if step_regex is None else compile_step_pattern(step_regex)
    if listed:
        opened = open_store(store, write=True)
        sources = open_sources(opened, repos=repos, paths=paths, step_regex=pattern)
        with progress() as advance:
            for source in sources:
                list_run(opened, source, advance=advance)
        names = [source.run for source in sources]
    else:
        Store(store)  # without a listing there is nothing to make a store for
        opened = open_store(store, write=True)
        names = choose_runs(opened, runs or ("*",), replayed=False)
    documents = [_document(opened, name, audit_run(opened, name)) for name in names]
    if as_json:
        click.echo(json.dumps(documents, indent=2))
    else:
        for document in documents:
            _print(document)
    if csv is not None:
        _write_movement(opened, names, csv)
    if strict and any(document["faults"] for document in documents):
        raise click.exceptions.Exit(1)


def _write_movement(store: "Store", runs: list[str], target: Path) -> None:
    import pandas as pd

    from replay.movement import weight_movement

    pd.concat([weight_movement(store, run) for run in runs], ignore_index=True).to_csv(target, index=False)
    note(f"written: {target}")


def _document(store: "Store", run: str, audited: Any) -> dict[str, Any]:
    table = store.findings(run).astype(object)
    findings = table.where(table.notna(), None).to_dict("records")
    findings.sort(key=lambda finding: finding["level"] != "fault")
    n_faults = sum(finding["level"] == "fault" for finding in findings)
    return {
        "run": run,
        "revisions": audited.n_revisions,
        "unique_weights": audited.n_unique,
        "values_known": audited.n_weighed,
        "faults": n_faults,
        "notes": len(findings) - n_faults,
        "findings": findings,
    }


def _print(document: dict[str, Any]) -> None:
    known = f"values known of {document['values_known']}" if document["values_known"] else "values not known"
    click.echo(
        f"{document['run']}: {document['revisions']} revisions, {document['unique_weights']} unique weights ({known}), "
        f"{_counted(document['faults'], 'fault')}, {_counted(document['notes'], 'note')}"
    )
    folded: dict[tuple[str, str, str], list[str]] = {}
    for finding in document["findings"]:
        subject, what = _split(finding["revision"], finding["text"])
        folded.setdefault((finding["level"], finding["kind"], what), []).append(subject)
    if folded:
        rows = [(level, kind, _named(subjects), what) for (level, kind, what), subjects in folded.items()]
        print_table(("level", "kind", "revisions", "finding"), rows)


def _split(revision: str | None, text: str) -> tuple[str, str]:
    """Return of what a finding speaks and what it says, so that what is said of several is said once."""
    if revision is not None:
        return revision, text.removeprefix(revision).lstrip(": ")
    match = re.match(r"((?:step|number) \d+) (is missing.*)", text)
    return (match[1], match[2]) if match else ("-", text)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _named(subjects: list[str]) -> str:
    if len(subjects) <= SHOWN_NAMES:
        return ", ".join(subjects)
    return f"{', '.join(subjects[: SHOWN_NAMES - 1])}, … {subjects[-1]} ({len(subjects)})"
