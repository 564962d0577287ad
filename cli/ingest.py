"""``replay ingest`` and ``replay watch``: checkpoints into the store."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.options import Command, add_options, where_to_run
from cli.output import interruptible, note, print_table, progress
from replay.units import human_bytes

if TYPE_CHECKING:
    from replay.ingest import Outcome
    from replay.jobs import Cluster
    from replay.plan import IngestRequest, Plan
    from replay.sources import Source
    from store.catalog import Store

__all__ = ["ingest", "watch"]


def _what_to_ingest(*, revisions: str) -> Callable[[Command], Command]:
    """Give a command the options that say which checkpoints are replayed, and how."""
    options = (
        click.option(
            "--repo", "repos", multiple=True, metavar="ORG/NAME",
            help="Hub repository, or a glob over repositories that are one run; repeatable.",
        ),
        click.option(
            "--path", "paths", multiple=True, type=click.Path(path_type=Path), metavar="DIR",
            help="Folder of step*/ or checkpoint-*/ folders, or one model; repeatable.",
        ),
        click.option(
            "--model", metavar="FACTORY",
            help="What builds a model that is none of transformers: package.module:function or file.py:function; "
            "then --path holds its weights, plain or of Lightning.",
        ),
        click.option(
            "--prefix", metavar="NAME",
            help="What stands before the names of the model's weights in the files, where it is not found.",
        ),
        click.option(
            "--revisions", multiple=True, metavar="SPEC", default=(revisions,), show_default=True,
            help="all, main, a name, a list a,b, a range 0..4000, every:1000, log:20, last:5, a glob step*; "
            "repeatable.",
        ),
        click.option(
            "--probes", default="topics", show_default=True, metavar="NAME|FILE",
            help="Probe set or file of probes: texts (.txt, .jsonl, .csv) or arrays (.npy, .npz).",
        ),
        click.option(
            "--layers", multiple=True, metavar="SPEC", default=("blocks[*]",), show_default=True,
            help="path[:point[:reduce]]; embed, blocks[i], blocks[*], final_norm or a module path, globs allowed; the "
            "point is output, input or hidden_states; repeatable. `replay layers` lists them.",
        ),
        click.option(
            "--reduce", default="mean", show_default=True, metavar="HOW",
            help="mean, last_token, first_token or all (one row a token), of images flatten or spatial_mean, for "
            "layers that name none.",
        ),
        click.option("--max-length", default=128, show_default=True, metavar="TOKENS", help="Longer texts are cut."),
        click.option("--dtype", default="float32", show_default=True, help="float32, bfloat16 or float16."),
        click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1, mps."),
        click.option(
            "--batch", default=512, show_default=True, metavar="TOKENS",
            help="Tokens in one forward pass, padding included; of arrays at most as many, and 1,024 times as many "
            "numbers.",
        ),
        click.option("--step-regex", metavar="REGEX", help="Reads other revision names; needs a group (?P<step>…)."),
        click.option(
            "--cache-budget", default="20GB", show_default=True, metavar="SIZE",
            help="Room that downloads may take in the store at any moment.",
        ),
        click.option("--loss", is_flag=True, help="Measure the language-model loss of each checkpoint on the probes."),
        click.option("--weight-ranks", is_flag=True, help="Measure the stable rank of every weight matrix too."),
        click.option(
            "--partial", is_flag=True,
            help="Fetch only the tensors that the layers need, from safetensors; whole files are then not verified.",
        ),
    )  # fmt: skip

    def decorated(command: Command) -> Command:
        @wraps(command)
        def receiving(store: Path, /, *, cache_budget: str, workers: int, scheduler: str | None, **given: Any) -> Any:
            from replay.jobs import Cluster
            from replay.units import parse_bytes

            how = {"cluster": Cluster(workers, scheduler), "cache_budget": parse_bytes(cache_budget)}
            return command(store, how=how, **given)

        return add_options(options, where_to_run(click.pass_obj(receiving)))

    return decorated


@click.command()
@_what_to_ingest(revisions="log:20")
@click.option(
    "--floor", default=0, metavar="N",
    help="Replay N checkpoints of each run, spread over all, once more with weights moved within their rounding.",
)  # fmt: skip
@click.option(
    "--scalars", "scalars", multiple=True, metavar="[RUN=]FILE",
    help="CSV of scalars of training, such as loss: a column step (or tokens, epoch), if wanted one run, and one a "
    "scalar. Repeatable; what is replayed already is not replayed again.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Show the plan and write nothing.")
def ingest(
    store: Path,
    /,
    *,
    repos: tuple[str, ...],
    paths: tuple[Path, ...],
    how: dict[str, Any],
    scalars: tuple[str, ...],
    dry_run: bool,
    **what: Any,
) -> None:
    """Replay checkpoints and keep their activations; what is there already is not done again."""
    from replay.ingest import ingest as run_ingest
    from replay.opening import open_store
    from replay.plan import make_plan, scratch_store
    from replay.scalars import give_scalars, read_given

    logged = read_given(scalars)
    with scratch_store(store) if dry_run else nullcontext(open_store(store, write=True)) as opened:
        request, sources = _read(opened, repos, paths, **what)
        with interruptible() as check, progress(check) as advance:
            plan = make_plan(opened, sources, request, advance=advance)
        _print_plan(plan, err=not dry_run)
        for line in give_scalars(opened, [run.run for run in plan.runs], logged):
            note(f"scalars: {line}")
        if dry_run:
            return
        outcomes: list[Outcome] = []
        try:
            with (
                interruptible() as check,
                progress(check) as advance,
                closing(run_ingest(opened, plan, advance=advance, report=note, **how)) as each,
            ):
                for outcome in each:
                    outcomes.append(outcome)  # noqa: PERF402 (extend would lose the count when interrupted)
        except KeyboardInterrupt:
            note(f"interrupted after {len(outcomes)} checkpoints, which are kept: run the same command again to go on")
            raise
    failed = _print_summary(plan, outcomes, store)
    if failed:
        raise click.exceptions.Exit(1)


@click.command()
@_what_to_ingest(revisions="all")
@click.option("--every", default="10m", show_default=True, metavar="TIME", help="Pause between looks: 90s, 10m, 2h.")
@click.option(
    "--analyze", "analyses", multiple=True, type=click.Choice(["spread"]),
    help="Analysis to bring up to date after new checkpoints; repeatable.",
)  # fmt: skip
def watch(
    store: Path,
    /,
    *,
    repos: tuple[str, ...],
    paths: tuple[Path, ...],
    how: dict[str, Any],
    every: str,
    analyses: tuple[str, ...],
    **what: Any,
) -> None:
    """Keep a store current: ingest new checkpoints as they appear, until interrupted."""
    from replay.opening import open_store
    from replay.units import parse_seconds
    from replay.watch import watch as watch_sources

    pause, first = parse_seconds(every), True
    opened = open_store(store, write=True)
    request, sources = _read(opened, repos, paths, **what)
    try:
        with interruptible() as check, progress(check) as advance:
            for done in watch_sources(opened, sources, request, pause=pause, advance=advance, report=note, **how):
                for plan, outcomes in zip(done.plans, done.outcomes, strict=True):
                    if first or plan.jobs:
                        _print_summary(plan, outcomes, store)
                for name in analyses if first or done.n_replayed else ():
                    _bring_up_to_date(opened, name, how["cluster"])
                first = False
    except KeyboardInterrupt:
        note("stopped; everything that was committed is kept")


def _read(
    store: "Store",
    repos: Sequence[str],
    paths: Sequence[Path],
    *,
    model: str | None,
    prefix: str | None,
    probes: str,
    batch: int,
    step_regex: str | None,
    **what: Any,
) -> "tuple[IngestRequest, list[Source]]":
    from replay.factories import read_factory
    from replay.plan import IngestRequest, choose_probes
    from replay.revisions import compile_step_pattern
    from replay.sources import open_sources

    pattern = None if step_regex is None else compile_step_pattern(step_regex)
    factory = None if model is None else read_factory(model, prefix=prefix)
    probe_set = choose_probes(store, probes)
    for finding in probe_set.notes():
        note(f"probes {probe_set.name}: {finding}")
    request = IngestRequest(probes=probe_set, batch_tokens=batch, step_regex=pattern, factory=factory, **what)
    sources = open_sources(store, repos=repos, paths=paths, step_regex=pattern, report=note, factory=factory)
    return request, sources


def _bring_up_to_date(store: "Store", analysis: str, cluster: "Cluster") -> None:
    from replay.analyses.spread import analyze_spread
    from store.errors import ReplayError

    try:
        result = analyze_spread(store, cluster=cluster)
    except ReplayError as error:  # too few runs as yet, or none in common: the next checkpoint may change it
        note(f"{analysis}: {error}")
        return
    click.echo(f"{analysis}: {result.sizes['step']} steps, {result.sizes['layer']} layers up to date")


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
    beside = [name for name, asked in (("loss", request.loss), ("weight ranks", request.weight_ranks)) if asked]
    if request.floor:
        beside.append(f"floor of {request.floor} a run")
    click.echo(
        f"{len(request.probes)} probes of {request.probes.name!r}, layers {', '.join(request.layers)}, "
        f"{', '.join([request.dtype, *beside])}: {len(plan.jobs)} checkpoints to replay, "
        f"{human_bytes(plan.bytes_to_fetch)} to fetch, about {human_bytes(plan.bytes_to_store)} to store",
        err=err,
    )


def _print_summary(plan: "Plan", outcomes: "Sequence[Outcome]", store: Path) -> bool:
    failures = [(run.run, record.name, str(record.error)) for run in plan.runs for record in run.failed]
    names = {run.run_id: run.run for run in plan.runs}
    failures += [
        (names[run], name, str(outcome.error))
        for outcome in outcomes
        if outcome.error and not outcome.lost
        for run, name in outcome.job.revisions
    ]
    unlisted = [f"not reached: {run}: {reason}" for run, reason in plan.lost.items()]
    lost = Counter((outcome.job.source.run, str(outcome.error)) for outcome in outcomes if outcome.lost)
    done = [outcome for outcome in outcomes if not outcome.error and not outcome.elsewhere]
    elsewhere = sum(outcome.elsewhere for outcome in outcomes)
    present, aliases = sum(run.n_present for run in plan.runs), sum(run.n_aliases for run in plan.runs)
    parts = [f"{len(done)} checkpoints replayed", f"{present} already there", f"{aliases} aliases"]
    if elsewhere:
        parts.append(f"{elsewhere} done by another process")
    if failures:
        parts.append(f"{len(failures)} failed")
    if lost:
        parts.append(f"{lost.total()} not reached")
    click.echo(f"{plan.n_revisions} revisions: {', '.join(parts)}; store {store}")
    alike: dict[tuple[str, str], list[str]] = {}
    for run, name, reason in failures:
        alike.setdefault((run, reason), []).append(name)
    for (run, reason), revisions in alike.items():
        more = f" and {len(revisions) - 1} more" if len(revisions) > 1 else ""
        note(f"failed: {run} {revisions[0]}{more}: {reason}")
    unlisted += [f"not reached: {run}, {count} checkpoints: {reason}" for (run, reason), count in lost.items()]
    for line in unlisted:
        note(line)
    no_loss = Counter((outcome.job.source.run, outcome.no_loss) for outcome in done if outcome.no_loss)
    for (run, reason), count in no_loss.items():
        note(f"no loss: {run}, {count} checkpoints: {reason}")
    if failures or unlisted:
        note("run the same command again to retry what failed")
    return bool(failures or unlisted)
