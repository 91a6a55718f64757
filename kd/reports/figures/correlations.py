"""Where students' logits correlate otherwise than their teachers'."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from kd.reports.figures.drawing import pyplot, short
from kd.runs.folder import array_file


def draw(folders: dict[str, Path]) -> Any:
    """Return the figure of the runs' correlations.npz, label -> folder.

    The matrix of a student without a teacher is compared with the teacher of the first distilled run. It is left out
    where either run lacks what this needs (older runs, kept teachers).
    """
    found = {label: folder / array_file("correlations") for label, folder in folders.items()}
    matrices = {label: dict(np.load(file)) for label, file in found.items() if file.exists()}
    teacher = next(iter(run.get("teacher") for run in matrices.values() if "difference" in run))
    differences = {}
    for label, run in matrices.items():
        if "difference" in run:
            differences[label] = run["difference"].astype(float)
        elif teacher is not None:
            differences[label] = run["student"].astype(float) - teacher
    return panels(differences)


def panels(matrices: dict[str, np.ndarray]) -> Any:
    """Return a figure of differences of logit correlations [K, K], a panel per run, all on one scale (CRD's figure)."""
    columns = min(6, math.ceil(math.sqrt(len(matrices))))
    rows = -(-len(matrices) // columns)
    figure, axes = pyplot().subplots(
        rows, columns, figsize=(2.6 * columns + 0.8, 2.8 * rows), layout="constrained", squeeze=False
    )
    limit = max(1e-6, *(np.quantile(np.abs(matrix), 0.99) for matrix in matrices.values()))
    for axis in axes.flat:
        axis.axis("off")
    for axis, (label, matrix) in zip(axes.flat, matrices.items(), strict=False):
        shown = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{short(label)}\nmean |difference| {np.abs(matrix).mean():.3f}", fontsize=8)
    figure.colorbar(shown, ax=axes, shrink=0.8, label="student - teacher")
    return figure
