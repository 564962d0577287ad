"""The command line: one file a verb; a command parses, calls one function, prints."""

import os
import sys
from pathlib import Path

import click

from cli.analyze import analyze
from cli.audit import audit
from cli.demo import demo
from cli.export import export
from cli.gauge import gauge
from cli.ingest import ingest, watch
from cli.layers import layers
from cli.ls import ls
from cli.merge import merge
from cli.probes import probes
from cli.refine import refine
from cli.upgrade import upgrade
from store.errors import ReplayError

__all__ = ["main"]

# Before torch is loaded: threads that spin at a barrier make two processes on one machine five times slower each.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _Commands(click.Group):
    """A group whose commands end in one line on stderr when something is wrong."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except ReplayError as error:
            if ctx.params.get("debug"):
                raise
            notes = "".join(f" ({note})" for note in getattr(error, "__notes__", []))
            click.echo(f"replay: {error}{notes}", err=True)
            sys.exit(1)
        except OSError as error:
            if ctx.params.get("debug") or isinstance(error, BrokenPipeError):
                raise
            name = f"{error.filename}: " if error.filename else ""
            click.echo(f"replay: {name}{error.strerror or error}", err=True)
            sys.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--store",
    type=click.Path(path_type=Path),
    default="replay-store",
    envvar="REPLAY_STORE",
    show_envvar=True,
    show_default=True,
    help="Folder of the store.",
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="checkpoint-replay", prog_name="replay")
@click.pass_context
def main(ctx: click.Context, store: Path, *, debug: bool) -> None:  # noqa: ARG001 (the group reads it)
    """Replay a model's checkpoints through one probe set and ask what the representation did during training."""
    ctx.obj = store


for _command in (ingest, watch, refine, audit, analyze, merge, gauge, layers, ls, probes, export, upgrade, demo):
    main.add_command(_command)
