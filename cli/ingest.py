"""``replay ingest``: checkpoints into the store."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.output import human_bytes, note, print_table, progress

if TYPE_CHECKING:
    from replay.ingest import Outcome
    from replay.plan import Plan

__all__ = ["ingest"]


@click.command()
@click.option("--repo", "repos", multiple=True, metavar="ORG/NAME", help="Hub repository; repeatable.")
@click.option(
    "--path", "paths", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
    help="Folder of step*/ or checkpoint-*/ folders, or one model; repeatable.",
)  # fmt: skip
@click.option(
    "--revisions", multiple=True, metavar="SPEC", default=("log:20",), show_default=True,
    help="all, main, a name, a list a,b, a range 0..4000, every:1000, log:20, last:5, a glob step*; repeatable.",
)  # fmt: skip
@click.option("--probes", default="topics", show_default=True, metavar="NAME|FILE", help="Probe set or file of probes.")
@click.option(
    "--layers", multiple=True, metavar="SPEC", default=("blocks[*]",), show_default=True,
    help="path[:point[:reduce]]; embed, blocks[i], blocks[*], final_norm or a module path, globs allowed; repeatable.",
)  # fmt: skip
@click.option(
    "--reduce", default="mean", show_default=True, metavar="HOW",
    help="mean, last_token, first_token or all (one row a token), for layers that name none.",
)  # fmt: skip
@click.option("--max-length", default=128, show_default=True, metavar="TOKENS", help="Longer probes are cut.")
@click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--batch", default=512, show_default=True, metavar="TOKENS", help="Tokens in one forward pass, padding included."
)
@click.option("--step-regex", metavar="REGEX", help="Reads other revision names; needs a group (?P<step>…).")
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
@click.pass_obj
def ingest(
    store: Path,
    *,
    repos: tuple[str, ...],
    paths: tuple[Path, ...],
    revisions: tuple[str, ...],
    probes: str,
    layers: tuple[str, ...],
    reduce: str,
    max_length: int,
    dtype: str,
    device: str,
    batch: int,
    step_regex: str | None,
    dry_run: bool,
) -> None:
    """Replay checkpoints and keep their activations; what is there already is not done again."""
    from contextlib import nullcontext

    from replay.ingest import ingest as run_ingest
    from replay.opening import open_store
    from replay.plan import IngestRequest, choose_probes, make_plan, scratch_store
    from replay.revisions import compile_step_pattern
    from replay.sources import open_sources

    pattern = None if step_regex is None else compile_step_pattern(step_regex)
    with scratch_store(store) if dry_run else nullcontext(open_store(store, write=True)) as opened:
        probe_set = choose_probes(opened, probes)
        for finding in probe_set.report.notes():
            note(f"probes {probe_set.name}: {finding}")
        request = IngestRequest(
            probes=probe_set,
            revisions=revisions,
            layers=layers,
            reduce=reduce,
            max_length=max_length,
            dtype=dtype,
            device=device,
            batch_tokens=batch,
            step_regex=pattern,
        )
        sources = open_sources(opened, repos=repos, paths=paths, step_regex=pattern)
        with progress() as advance:
            plan = make_plan(opened, sources, request, advance=advance)
        _print_plan(plan, err=not dry_run)
        if dry_run:
            return
        outcomes: list[Outcome] = []
        try:
            with progress() as advance:
                for outcome in run_ingest(opened, plan, advance=advance):
                    outcomes.append(outcome)  # noqa: PERF402 (extend would lose the count when interrupted)
        except KeyboardInterrupt:
            note(f"interrupted after {len(outcomes)} checkpoints, which are kept: run the same command again to go on")
            raise
    failed = _print_summary(plan, outcomes, store)
    if failed:
        raise click.exceptions.Exit(1)


def _print_plan(plan: "Plan", *, err: bool) -> None:
    request = plan.request
    columns = ("run", "revisions", "unique", "to replay", "present", "aliases", "failed")
    rows = []
    for run in plan.runs:
        n_jobs = sum(job.source.run == run.run for job in plan.jobs)
        rows.append((run.run, len(run.selected), run.n_unique, n_jobs, run.n_present, run.n_aliases, len(run.failed)))
    print_table(columns, rows, err=err)
    for line in plan.notes:
        click.echo(line, err=err)
    click.echo(
        f"{len(request.probes.probes)} probes of {request.probes.name!r}, layers {', '.join(request.layers)}, "
        f"{request.dtype}: {len(plan.jobs)} checkpoints to replay, {human_bytes(plan.bytes_to_fetch)} to fetch, "
        f"about {human_bytes(plan.bytes_to_store)} to store",
        err=err,
    )


def _print_summary(plan: "Plan", outcomes: "list[Outcome]", store: Path) -> bool:
    failures = [(run.run, record.name, str(record.error)) for run in plan.runs for record in run.failed]
    names = {run.run_id: run.run for run in plan.runs}
    failures += [
        (names[run], name, outcome.error)
        for outcome in outcomes
        if outcome.error
        for run, name in outcome.job.revisions
    ]
    done = [outcome for outcome in outcomes if not outcome.error and not outcome.elsewhere]
    elsewhere = sum(outcome.elsewhere for outcome in outcomes)
    present, aliases = sum(run.n_present for run in plan.runs), sum(run.n_aliases for run in plan.runs)
    parts = [f"{len(done)} checkpoints replayed", f"{present} already there", f"{aliases} aliases"]
    if elsewhere:
        parts.append(f"{elsewhere} done by another process")
    if failures:
        parts.append(f"{len(failures)} failed")
    click.echo(f"{plan.n_revisions} revisions: {', '.join(parts)}; store {store}")
    for run, name, reason in failures:
        note(f"failed: {run} {name}: {reason}")
    if failures:
        note("run the same command again to retry what failed")
    return bool(failures)
