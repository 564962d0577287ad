"""``replay analyze``: questions to the store, one file each."""

import click

from cli.analyze.correlation import correlation
from cli.analyze.dimension import dimension
from cli.analyze.embed import embed
from cli.analyze.jumps import jumps
from cli.analyze.multislice import multislice
from cli.analyze.neurons import neurons
from cli.analyze.path import path
from cli.analyze.phases import phases
from cli.analyze.similarity import similarity
from cli.analyze.spectrum import spectrum
from cli.analyze.spread import spread

__all__ = ["analyze"]


@click.group()
def analyze() -> None:
    """Compute metrics over training, each with its uncertainty."""


for _command in (spread, path, spectrum, similarity, embed, multislice, dimension, jumps, phases, neurons, correlation):
    analyze.add_command(_command)
