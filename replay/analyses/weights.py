"""The stable rank of every weight matrix of every run and step."""

from typing import TYPE_CHECKING

import numpy as np

from replay.analyses.selection import Choice, choose_runs
from replay.weight_ranks import RECIPE, WEIGHTS
from store.catalog import Store
from store.errors import Unavailable
from store.keys import canonical
from store.measurements import Measured, find_measurements
from store.names import layer_order

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["weight_ranks"]

COLUMNS = ("step", "revision", "commit", "weights")


def weight_ranks(store: Store, choice: Choice | None = None) -> "xr.Dataset":
    """Return the stable ranks that ``replay ingest --weight-ranks`` measured, for every run, step and tensor.

    Parameters
    ----------
    store
        The store.
    choice
        Runs; all by default. Of its layers and probes weights know nothing.

    Returns
    -------
    xarray.Dataset
        Over (run, step, tensor): ``stable_rank``, ||W||_F^2 / s_1^2, uncentred. Over (run, tensor): ``rows`` and
        ``columns`` of the matrix, 0 where a run has none of this name. Coordinates over (run, step): revision, commit
        and weights. NaN where a run has no such step or tensor, or with a reason in ``attrs["unavailable"]`` as [run,
        step, tensor, reason]. Runs without any are left out and named in ``attrs["not_measured"]``, and the revisions
        of the others without any in ``attrs["not_measured_at"]``.

    Raises
    ------
    Unavailable
        If none of the runs has any.
    UnknownRun
        If a name of a run matches none.
    """
    import xarray as xr

    choice = choice or Choice()
    chosen = choose_runs(store, choice.runs)
    points = {run: _first_at_each_step(store, run, include_flagged=choice.include_flagged) for run in chosen}
    digests = {weights for rows in points.values() for _, _, weights in rows.values()}
    known: dict[str, dict[str, Measured]] = {}
    for point in find_measurements(store, canonical(RECIPE), weights=digests):
        if point.layer != WEIGHTS:
            known.setdefault(point.weights, {})[point.layer.removeprefix(f"{WEIGHTS}:")] = point.measured
    runs = [run for run in chosen if any(weights in known for _, _, weights in points[run].values())]
    if not runs:
        raise Unavailable(
            f"no weights were measured of {', '.join(chosen)}: `replay ingest --weight-ranks` with the same --repo or "
            "--path measures them"
        )
    steps = sorted({step for run in runs for step, row in points[run].items() if row[2] in known})
    tensors = sorted({name for found in known.values() for name in found}, key=layer_order)
    ranks = np.full((len(runs), len(steps), len(tensors)), np.nan)
    shapes = np.zeros((2, len(runs), len(tensors)), np.int64)
    about = {name: np.full(ranks.shape[:2], "", object) for name in ("revision", "commit", "weights")}
    reasons: list[list[object]] = []
    place = {name: number for number, name in enumerate(tensors)}
    for i, run in enumerate(runs):
        for j, step in enumerate(steps):
            if step not in points[run]:
                continue
            for name, value in zip(about, points[run][step], strict=True):
                about[name][i, j] = value
            for tensor, measured in known.get(points[run][step][2], {}).items():
                if measured.reason:
                    reasons.append([run, step, tensor, measured.reason])
                    continue
                ranks[i, j, place[tensor]], *shapes[:, i, place[tensor]] = measured.numbers
    return xr.Dataset(
        {
            "stable_rank": (("run", "step", "tensor"), ranks),
            "rows": (("run", "tensor"), shapes[0]),
            "columns": (("run", "tensor"), shapes[1]),
        },
        coords={
            "run": np.array(runs, object),
            "step": np.array(steps, np.int64),
            "tensor": np.array(tensors, object),
            **{name: (("run", "step"), values) for name, values in about.items()},
        },
        attrs={
            "unavailable": reasons,
            "not_measured": [run for run in chosen if run not in runs],
            "not_measured_at": {
                run: [name for name, _, weights in points[run].values() if weights not in known] for run in runs
            },
        },
    )


def _first_at_each_step(store: Store, run: str, *, include_flagged: bool) -> dict[int, tuple[str, str, str]]:
    """Return revision, commit and weights of the first sound revision at each step."""
    table = store.revisions(run)
    table = table[table["step"].notna() & table["state"].isin(["done", "alias"])]
    if not include_flagged:
        table = table[~table["flagged"].astype(bool)]
    found: dict[int, tuple[str, str, str]] = {}
    for step, revision, commit, weights in zip(*(table[name] for name in COLUMNS), strict=True):
        found.setdefault(int(step), (revision, commit or "", weights))
    return found
