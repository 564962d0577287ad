"""``replay analyze multislice``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["multislice"]


@click.command()
@click.option("--neighbours", default=5, show_default=True, help="Neighbour that sets a probe's bandwidth in a step.")
@click.option("--seed", default=0, show_default=True, help="Of landmarks and PHATE.")
@asking(gauge=False)
@writing
def multislice(
    asked: Asked, /, *, neighbours: int, seed: int, as_json: bool, csv: Path | None, plot: Path | None
) -> None:
    """Every probe at every step of each run in one plane (M-PHATE)."""
    from replay.analyses.multislice import analyze_multislice

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_multislice(asked.store, knn=neighbours, seed=seed, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.multislice import plot_multislice

    plot_multislice(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"{result.sizes['step']} steps of {attrs['n_probes']} probes of {attrs['probes']!r} ({attrs['dtype']}), "
        "M-PHATE by way of landmarks, whose trustworthiness this is"
    )
    trusted, dealt = result["trustworthiness"].to_numpy(), result["random_agreement"].to_numpy()
    rows = [
        [run, layer, number(trusted[r, c]), number(dealt[r, c])]
        for r, run in enumerate(result["run"].to_numpy())
        for c, layer in enumerate(result["layer"].to_numpy())
    ]
    print_table(["run", "layer", "trustworthiness", "of points dealt at random"], rows)


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    places = result["multislice"]
    axes = {f"axis{axis + 1}": places.isel(component=axis) for axis in range(places.sizes["component"])}
    frame = result[["label"]].reset_coords().assign(axes).to_dataframe().reset_index()
    return frame[["run", "layer", "step", "probe", "label", *axes]].dropna(subset=list(axes))
