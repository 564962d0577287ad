"""The figure of a merged operator: where its probes lie, and its links."""

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import Palette, label_palette, name_labels
from replay.plots.figure import drawing, headline, require
from replay.plots.planes import frame_plane
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_merge"]

PLANES = (("phate", "PHATE"), ("diffusion_map", "diffusion map"))

MAGNITUDES = 2
"""Magnitudes of links below the strongest typical one that are told apart."""

Floats = npt.NDArray[np.float64]


def plot_merge(ds: "xr.Dataset", path: Path) -> None:
    """Draw the probes of a merged operator by PHATE and by diffusion map, and the operator as an image.

    A colour is a label; probes without labels, or with more than twenty, are grey. The rows and columns of the image
    are ordered by label, and within a label by the first diffusion coordinate.

    Parameters
    ----------
    ds
        Dataset with ``phate`` and ``diffusion_map`` (probe, two components or more; the second axis may have any name),
        ``operator`` (probe, probe_to) and, where there are labels, ``label`` (probe); attributes ``strategy`` or
        ``merging`` (parameters with a strategy), ``runs``, ``step``, ``layer``, ``n_probes``. Probes whose coordinates
        are not finite are left out of a plane.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, or a variable is missing or of another shape.
    """
    require(ds, ["operator"], ("probe", "probe_to"))
    planes = [(_plane(ds, name), title) for name, title in PLANES]
    P = np.asarray(ds["operator"].transpose("probe", "probe_to").values, np.float64)
    if P.shape[0] != P.shape[1]:
        raise InvalidInput(f"an operator to plot is square, not {P.shape}")
    palette, labels = label_palette(ds)
    order = np.lexsort((planes[1][0][:, 0], labels))
    with drawing(path, size=(14.2 if palette.names else 13.2, 4.7), title=_title(ds, len(P))) as figure:
        axes = figure.subplots(1, 3)
        for ax, (Y, title) in zip(axes, planes, strict=False):
            _draw_plane(ax, Y, labels, palette)
            ax.set_title(title)
        _draw_operator(figure, axes[2], P[np.ix_(order, order)], labels[order], palette)
        name_labels(figure, palette)


def _plane(ds: "xr.Dataset", name: str) -> Floats:
    axes = [axis for axis in ds[name].dims if axis != "probe"] if name in ds else ["component"]
    require(ds, [name], ("probe", *map(str, axes[:1])))
    Y = np.asarray(ds[name].transpose("probe", ...).values, np.float64)
    if Y.shape[1] < 2:
        raise InvalidInput(f"{name} to plot has two components or more, and there is one")
    return Y[:, :2]


def _title(ds: "xr.Dataset", n_probes: int) -> str:
    merging = ds.attrs.get("merging")
    strategy = ds.attrs.get("strategy") or (merging.get("strategy") if isinstance(merging, dict) else None)
    what = f"Merged operator, {str(strategy).replace('_', ' ')}" if strategy else "Merged operator"
    facts = [] if ds.attrs.get("n_probes") else [f"{n_probes} probes"]
    facts += [str(ds.attrs["layer"])] if ds.attrs.get("layer") else []
    if ds.attrs.get("step") not in (None, ""):
        facts.append(f"step {int(ds.attrs['step']):,}")
    return headline(ds, what, *facts)


def _draw_plane(ax: Any, Y: Floats, labels: npt.NDArray[np.intp], palette: Palette) -> None:
    from matplotlib.colors import to_rgba_array

    there = np.isfinite(Y).all(axis=1)
    area = float(np.clip(9000 / max(1, there.sum()), 5, 40))
    colours = to_rgba_array(palette.colours)[labels]
    shuffled = np.random.default_rng(0).permutation(np.nonzero(there)[0])  # so that no label lies on top of the others
    ax.scatter(*Y[shuffled].T, s=area, c=colours[shuffled], linewidths=0.3, edgecolors="white", alpha=0.9)
    frame_plane(ax, Y)


def _draw_operator(figure: Any, ax: Any, P: Floats, labels: npt.NDArray[np.intp], palette: Palette) -> None:
    """Draw n·P, whose value is 1 everywhere for a walk that sees no geometry, on a logarithmic scale."""
    import matplotlib as mpl
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import FuncFormatter

    n = len(P)
    links = n * np.abs(P)
    positive = links[np.isfinite(links) & (links > 0)]
    high = max(10.0, float(np.quantile(positive, 0.995))) if len(positive) else 10.0
    colours = mpl.colormaps["magma"].with_extremes(under=mpl.colormaps["magma"](0.0), bad="#dcdcdc")
    low = high / 10**MAGNITUDES
    norm = LogNorm(low, high)
    image = ax.imshow(np.maximum(links, low / 10), cmap=colours, norm=norm, interpolation="nearest")
    edges = np.nonzero(np.diff(labels))[0] + 0.5
    for edge in edges:
        ax.axhline(edge, color="white", linewidth=0.6)
        ax.axvline(edge, color="white", linewidth=0.6)
    ax.set_xticks([])
    ax.set_yticks([])
    starts = np.concatenate([[-0.5], edges, [n - 0.5]])
    for position, (start, end) in enumerate(pairwise(starts) if palette.names else ()):
        block = {"color": palette.colours[position], "linewidth": 5, "solid_capstyle": "butt", "clip_on": False}
        ax.plot([-0.02, -0.02], [start, end], transform=ax.get_yaxis_transform(), **block)
        ax.plot([start, end], [-0.02, -0.02], transform=ax.get_xaxis_transform(), **block)
    ax.set_xlim(-0.5, n - 0.5)
    ax.set_ylim(n - 0.5, -0.5)
    ax.set_title("operator, probes " + ("by label" if palette.names else "by diffusion coordinate"))
    bar = figure.colorbar(image, ax=ax, pad=0.02, aspect=25, shrink=0.85, extend="both")
    bar.ax.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    bar.set_label("n · P   (1: no geometry)")
