"""Series: one number of one run and layer over the steps of training, whatever analysis or log it comes from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from replay.analyses.measuring import Advance
from replay.analyses.results import in_passing
from replay.analyses.selection import Choice, choose_runs
from replay.geometry.dimension import METRICS
from replay.jobs import Cluster
from replay.revisions import parse_step, sort_key
from store.catalog import Store
from store.errors import InvalidInput
from store.names import suggest

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Series", "read_series", "series_names"]

PATHS = ("velocity", "velocity_log", "distance_to_final", "turning_angle", "curvature")
"""What `analyze_path` knows at each step and that does not only add up."""

SPREADS = ("spread", "spread_normalized")

LOSSES = ("probe_loss",)

WEIGHTS = ("weight_stable_rank",)
"""Of every weight matrix, whose name stands for the layer."""

NORMAL = 1.959964
"""Standard errors in half a 95 % interval. Intervals by Student's t are a little wider, so errors come out large."""

Ask = Callable[[Sequence[str]], "xr.Dataset"]
"""Gives a result with the named variables."""


@dataclass(frozen=True)
class Series:
    """One metric of one layer of one run over the steps of training."""

    metric: str
    """Its name."""
    run: str
    """Name of the run; empty where the metric is of several runs."""
    layer: str
    """Name of the layer; empty where the metric has none."""
    steps: NDArray[np.int64]
    """(n,) training steps, ascending."""
    values: NDArray[np.float64]
    """(n,) its values; NaN where undefined."""
    error: NDArray[np.float64] | None
    """(n,) standard error over probes of each value; None where it is not known, NaN where undefined."""

    @property
    def name(self) -> str:
        """How it is called in one line."""
        return " ".join(part for part in (self.run, self.layer, self.metric) if part)


def series_names(store: Store | None = None, *, choice: Choice | None = None) -> tuple[str, ...]:
    """Return the metrics that `read_series` knows, and the scalars of training that the chosen runs have in ``store``.

    Raises
    ------
    UnknownRun
        If a name of a run matches none.
    """
    from replay.analyses.spectrum import SCALARS

    computed = (*METRICS, *SCALARS, *PATHS, *SPREADS, *LOSSES, *WEIGHTS)
    if store is None:
        return computed
    logged = {name for _, _, row in _scalars(store, choice or Choice()) for name in row}
    return (*computed, *sorted(logged - set(computed)))


def read_series(
    store: Store,
    metrics: Sequence[str],
    *,
    choice: Choice | None = None,
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> list[Series]:
    """Return what the store knows of ``metrics`` over training, computing only what is missing.

    Parameters
    ----------
    store
        A writable store.
    metrics
        Names from `series_names`: of `analyze_dimension`, `analyze_spectrum`, `analyze_path`, `analyze_spread`,
        `probe_loss` and `weight_ranks`, or of scalars of training that the source of a run brought along.
    choice
        Runs, layers and probes; all by default. Revisions that an audit holds for faulty are left out unless it takes
        them in, of scalars too.
    cluster
        Where to compute, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    list of Series
        In the order of ``metrics``, then of runs, then of layers; each over all steps its run has.

    Raises
    ------
    InvalidInput
        If a name is none of `series_names`, or there is none.
    Unavailable
        If a spread is asked for and there is one run, or a loss or weight ranks that were not measured.
    UnknownRun, UnknownLayer
        If names match nothing.
    """
    from replay.analyses.dimension import analyze_dimension
    from replay.analyses.loss import probe_loss
    from replay.analyses.path import analyze_path
    from replay.analyses.spectrum import SCALARS, analyze_spectrum
    from replay.analyses.spread import analyze_spread
    from replay.analyses.weights import weight_ranks

    choice = choice or Choice()
    metrics = list(dict.fromkeys(metrics))
    there = series_names(store, choice=choice)
    if not metrics:
        raise InvalidInput(f"no metric is named; {suggest('', there, limit=len(there))}")
    for name in metrics:
        if name not in there:
            raise InvalidInput(f"no series {name!r} over training; {suggest(name, there, limit=len(there))}")
    how: dict[str, Any] = {"choice": choice, "cluster": cluster, "advance": advance}
    families: list[tuple[Sequence[str], Ask]] = [
        (METRICS, lambda names: analyze_dimension(store, metrics=names, **how)),
        (SCALARS, lambda _: analyze_spectrum(store, **how)),
        (PATHS, lambda _: analyze_path(store, **how)),
        (SPREADS, lambda _: analyze_spread(store, **how)),
        (LOSSES, lambda _: probe_loss(store, choice)),
        (WEIGHTS, lambda _: weight_ranks(store, choice).rename(tensor="layer", stable_rank=WEIGHTS[0])),
    ]
    found: dict[str, list[Series]] = {}
    for members, ask in families:
        wanted = tuple(name for name in metrics if name in members)
        if wanted:
            with in_passing():
                result = ask(wanted)
            found |= {name: list(_of_result(result, name)) for name in wanted}
    logged = list(_scalars(store, choice))
    for name in metrics:
        if name not in found:
            found[name] = list(_of_scalars(logged, name))
    return [series for name in metrics for series in found[name]]


def _of_result(result: "xr.Dataset", name: str) -> Iterator[Series]:
    steps = result["step"].to_numpy().astype(np.int64)
    ends = [f"{name}_low", f"{name}_high"]
    bounded = all(end in result for end in ends)
    runs = result["run"].to_numpy() if "run" in result[name].dims else [""]
    for run in runs:
        of_run = result.sel(run=run) if run else result
        has = of_run["revision"].to_numpy() != "" if run else np.ones(len(steps), bool)
        for layer in result["layer"].to_numpy() if "layer" in result.dims else [""]:
            at = of_run.sel(layer=layer) if layer else of_run
            values = at[name].to_numpy().astype(np.float64)[has]
            error = None
            if bounded:
                low, high = (at[end].to_numpy()[has] for end in ends)
                error = (high - low) / (2 * NORMAL)
            yield Series(name, str(run), str(layer), steps[has], values, error)


def _of_scalars(logged: Sequence[tuple[str, int, dict[str, float]]], name: str) -> Iterator[Series]:
    for run in dict.fromkeys(run for run, _, _ in logged):
        pairs = [(step, row[name]) for of, step, row in logged if of == run and name in row]
        if pairs:
            steps, values = zip(*pairs, strict=True)
            yield Series(name, run, "", np.array(steps, np.int64), np.array(values, np.float64), None)


def _scalars(store: Store, choice: Choice) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Give run, step and scalars of each sound revision that has both, in order of the steps.

    The first in training order that has scalars gives those of a step; where stages restart their count, the first
    stage keeps the step, even if nothing of it is sound.
    """
    for run in choose_runs(store, choice.runs):
        branches: dict[int, tuple[int, str | None]] = {}
        taken: dict[int, dict[str, float]] = {}
        table = store.revisions(run)
        table = table[table["step"].notna()]
        stages = table["stage"].fillna(0)
        columns = [table[column] for column in ("revision", "step", "flagged", "scalars")]
        for name, step, flagged, row, stage in zip(*columns, stages, strict=True):
            parsed = parse_step(name)
            branch = int(stage) or sort_key(name).stage or 1, None if parsed is None else parsed.kind
            foreign = branches.setdefault(int(step), branch) != branch
            if row and not foreign and (choice.include_flagged or not flagged):
                taken.setdefault(int(step), row)
        for step in sorted(taken):
            yield run, step, {n: float(v) if np.isfinite(v) else np.nan for n, v in taken[step].items()}
