"""What all figures share: colours, labels of rows, matplotlib without a screen, files with equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

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


def colours(count: int) -> list[str]:
    """Return that many colours, repeated when there are more than COLOURS."""
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def pyplot() -> Any:
    """Import and return matplotlib.pyplot, which needs no screen here."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
