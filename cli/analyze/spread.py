"""``replay analyze spread``."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import check_target, note, print_table, progress

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["spread"]

SHOWN_FLAGGED = 3
"""Flagged revisions of a run whose reason is told; the others are named."""

SHOWN_STEPS = 6
"""Steps in the printed table; ``--csv`` and ``--json`` have all."""


@click.command()
@click.option("--runs", multiple=True, metavar="GLOB", default=("*",), help="Runs, names or globs; all by default.")
@click.option("--layers", multiple=True, metavar="SPEC", help="Stored layers, names or globs; all by default.")
@click.option("--probes", metavar="NAME", help="Probe set, where the runs share several.")
@click.option("--knn", default=15, show_default=True, help="Neighbour that sets each probe's bandwidth.")
@click.option("--alpha", default=1.0, show_default=True, help="Density correction: 0 none, 1 full.")
@click.option("--include-flagged", is_flag=True, help="Take in revisions that an audit holds for faulty.")
@click.option("--workers", default=0, show_default=True, help="Processes of a local cluster; 0 is threads.")
@click.option("--scheduler", metavar="URL", help="A Dask scheduler, tcp://host:8786; its workers must see the store.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write one row a step and layer.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, as .png, .svg or .pdf.")
@click.pass_obj
def spread(
    store: Path,
    *,
    runs: tuple[str, ...],
    layers: tuple[str, ...],
    probes: str | None,
    knn: int,
    alpha: float,
    include_flagged: bool,
    workers: int,
    scheduler: str | None,
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """How far apart several runs' representations are, step by step, layer by layer."""
    from replay.analyses.spread import analyze_spread
    from replay.geometry.gauge import DiffusionGauge
    from replay.jobs import Cluster
    from replay.opening import open_store
    from replay.plots.spread import SUFFIXES, plot_spread
    from store.catalog import Store

    check_target(csv, ".csv")
    check_target(plot, *SUFFIXES)
    Store(store)  # an analysis never makes a store
    with progress() as advance:
        result = analyze_spread(
            open_store(store, write=True),
            runs=runs,
            layers=layers or None,
            probes=probes,
            gauge=DiffusionGauge(knn=knn, alpha=alpha),
            include_flagged=include_flagged,
            cluster=Cluster(workers=workers, scheduler=scheduler),
            advance=advance,
        )
    if csv is not None:
        _long(result).to_csv(csv, index=False)
    if plot is not None:
        plot_spread(result, plot)
    if as_json:
        click.echo(json.dumps(_document(result), indent=2, allow_nan=False))
    else:
        _print(result)
    for written in (csv, plot):
        if written is not None:
            note(f"written: {written}")
    for run, names in result.attrs["dropped"].items():
        note(f"left out: {run} {', '.join(names)}: another run lacks the step, or another revision holds it")
    _print_flagged(result)
    for one, other in result.attrs["identical"]:
        note(f"identical: {one} and {other} hold the same checkpoints, so their distance is 0 everywhere")
    for step, layer, reason in result.attrs["unavailable"]:
        note(f"unavailable: {layer}{'' if step is None else f' at step {step}'}: {reason}")


def _print_flagged(result: "xr.Dataset") -> None:
    what = "taken in" if result.attrs["include_flagged"] else "left out"
    for run, reasons in result.attrs["flagged"].items():
        for name, reason in list(reasons.items())[:SHOWN_FLAGGED]:
            note(f"flagged: {run} {name}: {reason.removeprefix(name).lstrip(': ')}; {what} (see `replay audit`)")
        if len(reasons) > SHOWN_FLAGGED:
            note(f"flagged: {run} {', '.join(list(reasons)[SHOWN_FLAGGED:])}; {what} too")


def _print(result: "xr.Dataset") -> None:
    steps = result["step"].to_numpy()
    picked = sorted({round(i * (len(steps) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    click.echo(
        f"normalised spread of {len(result.attrs['runs'])} runs over {result.attrs['n_probes']} probes of "
        f"{result.attrs['probes']!r} ({result.attrs['dtype']}), {len(steps)} steps; 0 is equal, the ceiling is that of "
        f"relabelled probes at the last step; {result.attrs['interval']}"
    )
    columns = ["layer", *(f"step {steps[i]}" for i in picked[:-1]), f"step {steps[-1]} [95 %]", "ceiling"]
    rows = []
    for layer in result["layer"].to_numpy():
        at = result.sel(layer=layer)
        values = at["spread_normalized"].to_numpy()
        last = at.isel(step=-1)
        interval = f"[{float(last['spread_normalized_low']):.3f}, {float(last['spread_normalized_high']):.3f}]"
        rate = f"{float(at['rate']):+.4f} [{float(at['rate_low']):+.4f}, {float(at['rate_high']):+.4f}]"
        cells = [f"{values[i]:.3f}" for i in picked[:-1]]
        ceiling = f"{float(last['spread_normalized_ceiling']):.3f}"
        row = (layer, *cells, f"{values[-1]:.3f} {interval}", ceiling, rate)
        rows.append([re.sub(r"[+]?nan( \[.*\])?", "-", cell) for cell in row])
    print_table([*columns, "rate per 1,000 steps [95 %]"], rows)


def _long(result: "xr.Dataset") -> Any:
    names = [f"{name}{end}" for name in ("spread", "spread_normalized") for end in ("", "_low", "_high", "_ceiling")]
    return result[names].to_dataframe().reset_index()


def _document(result: "xr.Dataset") -> dict[str, Any]:
    rows = _long(result).astype(object)
    rates = result[["rate", "rate_low", "rate_high"]].to_dataframe().reset_index().astype(object)
    return {
        **result.attrs,
        "rows": rows.where(rows.notna(), None).to_dict("records"),
        "rates": rates.where(rates.notna(), None).to_dict("records"),
    }
