"""``replay upgrade``: a store of an older version."""

from pathlib import Path

import click

__all__ = ["upgrade"]


@click.command()
@click.pass_obj
def upgrade(store: Path) -> None:
    """Bring the store to this version, keeping a copy of its index."""
    import migrations
    from store.catalog import INDEX, Store
    from store.errors import NotAStore

    if not (store / INDEX).is_file():
        raise NotAStore(f"{store} is not a replay store (it has no {INDEX}): name one with --store")
    changed = migrations.upgrade(store / INDEX)
    Store(store)
    click.echo(f"{store} {'was upgraded' if changed else 'is up to date'}")
