"""Results of analyses: found under their key, or made and kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from replay.analyses.selection import Selection
from store.catalog import Store
from store.commits import commit_result, stage_result, use_result
from store.segments import Array

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["Made", "coordinates", "in_passing", "keep_result", "texts"]

_IN_PASSING: ContextVar[bool] = ContextVar("in_passing", default=False)


class Made(NamedTuple):
    """What an analysis computed."""

    arrays: dict[str, Array]
    """Arrays by name; one named like an axis is its coordinate."""
    attrs: dict[str, Any]
    """What is said of the numbers and follows from the key, in plain JSON types."""


@contextmanager
def in_passing() -> Iterator[None]:
    """Keep no result that is made meanwhile, nor call it the latest: it is what another analysis starts from.

    What was measured for it is kept all the same.
    """
    token = _IN_PASSING.set(True)
    try:
        yield
    finally:
        _IN_PASSING.reset(token)


def keep_result(
    store: Store,
    name: str,
    key: str,
    *,
    parameters: Mapping[str, Any],
    remarks: Mapping[str, Any],
    make: Callable[[], Made],
) -> "xr.Dataset":
    """Return the result under ``key``, made and kept first if the store lacks it; it is now the latest of its name.

    See `in_passing` for an exception.

    Parameters
    ----------
    store
        A writable store.
    name
        Name of the analysis.
    key
        Content key of all that its numbers depend on.
    parameters
        What it was asked for.
    remarks
        What is said of it now, such as what was left out: it may change while the numbers stay.
    make
        Computes it.
    """
    about = {**parameters, **remarks}
    if _IN_PASSING.get():
        import xarray as xr

        made = make()
        return xr.Dataset({n: (array.dims, np.asarray(array.values)) for n, array in made.arrays.items()}).assign_attrs(
            {"analysis": name, **made.attrs, **about}
        )
    if not use_result(store, key, parameters=about):
        made = make()
        attrs = {"analysis": name, **{k: v for k, v in parameters.items() if k not in made.arrays}, **made.attrs}
        commit_result(
            store, stage_result(store.root, key, arrays=made.arrays, attrs=attrs), name=name, parameters=about
        )
    return store.result(name, key=key)


def coordinates(selection: Selection, steps: Sequence[int]) -> dict[str, Array]:
    """Return runs, layers and steps of a result, and over (run, step) the revision, commit and weights it is from."""
    arrays = {name: texts(rows, ("run", "step")) for name, rows in selection.made_from(steps).items()}
    return arrays | {
        "run": texts(selection.runs, ("run",)),
        "layer": texts(selection.layers, ("layer",)),
        "step": Array(np.array(steps, np.int64), ("step",)),
    }


def texts(values: Sequence[Any], dims: tuple[str, ...]) -> Array:
    """Return an array of strings."""
    return Array(np.array(values, dtype=object), dims)
