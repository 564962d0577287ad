"""``replay analyze correlation``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["correlation"]

SHOWN_PAIRS = 12
"""Printed pairs; ``--csv`` and ``--json`` have all."""

SIGNIFICANT = 0.05
"""The largest q of a pair that is counted."""


@click.command()
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Metric or scalar of training; repeatable. By default all scalars, the loss on the probes where "
    "it was measured, stable_rank and participation_ratio. A wrong name lists all.",
)
@click.option(
    "--method",
    type=click.Choice(["pearson", "spearman"]),
    default="pearson",
    show_default=True,
    help="Of values or of ranks.",
)
@asking(gauge=False)
@writing
def correlation(
    asked: Asked,
    /,
    *,
    metrics: tuple[str, ...],
    method: str,
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:  # fmt: skip
    """Which metrics and scalars of training go together over the steps: levels, changes, and beside a trend."""
    from replay.analyses.correlation import analyze_correlation

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_correlation(asked.store, metrics=metrics, method=method, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.correlation import plot_correlation

    plot_correlation(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    n_runs = result.sizes["run"]
    scalars = {number for number, (_, layer) in enumerate(attrs["series"]) if not layer}
    pairs = [(i, j) for i in range(len(attrs["series"])) for j in range(i)]
    with_scalar = [pair for pair in pairs if scalars & set(pair)] or pairs
    what = "pairs with a scalar of training" if len(with_scalar) < len(pairs) else "pairs"
    doubt = "95 % interval, q" if n_runs == 1 else f"mean over {n_runs} runs, and in how many q is below {SIGNIFICANT}"
    click.echo(
        f"{attrs['method']} correlation over training steps: levels, changes from checkpoint to checkpoint, residuals "
        f"beside a polynomial in ln(1 + step); {doubt}; q over all pairs{' and runs' if n_runs > 1 else ''}; "
        f"{len(with_scalar)} {what}, the clearest first; --csv has all"
    )
    labels = result["series_a"].to_numpy()
    rows = [
        [labels[j], labels[i], *(_cell(result.isel(variant=v, series_a=i, series_b=j)) for v in range(3))]
        for i, j in sorted(with_scalar, key=lambda pair: _clarity(result.isel(series_a=pair[0], series_b=pair[1])))
    ]
    print_table(["series", "with", *result["variant"].to_numpy()], rows[:SHOWN_PAIRS])


def _clarity(pair: "xr.Dataset") -> tuple[float, float]:
    """Sort first what is significant in most runs beyond its level, then what is largest in its changes."""
    beyond = pair.sel(variant=["differenced", "detrended"])
    size = abs(float(pair["mean"].sel(variant="differenced")))
    return -float((beyond["q"] <= SIGNIFICANT).sum()), -size if size == size else 0.0


def _cell(pair: "xr.Dataset") -> str:
    if pair.sizes["run"] == 1:
        one = pair.isel(run=0)
        low, high = (number(float(one[end]), ".2f") for end in ("low", "high"))
        return f"{number(float(one['correlation']), '.2f')} [{low}, {high}], {number(float(one['q']))}"
    known = int(pair["q"].notnull().sum())
    return f"{number(float(pair['mean']), '.2f')}, {int((pair['q'] <= SIGNIFICANT).sum())} of {known}"


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    names = ["correlation", "low", "high", "p", "q", "n_effective", "n_steps"]
    table: Any = result[names].to_dataframe().reset_index()
    place = {label: at for at, label in enumerate(result["series_a"].to_numpy())}
    once = table["series_a"].map(place) < table["series_b"].map(place)
    table = table.loc[once, ["run", "variant", "series_a", "series_b", *names]]
    known: pd.DataFrame = table.dropna(subset=["correlation"])
    return known
