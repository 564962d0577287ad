"""The figure of a multislice embedding: every probe at every step."""

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from replay.plots.colours import draw_step_bar, label_palette, layer_palette, name_labels, run_palette, step_colours
from replay.plots.figure import drawing, headline, require, sorted_steps
from replay.plots.planes import frame_plane, tell_trust
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_multislice"]

JOINED = 24
"""Probes whose points are joined over the steps."""

MAX_PAIRS = 12
"""Pairs of run and layer in one figure."""

AXES = ("run", "layer", "step", "probe", "component")

Floats = npt.NDArray[np.float64]


def plot_multislice(ds: "xr.Dataset", path: Path) -> None:
    """Draw the first two components of every probe at every step, coloured by step and, beside, by label if any.

    Several runs and layers have a pair of planes each. Thin lines join 24 probes, evenly taken, over the steps. Both
    axes of a plane have one scale. Above it stands how far it can be trusted, beside the same number for points dealt
    out at random.

    Parameters
    ----------
    ds
        Dataset with ``multislice`` over (step, probe, component), and over run and layer if it has several, and, where
        there are labels, ``label`` (probe); ``trustworthiness`` and ``random_agreement`` as variables or attributes;
        attributes ``runs`` and ``n_probes``. A point that is not finite is left out.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, the variable is missing, there are fewer than two components, or more than 12 pairs
        of run and layer.
    """
    for name in ("run", "layer"):
        if "multislice" in ds and name not in ds["multislice"].dims:
            ds = ds.assign(multislice=ds["multislice"].expand_dims(name))
    require(ds, ["multislice"], AXES)
    if ds.sizes["component"] < 2:
        raise InvalidInput("a multislice embedding to plot has two components or more, and there is one")
    pairs = list(product(range(ds.sizes["run"]), range(ds.sizes["layer"])))
    if len(pairs) > MAX_PAIRS:
        raise InvalidInput(
            f"a figure holds {MAX_PAIRS} multislice embeddings, and there are {len(pairs)}: choose fewer runs or layers"
        )
    ds = sorted_steps(ds)
    Y = np.asarray(ds["multislice"].transpose(*AXES).values, np.float64)[..., :2]
    steps = np.asarray(ds["step"].values, np.float64)
    palette, labels = label_palette(ds)
    n_planes = 2 if palette.names else 1
    n_beside = 1 if len(pairs) <= 2 else 4 // n_planes
    n_rows, n_columns = -(-len(pairs) // n_beside), n_planes * n_beside
    side = 5.2 if len(pairs) == 1 else 3.6
    names, shared = _names(ds)
    size = (side * n_columns + 1.4 + (1.2 if palette.names else 0), (side + 0.3) * n_rows + 0.4)
    from matplotlib.colors import to_rgba_array

    with drawing(path, size=size, title=headline(ds, "Probes through training", *shared)) as figure:
        axes = np.ravel(figure.subplots(n_rows, n_columns))
        scale = step_colours(steps)
        for number, (run, layer) in enumerate(pairs):
            planes = axes[number * n_planes : (number + 1) * n_planes]
            tints = [scale.to_rgba(steps)[:, None], to_rgba_array(palette.colours)[labels]]
            for ax, colours in zip(planes, tints, strict=False):
                _draw_points(ax, Y[run, layer], np.broadcast_to(colours, (*Y.shape[2:4], 4)))
            lines = [names[run, layer], tell_trust(ds, run=run, layer=layer)]
            planes[0].set_title("\n".join(filter(None, lines)), loc="left")
        for ax in axes[len(pairs) * n_planes :]:
            ax.set_axis_off()
        draw_step_bar(figure, axes, scale, steps)
        name_labels(figure, palette)


def _names(ds: "xr.Dataset") -> tuple[dict[tuple[int, int], str], list[str]]:
    """Name each pair of run and layer by what tells it apart; return also what all share."""
    runs = run_palette(np.atleast_1d(ds["run"].values) if "run" in ds else [""])
    layers = layer_palette(np.atleast_1d(ds["layer"].values) if "layer" in ds else [str(ds.attrs.get("layer") or "")])
    several = [palette for palette in (runs, layers) if len(palette.names) > 1]
    shared = [palette.shared if palette in several else palette.names[0] for palette in (runs, layers)]
    names = {
        (i, j): ", ".join(name for palette, name in ((runs, run), (layers, layer)) if palette in several)
        for i, run in enumerate(runs.names)
        for j, layer in enumerate(layers.names)
    }
    return names, [words for words in shared if words]


def _draw_points(ax: Any, Y: Floats, colours: Floats) -> None:
    n_probes = Y.shape[1]
    there = np.isfinite(Y).all(axis=-1)
    sample = np.unique(np.linspace(0, n_probes - 1, JOINED).round().astype(int))
    for probe in sample:
        ax.plot(*Y[:, probe].T, color="#222222", linewidth=0.5, alpha=0.35, zorder=3)
    shuffled = np.random.default_rng(0).permutation(np.nonzero(there.ravel())[0])  # so that no step hides the others
    area = float(np.clip(30000 / max(1, len(shuffled)), 1.2, 25))
    points, tints = Y.reshape(-1, 2)[shuffled], colours.reshape(-1, 4)[shuffled]
    ax.scatter(*points.T, s=area, c=tints, linewidths=0, alpha=0.75, zorder=2, rasterized=True)
    frame_plane(ax, Y.reshape(-1, 2))
