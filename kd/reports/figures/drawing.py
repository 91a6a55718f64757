"""What all figures share: colours, panels, titles and notes, matplotlib without a screen, files with equal bytes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kd.runtime.files import refuse_links_of_others, write_atomically
from kd.runtime.messages import escaped

# CIELAB lightness 44, 71, 26, 8, 62, 35, 53, 17: in greyscale, too, any two are 9 apart and neighbours 18.
COLOURS = ["#166ab4", "#f69742", "#702411", "#181818", "#d874b5", "#255c47", "#d4563f", "#211f68"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]  # go with the colours
DASHES = ["-", "--", ":", "-."]  # of the first eight series, the second eight, ...
GREY = "0.45"  # of what is only compared with: a teacher, a balanced set, another run
SMALL = 8  # points, of notes and legends
PER_INCH = 16  # characters of that size in an inch, about


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG and, next to it, as SVG; the same figure always has the same bytes. Closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    refuse_links_of_others([path.parent])
    given = {"png": {"dpi": 130, "metadata": {"Software": None}}, "svg": {"metadata": {"Date": None}}}
    with pyplot().rc_context({"svg.hashsalt": "kd"}):
        for kind, how in given.items():
            file = path.with_suffix(f".{kind}")
            write_atomically(file, lambda opened, kind=kind, how=how: figure.savefig(opened, format=kind, **how))
    pyplot().close(figure)


def finish(figure: Any, title: str, note: str, curves: dict[str, Any] | None = None) -> None:
    """Put a title above a figure; below it name the curves, and add a note. The axes keep their size.

    Names that begin with `_`, which matplotlib leaves out of legends, are shown as well.
    """
    width = figure.get_figwidth()
    title = "\n".join(textwrap.wrap(escaped(title), min(90, int(11 * width)), max_lines=3, placeholder=" …"))
    note = "\n".join(textwrap.wrap(escaped(note).strip(), min(160, int(PER_INCH * width))))
    lines = 1 + 1.5 * (title.count("\n") + 1) + note.count("\n") + 1
    figure.get_layout_engine().set(h_pad=0.06)
    figure.suptitle(title, fontsize=11)
    if curves:
        names = [short(name) for name in curves]
        columns = max(1, min(len(names), int(PER_INCH * width) // (max(map(len, names)) + 8)))
        lines += 1.4 * math.ceil(len(names) / columns) + 1
        style = {"fontsize": SMALL, "title": note, "title_fontsize": SMALL, "alignment": "left", "frameon": False}
        for name, curve in zip(names, curves.values(), strict=True):
            curve.set_label(name)
        figure.legend(list(curves.values()), names, loc="outside lower left", ncols=columns, **style)
    else:
        figure.supxlabel(note, x=0.01, ha="left", fontsize=SMALL)
    figure.set_figheight(figure.get_figheight() + lines * SMALL / 60)


def panels(count: int, width: float, height: float, most: int = 6, **options: Any) -> tuple[Any, list[Any]]:
    """Return a figure with that many panels of a size in inches, larger where they are few; and its axes.

    most: panels in a row.
    """
    columns = min(most, math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    larger = max(1.0, 4.2 / (width * columns))
    size = (larger * width * columns + 0.8, larger * height * rows)
    figure, axes = pyplot().subplots(rows, columns, figsize=size, layout="constrained", squeeze=False, **options)
    for axis in axes.flat[count:]:
        axis.set_visible(False)
    for axis in axes.flat[max(0, count - columns) : count]:
        axis.tick_params(labelbottom=True)  # nothing is below it
    return figure, list(axes.flat[:count])


def label_outside(axes: list[Any], below: str, beside: str) -> None:
    """Label the panels that have none below, or none to their left."""
    for axis in axes:
        place = axis.get_subplotspec()
        if place.is_first_col():
            axis.set_ylabel(beside, fontsize=SMALL)
        if axis.xaxis.get_tick_params().get("labelbottom", True):
            axis.set_xlabel(below, fontsize=SMALL)


def class_ticks(axis: Any, names: list[str], room: int = 30) -> float:
    """Put ticks at the middle of cells or bars 0, 1, ...: names of up to 12 classes, else a few of their numbers.

    axis: an `xaxis` or `yaxis`; room: for how many characters there is place along it. Returns the inches that the
    longest name takes away from the panel.
    """
    shown, step = [short(name, 14) for name in names], 1
    if len(names) > 12:
        step = next(step for step in (5, 10, 20, 50, 100, 200, 500, len(names)) if len(names) / step <= 6)
        shown = [str(number) for number in range(len(names))]
    turned = axis.axis_name == "x" and sum(map(len, shown[::step])) + 2 * len(shown[::step]) > room
    axis.set_ticks(range(0, len(names), step), shown[::step], fontsize=7, rotation=90 if turned else 0)
    return 0.07 * max(map(len, shown)) if turned or axis.axis_name == "y" else 0.1


def counted(numbers: Iterable[int]) -> str:
    """Return numbers of seeds in words, each where a few differ: "n = 3", "n = 3, 3, 2", "n = 2 to 5"."""
    numbers = list(map(int, numbers))
    if len(set(numbers)) == 1:
        return f"n = {numbers[0]}"
    return f"n = {', '.join(map(str, numbers))}" if len(numbers) <= 5 else f"n = {min(numbers)} to {max(numbers)}"


def over_seeds(numbers: Iterable[int], seeds: Iterable[int]) -> str:
    """Return what a figure averages over: the number of seeds in each mean, or which one it is."""
    numbers, seeds = set(map(int, numbers)), sorted(set(map(int, seeds)))
    if numbers == {1}:
        return f"n = 1 (seed {seeds[0]})" if len(seeds) == 1 else "n = 1"
    return f"n = {numbers.pop()} seeds" if len(numbers) == 1 else "n seeds as given with each name"


def in_common(results: pd.DataFrame) -> str:
    """Return a sentence: the data set and the pair of networks, where all rows have the same."""
    columns = results["dataset"], results["teacher"] + " → " + results["student"]
    same = [str(column.iloc[0]) for column in columns if column.nunique() == 1]
    return f"{', '.join(same)}." if same else ""


def short(text: str, most: int = 48) -> str:
    """Return a label or a panel's title in one line of at most that many characters: its begin and its end."""
    text = escaped(text)
    return text if len(text) <= most else f"{text[: 2 * most // 3 - 1]}…{text[-(most // 3) :]}"


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis 0.1, 1, 10, and in between where it is short."""

    def between(value: float, _: int) -> str:
        low, high = axis.get_view_interval()
        return f"{value:g}" if high < 50 * low and f"{value:e}"[0] in "235" else ""

    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(between)


def series(count: int) -> list[dict[str, Any]]:
    """Return how to draw that many lines with markers: no two alike up to 32, and the first eight without colour."""
    return [
        {
            "color": COLOURS[number % 8],
            "marker": MARKERS[number % 8],
            "linestyle": DASHES[number // 8 % 4],
            "markerfacecolor": COLOURS[number % 8] if number // 8 % 2 == 0 else "white",
        }
        for number in range(count)
    ]


def side_by_side(count: int, width: float) -> np.ndarray:
    """Return shifts, of that width in all, that keep the points of several series from hiding each other."""
    return np.zeros(1) if count == 1 else np.linspace(-width / 2, width / 2, count)


def pyplot() -> Any:
    """Import and return matplotlib.pyplot, which needs no screen here and draws `$`, `_` and `^` as they are."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot

    return pyplot
