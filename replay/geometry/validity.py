"""What the detector of jumps, and the rolling z-score rule beside it, find of planted series."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from replay.geometry.jumps import detect_jumps
from replay.geometry.planted import FIXTURES, Score, plant, score
from replay.geometry.rolling_z import rolling_z_jumps

__all__ = ["FIRST_SEED", "N_SERIES", "Validity", "measure_validity"]

N_SERIES = 40
"""Of each kind."""

FIRST_SEED = 3000
"""Seeds from here on were not looked at while the detector was made."""


class Validity(NamedTuple):
    """Scores on one kind of planted series."""

    kind: str
    """As in `replay.geometry.planted.FIXTURES`."""
    detector: Score
    """Of `replay.geometry.jumps.detect_jumps`; departures of a single checkpoint are no jumps."""
    rule: Score
    """Of `replay.geometry.rolling_z.rolling_z_jumps`."""


def measure_validity(*, n_series: int = N_SERIES, first_seed: int = FIRST_SEED) -> list[Validity]:
    """Score the detector and the rule on ``n_series`` series of every kind, seeds ``first_seed`` on."""
    found = []
    for kind in FIXTURES:
        series = [plant(kind, seed=seed) for seed in range(first_seed, first_seed + n_series)]
        found.append(Validity(kind, score(_detector, series), score(_rule, series)))
    return found


def _detector(steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> list[int]:
    return [change.end for change in detect_jumps(steps, values).changes if change.kind != "single checkpoint"]


def _rule(_steps: npt.NDArray[np.int64], values: npt.NDArray[np.float64]) -> list[int]:
    return rolling_z_jumps(values)
