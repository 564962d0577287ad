"""The language-model loss of every run and step on the probes."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from replay.analyses.selection import Choice, select_layers
from replay.geometry.spread import N_GROUPS
from replay.geometry.statistics import Interval, jackknife_interval, probe_groups
from replay.loss import LOSS, RECIPE
from store.catalog import Store
from store.errors import Unavailable
from store.keys import canonical
from store.measurements import find_measurements

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["MeanLoss", "mean_loss", "probe_loss"]


class MeanLoss(NamedTuple):
    """A loss over a set of probes."""

    loss: float
    """Nats per token."""
    interval: Interval | None
    """95 % over fresh probes; None with fewer than three."""


def probe_loss(store: Store, choice: Choice | None = None) -> "xr.Dataset":
    """Return the next-token loss that ``replay ingest --loss`` measured, for every run and step.

    Parameters
    ----------
    store
        The store.
    choice
        Runs and probes; all by default.

    Returns
    -------
    xarray.Dataset
        Over (run, step): ``probe_loss`` (nats per token, all tokens of all probes counting alike), ``probe_loss_low``
        and ``probe_loss_high`` (95 % over probes, delete-group jackknife) and ``perplexity`` (exp of the loss), with
        coordinates revision, commit and weights. NaN where a run has no such step, or with a reason in
        ``attrs["unavailable"]`` as [run, step, reason]. It compares models with one tokenizer only.

    Raises
    ------
    Unavailable
        If no loss was measured of any of them.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the runs share no probe set.
    """
    import xarray as xr

    selection = select_layers(store, choice or Choice())
    steps = selection.steps()
    cells = {
        (run, step): piece.replay
        for run, history in selection.histories.items()
        for (step, _), piece in history.slices.items()
    }
    points = find_measurements(store, canonical(RECIPE), replays=set(cells.values()), layer=LOSS)
    if not points:
        raise Unavailable(
            f"no loss was measured of {', '.join(selection.runs)} on {selection.capture.probes}: "
            "`replay ingest --loss` with the same --repo or --path measures it"
        )
    known = {point.replay: point.measured for point in points}
    shape = (len(selection.runs), len(steps))
    grids = {name: np.full(shape, np.nan) for name in ("probe_loss", "probe_loss_low", "probe_loss_high", "perplexity")}
    reasons: list[list[object]] = []
    for (run, step), replay in sorted(cells.items()):
        measured = known.get(replay)
        if measured is None or measured.reason:
            reasons.append([run, step, "not measured" if measured is None else measured.reason])
            continue
        found = mean_loss(*np.split(measured.numbers, 2))
        values = (found.loss, *(found.interval or (np.nan, np.nan)), np.exp(found.loss))
        for grid, value in zip(grids.values(), values, strict=True):
            grid[selection.runs.index(run), steps.index(step)] = value
    about = {name: (("run", "step"), np.array(rows, object)) for name, rows in selection.made_from(steps).items()}
    return xr.Dataset(
        {name: (("run", "step"), grid) for name, grid in grids.items()},
        coords={"run": np.array(selection.runs, object), "step": np.array(steps, np.int64), **about},
        attrs={
            **{name: value for name, value in selection.parameters().items() if name not in ("runs", "layers")},
            **selection.remarks(),
            "interval": "95 % over probes, delete-group jackknife",
            "unavailable": reasons,
        },
    )


def mean_loss(nll: NDArray[np.float64], n_tokens: NDArray[np.number[Any]]) -> MeanLoss:
    """Return Σ nll / Σ n_tokens over the probes, with its interval over fresh ones.

    The interval is that of a ratio estimator: a delete-group jackknife over probes, so that tokens of one text, which
    are not independent, stand or fall together.

    Parameters
    ----------
    nll
        (probe,) negative log likelihood of each, in nats.
    n_tokens
        (probe,) how many tokens that is of; probes of none say nothing.
    """
    counted = n_tokens > 0
    nll, n_tokens = nll[counted], n_tokens[counted]
    loss = float(nll.sum() / n_tokens.sum())
    if len(nll) < 3:
        return MeanLoss(loss, None)
    groups = probe_groups(len(nll), n_groups=N_GROUPS)
    sums, counts = (np.bincount(groups, weights=values) for values in (nll, n_tokens))
    return MeanLoss(loss, jackknife_interval(loss, (nll.sum() - sums) / (n_tokens.sum() - counts)))
