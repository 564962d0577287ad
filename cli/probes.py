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
    """Add the probes of FILE under a name: texts (.txt, .jsonl, .csv) or arrays (.npy, .npz).

    A set that a run has used never changes.
    """
    from replay.arrays import read_probe_file
    from replay.opening import open_store
    from replay.plan import add_probes
    from replay.probes import builtin_probes
    from store.errors import InvalidProbes

    probe_set = read_probe_file(file, name=name)
    builtin = builtin_probes()
    if probe_set.name == builtin.name and probe_set.digest != builtin.digest:
        raise InvalidProbes(f"{builtin.name!r} names the built-in probes: choose another with --name")
    n_labels = len({label for label in probe_set.labels if label is not None})
    new = add_probes(open_store(store, write=True), probe_set)
    for finding in probe_set.notes():
        note(f"{file}: {finding}")
    state = "added" if new else "was there already"
    click.echo(f"{probe_set.name}: {len(probe_set)} probes, {n_labels} labels, digest {probe_set.digest[:12]}, {state}")
