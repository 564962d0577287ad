"""``replay analyze jumps``."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.options import Asked, asking, writing
from cli.output import note, print_table
from cli.results import check_targets, present, records

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from replay.geometry.planted import Score

__all__ = ["jumps"]

FIELDS = ["metric", "run", "layer", "kind", "start", "end", "before", "after", "effect", "p", "q"]

SHOWN = 8
"""Changes within doubt, and runs without a floor, that are named; the others are counted."""


def _validate(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from replay.geometry.planted import MEDIUM, N_LONG, SHORT
    from replay.geometry.validity import FIRST_SEED, N_SERIES, measure_validity

    click.echo(
        f"{N_SERIES} series of each kind, seeds {FIRST_SEED} to {FIRST_SEED + N_SERIES - 1}, none used in making the "
        f"detector; of {N_LONG:,} checkpoints at every step, found within 5, or histories of {len(MEDIUM)} and "
        f"{len(SHORT)} at log-spaced, then even steps, found within 1; false ones per 1,000 checkpoints; off by so "
        "many checkpoints on average; z rule: more than 3 standard deviations from the mean of the last 50"
    )
    rows = [[row.kind, *_cells(row.detector), *_cells(row.rule)] for row in measure_validity()]
    columns = ["recall", "false per 1,000", "off by"]
    print_table(["planted", *columns, *(f"z rule: {name}" for name in columns)], rows)
    context.exit()


def _cells(score: "Score") -> list[str]:
    off = f"{sum(score.errors) / len(score.errors):.1f}" if score.errors else "-"
    return ["-" if score.recall is None else f"{score.recall:.2f}", f"{score.false_per_1000:.2f}", off]


@click.command()
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", default=("stable_rank", "participation_ratio"),
    show_default=True, help="What to look at, any number over training; repeatable. A wrong name lists all.",
)  # fmt: skip
@click.option(
    "--validate", is_flag=True, is_eager=True, expose_value=False, callback=_validate,
    help="Print how often the detector is right on planted series, and end; takes half a minute, needs no store and "
    "looks at no other option.",
)  # fmt: skip
@asking(gauge=False)
@writing
def jumps(asked: Asked, /, *, metrics: tuple[str, ...], as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """Where metrics jump over training: one event a change, with its size and its chance over all series."""
    from replay.analyses.jumps import analyze_jumps

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_jumps(asked.store, metrics=metrics, **how)
    present(result, table=_table, draw=_draw, show=_show, as_json=as_json, csv=csv, plot=plot)
    _tell_doubt(result)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.jumps import plot_jumps

    plot_jumps(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"{result.sizes['event']} changes in {result.sizes['series']} series over {attrs['n_probes']} probes of "
        f"{attrs['probes']!r} ({attrs['dtype']}); between the last step before and the first after; effect in robust "
        f"standard deviations of a change from one checkpoint to the next; q at most {attrs['rate']:g} over all series"
    )
    rows = [
        [
            row["metric"], row["run"], row["layer"], row["kind"], f"{row['start']}-{row['end']}",
            f"{row['before']:.4g} -> {row['after']:.4g}", f"{row['effect']:+.1f}", _chance(row["p"]), _chance(row["q"]),
        ]
        for row in records(_table(result))
    ]  # fmt: skip
    if rows:
        print_table(["metric", "run", "layer", "kind", "steps", "change", "effect", "p", "q"], rows)


def _chance(p: float) -> str:
    return f"{p:.2g}" if p >= 0.001 else f"{p:.0e}"


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    return result[FIELDS].to_dataframe()[FIELDS].reset_index(drop=True)


def _tell_doubt(result: "xr.Dataset") -> None:
    within, runs = result.attrs["within"], result.attrs["no_floor"]
    for run, layer, metric, start, end, reason in within[:SHOWN]:
        note(f"not reported: {', '.join(part for part in (run, layer, metric) if part)}, {start}-{end}: {reason}")
    if len(within) > SHOWN:
        note(f"not reported: {len(within) - SHOWN} more, all in --json")
    if runs:
        more = f" and {len(runs) - SHOWN} more" if len(runs) > SHOWN else ""
        note(
            f"no floor measured for {', '.join(runs[:SHOWN])}{more}: `replay ingest --floor` tells rounding from change"
        )
