"""``replay merge``: several operators into one."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking
from cli.output import note, print_table
from cli.results import check_targets, number, print_remarks

if TYPE_CHECKING:
    import xarray as xr

    from replay.analyses.merging import MergeAcross
    from replay.geometry.merging import Strategy

__all__ = ["merge"]


@click.command()
@click.option(
    "--strategy",
    required=True,
    metavar="NAME",
    help="weighted_interpolation, frobenius_mean (the same: the arithmetic mean), log_euclidean, alternating or "
    "ot_barycenter.",
)
@click.option(
    "--across",
    type=click.Choice(["runs", "layers", "steps", "all"]),
    default="runs",
    show_default=True,
    help="What is merged into one.",
)
@click.option("--step", "steps", type=int, multiple=True, help="Step to merge at, repeatable; the last by default.")
@click.option(
    "--weight",
    "weights",
    multiple=True,
    metavar="NAME=NUMBER",
    help="Weight of a run, layer or revision; all or none of them. Equal by default.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what was merged as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, as .png, .svg or .pdf.")
@asking()
def merge(
    asked: Asked,
    /,
    *,
    strategy: "Strategy",
    across: "MergeAcross",
    steps: tuple[int, ...],
    weights: tuple[str, ...],
    as_json: bool,
    plot: Path | None,
) -> None:
    """Merge operators into one and keep it: the shared geometry of runs, layers or steps."""
    from replay.analyses.merging import merge_operators
    from replay.geometry.merging import DiffusionMerging
    from store.errors import InvalidInput, Unavailable

    check_targets(None, plot)
    merging = DiffusionMerging(strategy)
    shares = _read_weights(weights)
    with asked.working() as how:
        merges = merge_operators(asked.store, merging, across=across, steps=steps, weights=shares, **how)
    if not merges.merged:
        raise Unavailable(next(iter(merges.unavailable.values())))
    if as_json:
        click.echo(json.dumps([_document(merged) for merged in merges.merged], indent=2, allow_nan=False))
    else:
        _show(merges.merged)
    if plot is not None and len(merges.merged) > 1:
        raise InvalidInput(
            f"--plot draws one operator, and there are {len(merges.merged)}, all kept: choose one with --layers, "
            "--runs or --step"
        )
    if plot is not None:
        from replay.plots.merge import plot_merge

        plot_merge(merges.merged[0], plot)
        note(f"written: {plot}")
    for name, reason in merges.unavailable.items():
        note(f"unavailable: {name}: {reason}")
    print_remarks(merges.merged[0])


def _read_weights(given: tuple[str, ...]) -> dict[str, float] | None:
    from store.errors import InvalidInput

    weights: dict[str, float] = {}
    for text in given:
        name, _, value = text.rpartition("=")
        if name in weights:
            raise InvalidInput(f"--weight names {name!r} twice: give each once")
        try:
            weights[name] = float(value)
        except ValueError:
            raise InvalidInput(f"--weight {text!r} is not NAME=NUMBER, such as seed1=0.5") from None
        if not name:
            raise InvalidInput(f"--weight {text!r} is not NAME=NUMBER, such as seed1=0.5")
    return weights or None


def _show(merged: "list[xr.Dataset]") -> None:
    rows = []
    for result in merged:
        attrs = result.attrs
        place = ", ".join(
            f"step {attrs[name]}" if name == "step" else attrs[name]
            for name in ("run", "step", "layer")
            if name in attrs
        )
        farthest = int(result["distance"].to_numpy().argmax())
        rows.append(
            [
                place or "all",
                str(result.sizes["member"]),
                f"{attrs['kind']}{'' if attrs['reversible'] else ', not reversible'}",
                number(float(result["distance"].min())),
                f"{number(float(result['distance'].max()))} ({result['member'].to_numpy()[farthest]})",
            ]
        )
    click.echo(f"{merged[0].attrs['strategy']} across {merged[0].attrs['across']}, kept in the store")
    distances = ["nearest member (normalised Frobenius)", "farthest member"]
    print_table(["merged", "members", "kind", *distances], rows)


def _document(result: "xr.Dataset") -> dict[str, Any]:
    members = {
        name: result[name].to_numpy().tolist()
        for name in ("member", "share", "distance", "revision", "commit", "weights")
    }
    return {**result.attrs, **members}
