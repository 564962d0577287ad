"""``replay analyze spread``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking, writing
from cli.output import note, print_table
from cli.results import check_targets, number, present, records, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["spread"]

SHOWN_STEPS = 6
"""Steps in the printed table; ``--csv`` and ``--json`` have all."""

SHOWN_PHASES = 3
"""Phases told of a layer; ``--json`` has all."""


@click.command()
@asking(measure="frobenius")
@writing
def spread(asked: Asked, /, *, as_json: bool, csv: Path | None, plot: Path | None) -> None:
    """How far apart several runs' representations are, step by step, layer by layer."""
    from replay.analyses.spread import analyze_spread

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_spread(asked.store, measure=asked.measure, **how)
    present(result, table=_table, draw=_draw, show=_show, also=_rates, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.spread import plot_spread

    plot_spread(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs, steps = result.attrs, result["step"].to_numpy()
    normalized = "spread_normalized" in result
    name = "spread_normalized" if normalized else "spread"
    picked = sorted({round(i * (len(steps) - 1) / (SHOWN_STEPS - 1)) for i in range(SHOWN_STEPS)})
    ceiling = attrs["no_ceiling"] or "the ceiling is that of relabelled probes at the last step"
    click.echo(
        f"{'normalised ' if normalized else ''}spread of {len(attrs['runs'])} runs over {attrs['n_probes']} probes of "
        f"{attrs['probes']!r} ({attrs['dtype']}), {len(steps)} steps, {attrs['measure_title']}; 0 is equal; {ceiling}; "
        f"{attrs['interval']}"
    )
    columns = ["layer", *(f"step {steps[i]}" for i in picked[:-1]), f"step {steps[-1]} [95 %]"]
    over_runs = not attrs["no_interval_over_runs"]
    columns += [*(["over runs [95 %]"] if over_runs else []), "ceiling", "rate per 1,000 steps [95 %]", "phases"]
    rows = []
    for layer in result["layer"].to_numpy():
        at = result.sel(layer=layer)
        values, last = at[name].to_numpy(), at.isel(step=-1)
        rows.append(
            [
                layer,
                *(number(values[i]) for i in picked[:-1]),
                f"{number(values[-1])} {_interval(last, name)}",
                *([_interval(last, f"{name}_runs")] if over_runs else []),
                number(float(last[f"{name}_ceiling"])),
                f"{number(float(at['rate']), '+.4f')} {_interval(at, 'rate', '+.4f')}",
                _phases(layer, attrs["phases"]),
            ]
        )
    print_table(columns, rows)
    if attrs["no_interval_over_runs"]:
        note(attrs["no_interval_over_runs"])


def _interval(at: "xr.Dataset", name: str, form: str = ".3f") -> str:
    low, high = float(at[f"{name}_low"]), float(at[f"{name}_high"])
    return "" if low != low else f"[{number(low, form)}, {number(high, form)}]"


def _phases(layer: str, phases: list[list[Any]]) -> str:
    mine = [f"{direction} {start}-{end}" for name, start, end, direction, *_ in phases if name == layer]
    more = f" and {len(mine) - SHOWN_PHASES} more" if len(mine) > SHOWN_PHASES else ""
    return ", ".join(mine[:SHOWN_PHASES]) + more or "-"


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    names = [str(name) for name, variable in result.data_vars.items() if variable.dims == ("step", "layer")]
    return tabulate(result, sorted(names))


def _rates(result: "xr.Dataset") -> dict[str, Any]:
    return {"rates": records(tabulate(result, ["rate", "rate_low", "rate_high"]))}
