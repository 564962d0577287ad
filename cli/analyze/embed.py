"""``replay analyze embed``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from replay.geometry.embedding import Method

__all__ = ["embed"]


@click.command()
@click.option(
    "--method",
    type=click.Choice(["phate", "mds", "diffusion"]),
    default="phate",
    show_default=True,
    help="How points are laid out.",
)
@click.option("--seed", default=0, show_default=True, help="Of phate.")
@asking(measure="frobenius")
@writing
def embed(asked: Asked, /, *, method: "Method", seed: int, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """Every checkpoint of every run as a point in a plane, from the distances between them."""
    from replay.analyses.embedding import analyze_embedding

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_embedding(asked.store, measure=asked.measure, method=method, seed=seed, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.embedding import plot_embedding

    plot_embedding(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"{attrs['method']} of {result.sizes['point']} checkpoints of {len(attrs['runs'])} runs, from "
        f"{attrs['measure_title']} over {attrs['n_probes']} probes of {attrs['probes']!r} ({attrs['dtype']})"
    )
    names = ("trustworthiness", "continuity", "random_agreement", "stress")
    rows = [
        [layer, *(number(float(result[name][row])) for name in names)]
        for row, layer in enumerate(result["layer"].to_numpy())
    ]
    print_table(["layer", "trustworthiness", "continuity", "of points dealt at random", "stress"], rows)


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    axes = {
        f"axis{number + 1}": result["embedding"].isel(component=number) for number in range(result.sizes["component"])
    }
    frame = result[["run", "step", "revision"]].reset_coords().assign(axes).to_dataframe().reset_index()
    return frame[["layer", "run", "step", "revision", *axes]]
