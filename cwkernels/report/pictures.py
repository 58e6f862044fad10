"""Figures as PNG."""

import io
from typing import Any

import numpy as np

from cwkernels import requires
from cwkernels.report.figures import Figure, Panel


def picture(figure: Figure) -> bytes:
    """A PNG.

    Raises:
        ImportError: without matplotlib.
    """
    # No pyplot: it would keep the figure, and choose a backend for the process.
    module = requires.module("matplotlib.figure", "report")
    columns = max(len(row) for row in figure.rows)
    size = (4.6 * columns, 3.6 * len(figure.rows))
    drawn = module.Figure(figsize=size, layout="constrained")
    axes = drawn.subplots(len(figure.rows), columns, squeeze=False)
    for row, own in zip(figure.rows, axes, strict=True):
        for number, axis in enumerate(own):
            if number < len(row):
                _draw(axis, row[number])
            else:
                axis.set_axis_off()
    file = io.BytesIO()
    drawn.savefig(file, format="png", dpi=120)
    return file.getvalue()


def _draw(axis: Any, panel: Panel) -> None:
    for (label, height), style in zip(panel.marks, ("--", ":"), strict=False):
        axis.axhline(height, color="gray", linewidth=0.8, linestyle=style, label=label)
    for line in panel.lines:
        y, deviation = np.array(line.y), np.array(line.deviation)
        (drawn,) = axis.plot(line.x, y, marker="o" if len(y) < 20 else None, label=line.label)
        axis.fill_between(
            line.x, y - deviation, y + deviation, color=drawn.get_color(), alpha=0.2, linewidth=0
        )
    axis.set_title(panel.title, fontsize=10)
    axis.set_xlabel(panel.x)
    axis.set_ylabel(panel.y)
    axis.legend(fontsize=8)
    if panel.falling:
        axis.invert_xaxis()
    if panel.improvement is not None:
        mean, best = panel.improvement
        span = best - mean
        second = axis.secondary_yaxis(
            "right", functions=(lambda y: (y - mean) / span, lambda v: mean + v * span)
        )
        second.set_ylabel("improvement value")
