"""Planes of an embedding: their frame, and how far they can be trusted."""

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.figure import GREY

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["frame_plane", "tell_trust"]


def frame_plane(ax: Any, Y: npt.NDArray[np.floating[Any]]) -> None:
    """Frame a plane whose axes have no meaning of their own: square, one scale for both, no ticks.

    Parameters
    ----------
    ax
        Where the points are drawn.
    Y
        (n, 2) the points; if none is finite, the plane says that it is unavailable.
    """
    there = Y[np.isfinite(Y).all(axis=1)]
    ax.set_box_aspect(1)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color("#cccccc")
    if not len(there):
        ax.text(0.5, 0.5, "unavailable", ha="center", va="center", color=GREY, transform=ax.transAxes)
        return
    low, high = there.min(axis=0), there.max(axis=0)
    reach = 0.58 * float((high - low).max()) or 1.0
    (x, y) = (low + high) / 2
    ax.set_xlim(x - reach, x + reach)
    ax.set_ylim(y - reach, y + reach)


def tell_trust(ds: "xr.Dataset", **at: int) -> str:
    """Say the trustworthiness of one plane, beside the same number for points dealt out at random; empty if unknown.

    Parameters
    ----------
    ds
        Has ``trustworthiness`` and ``random_agreement``, or ``trustworthiness_null``, as variables or attributes.
    at
        Position of the plane along each dimension, as far as the variables lie over it.
    """
    trust = _number(ds, "trustworthiness", at)
    if trust is None:
        return ""
    chance = _number(ds, "random_agreement", at)
    chance = _number(ds, "trustworthiness_null", at) if chance is None else chance
    return f"trustworthiness {trust:.2f}" + (f" (at random {chance:.2f})" if chance is not None else "")


def _number(ds: "xr.Dataset", name: str, at: dict[str, int]) -> float | None:
    value = float(ds[name].isel(at, missing_dims="ignore") if name in ds else ds.attrs.get(name, np.nan))
    return value if np.isfinite(value) else None
