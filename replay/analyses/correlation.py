"""Correlation of metrics and scalars of training over the steps of each run."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control

from replay.analyses.measuring import Advance
from replay.analyses.results import Made, coordinates, keep_result, texts
from replay.analyses.selection import Choice, select_layers
from replay.analyses.series import Series, read_series, series_names
from replay.geometry import correlation as correlation_module
from replay.geometry.correlation import METHODS, VARIANTS, correlate, mean_correlation
from replay.jobs import Cluster
from store.catalog import Store
from store.errors import InvalidInput, Unavailable
from store.keys import content_key
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["DEFAULT_METRICS", "analyze_correlation"]

DEFAULT_METRICS = ("stable_rank", "participation_ratio")
"""What is correlated with the scalars of training unless something else is asked for."""

LOSS = "probe_loss"
"""Correlated too where it was measured."""

NUMBERS = ("correlation", "low", "high", "p", "n_effective")
"""What each pair has in every run and variant."""

Steps = NDArray[np.int64]
Floats = NDArray[np.float64]


def analyze_correlation(
    store: Store,
    *,
    choice: Choice | None = None,
    metrics: Sequence[str] = (),
    method: str = "pearson",
    cluster: Cluster | None = None,
    advance: Advance = lambda *_: None,
) -> "xr.Dataset":
    """Return how metrics and scalars of training go together over the steps of each run, pair by pair.

    Parameters
    ----------
    store
        A writable store.
    choice
        Runs, layers and probes; all by default.
    metrics
        Names from `series_names`, of metrics or scalars; by default every scalar the runs have, their loss on the
        probes where it was measured, and `DEFAULT_METRICS`.
    method
        ``pearson`` or ``spearman``.
    cluster
        Where to compute metrics that are missing, and the memory there.
    advance
        Told of the progress.

    Returns
    -------
    xarray.Dataset
        Over (run, variant, series_a, series_b), symmetric: ``correlation``, ``low`` and ``high`` (95 %), ``p``,
        ``n_effective`` and ``n_steps`` as `correlate` says, and ``q``: p after Benjamini and Hochberg over all pairs
        and runs of a variant. ``mean`` (variant, series_a, series_b) is the mean of Fisher's z over runs, as a
        coefficient. The variants are ``level``, ``differenced`` and ``detrended``. NaN where a run lacks a series, or
        with a reason in ``attrs["unavailable"]``; the diagonal is 1 and has no doubt.

    Raises
    ------
    Unavailable
        If there are fewer than two series.
    UnknownRun, UnknownLayer, InvalidInput
        If names match nothing, or the method is another.
    """
    if method not in METHODS:
        raise InvalidInput(f"method must be one of {', '.join(METHODS)}, not {method!r}")
    choice = choice or Choice()
    selection = select_layers(store, choice)
    wanted = list(dict.fromkeys(metrics or _by_default(store, choice)))
    series = read_series(store, wanted, choice=choice, cluster=cluster, advance=advance)
    names = list(dict.fromkeys((one.metric, one.layer) for one in series))
    if len(names) < 2:
        raise Unavailable(
            f"a correlation needs two series, and there is {' '.join(names[0]).strip() if names else 'none'}: name "
            "more with --metric, or add scalars with `replay ingest --scalars`"
        )
    labels = [" ".join(filter(None, name)) for name in names]
    steps = sorted({int(step) for one in series for step in one.steps})
    parameters = {**selection.parameters(), "metrics": wanted, "method": method, "steps": steps}
    made_from = selection.made_from(steps)
    inputs = [
        [
            one.metric,
            one.run,
            one.layer,
            one.steps.tolist(),
            [value if np.isfinite(value) else None for value in one.values.tolist()],
        ]
        for one in series
    ]
    version = correlation_module.VERSION
    key = content_key("correlation", inputs=inputs, made_from=made_from, version=version, **parameters)

    def make() -> Made:
        found = []
        for number, run in enumerate(selection.runs):
            advance("correlation", number, len(selection.runs))
            table = {names.index((one.metric, one.layer)): one for one in series if one.run in (run, "")}
            found.append(_correlate_run(table, labels, method))
        grids = {name: np.stack([numbers[name] for numbers, _ in found]) for name in found[0][0]}
        n_steps = grids.pop("n_steps")[:, 0].astype(np.int64)
        grids["q"] = np.stack([_adjust(p) for p in grids["p"].swapaxes(0, 1)], axis=1)
        axes = ("run", "variant", "series_a", "series_b")
        arrays = {name: Array(grid, axes) for name, grid in grids.items()}
        arrays |= {
            "n_steps": Array(n_steps, ("run", "series_a", "series_b")),
            "mean": Array(mean_correlation(grids["correlation"]), axes[1:]),
            **coordinates(selection, steps),
            "variant": texts(VARIANTS, ("variant",)),
        }
        arrays |= {axis: texts(labels, (axis,)) for axis in axes[2:]}
        attrs = {
            "series": [list(name) for name in names],
            "interval": "95 % by Fisher's z, scattered as that of series whose changes are dealt anew",
            "unavailable": [
                [run, *reason] for run, (_, reasons) in zip(selection.runs, found, strict=True) for reason in reasons
            ],
        }
        return Made(arrays, attrs)

    return keep_result(store, "correlation", key, parameters=parameters, remarks=selection.remarks(), make=make)


def _by_default(store: Store, choice: Choice) -> list[str]:
    computed = series_names()
    scalars = [name for name in series_names(store, choice=choice) if name not in computed]
    try:
        read_series(store, [LOSS], choice=choice)
    except Unavailable:
        return [*scalars, *DEFAULT_METRICS]
    return [*scalars, LOSS, *DEFAULT_METRICS]


def _correlate_run(
    table: Mapping[int, Series], labels: Sequence[str], method: str
) -> tuple[dict[str, Floats], list[list[str]]]:
    """Return each number as (variant, series, series), and what is undefined with its reason."""
    shape = (len(VARIANTS), len(labels), len(labels))
    grids = {name: np.full(shape, np.nan) for name in NUMBERS} | {"n_steps": np.zeros(shape)}
    reasons: dict[tuple[str, ...], None] = {}
    for shared, rows, pairs in _by_common_steps(table):
        there = list(rows)
        left, right = np.array(pairs).T
        grids["n_steps"][:, left, right] = grids["n_steps"][:, right, left] = len(shared)
        try:
            found = correlate(np.stack(list(rows.values())), shared, method=method)
        except Unavailable as error:
            reasons |= {(labels[i], labels[j], str(error)): None for i, j in pairs}
            continue
        reasons |= {(VARIANTS[v], labels[there[at]], why): None for (v, at), why in found.undefined.items()}
        at = [there.index(i) for i in left], [there.index(j) for j in right]
        for name in NUMBERS:
            values = getattr(found, name)[:, *at]
            grids[name][:, left, right] = grids[name][:, right, left] = values
    for number in table:
        grids["correlation"][:, number, number] = 1
    return grids, [list(reason) for reason in reasons]


def _by_common_steps(table: Mapping[int, Series]) -> Iterator[tuple[Steps, dict[int, Floats], list[tuple[int, int]]]]:
    """Give the steps at which two series are both defined, the values there, and all pairs that share these steps."""
    known = {
        number: {int(step): value for step, value in zip(one.steps, one.values, strict=True) if np.isfinite(value)}
        for number, one in table.items()
    }
    groups: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
    for i, j in combinations(known, 2):
        groups[tuple(sorted(known[i].keys() & known[j].keys()))].append((i, j))
    for shared, pairs in groups.items():
        members = dict.fromkeys(number for pair in pairs for number in pair)
        rows = {number: np.array([known[number][step] for step in shared], np.float64) for number in members}
        yield np.array(shared, np.int64), rows, pairs


def _adjust(p: Floats) -> Floats:
    """Return the q-values of (run, series, series), each pair counted once."""
    q = np.full_like(p, np.nan)
    upper = np.triu(np.isfinite(p), k=1)
    if upper.any():
        q[upper] = false_discovery_control(p[upper])
    return np.where(np.isfinite(q), q, q.transpose(0, 2, 1))
