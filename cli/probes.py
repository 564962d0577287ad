"""``replay probes``: probe sets."""

from pathlib import Path

import click

from cli.output import note

__all__ = ["probes"]


@click.group()
def probes() -> None:
    """Add probe sets; `replay ls probes` lists them."""


@probes.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--name", help="Name of the set; the file's own by default.")
@click.pass_obj
def add(store: Path, file: Path, *, name: str | None) -> None:
    """Add the probes of FILE (.txt, .jsonl or .csv) under a name; a set that a run has used never changes."""
    from replay.opening import open_store
    from replay.probes import builtin_probes, read_probes
    from store.commits import put_probe_set
    from store.errors import InvalidProbes

    probe_set = read_probes(file, name=name)
    builtin = builtin_probes()
    if probe_set.name == builtin.name and probe_set.digest != builtin.digest:
        raise InvalidProbes(f"{builtin.name!r} names the built-in probes: choose another with --name")
    rows = [(probe.text, probe.label, probe.id) for probe in probe_set.probes]
    with_labels = len({probe.label for probe in probe_set.probes if probe.label is not None})
    new = put_probe_set(open_store(store, write=True), probe_set.name, digest=probe_set.digest, probes=rows)
    for finding in probe_set.report.notes():
        note(f"{file}: {finding}")
    state = "added" if new else "was there already"
    click.echo(f"{probe_set.name}: {len(rows)} probes, {with_labels} labels, digest {probe_set.digest[:12]}, {state}")
