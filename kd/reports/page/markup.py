"""HTML from Python: text is escaped unless it is markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from kd.runtime.messages import escaped

VOID = ("link", "meta", "img", "input", "br")


class Html(str):
    """Text that is markup, to be written as it is."""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: what it shows, what it is sorted by, and what is said when it is pointed at."""

    shown: Any
    order: float | str | None = None  # None: the text that is shown; NaN sorts last
    tip: str = ""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """Return an element. Children may be nested lists; None and attributes that are None or False are left out.

    Attributes may end with `_` (`class_`), and `_` inside stands for `-` (`data_tip`). Characters that cannot be
    printed are shown as `\\x07`.
    """
    shown = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    if name in VOID:
        return Html(f"<{name}{shown}>")
    return Html(f"<{name}{shown}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    """Return elements and texts one after the other, texts escaped, None left out."""
    parts = []
    for child in children:
        if isinstance(child, list | tuple):
            parts.append(joined(child))
        elif child is not None:
            parts.append(text(child))
    return Html("".join(parts))


def text(value: Any) -> Html:
    """Return a value as markup that shows it."""
    return value if isinstance(value, Html) else Html(html.escape(escaped(str(value))))


def table(
    heads: list[str],
    rows: Iterable[list[Cell | str]],
    caption: str = "",
    attributes: Iterable[dict[str, str]] = (),
    sortable: bool = True,
    of_heads: Iterable[dict[str, str]] = (),
) -> Html:
    """Return a table whose first column names the rows, in a box that scrolls where the screen is narrow.

    attributes, of_heads: of the rows and the heads, such as data_method. With `sortable`, heads are buttons.
    """
    marks = list(of_heads) or [{}] * len(heads)
    shown = [tag("button", name, type="button") if sortable else name for name in heads]
    head = [tag("th", name, scope="col", **mark) for name, mark in zip(shown, marks, strict=True)]
    given = list(attributes)
    body = []
    for number, row in enumerate(rows):
        cells = [_cell(cell, first=place == 0) for place, cell in enumerate(row)]
        body.append(tag("tr", cells, **(given[number] if given else {})))
    whole = tag("table", tag("thead", tag("tr", head)), tag("tbody", body), aria_label=caption or None)
    box = tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption or heads[0])
    return joined([tag("p", caption, class_="note"), box]) if caption else box


def _cell(cell: Cell | str, first: bool) -> Html:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    shown = tag("span", cell.shown, data_tip=cell.tip, tabindex="0") if cell.tip else cell.shown
    number = isinstance(cell.order, float | int)
    order = None if cell.order is None else f"{cell.order:.6g}" if number else cell.order
    return tag("th" if first else "td", shown, data_order=order, class_=number and "number", scope=first and "row")


def folded(summary: str, *children: Any) -> Html:
    """Return what is shown when its summary is opened; printing opens all."""
    return tag("details", tag("summary", summary), children)


def anchor(name: str) -> str:
    """Return the id of an experiment's section; those of the page itself begin with `_`, which no experiment does."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name)
