"""``replay gauge``: keep operators in the store."""

import click

from cli.options import Asked, asking
from cli.output import note

__all__ = ["gauge"]


@click.command()
@click.option(
    "--kernel",
    type=click.Choice(["gaussian", "decay"]),
    default="gaussian",
    show_default=True,
    help="Dense Gaussian, or the sparse kernel of nearest neighbours that PHATE uses: another operator.",
)
@click.option("--symmetric", is_flag=True, help="The symmetric conjugate instead of rows that sum to one.")
@click.option("--decay", default=40.0, show_default=True, help="Power at which the decay kernel falls off.")
@click.option("--thresh", default=1e-4, show_default=True, help="Links of the decay kernel below it are dropped.")
@asking()
def gauge(asked: Asked, /, *, kernel: str, symmetric: bool, decay: float, thresh: float) -> None:
    """Compute diffusion operators and keep them, for programs that read the store; no analysis needs this."""
    from dataclasses import replace

    from replay.analyses.operators import keep_operators
    from replay.geometry.gauge import DiffusionGauge
    from replay.geometry.knn_gauge import KnnGauge
    from store.errors import InvalidInput

    given = asked.gauge or DiffusionGauge()
    recipe: DiffusionGauge | KnnGauge = replace(given, symmetric=symmetric)
    if kernel == "decay":
        ignored = [
            f"--{name}"
            for name, value, usual in (
                ("alpha", given.alpha, 1.0),
                ("diagonal", given.diagonal, "zero"),
                ("symmetric", symmetric, False),
            )
            if value != usual
        ]
        if ignored:
            raise InvalidInput(f"the decay kernel has no {', '.join(ignored)}: leave it out, or use --kernel gaussian")
        if given.knn is None:
            raise InvalidInput("the decay kernel needs --knn, a whole number of at least 1")
        recipe = KnnGauge(knn=given.knn, decay=decay, thresh=thresh, metric=given.metric)
    elif (decay, thresh) != (40.0, 1e-4):
        raise InvalidInput("--decay and --thresh belong to --kernel decay: leave them out, or choose it")
    with asked.working() as how:
        kept = keep_operators(asked.store, **{**how, "gauge": recipe})
    click.echo(f"{kept.n_layers} operators, {kept.n_computed} of them computed now; store {asked.store.root}")
    for (run, step, layer), reason in kept.unavailable.items():
        note(f"unavailable: {run}, {layer} at step {step}: {reason}")
