"""What every measure between two points of a trajectory can do: `Measure`."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from replay.geometry.gauge import Operator
from store.errors import InvalidInput

__all__ = ["Floats", "Measure", "Point", "View", "all_pairs"]

Floats = npt.NDArray[np.float64]
Point = Operator | npt.NDArray[np.floating[Any]]


class View(Protocol):
    """What a measure needs to know of one point."""

    @property
    def n_probes(self) -> int:
        """How many probes the point is over."""


V = TypeVar("V", bound=View)


@dataclass(frozen=True)
class Measure(ABC, Generic[V]):
    """A distance or similarity of operators or activations over the same probes in the same order.

    A point is viewed once, and views are compared as often as needed::

        measure = Frobenius()
        views = [measure.view(P) for P in operators]
        D = measure.compare(views)

    The fields of a measure are its parameters. All measures are symmetric, and deterministic.
    """

    name: ClassVar[str]
    """By which `find_measure` finds it and results record it."""
    of: ClassVar[Literal["operator", "activations"]]
    """What a point is: an operator or its (n, n) matrix, or an (n, d) matrix of activations."""
    sense: ClassVar[Literal["distance", "similarity"]]
    """``distance``: 0 for a point and itself. ``similarity``: 1."""
    title: ClassVar[str]
    """A few words for the axis of a plot."""
    version: ClassVar[int] = 1
    """Part of every cache key: raised whenever a value may change."""
    no_null: ClassVar[str | None] = None
    """Why there is no value for relabelled probes, where there is none."""

    def parameters(self) -> dict[str, bool | float | int | str]:
        """Name the measure, its version and its fields, in plain JSON types, for cache keys and records."""
        return {"measure": self.name, "version": self.version, **asdict(self)}

    @abstractmethod
    def view(self, point: Point) -> V:
        """Compute what is needed of one point.

        Raises
        ------
        InvalidInput
            If the point is malformed or not of the right sort.
        Unavailable
            If the measure is undefined for it.
        """

    @abstractmethod
    def view_bytes(self, n_probes: int, n_features: int) -> int:
        """Estimate the memory of one view, the point's own matrix included where the view keeps it."""

    def compare(self, left: Sequence[V], right: Sequence[V] | None = None) -> Floats:
        """Compare each view on the left with each on the right, or all views on the left with one another.

        Returns
        -------
        ndarray
            (L, R), or (L, L): then exactly symmetric, with exactly 0 or 1 on the diagonal.

        Raises
        ------
        InvalidInput
            If there is no view, or views differ in their number of probes.
        """
        self._check(left, right)
        values = self._compare(left, right)
        if right is None:
            np.fill_diagonal(values, 0.0 if self.sense == "distance" else 1.0)
        return values

    def null(self, left: Sequence[V], right: Sequence[V] | None = None) -> Floats:
        """Give the value if the probes of one point were relabelled at random.

        The mean over all relabellings for similarities, the root mean square for distances; by a closed form, or from
        a fixed sample where a measure says so.

        Returns
        -------
        ndarray
            As for `compare`, but the diagonal is of a point and its own relabellings. All NaN where `no_null` has a
            reason.
        """
        self._check(left, right)
        return self._null(left, right)

    def to_distance(self, values: Floats) -> Floats:
        """Turn values of the measure into distances: as they are, 1 - s for similarities unless a measure says more."""
        return values if self.sense == "distance" else 1 - values

    @abstractmethod
    def _compare(self, left: Sequence[V], right: Sequence[V] | None) -> Floats: ...

    @abstractmethod
    def _null(self, left: Sequence[V], right: Sequence[V] | None) -> Floats: ...

    def _check(self, left: Sequence[V], right: Sequence[V] | None) -> None:
        if not left or (right is not None and not right):
            raise InvalidInput(f"{self.name} needs points to compare, and was given none")
        counts = sorted({view.n_probes for view in (*left, *(right or ()))})
        if len(counts) > 1:
            raise InvalidInput(f"points must be over the same probes, not over {' and '.join(map(str, counts))}")


def all_pairs(
    pair: Callable[[V, V], float], left: Sequence[V], right: Sequence[V] | None, *, itself: bool = False
) -> Floats:
    """Fill the matrix of all pairs one by one; without a right, only above the diagonal, which is then mirrored.

    ``itself`` is whether the pairs of a view with itself are filled as well, and not left at 0.
    """
    if right is not None:
        return np.array([[pair(a, b) for b in right] for a in left], np.float64)
    values = np.zeros((len(left), len(left)))
    for i, a in enumerate(left):
        for j in range(i if itself else i + 1, len(left)):
            values[i, j] = values[j, i] = pair(a, left[j])
    return values
