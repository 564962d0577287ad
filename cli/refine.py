"""``replay refine``: further revisions where the representation changes."""

from contextlib import closing
from typing import TYPE_CHECKING, Any

import click

from cli.options import Asked, asking
from cli.output import interruptible, note, print_table, progress

if TYPE_CHECKING:
    from replay.refine import Refinement, Round
    from store.catalog import Store

__all__ = ["refine"]


@click.command()
@click.option("--budget", default=10, show_default=True, metavar="N", help="Further revisions of each run, at most.")
@click.option(
    "--metric", "metrics", multiple=True, metavar="NAME", default=("stable_rank", "participation_ratio"),
    show_default=True, help="What to look at, as in `replay analyze jumps`; repeatable.",
)  # fmt: skip
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option("--step-regex", metavar="REGEX", help="Reads other revision names; needs a group (?P<step>…).")
@click.option(
    "--cache-budget", default="20GB", show_default=True, metavar="SIZE",
    help="Room that downloads may take in the store at any moment.",
)  # fmt: skip
@asking(gauge=False)
def refine(
    asked: Asked,
    /,
    *,
    budget: int,
    metrics: tuple[str, ...],
    device: str,
    step_regex: str | None,
    cache_budget: str,
) -> None:
    """Ingest further revisions where a metric changes most between two that are there.

    Each round bisects the interval with the largest change per unit of log step, in every run, until the budget is
    spent or no change that is left exceeds its noise.
    """
    from replay.refine import Refinement
    from replay.refine import refine as run_refine
    from replay.revisions import compile_step_pattern
    from replay.units import parse_bytes

    pattern = None if step_regex is None else compile_step_pattern(step_regex)
    what = Refinement(choice=asked.choice, metrics=metrics, budget=budget, device=device, step_regex=pattern)
    how: dict[str, Any] = {"cluster": asked.cluster, "cache_budget": parse_bytes(cache_budget)}
    rounds: list[Round] = []
    with (
        interruptible() as check,
        progress(check) as advance,
        closing(run_refine(asked.store, what, advance=advance, report=note, **how)) as each,
    ):
        for done in each:
            rounds.append(done)
            click.echo(_told(done))
    _conclude(asked.store, what, rounds)
    if any(done.failures for done in rounds):
        raise click.exceptions.Exit(1)


def _told(done: "Round") -> str:
    gap = done.gap
    where = " ".join(part for part in (gap.series.run, gap.series.layer) if part)
    steps = gap.series.steps.tolist()
    before, after = (gap.series.values[steps.index(step)] for step in (gap.before, gap.after))
    return (
        f"step {gap.middle}: {gap.series.metric} of {where} goes from {before:.4g} to {after:.4g} between steps "
        f"{gap.before} and {gap.after}; {len(done.ingested)} checkpoints ingested"
    )


def _conclude(store: "Store", asked: "Refinement", rounds: "list[Round]") -> None:
    from replay.refine import coverage

    for done in rounds:
        for run, reason in done.failures.items():
            note(f"failed: {run} {reason}")
    rows = [
        (run, stored, listed, listed - stored, f"{(listed - stored) / listed:.0%}")
        for run, (stored, listed) in coverage(store, asked.choice).items()
    ]
    print_table(("run", "steps stored", "steps listed", "not needed", "share"), rows)
    if len(rounds) < asked.budget:
        click.echo("no interval is left with a revision inside and a change that exceeds its noise")
    else:
        click.echo(f"the budget of {asked.budget} is spent; the same command again goes on")
