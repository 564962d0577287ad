"""``replay analyze dimension``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import note, print_table
from cli.results import check_targets, number, present, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["dimension"]


@click.command()
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", help="What to measure; repeatable. A wrong name lists all."
)
@click.option("--energy", default=0.9, show_default=True, help="Share that a cumulative energy reaches.")
@click.option("--weights", is_flag=True, help="The stable rank of each weight matrix instead, uncentred.")
@asking(gauge=False)
@writing
def dimension(
    asked: Asked,
    /,
    *,
    metrics: tuple[str, ...],
    energy: float,
    weights: bool,
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """How many dimensions the activations of every run, step and layer take up, by several definitions."""
    from replay.analyses.dimension import analyze_dimension
    from store.errors import InvalidInput

    check_targets(csv, plot)
    if weights and (metrics or asked.choice.layers):
        raise InvalidInput("--weights is the stable rank of every weight matrix: leave out --metric and --layers")
    if weights:
        _present_weights(asked, as_json=as_json, csv=csv, plot=plot)
        return
    with asked.working() as how:
        result = analyze_dimension(asked.store, metrics=metrics or None, energy=energy, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)


def _present_weights(asked: Asked, *, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    from replay.analyses.weights import weight_ranks
    from replay.plots.dimension import plot_weight_ranks

    result = weight_ranks(asked.store, asked.choice)
    present(
        result, table=_weights_table, draw=plot_weight_ranks, show=_show_weights, as_json=as_json, csv=csv, plot=plot
    )
    for run in result.attrs["not_measured"]:
        note(f"left out: {run}: no weights were measured of it: replay ingest --weight-ranks")
    for run, names in result.attrs["not_measured_at"].items():
        if names:
            note(f"not measured: weights of {len(names)} checkpoints of {run}: replay ingest --weight-ranks")


def _show_weights(result: "xr.Dataset") -> None:
    click.echo(
        "stable rank of the weight matrices, uncentred, at the first and last step of each run; --csv has every step"
    )
    rows = []
    for run in result["run"].to_numpy():
        for tensor in result["tensor"].to_numpy():
            at = result.sel(run=run, tensor=tensor)
            ranks = at["stable_rank"].dropna("step")
            if ranks.sizes["step"]:
                steps = f"{int(ranks['step'][0])} -> {int(ranks['step'][-1])}"
                shape = f"{int(at['rows'])} x {int(at['columns'])}"
                rows.append([run, tensor, shape, steps, f"{_digits(ranks[0])} -> {_digits(ranks[-1])}"])
    print_table(["run", "tensor", "shape", "step", "stable rank"], rows)


def _weights_table(result: "xr.Dataset") -> "pd.DataFrame":
    return tabulate(result, ["stable_rank"]).dropna()


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.dimension import plot_dimension

    plot_dimension(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"dimension of activations over {attrs['n_probes']} probes of {attrs['probes']!r} ({attrs['dtype']}), first "
        f"and last step of each run; {attrs['interval']}; last row: independent features; --csv has every step"
    )
    metrics, rows = list(attrs["metrics"]), []
    nulls: dict[tuple[str, ...], list[str]] = {}
    for run in result["run"].to_numpy():
        for layer in result["layer"].to_numpy():
            at = result.sel(run=run, layer=layer).dropna("step", how="all", subset=metrics)
            if at.sizes["step"]:
                first, last = at.isel(step=0), at.isel(step=-1)
                cells = [
                    f"{_digits(first[name])} -> {_digits(last[name])} "
                    f"[{_digits(last[f'{name}_low'])}, {_digits(last[f'{name}_high'])}]"
                    for name in metrics
                ]
                rows.append([run, layer, f"{int(first['step'])} -> {int(last['step'])}", *cells])
                here = nulls.setdefault(tuple(_digits(last[f"{name}_null"]) for name in metrics), [])
                here.append(layer) if layer not in here else None
    for null, layers in nulls.items():
        rows.append(["independent features", ", ".join(layers) if len(nulls) > 1 else "", "", *null])
    print_table(["run", "layer", "step", *(name.replace("_", " ") for name in metrics)], rows)


def _digits(value: "xr.DataArray") -> str:
    return number(float(value), ".3g" if abs(float(value)) < 1000 else ".0f")


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    metrics = list(result.attrs["metrics"])
    names = [f"{name}{end}" for name in metrics for end in ("", "_low", "_high", "_null")]
    return tabulate(result, names).dropna(subset=metrics, how="all")
