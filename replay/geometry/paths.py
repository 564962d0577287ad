"""The path of one run through the space of operators: speed, length, distance to the end, turns."""

from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from replay.geometry.statistics import jackknife_interval
from store.errors import InvalidInput, Unavailable

__all__ = [
    "VERSION",
    "Clock",
    "Curve",
    "PathRatio",
    "checked_distances",
    "curvature",
    "distance_to_final",
    "path_length",
    "roughness",
    "straightness",
    "turning_angle",
    "velocity",
]

VERSION = 2
"""Version of these computations, part of every cache key: raised whenever a result may change."""

VELOCITY_STEPS = 1000
"""A velocity on the step clock is per this many training steps."""

TRIANGLE_SLACK = 1e-6
"""By what share of its longest side a triangle may fail to close before its distances count as no metric."""

Clock = Literal["step", "log"]
Floats = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """A number that belongs to steps, with its interval where replicates were given."""

    steps: npt.NDArray[np.int64]
    """(M,) training steps, ascending, at which the number is defined."""
    values: Floats
    """(M,)."""
    low: Floats | None
    """(M,) lower ends of the 95 % intervals over probes, point by point."""
    high: Floats | None
    """(M,) upper ends of the same."""
    unavailable: dict[int, str]
    """Steps at which the number is undefined, with the reason."""


class PathRatio(NamedTuple):
    """A ratio of lengths along a whole path, and what a path without direction would give."""

    value: float
    low: float | None
    """Lower end of the 95 % interval over probes."""
    high: float | None
    """Upper end of the same."""
    random_walk: float
    """The ratio if every link, at its measured length, were at a right angle to all others."""
    noise: float
    """The ratio if the run stood still and all distance came from independent noise of each checkpoint."""


def velocity(
    D: npt.ArrayLike, steps: npt.ArrayLike, *, clock: Clock = "step", replicates: npt.ArrayLike | None = None
) -> Curve:
    """Distance between successive checkpoints over the training between them.

    Parameters
    ----------
    D
        (T, T) distances between the checkpoints of one run.
    steps
        (T,) training steps of the checkpoints, whole, ascending, from 0.
    clock
        ``step``: per 1,000 steps. ``log``: per unit of ln(step + 1), which is 0 at step 0, so that the link from step 0
        to step 1 spans ln 2.
    replicates
        (T, T, G) the distances without each group of probes in turn.

    Returns
    -------
    Curve
        (T-1,) each at the step where its link ends. A noise of δ in each distance adds up to δ over the time between
        checkpoints, so that a dense grid looks fast: compare velocities over links of equal length.

    Raises
    ------
    InvalidInput
        If shapes disagree, distances are no distances, or steps do not ascend from 0 or more.
    Unavailable
        If there are fewer than two checkpoints.
    """
    if clock not in get_args(Clock):
        raise InvalidInput(f"the clock must be one of {', '.join(get_args(Clock))}, not {clock!r}")
    tables, t = _checked(D, steps, replicates, n_points=2)
    time = np.diff(t / VELOCITY_STEPS) if clock == "step" else np.diff(np.log1p(t))
    return _curve(t[1:], _links(tables) / time[:, None])


def path_length(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> Curve:
    """Length of the path up to each checkpoint, Σ of the distances between successive ones.

    It grows with the number of checkpoints wherever there is noise: a run that stands still, each of whose distances is
    a noise of δ, is δ(T-1) long. `roughness` tells the two apart. Parameters and errors as for `velocity`.

    Returns
    -------
    Curve
        (T,) in units of D, 0 at the first step.
    """
    tables, t = _checked(D, steps, replicates, n_points=2)
    links = _links(tables)
    return _curve(t, np.concatenate([np.zeros_like(links[:1]), np.cumsum(links, axis=0)]))


def distance_to_final(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> Curve:
    """Distance of each checkpoint from the last. Parameters and errors as for `velocity`.

    Returns
    -------
    Curve
        (T,) in units of D, 0 at the last step.
    """
    tables, t = _checked(D, steps, replicates, n_points=2)
    return _curve(t, tables[:, -1])


def straightness(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> PathRatio:
    """Distance from the first checkpoint to the last over the length of the path between them.

    Parameters and errors as for `velocity`.

    Returns
    -------
    PathRatio
        1 for a straight path, 0 for a closed one. A walk of links d at right angles gives √Σd² / Σd, and a run that
        stands still in noise the root mean square link over Σd.

    Raises
    ------
    Unavailable
        If the path has length zero, with any group of probes left out.
    """
    tables, _ = _checked(D, steps, replicates, n_points=2)
    links = _links(tables)
    lengths = links.sum(axis=0)
    if not lengths.all():
        raise Unavailable("straightness is undefined: the path has length zero")
    walked = float(np.linalg.norm(links[:, 0]) / lengths[0])
    return _path_ratio(
        tables[0, -1] / lengths, largest=1.0, random_walk=walked, noise=walked / float(np.sqrt(len(links)))
    )


def roughness(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> PathRatio:
    """Length of the path with every checkpoint over its length with every other one.

    Σ (d_{i,i+1} + d_{i+1,i+2}) / Σ d_{i,i+2} over all three successive checkpoints: how much of the length would vanish
    if checkpoints were sparser. Parameters and errors as for `velocity`.

    Returns
    -------
    PathRatio
        1 for a straight path; √2 for a random walk of equal links; 2 for a run that stands still in noise, whose length
        is then nothing but noise.

    Raises
    ------
    Unavailable
        If there are fewer than three checkpoints, or every other one is the same point, with any group left out.
    """
    tables, _ = _checked(D, steps, replicates, n_points=3)
    a, b, c = _triangles(tables)
    sparse = c.sum(axis=0)
    if not sparse.all():
        raise Unavailable("roughness is undefined: the path with every other checkpoint has length zero")
    right_angled = float((a + b)[:, 0].sum() / np.hypot(a, b)[:, 0].sum())
    return _path_ratio((a + b).sum(axis=0) / sparse, random_walk=right_angled, noise=2.0)


def turning_angle(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> Curve:
    """Angle by which the path turns at each checkpoint, from the distances among three successive ones.

    Parameters and errors as for `velocity`; the distances must be those of a metric.

    Returns
    -------
    Curve
        (T-2,) radians, 0 to π, at the middle step: 0 straight on, π/2 what a random walk in many dimensions does, 2π/3
        what independent noise about one point does, π straight back. Distances that are off by a share ε turn a
        straight path by up to about 4√ε. Undefined where the middle checkpoint coincides with a neighbour, or three
        distances break the triangle inequality.

    Raises
    ------
    Unavailable
        If there are fewer than three checkpoints.
    """
    return _over_triangles(D, steps, replicates, curved=False)


def curvature(D: npt.ArrayLike, steps: npt.ArrayLike, *, replicates: npt.ArrayLike | None = None) -> Curve:
    """Menger curvature at each checkpoint: 1 / R of the circle through three successive ones.

    4A / (d₁₂ d₂₃ d₁₃) = 2 sin θ / d₁₃, with A the area of the triangle and θ its `turning_angle`: no clock enters it.
    Parameters and errors as for `velocity`; the distances must be those of a metric.

    Returns
    -------
    Curve
        (T-2,) per unit of D, at the middle step: 0 on a line, 1 / R on a circle, on any grid of steps. Noise of δ a
        distance gives √3 / δ: read it beside the turning angle. Undefined where two of the three coincide, or their
        distances break the triangle inequality.

    Raises
    ------
    Unavailable
        If there are fewer than three checkpoints.
    """
    return _over_triangles(D, steps, replicates, curved=True)


def checked_distances(D: npt.ArrayLike) -> Floats:
    """Refuse what is no matrix of distances, and give it as float64.

    Parameters
    ----------
    D
        (T, T) finite, not negative, zero on the diagonal, symmetric to 1e-6 of its largest entry.

    Raises
    ------
    InvalidInput
        If it is not.
    """
    D = np.asarray(D, np.float64)
    if D.ndim != 2 or D.shape[0] != D.shape[1]:
        raise InvalidInput(f"distances must have shape (point, point), not {D.shape}")
    if not np.isfinite(D).all() or (D < 0).any():
        raise InvalidInput("distances must be finite and not negative")
    if np.diagonal(D).any() or np.abs(D - D.T).max(initial=0) > 1e-6 * D.max(initial=0):
        raise InvalidInput("distances must be zero on the diagonal and symmetric")
    return D


def _checked(
    D: npt.ArrayLike, steps: npt.ArrayLike, replicates: npt.ArrayLike | None, *, n_points: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Stack the distances and their replicates, (T, T, 1 + G), so that one formula serves both."""
    D, t = checked_distances(D), np.asarray(steps)
    if t.shape != D.shape[:1] or t.dtype.kind not in "iu":
        raise InvalidInput(f"steps must be {len(D)} whole numbers, one a checkpoint, not {t.dtype} of shape {t.shape}")
    t = t.astype(np.int64)
    if (t < 0).any() or (np.diff(t) <= 0).any():
        raise InvalidInput(
            "steps must ascend from 0 or more: sort the checkpoints of the run and their distances first"
        )
    if len(t) < n_points:
        raise Unavailable(f"this needs {n_points} checkpoints or more, and the run has {len(t)}")
    if replicates is None:
        return D[..., None], t
    R = np.asarray(replicates, np.float64)
    if R.ndim != 3 or R.shape[:2] != D.shape or R.shape[2] < 2:
        raise InvalidInput(f"replicates must be {D.shape} by 2 groups or more, not of shape {R.shape}")
    if not np.isfinite(R).all() or (R < 0).any():
        raise InvalidInput("replicates of distances must be finite and not negative")
    return np.concatenate([D[..., None], R], axis=2), t


def _links(tables: Floats) -> Floats:
    first = np.arange(len(tables) - 1)
    return tables[first, first + 1]


def _triangles(tables: Floats) -> tuple[Floats, Floats, Floats]:
    """Distances first to middle, middle to last, first to last, of each three successive checkpoints."""
    first = np.arange(len(tables) - 2)
    return tables[first, first + 1], tables[first + 1, first + 2], tables[first, first + 2]


def _over_triangles(D: npt.ArrayLike, steps: npt.ArrayLike, replicates: npt.ArrayLike | None, *, curved: bool) -> Curve:
    tables, t = _checked(D, steps, replicates, n_points=3)
    a, b, c = _triangles(tables)
    empty = (a == 0) | (b == 0) | (curved & (c == 0))
    longest = np.maximum(np.maximum(a, b), c)
    unclosed = (2 * longest - a - b - c > TRIANGLE_SLACK * longest)[:, 0]
    coincident = empty[:, 0]
    unavailable = dict.fromkeys(t[1:-1][unclosed].tolist(), "the three distances break the triangle inequality")
    unavailable |= dict.fromkeys(t[1:-1][coincident].tolist(), "checkpoints coincide")
    kept = ~(coincident | unclosed)
    a, b, c, empty = a[kept], b[kept], c[kept], empty[kept]
    values = np.where(empty, np.nan, _angles(a, b, c))  # a replicate without a triangle leaves no interval
    if curved:
        values = np.divide(2 * np.sin(values), c, out=np.full_like(c, np.nan), where=~empty)
    return _curve(t[1:-1][kept], values, largest=np.inf if curved else np.pi, unavailable=unavailable)


def _angles(a: Floats, b: Floats, c: Floats) -> Floats:
    """π minus the angle between sides a and b, without cancellation (Kahan, 2014: Miscalculating area and angles)."""
    longer, shorter = np.maximum(a, b), np.minimum(a, b)
    middle = np.where(shorter >= c, c - (longer - shorter), shorter - (longer - c))
    opening = ((longer - shorter) + c) * np.maximum(middle, 0)
    closing = (longer + (shorter + c)) * np.maximum((longer - c) + shorter, 0)
    angles: Floats = 2 * np.arctan2(np.sqrt(closing), np.sqrt(opening))
    return angles


def _curve(
    steps: npt.NDArray[np.int64],
    values: Floats,
    *,
    largest: float = np.inf,
    unavailable: dict[int, str] | None = None,
) -> Curve:
    """Split values (M, 1 + G) into estimates and intervals."""
    low = high = None
    if values.shape[1] > 1:
        ends = [jackknife_interval(float(row[0]), row[1:]) for row in values]
        low, high = np.clip(np.array(ends).reshape(-1, 2).T, 0, largest)
    return Curve(steps, values[:, 0].copy(), low, high, unavailable or {})


def _path_ratio(values: Floats, *, random_walk: float, noise: float, largest: float = np.inf) -> PathRatio:
    low = high = None
    if len(values) > 1:
        ends = jackknife_interval(float(values[0]), values[1:])
        low, high = max(ends.low, 0.0), min(ends.high, largest)
    return PathRatio(float(values[0]), low, high, random_walk, noise)
