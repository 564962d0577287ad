"""Planted series: made-up histories whose jumps are known, and what a detector finds of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from store.errors import InvalidInput

__all__ = ["FIXTURES", "Planted", "Score", "plant", "score"]

N_LONG = 1000
"""Checkpoints of a long series, at every step."""

FALL = 0.1
"""What noise or moves that shrink fall to, as a share, geometrically."""

SHORT = (0, *(2**i for i in range(10)), *range(768, 2305, 256))
"""Training steps of 18 checkpoints, logarithmic, then linear."""

MEDIUM = (0, *(2**i for i in range(10)), *range(1000, 144_000, 1000))
"""Training steps of 154 checkpoints, logarithmic, then linear."""

Floats = npt.NDArray[np.float64]
Detector = Callable[[npt.NDArray[np.int64], Floats], Sequence[int]]
"""Takes steps and values, and returns the positions of the first value after each jump."""


@dataclass(frozen=True)
class Planted:
    """A series whose jumps are known."""

    steps: npt.NDArray[np.int64]
    """(n,) training steps."""
    values: Floats
    """(n,) values."""
    jumps: tuple[int, ...]
    """Position of the first value after each jump."""
    tolerance: int
    """How many checkpoints off a jump may be found."""


class Score(NamedTuple):
    """What a detector found of many series of one kind."""

    n_series: int
    n_jumps: int
    """Planted in all of them."""
    n_found: int
    """Those found, each at most once."""
    n_false: int
    """Reported and not planted, or reported again."""
    n_checkpoints: int
    errors: list[int]
    """Checkpoints between a planted jump and where it was found."""

    @property
    def recall(self) -> float | None:
        """Share of the planted jumps that were found; None where none was planted."""
        return self.n_found / self.n_jumps if self.n_jumps else None

    @property
    def false_per_1000(self) -> float:
        """False jumps per 1,000 checkpoints."""
        return 1000 * self.n_false / self.n_checkpoints


def score(detector: Detector, series: Sequence[Planted]) -> Score:
    """Compare what a detector reports of some series with what was planted.

    Pairs of a planted and a reported jump within the tolerance are matched, the nearest first, each once.

    Raises
    ------
    InvalidInput
        If there is no series.
    """
    if not series:
        raise InvalidInput("a detector is scored on one series or more, and there is none")
    n_false, errors = 0, []
    for one in series:
        reported = list(detector(one.steps, one.values))
        pairs = sorted((abs(there - at), there, at) for there in one.jumps for at in reported)
        planted, free = set(one.jumps), list(reported)
        for off, there, at in pairs:
            if off <= one.tolerance and there in planted and at in free:
                planted.remove(there)
                free.remove(at)
                errors.append(off)
        n_false += len(free)
    n_jumps, n_checkpoints = sum(len(one.jumps) for one in series), sum(len(one.steps) for one in series)
    return Score(len(series), n_jumps, len(errors), n_false, n_checkpoints, errors)


def plant(name: str, *, seed: int) -> Planted:
    """Make one series of a kind of `FIXTURES`; equal seeds give equal ones.

    Raises
    ------
    InvalidInput
        If there is no such kind.
    """
    if name not in FIXTURES:
        raise InvalidInput(f"no planted series {name!r}: there is {', '.join(FIXTURES)}")
    return FIXTURES[name](np.random.default_rng([seed, list(FIXTURES).index(name)]))


def _noise(rng: np.random.Generator, *, n: int = N_LONG, memory: float = 0.0) -> Floats:
    """Make noise of unit variance in which each value remembers a share of the last one."""
    noise = rng.standard_normal(n)
    for i in range(1, n):
        noise[i] = memory * noise[i - 1] + np.sqrt(1 - memory**2) * noise[i]
    return noise


def _steps(rng: np.random.Generator, size: tuple[float, float], *, n_jumps: int = 1) -> tuple[Floats, tuple[int, ...]]:
    """Make steps of either sign at random places, at least 50 from the ends and one another."""
    places = 50 * np.arange(1, n_jumps + 1) + np.sort(rng.integers(0, N_LONG - 50 * (n_jumps + 1), n_jumps))
    sizes = rng.uniform(*size, n_jumps) * rng.choice([-1, 1], n_jumps)
    path = np.zeros(N_LONG)
    for place, jump in zip(places, sizes, strict=True):
        path[place:] += jump
    return path, tuple(int(place) for place in places)


def _long(values: Floats, jumps: tuple[int, ...] = ()) -> Planted:
    return Planted(np.arange(N_LONG), values, jumps, tolerance=5)


def _short(values: Floats) -> Planted:
    return Planted(100 * np.arange(len(values)), values, (), tolerance=1)


def _falling(rng: np.random.Generator, n: int) -> Floats:
    """Make noise whose spread falls to `FALL`."""
    return rng.standard_normal(n) * np.geomspace(1, FALL, n)


def _planted(rng: np.random.Generator, background: Floats, *, n_jumps: int = 1, size: tuple[float, float]) -> Planted:
    path, places = _steps(rng, size, n_jumps=n_jumps)
    return _long(background + path, places)


def _history(rng: np.random.Generator, grid: tuple[int, ...], *, collapse: bool) -> Planted:
    """Make a metric that drifts over all of training and wanders a little, or also falls within two checkpoints."""
    steps = np.array(grid)
    clock = np.log1p(steps) / np.log1p(steps[-1])
    values = 10 + rng.uniform(-2, 2) * clock + rng.uniform(-1, 1) * clock**2
    gaps = np.diff(np.log1p(steps))
    values[1:] += 0.1 * np.cumsum(np.sqrt(gaps) * rng.standard_normal(len(gaps)))
    values += 0.05 * rng.standard_normal(len(steps))
    if not collapse:
        return Planted(steps, values, (), tolerance=1)
    place = int(rng.integers(3, len(steps) - 3))
    share = rng.uniform(0.3, 1.0)
    fall = rng.uniform(2, 6)
    values[place:] -= share * fall
    values[place + 1 :] -= (1 - share) * fall
    return Planted(steps, values, (place,), tolerance=1)


FIXTURES: dict[str, Callable[[np.random.Generator], Planted]] = {
    "one step of 3 to 8 sd in noise": lambda rng: _planted(rng, _noise(rng), size=(3, 8)),
    "five steps of 3 to 8 sd in noise": lambda rng: _planted(rng, _noise(rng), n_jumps=5, size=(3, 8)),
    "one step of 4 to 8 sd in noise with memory 0.7": lambda rng: _planted(rng, _noise(rng, memory=0.7), size=(4, 8)),
    "one step of 3 to 8 sd in noise on drift": lambda rng: _planted(
        rng, _noise(rng) + np.linspace(0, 10, N_LONG), size=(3, 8)
    ),
    "one step of 8 to 15 moves in a random walk": lambda rng: _planted(
        rng, np.cumsum(rng.standard_normal(N_LONG)), size=(8, 15)
    ),
    "a collapse in a history of 154": lambda rng: _history(rng, MEDIUM, collapse=True),
    "a collapse in a history of 18": lambda rng: _history(rng, SHORT, collapse=True),
    "noise": lambda rng: _long(_noise(rng)),
    "noise with memory 0.7": lambda rng: _long(_noise(rng, memory=0.7)),
    "noise with memory 0.95": lambda rng: _long(_noise(rng, memory=0.95)),
    "random walk": lambda rng: _long(np.cumsum(rng.standard_normal(N_LONG))),
    "steady drift of 10 sd": lambda rng: _long(_noise(rng) + np.linspace(0, 10, N_LONG)),
    "relaxation of 10 sd": lambda rng: _long(_noise(rng) + 10 * np.exp(-np.arange(N_LONG) / 50)),
    "noise that falls to a tenth": lambda rng: _long(_falling(rng, N_LONG)),
    "a history of 154 without a jump": lambda rng: _history(rng, MEDIUM, collapse=False),
    "a history of 18 without a jump": lambda rng: _history(rng, SHORT, collapse=False),
    "noise that falls to a tenth, 18 checkpoints": lambda rng: _short(_falling(rng, 18)),
    "noise that falls to a tenth, 30 checkpoints": lambda rng: _short(_falling(rng, 30)),
    "a walk whose moves shrink to a tenth, 18 checkpoints": lambda rng: _short(np.cumsum(_falling(rng, 18))),
    "a walk whose moves shrink to a tenth, 30 checkpoints": lambda rng: _short(np.cumsum(_falling(rng, 30))),
}
"""Kinds of series by what is planted in them; sd is that of the noise, a move that of the walk."""
