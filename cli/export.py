"""``replay export``: the store in formats of others."""

from pathlib import Path

import click

from replay.units import human_bytes

__all__ = ["export"]


@click.group()
def export() -> None:
    """Write parts of the store for other programs."""


@export.command()
@click.argument("run")
@click.argument("target", type=click.Path(path_type=Path))
@click.option("--layers", multiple=True, metavar="SPEC", help="Stored layers, names or globs; all by default.")
@click.pass_obj
def zarr(store: Path, run: str, target: Path, *, layers: tuple[str, ...]) -> None:
    """Write the activations of RUN as a plain Zarr v3 store at TARGET, by hard links where the disk allows."""
    from replay.opening import open_store
    from store.exports import export_zarr

    written = export_zarr(open_store(store), run, target, layers=list(layers) or None)
    click.echo(
        f"{target}: {written.n_files} files, {human_bytes(written.n_linked)} linked, "
        f"{human_bytes(written.n_written)} written; open it with xarray.open_zarr"
    )
