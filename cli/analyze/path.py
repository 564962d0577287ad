"""``replay analyze path``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["path"]


@click.command()
@asking(measure="frobenius")
@writing
def path(asked: Asked, /, *, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """How each run moves through operator space: velocity, length, distance to the end, turns."""
    from replay.analyses.path import analyze_path

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_path(asked.store, measure=asked.measure, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.path import plot_path

    plot_path(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"{len(attrs['runs'])} runs, {attrs['measure_title']}, over {attrs['n_probes']} probes of "
        f"{attrs['probes']!r} ({attrs['dtype']}); straightness is 1 on a straight line; roughness is 1 there, 1.41 for "
        f"a random walk and 2 for mere noise; {attrs['interval']}; --csv has every step"
    )
    rows = []
    for run in result["run"].to_numpy():
        for layer in result["layer"].to_numpy():
            at = result.sel(run=run, layer=layer)
            if not at["length"].notnull().any():
                continue
            moving = at.isel(step=int(at["velocity_log"].fillna(-1).to_numpy().argmax()))
            rows.append(
                [
                    run,
                    layer,
                    number(float(at["length"].max())),
                    number(float(at["distance_to_final"].max())),
                    f"{number(float(moving['velocity_log']), '.3f')} at {int(moving['step'])}",
                    *(
                        f"{number(float(at[name]))} [{number(float(at[f'{name}_low']))}, "
                        f"{number(float(at[f'{name}_high']))}]"
                        for name in ("straightness", "roughness")
                    ),
                ]
            )
    columns = ["run", "layer", "length", "farthest from the end", "fastest per ln step"]
    print_table([*columns, "straightness [95 %]", "roughness [95 %]"], rows)


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    from replay.analyses.path import CURVES

    return tabulate(result, [f"{name}{end}" for name in CURVES for end in ("", "_low", "_high")]).dropna(
        subset=["distance_to_final"]
    )
