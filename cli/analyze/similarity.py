"""``replay analyze similarity``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from replay.analyses.similarity import Across

__all__ = ["similarity"]

SHOWN_ROWS = 8
"""Rows and columns of a printed panel; ``--csv`` and ``--json`` have all."""

SHOWN_PANELS = 6
"""Printed panels."""


@click.command()
@click.option(
    "--across",
    type=click.Choice(["layers", "steps", "runs"]),
    default="layers",
    show_default=True,
    help="What is compared with what.",
)
@click.option("--step", "steps", type=int, multiple=True, help="Step to look at, repeatable; the last by default.")
@asking(measure="cka")
@writing
def similarity(
    asked: Asked, /, *, across: "Across", steps: tuple[int, ...], as_json: bool, csv: Path | None, plot: Path | None
) -> None:
    """How alike layers, steps or runs are, each cell with its value under relabelled probes."""
    from replay.analyses.similarity import analyze_similarity

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_similarity(asked.store, across=across, steps=steps, measure=asked.measure, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.similarity import plot_similarity

    plot_similarity(result, path)


def _show(result: "xr.Dataset") -> None:
    import numpy as np

    attrs = result.attrs
    what = "equal is 0" if attrs["sense"] == "distance" else "equal is 1"
    nulls = result["null"].to_numpy()
    known = nulls[~np.isnan(nulls)]
    ends = sorted({f"{known.min():.3f}", f"{known.max():.3f}"}) if len(known) else []
    doubt = f"relabelled probes give {' to '.join(ends)}" if ends else attrs["no_null"]
    click.echo(
        f"{attrs['measure_title']} across {attrs['across']} over {attrs['n_probes']} probes of {attrs['probes']!r} "
        f"({attrs['dtype']}); {what}, {doubt}"
    )
    labels = [str(label) for label in result["label"].to_numpy()]
    picked = sorted({round(i * (len(labels) - 1) / (SHOWN_ROWS - 1)) for i in range(SHOWN_ROWS)})
    for panel in range(min(result.sizes["panel"], SHOWN_PANELS)):
        values = result["similarity"].to_numpy()[panel]
        click.echo(f"\n{result['panel'].to_numpy()[panel]}")
        print_table(
            ["", *(labels[j] for j in picked)], [[labels[i], *(number(values[i, j]) for j in picked)] for i in picked]
        )
    if result.sizes["panel"] > SHOWN_PANELS:
        click.echo(f"\nand {result.sizes['panel'] - SHOWN_PANELS} panels more: --csv, --json or --plot has them")


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    labels = result["label"].to_numpy()
    return tabulate(result.assign_coords(row=labels, column=labels), ["similarity", "null"])
