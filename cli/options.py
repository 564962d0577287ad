"""Options that several verbs share, read into the objects they stand for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.output import interruptible, progress

if TYPE_CHECKING:
    from replay.analyses.selection import Choice
    from replay.geometry.gauge import DiffusionGauge
    from replay.geometry.measures import Measure
    from replay.jobs import Cluster
    from store.catalog import Store

__all__ = ["Asked", "add_options", "asking", "where_to_run", "writing"]

Command = Callable[..., Any]


@dataclass(frozen=True)
class Asked:
    """What the shared options of an analysis say."""

    store: "Store"
    """The store, writable."""
    choice: "Choice"
    """Runs, layers and probes."""
    gauge: "DiffusionGauge | None"
    """The recipe of operators, where they take part."""
    measure: "Measure | None"
    """What is compared, where that may be chosen."""
    cluster: "Cluster"
    """Where to compute, and the memory there."""

    @contextmanager
    def working(self) -> Iterator[dict[str, Any]]:
        """Hold what an analysis takes beside the store, with a bar on stderr; a signal ends it between two tasks."""
        with interruptible() as check, progress(check) as advance:
            recipe = {} if self.gauge is None else {"gauge": self.gauge}
            yield {"choice": self.choice, "cluster": self.cluster, "advance": advance, **recipe}


def asking(*, measure: str | None = None, gauge: bool = True) -> Callable[[Command], Command]:
    """Add the options that every analysis has; the command receives them as one `Asked`.

    Parameters
    ----------
    measure
        Name of the default measure; None where there is no choice of one.
    gauge
        Whether operators take part.
    """
    recipe = [
        click.option(
            "--knn", default="15", show_default=True, metavar="K",
            help="Neighbour that sets each probe's bandwidth; none is one bandwidth for all.",
        ),
        click.option("--alpha", default=1.0, show_default=True, help="Density correction: 0 none, 1 full."),
        click.option("--metric", default="euclidean", show_default=True, help="Between activations, or cosine."),
        click.option("--diagonal", default="zero", show_default=True, help="Link of a probe to itself, or keep."),
    ]  # fmt: skip
    options = [
        click.option(
            "--runs", multiple=True, metavar="GLOB", default=("*",), help="Runs, names or globs; all by default."
        ),
        click.option("--layers", multiple=True, metavar="SPEC", help="Stored layers, names or globs; all by default."),
        click.option("--probes", metavar="NAME", help="Probe set, where the runs share several."),
        *(recipe if gauge else []),
        click.option("--include-flagged", is_flag=True, help="Take in revisions that an audit holds for faulty."),
        click.option(
            "--memory", default="2GB", show_default=True, metavar="SIZE",
            help="Memory to stay within; on a scheduler, of each task.",
        ),
    ]  # fmt: skip
    if measure is not None:
        named = click.option(
            "--measure", default=measure, show_default=True, metavar="NAME",
            help="What is compared; a wrong name lists them.",
        )  # fmt: skip
        options.insert(3, named)

    def decorated(command: Command) -> Command:
        @wraps(command)
        def receiving(store: Path, /, **given: Any) -> Any:
            return command(_read(store, given), **given)

        return click.pass_obj(add_options(options, where_to_run(receiving)))

    return decorated


def add_options(options: Sequence[Callable[[Command], Command]], command: Command) -> Command:
    """Give a command options, the first one first in its help."""
    for option in reversed(options):
        command = option(command)
    return command


def where_to_run(command: Command) -> Command:
    """Add the options that say where tasks run."""
    options = [
        click.option("--workers", default=0, show_default=True, help="Worker processes to start; 0 works in this one."),
        click.option(
            "--scheduler", metavar="URL", help="A Dask scheduler, tcp://host:8786; its workers must see the store."
        ),
    ]
    return add_options(options, command)


def writing(command: Command) -> Command:
    """Add ``--json``, ``--csv`` and ``--plot``."""
    options = [
        click.option("--json", "as_json", is_flag=True, help="Print everything as JSON."),
        click.option("--csv", type=click.Path(path_type=Path), metavar="FILE", help="Write every value as a table."),
        click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw it, as .png, .svg or .pdf."),
    ]
    return add_options(options, command)


def _read(store: Path, given: dict[str, Any]) -> Asked:
    from replay.analyses.selection import Choice
    from replay.geometry.gauge import DiffusionGauge
    from replay.geometry.measures import find_measure
    from replay.jobs import Cluster
    from replay.opening import open_store
    from replay.units import parse_bytes
    from store.catalog import Store

    gauge = None
    if "knn" in given:
        gauge = DiffusionGauge(
            knn=_read_knn(given.pop("knn")),
            alpha=given.pop("alpha"),
            metric=given.pop("metric"),
            diagonal=given.pop("diagonal"),
        )
    choice = Choice(
        runs=given.pop("runs"),
        layers=given.pop("layers") or None,
        probes=given.pop("probes"),
        include_flagged=given.pop("include_flagged"),
    )
    measure = find_measure(given.pop("measure")) if "measure" in given else None
    cluster = Cluster(given.pop("workers"), given.pop("scheduler"), memory=parse_bytes(given.pop("memory")))
    Store(store)  # an analysis never makes a store
    return Asked(open_store(store, write=True), choice, gauge, measure, cluster)


def _read_knn(text: str) -> int | None:
    from store.errors import InvalidInput

    if text.lower() == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise InvalidInput(f"--knn must be a whole number of at least 1, or none, not {text!r}") from None
