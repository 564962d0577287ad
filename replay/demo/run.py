"""The demonstration from end to end: replicas trained on the spot, then the commands a user would give."""

import shlex
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import click

from replay.demo.train import read_losses, train_replicas
from store.errors import ReplayError, StoreNotWritable

__all__ = ["run_demo"]


def run_demo(folder: Path) -> None:
    """Train three replicas under `folder`, replay and analyse them by the command line, then read the result back.

    What an earlier demonstration in the same folder finished is not done again.

    Parameters
    ----------
    folder
        Gets `runs` (the checkpoints), `store` and `spread.png`.

    Raises
    ------
    StoreNotWritable
        If `folder` cannot be written.
    SystemExit
        If a command fails, with its exit code.
    """
    store, plot = folder / "store", folder / "spread.png"
    note = "about a minute on two cores; one that is complete is kept"
    click.echo(f"Training three replicas of a small language model under {folder / 'runs'} ({note})", err=True)
    try:
        runs = train_replicas(folder / "runs")
    except BrokenProcessPool as problem:
        raise ReplayError("a training process was killed from outside: the same command goes on from here") from problem
    except OSError as problem:
        raise StoreNotWritable(
            f"{folder} cannot be written ({problem.strerror}): name another with --folder"
        ) from problem
    for run in runs:
        losses = read_losses(run)
        click.echo(
            f"{run.name}: {len(losses)} checkpoints, step {losses[0].step} to {losses[-1].step}, "
            f"validation loss {losses[0].validation:.2f} to {losses[-1].validation:.2f}"
        )
    paths = [argument for run in runs for argument in ("--path", str(run))]
    _replay(store, "ingest", *paths, "--revisions", "all")
    _replay(store, "ls", "runs")
    _replay(store, "analyze", "spread", "--plot", str(plot))
    _read_back(store, runs[0].name)
    _show_next_steps(store, plot, runs)


def _replay(store: Path, *arguments: str) -> None:
    command = ["--store", str(store), *arguments]
    click.echo(f"\n$ {shlex.join(['replay', *command])}")
    # -P: a folder of the user's called cli or store must not stand in for the package.
    whole = [sys.executable, "-P", "-m", "cli", *command]
    code = subprocess.run(whole, check=False).returncode  # noqa: S603 - our own command line, no shell
    if code:
        raise SystemExit(code if code > 0 else 128 - code)


def _read_back(store: Path, run: str) -> None:
    import xarray as xr

    import replay

    click.echo(f'\n>>> xarray.open_dataset("{store}", engine="replay", run="{run}").sizes')
    with xr.open_dataset(store, engine="replay", run=run) as activations:
        click.echo(dict(activations.sizes))
    click.echo(f'>>> replay.open_store("{store}").result("spread")["spread_normalized"].isel(step=-1)')
    last = replay.open_store(store).result("spread")["spread_normalized"].isel(step=-1)
    for layer, value in zip(last["layer"].to_numpy(), last.to_numpy(), strict=True):
        click.echo(f"{layer}  {value:.3f}")
    lowest = last.isel(layer=int(last.argmin("layer")))
    click.echo(f"At step {int(last['step'])} the replicas agree most in {lowest['layer'].item()}.")


def _show_next_steps(store: Path, plot: Path, runs: list[Path]) -> None:
    opened = ["replay", "--store", str(store)]
    paths = [argument for run in runs for argument in ("--path", str(run))]
    proposals = [
        [*opened, "ls", "revisions", runs[0].name],
        [*opened, "ingest", *paths, "--revisions", "all", "--layers", "embed", "--layers", "final_norm"],
        [*opened, "analyze", "spread", "--alpha", "0", "--csv", str(plot.with_suffix(".csv"))],
        [*opened, "analyze", "jumps", "--plot", str(plot.with_name("jumps.png"))],
        ["replay", "ingest", "--repo", "EleutherAI/pythia-160m-seed1", "--repo", "EleutherAI/pythia-160m-seed3"],
    ]
    click.echo(f"\nThe plot is {plot}, the store {store}. Next:")
    for proposal in proposals:
        click.echo(f"  {shlex.join(proposal)}")
