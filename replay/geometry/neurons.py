"""What single units do over a probe set: mean, std, lifetime sparseness, duty cycle, and whether a unit is dead."""

import re
from collections.abc import Iterable
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput, Unavailable

__all__ = [
    "DEAD",
    "NONLINEARITIES",
    "VERSION",
    "Nonlinearity",
    "UnitStatistics",
    "ValueRange",
    "check_units",
    "tell_nonlinearity",
    "unit_statistics",
    "value_range",
]

VERSION = 1
"""Of the numbers: raised when they change."""

Nonlinearity = Literal["rectified", "gated", "tanh", "sigmoid", "linear"]
"""What a layer's values come out of: ReLU and its like; GELU, SiLU, Mish; tanh; a sigmoid; none of these."""

NONLINEARITIES: tuple[Nonlinearity, ...] = get_args(Nonlinearity)

DEAD = 0.01
"""Share of the layer's scale below which what a unit does is nothing; and of a bounded range, how near its end."""

LARGE_UNITS = 0.9
"""The layer's scale is this quantile over its units: neither many dead units nor a few huge ones move it."""

ROUNDING = 2 * float(np.finfo(np.float32).eps)
"""A std below this share of the unit's largest value is rounding of what is stored."""

FEWEST_PROBES = 3

FLOOR = 0.31
"""Mish falls to -0.309, SiLU to -0.278, GELU to -0.170: no gated unit is lower."""

ACTIVATIONS = {"act", "act_fn", "activation", "activation_fn", "intermediate_act_fn", "nonlinearity", "relu", "gelu"}
ACTIVATIONS |= {"silu", "swish", "mish"}
"""What modules that apply a nonlinearity are called."""

Floats = npt.NDArray[np.float64]


class ValueRange(NamedTuple):
    """What the values of a layer say about the nonlinearity they come out of."""

    low: float
    high: float
    zeros: float
    """Share of values that are exactly zero."""


class UnitStatistics(NamedTuple):
    """What each unit of a layer does over the probes, each (unit,)."""

    mean: Floats
    std: Floats
    """Over probes, with n - 1."""
    sparsity: Floats
    """Lifetime sparseness, 0 (alike for all probes) to 1 (for one); NaN for a dead unit or one that never responds."""
    duty_cycle: Floats
    """Share of probes for which the unit is active, 0 to 1."""
    dead: npt.NDArray[np.bool_]


def value_range(X: npt.NDArray[np.floating[Any]]) -> ValueRange:
    """Return least and greatest value of (probe, unit) activations, and the share of exact zeros."""
    X = check_units(X)
    return ValueRange(float(X.min()), float(X.max()), float(1 - np.count_nonzero(X) / X.size))


def tell_nonlinearity(ranges: Iterable[ValueRange], layer: str) -> Nonlinearity:
    """Return what nonlinearity the values of a layer come out of.

    Its name tells where the last part of the path is that of an activation module and the output is stored. Else the
    values do: none below 0 and some exactly 0 is ``rectified``; from -1 to 1 and both ends reached ``tanh``; from 0 to
    1 and the upper end reached ``sigmoid``; none below -0.31, some below -0.1, and five times as far above 0 as below
    is ``gated``; all else is ``linear``.

    Parameters
    ----------
    ranges
        Of the layer at every revision of a run: one revision may not show what its values can be.
    layer
        Name of the layer, ``blocks[0].mlp.act:output:mean``.

    Returns
    -------
    str
        One of `NONLINEARITIES`.
    """
    ranges = list(ranges)
    low, high = min(r.low for r in ranges), max(r.high for r in ranges)
    path, _, point = layer.partition(":")
    name = re.sub(r"(\[\d+\])+$", "", path.rpartition(".")[2]).lower() if point.startswith("output") else ""
    if name in ("tanh", "sigmoid"):
        return "tanh" if name == "tanh" else "sigmoid"
    if low >= 0:
        if name in ACTIVATIONS or any(r.zeros for r in ranges):
            return "rectified"
        return "sigmoid" if 1 - DEAD <= high <= 1 else "linear"
    if -1 <= low <= DEAD - 1 and 1 - DEAD <= high <= 1:
        return "tanh"
    if low >= -FLOOR and (name in ACTIVATIONS or (low < -0.1 and high > -5 * low)):
        return "gated"
    return "linear"


def unit_statistics(X: npt.NDArray[np.floating[Any]], nonlinearity: Nonlinearity) -> UnitStatistics:
    """Return what each unit does over the probes.

    With s the scale of the layer, the 90 % quantile over units of their std (``gated``: of their root mean square):

    =============  =====================  ===============  ===============================================
    nonlinearity   active                 response r       dead
    =============  =====================  ===============  ===============================================
    ``rectified``  x > 0                  x                x = 0 for every probe
    ``gated``      x > s / 100            max(x, 0)        abs(x) <= s / 100 for every probe
    ``tanh``       abs(x) < 0.98          abs(x - mean)    std <= s / 100, or at one end for every probe
    ``sigmoid``    0.01 < x < 0.99        abs(x - mean)    std <= s / 100, or at one end for every probe
    ``linear``     abs(x - mean) > s      abs(x - mean)    std <= s / 100: it tells no probe from another
    =============  =====================  ===============  ===============================================

    A std that is but the rounding of stored float32 is 0 here. Sparsity is the lifetime sparseness of Vinje and Gallant
    (2000) after Treves and Rolls (1991), (1 - mean(r)² / mean(r²)) / (1 - 1/n). Of activations that are means over
    tokens, a rectified unit is 0 where it is 0 for every token of the probe.

    Parameters
    ----------
    X
        (probe, unit) activations, 3 probes at least. Moments are taken in float64 about the mean.
    nonlinearity
        What the values come out of.

    Raises
    ------
    InvalidInput
        If values are not finite numbers in such a matrix, or no values of ``nonlinearity``.
    Unavailable
        If there are fewer than 3 probes.
    """
    X = check_units(X)
    check_nonlinearity(value_range(X), nonlinearity)
    if len(X) < FEWEST_PROBES:
        raise Unavailable(f"statistics of units need {FEWEST_PROBES} probes or more, and there are {len(X)}")
    mean = X.mean(axis=0, dtype=np.float64)
    deviations = X - mean
    std = np.sqrt(np.sum(deviations**2, axis=0) / (len(X) - 1))
    size = np.abs(X).max(axis=0)
    told = np.where(std > ROUNDING * size, std, 0.0)
    response = np.abs(deviations)
    if nonlinearity == "rectified":
        active, response, dead = X > 0, X, size == 0
    elif nonlinearity == "gated":
        nothing = DEAD * _scale(np.sqrt(np.mean(np.square(X, dtype=np.float64), axis=0)))
        active, response, dead = nothing < X, np.maximum(X, 0), size <= nothing
    elif nonlinearity == "linear":
        active, dead = response > _scale(told), told <= DEAD * _scale(told)
    else:
        end = 0.0 if nonlinearity == "sigmoid" else -1.0
        near = DEAD * (1 - end)
        at_low, at_high = end + near >= X, 1 - near <= X
        active = ~(at_low | at_high)
        dead = (told <= DEAD * _scale(told)) | at_low.all(axis=0) | at_high.all(axis=0)
    return UnitStatistics(mean, std, _sparseness(np.where(dead, 0, response)), active.mean(axis=0), dead)


def check_units(X: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.floating[Any]]:
    """Return activations if they are a (probe, unit) matrix of finite numbers.

    Raises
    ------
    InvalidInput
        If they are not.
    """
    X = np.asarray(X)
    if X.ndim != 2 or 0 in X.shape or X.dtype.kind not in "fiu":
        raise InvalidInput(f"activations of units are a (probe, unit) matrix of numbers, not {X.dtype} of {X.shape}")
    if not np.isfinite(X).all():
        wrong = int((~np.isfinite(X).all(axis=1)).sum())
        raise InvalidInput(f"activations of units must be finite: those of {wrong} of {len(X)} probes are not")
    return X


def check_nonlinearity(range_: ValueRange, nonlinearity: Nonlinearity) -> None:
    """Refuse values that cannot come out of a nonlinearity.

    Raises
    ------
    InvalidInput
        If one lies beyond its bounds, or there is no such nonlinearity.
    """
    bounds = {"rectified": (0.0, np.inf), "tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}
    if nonlinearity not in NONLINEARITIES:
        raise InvalidInput(f"a nonlinearity is one of {', '.join(NONLINEARITIES)}, not {nonlinearity!r}")
    low, high = bounds.get(nonlinearity, (-np.inf, np.inf))
    if range_.low < low or range_.high > high:
        wanted = f"from {low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more"
        raise InvalidInput(
            f"values from {range_.low:.4g} to {range_.high:.4g} are not {nonlinearity}, which is {wanted}: name "
            "another nonlinearity, or other layers"
        )


def _scale(sizes: Floats) -> float:
    return float(np.quantile(sizes, LARGE_UNITS))


def _sparseness(response: npt.NDArray[np.floating[Any]]) -> Floats:
    largest = response.max(axis=0)
    r = response / np.where(largest > 0, largest, 1).astype(np.float64)  # so that no square underflows
    squares = np.mean(r**2, axis=0)
    alike = np.divide(r.mean(axis=0) ** 2, squares, out=np.ones_like(squares), where=squares > 0)
    sparseness: Floats = np.where(largest > 0, (1 - alike) / (1 - 1 / len(r)), np.nan)
    return sparseness
