"""``replay analyze phases``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking, writing
from cli.output import print_table
from cli.results import check_targets, number, present, tabulate

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

__all__ = ["phases"]

SHOWN_COMPONENTS = 3
"""Components whose share of the variance is printed one by one."""


@click.command()
@click.option("--components", "n_components", default=10, show_default=True, help="Components of the common basis.")
@click.option(
    "--clusters", "n_clusters", type=int, metavar="K", help="Clusters of probes; chosen by silhouette if not given."
)
@click.option("--subspace", default=10, show_default=True, help="Dimensions that are compared from step to step.")
@asking(gauge=False)
@writing
def phases(
    asked: Asked,
    /,
    *,
    n_components: int,
    n_clusters: int | None,
    subspace: int,
    as_json: bool,
    csv: Path | None,
    plot: Path | None,
) -> None:
    """Phases of training, clusters of probes in one basis, and subspaces that turn from step to step."""
    from replay.analyses.phases import analyze_phases

    check_targets(csv, plot)
    with asked.working() as how:
        result = analyze_phases(asked.store, n_components=n_components, n_clusters=n_clusters, subspace=subspace, **how)
    present(result, table=_table, draw=_draw, show=_show, also=_also, as_json=as_json, csv=csv, plot=plot)


def _draw(result: "xr.Dataset", path: Path) -> None:
    from replay.plots.phases import plot_phases

    plot_phases(result, path)


def _show(result: "xr.Dataset") -> None:
    attrs = result.attrs
    click.echo(
        f"phases of {len(attrs['runs'])} runs over {attrs['n_probes']} probes of {attrs['probes']!r} "
        f"({attrs['dtype']}): straight stretches of the path by debiased linear CKA; in brackets the share of "
        "replicates over probes that begin the phase within one checkpoint; overlap is the mean squared cosine with "
        "the step before; --csv has every step"
    )
    print_table(["run", "layer", "phases (confidence)", "least overlap", "labels at the end"], _phase_rows(result))
    k = result.sizes["component"]
    click.echo(
        "\none basis a layer, of all steps and runs, centred by their mean; the variance of a run is its movement, "
        "what keeps its probes apart at all steps, and probes that move differently (mean over the runs)"
    )
    names = [f"PC{i}" for i in range(1, min(k, SHOWN_COMPONENTS) + 1)]
    columns = ["layer", *names, f"PC1-{k}", *_split(result), "movement", "probes", "interaction"]
    print_table([*columns, "clusters", "silhouette (of a Gaussian)"], _basis_rows(result))
    layer = str(result["layer"].to_numpy()[-1])
    rows = [_filled(told) for told in attrs["phases"] if told["layer"] == layer and told["occupancy"]]
    if rows:
        click.echo(f"\nshare of the probes of {layer} in each cluster, by phase; clusters in the order of their steps")
        n_clusters = len(rows[0]) - 2
        print_table(["run", "steps", *(f"cluster {i + 1}" for i in range(n_clusters))], rows)


def _split(result: "xr.Dataset") -> list[str]:
    """Return the column of what lies between runs, where there are several."""
    return ["between runs"] if result.sizes["run"] > 1 else []


def _phase_rows(result: "xr.Dataset") -> list[list[Any]]:
    rows = []
    for run in result["run"].to_numpy():
        for layer in result["layer"].to_numpy():
            told = [one for one in result.attrs["phases"] if (one["run"], one["layer"]) == (run, layer)]
            at = result.sel(run=run, layer=layer)
            overlap, labelled = at["overlap"].dropna("step"), None
            if "label_rand" in at:
                labelled = at[["label_rand", "label_p"]].dropna("step")
            least = overlap.isel(step=int(overlap.to_numpy().argmin())) if overlap.size else None
            rows.append(
                [
                    run,
                    layer,
                    ", ".join(map(_steps, told)) or "-",
                    "-" if least is None else f"{float(least):.3f} at {int(least['step'])}",
                    "-"
                    if labelled is None or not labelled.sizes["step"]
                    else f"ARI {float(labelled['label_rand'][-1]):.3f}, p {float(labelled['label_p'][-1]):.3f}",
                ]
            )
    return rows


def _steps(told: dict[str, Any]) -> str:
    confidence = f" ({told['confidence']:.0%})" if "confidence" in told else ""
    return f"{told['first']}-{told['last']}{confidence}"


def _basis_rows(result: "xr.Dataset") -> list[list[Any]]:
    from replay.analyses.phases import SHARES

    rows = []
    for c, layer in enumerate(result["layer"].to_numpy()):
        at = result.isel(layer=c)
        explained = at["explained"].to_numpy()
        shares = [*([at["share_run"]] if _split(result) else []), *(at[name].mean() for name in SHARES)]
        n_clusters = int(at["occupancy"].notnull().any(("run", "step")).sum())
        rows.append(
            [
                layer,
                *(number(float(share), ".1%") for share in (*explained[:SHOWN_COMPONENTS], explained.sum(), *shares)),
                str(n_clusters or "-"),
                f"{number(float(at['silhouette']))} ({number(float(at['silhouette_null']))})",
            ]
        )
    return rows


def _filled(told: dict[str, Any]) -> list[str]:
    return [told["run"], f"{told['first']}-{told['last']}", *(f"{share:.0%}" for share in told["occupancy"])]


def _table(result: "xr.Dataset") -> "pd.DataFrame":
    names = ["phase", "overlap", "mean_cosine", *(name for name in result if str(name).startswith("label_"))]
    columns = {
        f"{name}{1 + i}": result[variable].isel({axis: i}).drop_vars(axis)
        for name, variable, axis in (
            ("pc", "centroid", "component"), ("sd", "deviation", "component"), ("cluster", "occupancy", "cluster"),
            ("angle", "angle", "rank"),
        )
        for i in range(result.sizes[axis])
    }  # fmt: skip
    frame = tabulate(result.assign(columns), [*map(str, names), *columns])
    return frame.dropna(subset=["phase", "overlap", *columns], how="all")


def _also(result: "xr.Dataset") -> dict[str, Any]:
    from cli.results import records

    names = ["share_run", "basis_residual", "silhouette", "silhouette_null", "overlap_null"]
    of_layer = records(tabulate(result, names))
    for row, explained in zip(of_layer, result["explained"].to_numpy(), strict=True):
        row["explained"] = [None if share != share else float(share) for share in explained]
    shares = records(tabulate(result, ["share_step", "share_probe", "share_interaction"]))
    return {"bases": of_layer, "shares": shares}
