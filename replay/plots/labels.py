"""Labels beside points, placed where they cover the least."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["place_labels"]

SIZE = 8.5
"""Of the letters, in points."""

REACHES = (9.0, 16.0, 26.0)
"""Distances from point to label that are tried, in points."""

NEAR = 45.0
"""A point nearer than this to one that has the same label, in points, is not labelled again."""

Floats = npt.NDArray[np.float64]


def place_labels(figure: Any, ax: Any, labels: Sequence[tuple[Floats, str]], *, avoid: Floats) -> None:
    """Write each label beside its point, away from other points, other labels and the edge.

    The figure is laid out by now, as by ``figure.draw_without_rendering()``; the labels do not change that. One label
    serves several points close to one another; a label that would cover another one is left out.

    Parameters
    ----------
    figure, ax
        Where to write; all else is drawn already.
    labels
        Points in data coordinates, each with its text; earlier ones choose first.
    avoid
        (n, 2) points in data coordinates that are better not covered.
    """
    dots = figure.dpi / 72
    frame = ax.get_window_extent()
    edges = np.array([frame.x0, frame.y0, frame.x1, frame.y1])
    others = ax.transData.transform(avoid) if len(avoid) else np.empty((0, 2))
    boxes: list[Floats] = []
    done: list[tuple[Floats, str]] = []
    for point, text in labels:
        at = ax.transData.transform(point)
        if any(text == said and np.hypot(*(at - there)) < NEAR * dots for there, said in done):
            continue
        extent = np.array(_extent(figure, text))
        tried = [_box(at, extent, angle, reach * dots) for reach in REACHES for angle in np.arange(8) * np.pi / 4]
        costs = [_cost(box, edges, boxes, others) + 0.01 * number for number, box in enumerate(tried)]
        best = int(np.argmin(costs))
        if not np.isfinite(costs[best]):
            continue
        box = tried[best]
        boxes.append(box)
        done.append((at, text))
        centre = ax.transAxes.inverted().transform((box[:2] + box[2:]) / 2)
        arrow = {"arrowstyle": "-", "color": "#aaaaaa", "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3}
        note = ax.annotate(
            text, point, centre, textcoords="axes fraction", ha="center", va="center", fontsize=SIZE, arrowprops=arrow,
        )  # fmt: skip
        note.set_in_layout(False)
        note.set_zorder(6)


def _extent(figure: Any, text: str) -> tuple[float, float]:
    from matplotlib.text import Text

    box = Text(0, 0, text, fontsize=SIZE, figure=figure).get_window_extent(figure.canvas.get_renderer())
    return box.width, box.height


def _box(at: Floats, extent: Floats, angle: float, reach: float) -> Floats:
    direction = np.array([np.cos(angle), np.sin(angle)])
    centre = at + direction * (reach + extent / 2)
    return np.concatenate([centre - extent / 2, centre + extent / 2])


def _cost(box: Floats, edges: Floats, boxes: list[Floats], others: Floats) -> float:
    if (box[:2] < edges[:2]).any() or (box[2:] > edges[2:]).any():
        return float(np.inf)
    if any((box[:2] < other[2:]).all() and (other[:2] < box[2:]).all() for other in boxes):
        return float(np.inf)
    return float(((box[:2] < others) & (others < box[2:])).all(axis=1).sum())
