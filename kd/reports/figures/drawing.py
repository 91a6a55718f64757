"""What all figures share: colours, labels of rows, matplotlib without a screen, files with equal bytes."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pandas as pd

from kd.runtime.messages import escaped

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999"]  # Okabe and Ito


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG and, next to it, as SVG; the same figure always has the same bytes. Closes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with pyplot().rc_context({"svg.hashsalt": "kd"}):
        figure.savefig(path.with_suffix(".png"), dpi=130, metadata={"Software": None})
        figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    pyplot().close(figure)


def row_labels(summary: pd.DataFrame, scale: bool = False) -> list[str]:
    """Return a label per row: the method, the ablation unless full, the pair and scale where they differ."""
    pairs = summary[["teacher", "student"]].drop_duplicates()
    labels = []
    for row in summary.itertuples():
        parts = [row.method if row.ablation == "full" else f"{row.method}, {row.ablation}"]
        parts += [f"{row.teacher} → {row.student}"] if len(pairs) > 1 else []
        parts += [f"{100 * row.scale:.4g} %"] if scale else []
        labels.append(", ".join(parts))
    return labels


def short(text: str, most: int = 48) -> str:
    """Return a label or a panel's title in one line of at most that many characters: its begin and its end."""
    text = escaped(text)
    return text if len(text) <= most else f"{text[: 2 * most // 3 - 1]}…{text[-(most // 3) :]}"


def set_title(figure: Any, text: str) -> None:
    """Put a title above a figure, in as many lines as it takes, at most three."""
    figure.suptitle("\n".join(textwrap.wrap(escaped(text), 90, max_lines=3, placeholder=" …")))


def legend(axis: Any, curves: dict[str, Any]) -> None:
    """Name the curves, also by names that begin with `_`, which matplotlib leaves out. The axes keep their size."""
    for name, curve in curves.items():
        curve.set_label(short(name))
    labels = [curve.get_label() for curve in curves.values()]
    axis.legend(list(curves.values()), labels, fontsize=8, loc="best").set_in_layout(False)


def plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis without the formulas (10^-2) that `pyplot` turns off."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False))


def colours(count: int) -> list[str]:
    """Return that many colours, repeated when there are more than COLOURS."""
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def pyplot() -> Any:
    """Import and return matplotlib.pyplot, which needs no screen here and draws `$`, `_` and `^` as they are."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["text.parse_math"] = False
    from matplotlib import pyplot

    return pyplot
