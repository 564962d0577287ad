"""The figure of the path of runs through operator space."""

from pathlib import Path
from typing import TYPE_CHECKING

from replay.plots.colours import explain_palette
from replay.plots.curves import AXES, curve_axes, curve_palette, curve_size, draw_curves, explain_curves
from replay.plots.figure import drawing, headline, require, sorted_steps
from store.errors import InvalidInput

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["plot_path"]

QUANTITIES = {
    "velocity": "velocity per 1,000 steps",
    "velocity_log": "velocity per unit of ln(step + 1)",
    "length": "length of the path so far",
    "distance_to_final": "distance to the last checkpoint",
    "curvature": "Menger curvature",
    "turning_angle": "turning angle (radians)",
}
"""Axis label of each."""

STEEP = {"velocity", "velocity_log", "curvature"}
"""Those that run over magnitudes, and are drawn on a logarithmic axis where they do."""


def plot_path(ds: "xr.Dataset", path: Path) -> None:
    """Draw velocity, length, distance to the end and turns of each run's path against the training step.

    With several layers a colour is a layer, each run is thin and the mean of the runs thick; with one layer a colour is
    a run. Bands are 95 % intervals over probes, drawn where they are few. Velocities and curvature have a logarithmic
    axis where they span more than two magnitudes.

    Parameters
    ----------
    ds
        Dataset over (run, step, layer) with any of ``velocity`` (per 1,000 steps), ``velocity_log`` (per unit of
        ln(step + 1)), ``length``, ``distance_to_final``, ``curvature`` and ``turning_angle``, each with ``_low`` and
        ``_high`` or without; layers from input to output; attributes ``runs``, ``n_probes`` and ``measure_title``.
        Values that are not finite are gaps.
    path
        Where to write; the suffix chooses png, svg or pdf.

    Raises
    ------
    InvalidInput
        If the suffix is another, no quantity is there, or one lies over other dimensions.
    """
    names = [name for name in QUANTITIES if name in ds]
    if not names:
        raise InvalidInput(f"a path to plot has one of {', '.join(QUANTITIES)}, and the dataset has none")
    ends = [f"{name}{end}" for name in names for end in ("_low", "_high") if f"{name}{end}" in ds]
    require(ds, names + ends, AXES)
    ds = sorted_steps(ds)
    palette = curve_palette(ds)
    single = [str(ds["layer"].values[0])] if ds.sizes["layer"] == 1 else []
    measure = [str(ds.attrs["measure_title"])] if ds.attrs.get("measure_title") else []
    title = headline(ds, "Path through training", *single, *measure)
    with drawing(path, size=curve_size(len(names)), title=title) as figure:
        axes = curve_axes(figure, len(names))
        for ax, name in zip(axes, names, strict=True):
            draw_curves(ax, ds, name, palette, steep=name in STEEP)
            ax.set_ylabel(QUANTITIES[name])
        explain_palette(figure, axes, palette)
        explain_curves(figure, ds, names, palette, others=[])
