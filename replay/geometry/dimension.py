"""The dimension of activations by many definitions, each with its interval over probes and its null."""

import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache, partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from replay.geometry import eigenspectrum as spectral
from replay.geometry.eigenspectrum import Gram
from replay.geometry.marchenko_pastur import FEW, NullSpectrum, null_two_nn
from replay.geometry.statistics import Interval, jackknife_interval, probe_groups
from replay.geometry.traces import Traces, quick_traces
from replay.geometry.two_nn import neighbour_ratios, two_nn
from store.errors import InvalidInput, Unavailable

__all__ = [
    "METRICS",
    "N_GROUPS",
    "VERSION",
    "Estimate",
    "dimension",
    "dimension_null",
    "dimension_with_doubt",
    "resolve_metrics",
]

VERSION = 2
"""Raised whenever the numbers change."""

N_GROUPS = 15
"""Groups of probes that are left out one at a time."""

METRICS = (
    "stable_rank",
    "participation_ratio",
    "participation_ratio_unbiased",
    "effective_rank",
    "cumulative_energy_90",
    "nuclear_norm_ratio",
    "alpha_req",
    "two_nn",
    "participation_ratio_singular",
    "stable_rank_uncentred",
    "participation_ratio_uncentred",
    "participation_ratio_singular_uncentred",
    "effective_rank_uncentred",
    "cumulative_energy_90_uncentred",
    "nuclear_norm_ratio_uncentred",
    "alpha_req_uncentred",
)
"""Names of all metrics; a number other than 90 in the name of a cumulative energy is another share, in per cent."""

UNCENTRED = "_uncentred"
ENERGY = re.compile(r"cumulative_energy_(\d+(?:\.\d+)?)")

SPECTRAL: dict[str, Callable[[Gram], float]] = {
    "stable_rank": spectral.stable_rank,
    "participation_ratio": spectral.participation_ratio,
    "participation_ratio_unbiased": spectral.participation_ratio_unbiased,
    "effective_rank": spectral.effective_rank,
    "nuclear_norm_ratio": spectral.nuclear_norm_ratio,
    "alpha_req": spectral.alpha_req,
    "participation_ratio_singular": spectral.participation_ratio_singular,
}

OF_TRACES: dict[str, Callable[[Traces], float | str]] = {
    "stable_rank": lambda traces: traces.total / traces.largest,
    "participation_ratio": lambda traces: traces.total**2 / traces.squares,
}

LARGE = 256
"""Smaller side of float32 activations from which on traces are worth a way of their own."""

UNBOUNDED = ("participation_ratio_unbiased", "alpha_req", "alpha_req_uncentred", "two_nn")
"""The others are from 1 to the rank that activations of such a shape can have."""

UNSHARED = ("cumulative_energy", "cumulative_energy" + UNCENTRED)
"""Names that leave the share to an argument."""

Activations = npt.NDArray[np.floating[Any]]
Groups = npt.NDArray[np.intp]
T = TypeVar("T")


class Estimate(NamedTuple):
    """A metric and its doubt."""

    value: float
    interval: Interval | str
    """95 % over probes, or why there is none."""


def dimension(X: npt.ArrayLike, *, metrics: Sequence[str] | None = None, energy: float = 0.9) -> dict[str, float | str]:
    """Measure the dimension of activations.

    All metrics are centred over the probes unless their name says otherwise, and unchanged by rotation and scale of
    the features and by the order of the probes; the centred ones by translation too. With singular values σ and
    eigenvalues λ = σ²:

    ============================ ===================================================================================
    ``stable_rank``              Σλ / λ₁
    ``participation_ratio``      (Σλ)² / Σλ²; it sinks with the number of probes
    ``participation_ratio_unbiased``  the same of the population of probes (Himeno and Yamada, 2014)
    ``participation_ratio_singular``  (Σσ)² / Σσ²
    ``effective_rank``           exp of the entropy of σ / Σσ (Roy and Vetterli, 2007). RankMe (Garrido et al., 2023) is
                                 ``effective_rank_uncentred``, which it makes of the embeddings as they are, with 1e-7
                                 added to each share
    ``cumulative_energy_90``     the smallest k with λ₁ + … + λ_k ≥ 0.9 Σλ
    ``nuclear_norm_ratio``       Σσ / σ₁
    ``alpha_req``                exponent of λ_j ∝ j^-α at ranks 11 to 100 (Agrawal et al., 2022)
    ``two_nn``                   dimension of the manifold from two neighbours (Facco et al., 2017)
    ============================ ===================================================================================

    ``_uncentred`` variants take the activations as they are, so that a large mean makes them nearly 1. All but
    ``two_nn`` need one Gram matrix, of the smaller side; ``stable_rank`` and the participation ratios of λ its traces
    and its largest eigenvalue only, and the first two alone a product in float32 (`quick_traces`). They equal those of
    a float64 singular value decomposition to 1e-6.

    Parameters
    ----------
    X
        (n, d) activations, probes by features, 2 probes or more.
    metrics
        Names, see `METRICS`; all of them by default.
    energy
        Share of the energy for a cumulative energy whose name has none, above 0 and below 1.

    Returns
    -------
    dict
        Each metric by name, in the order asked for: its value, or why it is undefined.

    Raises
    ------
    InvalidInput
        If a name is none, or ``X`` has another shape or numbers that are not finite.
    """
    names, X = resolve_metrics(metrics, energy=energy), _checked(X)
    if set(names) <= set(OF_TRACES) and X.dtype == np.float32 and min(X.shape) >= LARGE:
        traces = quick_traces(X)
        if traces is not None:
            return {name: OF_TRACES[name](traces) for name in names}
    found = _measure(X, names, None)
    return {name: one if isinstance(one, str) else one.value for name, one in found.items()}


def dimension_with_doubt(
    X: npt.ArrayLike, *, metrics: Sequence[str] | None = None, energy: float = 0.9, n_groups: int = N_GROUPS
) -> dict[str, Estimate | str]:
    """Measure the dimension of activations, each metric with a 95 % interval over fresh probes of the same number.

    The interval is a delete-group jackknife: a bootstrap would draw probes twice, and copies of a probe lower every
    rank and leave `two_nn` without a meaning. Leaving out a fifteenth of the probes costs a corner of the Gram matrix
    and its eigenvalues. ``cumulative_energy`` has it between ranks, and its ends are rounded up as its value is;
    ``two_nn`` leaves out ratios of distances and keeps the neighbours, since neighbours found anew give errors 1.7
    times too large.

    In simulation (`benchmarks/dimension.py`; twelve populations, more features than probes and fewer), the nominal 95 %
    held the mean of fresh draws in 88 to 100 %, once (cumulative energy of clusters) in 79 %. Where features are
    independent, intervals are 1.4 to 2 times too wide, and those of metrics of σ many times.

    Parameters
    ----------
    X, metrics, energy
        As for `dimension`; 3 probes or more for an interval.
    n_groups
        Groups that are left out one at a time, dealt as by `probe_groups`.

    Returns
    -------
    dict
        Each metric by name, or why it is undefined.

    Raises
    ------
    InvalidInput
        As for `dimension`.
    """
    names = resolve_metrics(metrics, energy=energy)
    X = _checked(X)
    return _measure(X, names, probe_groups(len(X), n_groups=n_groups) if len(X) >= 3 else None)


def dimension_null(
    n: int, d: int, *, metrics: Sequence[str] | None = None, energy: float = 0.9
) -> dict[str, float | str]:
    """Give what each metric is for n probes whose d features are independent, normal and of one variance and mean 0.

    Stable rank and participation ratio in closed form; d for the unbiased one; the others of a spectrum by integrals
    over the law of Marchenko and Pastur; ``two_nn`` as the mean of seeded draws. These forms are for large n and d:
    where the rank is below 100, all of a spectrum but the unbiased one are means of 200 seeded draws instead, so that
    none is off by more than 5 %.

    Parameters
    ----------
    n, d
        Probes and features, 2 and 1 at least.
    metrics, energy
        As for `dimension`.

    Raises
    ------
    InvalidInput
        If a name is none, or the shape too small.
    """
    if n < 2 or d < 1:
        raise InvalidInput(f"a dimension needs 2 probes and 1 feature or more, not {n} and {d}")
    return {name: _attempt(partial(_null, name, n, d)) for name in resolve_metrics(metrics, energy=energy)}


def resolve_metrics(metrics: Sequence[str] | None = None, *, energy: float = 0.9) -> tuple[str, ...]:
    """Return the names of metrics in full: the share of a cumulative energy in per cent, 90 where it is 0.9.

    Raises
    ------
    InvalidInput
        If a name is none or the share is not between 0 and 1.
    """
    if not 0 < energy < 1:
        raise InvalidInput(f"the share of a cumulative energy is above 0 and below 1, not {energy}")
    share = f"cumulative_energy_{100 * energy:.10g}"
    if metrics is None:
        return tuple(name.replace("cumulative_energy_90", share) for name in METRICS)
    names = []
    for name in metrics:
        given = share + name.removeprefix("cumulative_energy") if name in UNSHARED else name
        matched = ENERGY.fullmatch(given.removesuffix(UNCENTRED))
        if given not in METRICS and not (matched and 0 < float(matched[1]) < 100):
            near = get_close_matches(given, METRICS, 1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidInput(f"no metric of dimension {name!r}; {hint}there are {', '.join(METRICS)}")
        names.append(given)
    return tuple(dict.fromkeys(names))


def _measure(X: Activations, names: Sequence[str], groups: Groups | None) -> dict[str, Estimate | str]:
    dropped = [] if groups is None else [groups == group for group in range(groups.max() + 1)]
    found: dict[str, Estimate | str] = {}
    for centred in (True, False):
        mine = {name: _of_spectrum(name) for name in names if name != "two_nn" and name.endswith(UNCENTRED) != centred}
        # The largest eigenvalue is at hand where all are.
        mine = dict(sorted(mine.items(), key=lambda metric: metric[0].startswith("stable_rank")))
        whole = _attempt(partial(Gram, X, centred=centred)) if mine else ""
        if isinstance(whole, str):
            found |= dict.fromkeys(mine, whole)
        else:
            found |= _with_doubt(mine, whole, [partial(whole.without, rows) for rows in dropped])
    if "two_nn" in names:
        ratios = _attempt(partial(neighbour_ratios, X.astype(np.float64)))
        if isinstance(ratios, str):
            found["two_nn"] = ratios
        else:
            parts = [partial(ratios.logarithms.__getitem__, ~rows[ratios.probes]) for rows in dropped]
            found |= _with_doubt({"two_nn": two_nn}, ratios.logarithms, parts)
    return {name: _finished(name, found[name], X.shape) for name in names}


def _with_doubt(
    metrics: dict[str, Callable[[Any], float]], whole: Any, parts: Sequence[Callable[[], Any]]
) -> dict[str, Estimate | str]:
    """Give each metric of the whole, and its interval from the parts, which are made one at a time."""
    values = {name: _attempt(partial(measure, whole)) for name, measure in metrics.items()}
    replicates: dict[str, list[float | str]] = {
        name: [] for name, value in values.items() if not isinstance(value, str)
    }
    for make in parts if replicates else ():
        part = _attempt(make)
        for name, found in replicates.items():
            found.append(part if isinstance(part, str) else _attempt(partial(metrics[name], part)))
    return {
        name: value if isinstance(value, str) else Estimate(value, _interval(value, replicates[name]))
        for name, value in values.items()
    }


def _interval(value: float, replicates: Sequence[float | str]) -> Interval | str:
    if not replicates:
        return "an interval over probes needs 3 of them or more"
    reasons = [one for one in replicates if isinstance(one, str)]
    if reasons:
        return f"no interval over probes: {reasons[0]}"
    return jackknife_interval(value, np.array(replicates))


def _finished(name: str, found: Estimate | str, shape: tuple[int, ...]) -> Estimate | str:
    """Keep an interval within what is possible, and round a cumulative energy up to a rank."""
    if isinstance(found, str):
        return found
    value, interval = found
    if not isinstance(interval, str):
        low, high = (0.0, np.inf) if name in UNBOUNDED else (1.0, float(min(shape)))
        interval = Interval(max(interval.low, low), min(interval.high, high))
    if ENERGY.match(name):
        value = float(np.ceil(value))
        interval = interval if isinstance(interval, str) else Interval(*map(float, np.ceil(interval)))
    return Estimate(value, interval)


def _of_spectrum(name: str) -> Callable[[Gram], float]:
    base = name.removesuffix(UNCENTRED)
    matched = ENERGY.fullmatch(base)
    return partial(spectral.energy_rank, share=float(matched[1]) / 100) if matched else SPECTRAL[base]


@cache
def _null(name: str, n: int, d: int) -> float:
    base, null = name.removesuffix(UNCENTRED), NullSpectrum(n - (not name.endswith(UNCENTRED)), d)
    if base == "two_nn":
        return null_two_nn(n, d)
    if base == "participation_ratio_unbiased":
        return float(d)
    matched = ENERGY.fullmatch(base)
    if null.rank < FEW:
        measure = _of_spectrum(name)
        return null.simulated(lambda gram: float(np.ceil(measure(gram))) if matched else measure(gram))
    return float(np.ceil(null.energy_rank(float(matched[1]) / 100))) if matched else float(getattr(null, base)())


def _attempt(measure: Callable[[], T]) -> T | str:
    try:
        return measure()
    except Unavailable as error:
        return str(error)


def _checked(X: npt.ArrayLike) -> Activations:
    X = np.asarray(X)
    if X.ndim != 2 or X.dtype.kind not in "fiu" or len(X) < 2 or not X.shape[1]:
        raise InvalidInput(
            f"a dimension is that of numbers (probe, feature), at least 2 and 1, not of {X.dtype} {X.shape}"
        )
    if X.dtype.kind != "f" or X.dtype.itemsize > 8:
        X = X.astype(np.float64)
    if not np.isfinite(X).all():
        raise InvalidInput("activations must be finite: some are NaN or infinite")
    return X
