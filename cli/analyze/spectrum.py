"""``replay analyze spectrum``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["spectrum"]


@click.command()
@click.option("--eigenvalues", "k", default=50, show_default=True, help="How many eigenvalues to keep.")
@click.option("--time", "t", default=1, show_default=True, help="Diffusion time of the von Neumann entropy.")
@asking()
@writing
def spectrum(asked: Asked, /, *, k: int, t: int, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """Eigenvalues, entropies and neighbourhoods of the operators of every run, step and layer."""
    from replay.analyses.spectrum import analyze_spectrum

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_spectrum(asked.store, k=k, t=t, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.spectrum import plot_spectrum

    plot_spectrum(result, path)


def _show(result: "xr.Dataset") -> None:
    from replay.analyses.spectrum import SCALARS

    attrs = result.attrs
    click.echo(
        f"spectra of operators over {attrs['n_probes']} probes of {attrs['probes']!r} ({attrs['dtype']}) at the last "
        f"step of each run; {attrs['interval']}; the last row is a walk that sees no geometry; --csv has every step"
    )
    rows = []
    for run in result["run"].to_numpy():
        for layer in result["layer"].to_numpy():
            at = result.sel(run=run, layer=layer).dropna("step", how="all", subset=["spectral_gap"])
            if at.sizes["step"]:
                last = at.isel(step=-1)
                cells = [
                    f"{number(float(last[name]))} [{number(float(last[f'{name}_low']))}, "
                    f"{number(float(last[f'{name}_high']))}]"
                    for name in SCALARS
                ]
                rows.append([run, layer, str(int(last["step"])), *cells])
    rows.append(["uniform walk", "", "", *(number(attrs["uniform"][name]) for name in SCALARS)])
    print_table(["run", "layer", "step", *(name.replace("_", " ") for name in SCALARS)], rows)


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    from replay.analyses.spectrum import SCALARS

    return tabulate(result, [f"{name}{end}" for name in SCALARS for end in ("", "_low", "_high")]).dropna(
        subset=[SCALARS[0]]
    )
