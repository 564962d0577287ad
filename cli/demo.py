"""``replay demo``: the whole of it on a family of small models trained on the spot."""

from pathlib import Path

import click

__all__ = ["demo"]


@click.command()
@click.option(
    "--folder", type=click.Path(path_type=Path), default="replay-demo", show_default=True, help="Where to work."
)
def demo(*, folder: Path) -> None:
    """Train three small replicas, replay their checkpoints, analyse their spread; under three minutes on two cores."""
    from replay.demo.run import run_demo

    run_demo(folder)
