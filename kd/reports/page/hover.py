"""Values of a figure's points and bars, put into its .svg as ids, and shown by the page when they are pointed at."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

PREFIX = "values:"  # of an id; then a JSON list with a text per point
NO_POINTS = ("None", "none", "", " ", "|", "_")  # markers: none, means that the table shows, ends of error bars


def name_points(figure: Any) -> None:
    """Give the points and bars of a matplotlib figure ids that say their values, in words of its axes and legend."""
    for axes in figure.axes:
        names = {line: container.get_label() for container in axes.containers for line in _lines_of(container)}
        for line in axes.lines:
            if str(line.get_marker()) not in NO_POINTS:
                label = str(names.get(line) or line.get_label())
                points = zip(np.asarray(line.get_xdata()), np.asarray(line.get_ydata()), strict=True)
                said = [value(axes, label, float(x), float(y)) for x, y in points]
                line.set_gid(PREFIX + json.dumps(said))
        for container in axes.containers:
            horizontal = getattr(container, "orientation", "") == "horizontal"
            for bar in container.patches if hasattr(container, "patches") else ():
                x, y = bar.get_x() + bar.get_width() / 2, bar.get_y() + bar.get_height() / 2
                ends = (bar.get_width(), y) if horizontal else (x, bar.get_height())
                bar.set_gid(PREFIX + json.dumps([value(axes, "", *ends)]))


def value(axes: Any, label: str, x: float, y: float) -> str:
    """Return what a point means: its label, the tick that it belongs to, and the numbers with their axes' names."""
    named = [] if label.startswith("_") else [label]
    parts = [_on(axes.xaxis, x), _on(axes.yaxis, y)]
    ticks, numbers = ([text for is_tick, text in parts if is_tick == kind] for kind in (True, False))
    return "; ".join(dict.fromkeys(filter(None, [*named, *ticks, *numbers])))


def _on(axis: Any, number: float) -> tuple[bool, str]:
    """Return whether a value lies on a tick with a name, and what it is called."""
    from matplotlib.ticker import FixedLocator

    head, percent, of = axis.get_label().get_text().partition(" (")[0].partition(", %")
    places, shown = np.asarray(axis.get_majorticklocs(), dtype=float), f"{number:,.2f}"
    if isinstance(axis.get_major_locator(), FixedLocator) and len(places):
        nearest = int(np.abs(places - number).argmin())
        name, apart = axis.get_major_formatter()(places[nearest], nearest), abs(places[nearest] - number)
        is_number = name.replace(".", "", 1).isdecimal()
        if name and not is_number and apart < 0.5:
            return True, name
        shown = name if is_number and apart == 0 else shown
    return False, f"{head} {shown}{percent and f' %{of}'}".strip()


def _lines_of(container: Any) -> list[Any]:
    """Return the line with the points of an error bar."""
    lines = getattr(container, "lines", None)
    return [lines[0]] if lines and lines[0] is not None else []
