"""``replay analyze``: questions to the store, one file each."""

import click

from cli.analyze.spread import spread

__all__ = ["analyze"]


@click.group()
def analyze() -> None:
    """Compute metrics over training, each with its uncertainty."""


analyze.add_command(spread)
