"""``replay analyze neurons``."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

    from replay.geometry.neurons import Nonlinearity

__all__ = ["neurons"]

SHOWN_LETTERS = 40
"""Letters of a probe's text in the table of movers."""

SHOWN_PROBES = 2
"""Probes of a unit in the table of movers."""


@click.command()
@click.option(
    "--before", metavar="REVISION", help="Earlier checkpoint to compare, or its step; a run's first by default."
)
@click.option("--after", metavar="REVISION", help="Later checkpoint to compare, or its step; a run's last by default.")
@click.option(
    "--around", type=int, metavar="STEP", help="Compare the checkpoints just before and just after this step."
)
@click.option(
    "--nonlinearity",
    type=click.Choice(["rectified", "gated", "tanh", "sigmoid", "linear"]),
    help="What the layers' values come out of; by default names and values tell.",
)
@click.option("--top", default=10, show_default=True, help="How many of the largest movers to list.")
@asking(gauge=False)
@writing
def neurons(
    asked: Asked,
    /,
    *,
    before: str | None,
    after: str | None,
    around: int | None,
    nonlinearity: "Nonlinearity | None",
    top: int,
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """Mean, std, sparsity and duty cycle of every unit; units that die, wake or change most between two checkpoints."""
    from replay.analyses.neurons import analyze_neurons, rank_movers
    from store.errors import InvalidInput

    check_targets(csv, plot)
    if top < 0:
        raise InvalidInput(f"--top is the number of movers to list, 0 or more, not {top}")
    with asked.working() as how:
        result = analyze_neurons(
            asked.store, before=before, after=after, around=around, nonlinearity=nonlinearity, **how
        )
    ranked = partial(rank_movers, limit=top)
    show, also = partial(_show, ranked=ranked), partial(_also, ranked=ranked)
    present(result, table=_table, draw=_draw, show=show, also=also, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.neurons import plot_neurons

    plot_neurons(result, path)


def _show(result: "xr.Dataset", *, ranked: "Callable[[xr.Dataset], list[dict[str, Any]]]") -> None:
    attrs = result.attrs
    click.echo(
        f"units of {len(attrs['runs'])} runs over {attrs['n_probes']} probes of {attrs['probes']!r} "
        f"({attrs['dtype']}); what dead, sparse and active (duty cycle) mean follows from the nonlinearity; movement "
        "is the root mean square change in pooled stds; --csv has every unit"
    )
    rows = []
    for run in attrs["runs"]:
        for layer in result["layer"].to_numpy():
            at = result.sel(run=run, layer=layer)
            ends = at.sel(step=_steps(result, run))
            rows.append(
                [
                    run,
                    layer,
                    str(at["nonlinearity"].item()) or "-",
                    " to ".join(str(int(step)) for step in ends["step"]),
                    int(at["n_units"]),
                    " to ".join(_count(dead) for dead in ends["dead"].transpose("step", "unit").to_numpy()),
                    _count(at["became_dead"].to_numpy()),
                    _count(at["became_alive"].to_numpy()),
                    *(number(float(ends.isel(step=-1)[name].median())) for name in ("sparsity", "duty_cycle")),
                    number(float(at["movement"].median()), ".2f"),
                ]
            )
    columns = ["run", "layer", "nonlinearity", "steps", "units", "dead", "became dead", "became alive"]
    print_table([*columns, *(f"median {name}" for name in ("sparsity", "duty cycle", "movement"))], rows)
    movers = ranked(result)
    if movers:
        click.echo(
            f"\nlargest movers by the lower end of the interval ({attrs['interval']}); shift is the change of the mean "
            "in pooled stds, q its significance among all units; correlation is between the two over probes"
        )
        print_table(
            [
                "run",
                "layer",
                "unit",
                "movement [95 %]",
                "shift",
                "q",
                "correlation",
                "probes with the highest values",
            ],
            [_mover(mover) for mover in movers],
        )


def _mover(mover: dict[str, Any]) -> list[object]:
    def value(name: str, form: str = ".2f") -> str:
        return number(float("nan") if mover[name] is None else mover[name], form)

    return [
        mover["run"],
        mover["layer"],
        str(mover["unit"]),
        f"{value('movement')} [{value('movement_low')}, {value('movement_high')}]",
        value("shift", "+.2f"),
        "<1e-9" if mover["q"] is not None and mover["q"] < 1e-9 else value("q", ".1g"),
        value("correlation", "+.2f"),
        "; ".join(_probe(probe) for probe in mover["top_probes"][:SHOWN_PROBES]) or "-",
    ]


def _probe(probe: dict[str, Any]) -> str:
    text = probe["text"] if len(probe["text"]) <= SHOWN_LETTERS else f"{probe['text'][: SHOWN_LETTERS - 1]}…"
    return f"{text} ({probe['label']})" if probe["label"] else text


def _also(result: "xr.Dataset", *, ranked: "Callable[[xr.Dataset], list[dict[str, Any]]]") -> dict[str, Any]:
    return {"movers": ranked(result)}


def _count(flags: Any) -> str:
    import numpy as np

    return str(int(np.nansum(flags))) if np.isfinite(flags).any() else "-"


def _steps(result: "xr.Dataset", run: str) -> list[int]:
    """Return the two steps that are compared in a run, or its last."""
    pair = result.attrs["compared"][run]
    there = result["revision"].sel(run=run).to_numpy() != ""
    return pair if isinstance(pair, list) else [int(result["step"].to_numpy()[there][-1])]


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    """Return a row a unit: what it does at either checkpoint, and how it changed."""
    import pandas as pd
    import xarray as xr

    from replay.analyses.neurons import STATISTICS

    changes = [str(name) for name, values in result.data_vars.items() if values.dims == ("run", "layer", "unit")]
    parts = []
    for run in result.attrs["runs"]:
        at, steps = result.sel(run=run), _steps(result, run)
        columns = {"nonlinearity": at["nonlinearity"], "n_units": at["n_units"]}
        for end, step in zip(("after", "before"), reversed(steps), strict=False):
            columns |= {f"step_{end}": xr.DataArray(step)}
            columns |= {f"{name}_{end}": at[name].sel(step=step) for name in STATISTICS}
        columns |= {name: at[name] for name in changes}
        columns |= {f"top_probe_{rank + 1}": at["top_probe"].isel(rank=rank) for rank in range(result.sizes["rank"])}
        cells = xr.Dataset({name: values.reset_coords(drop=True) for name, values in columns.items()})
        parts.append(cells.to_dataframe().reset_index().assign(run=run))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame[frame["unit"] < frame["n_units"]].drop(columns="n_units")
    whole = [name for name in frame.columns if name.startswith(("top_probe_", "dead_", "became_", "step_"))]
    frame[whole] = frame[whole].astype("Int64")
    return frame[["run", *frame.columns.drop("run")]]
