"""Where students' logits correlate otherwise than their teachers'."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kd.reports.figures.drawing import SMALL, class_ticks, finish, label_outside, panels, short
from kd.runs.folder import METRICS, RECORD, array_file, arrays_in
from kd.runtime.files import read_json


def draw(folders: dict[str, Path], title: str, note: str) -> Any:
    """Return the figure of the runs' correlations.npz, label -> folder.

    The matrix of a student without a teacher is compared with the teacher of the first distilled run. It is left out
    where either run lacks what this needs (older runs, kept teachers).
    """
    found = {label: folder / array_file("correlations") for label, folder in folders.items()}
    matrices = {label: arrays_in(file) for label, file in found.items() if file.exists()}
    distilled = next(label for label, run in matrices.items() if "difference" in run)
    teacher = matrices[distilled].get("teacher")
    differences = {}
    for label, run in matrices.items():
        if "difference" in run:
            differences[label] = run["difference"].astype(float)
        elif teacher is not None:
            differences[label] = run["student"].astype(float) - teacher
    classes = read_json(folders[distilled] / RECORD)["classes"]
    scored = read_json(folders[distilled] / METRICS).get("scored", "scored")
    return heat_maps(differences, classes, title, f"{note} {len(classes)} classes, {scored} images.")


def heat_maps(matrices: dict[str, np.ndarray], classes: list[str], title: str, note: str) -> Any:
    """Return a figure of differences of logit correlations [K, K], a panel per run, all on one scale (CRD's figure)."""
    figure, axes = panels(len(matrices), 2.4, 2.5, sharex=True, sharey=True)
    limit = common_limit(list(matrices.values()))
    beyond = [100 * np.mean(np.abs(matrix) > limit) for matrix in matrices.values()]
    for axis, (label, matrix) in zip(axes, matrices.items(), strict=True):
        shown = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axis.set_title(f"{short(label, 40)}\nmean |difference| {np.abs(matrix).mean():.3f}", fontsize=8)
        below, beside = class_ticks(axis.xaxis, classes), class_ticks(axis.yaxis, classes)
    label_outside(axes, "class", "class")
    extend = "both" if any(beyond) else "neither"
    rows = axes[0].get_gridspec().nrows
    bar = figure.colorbar(shown, ax=axes, shrink=0.8, aspect=20 * rows, extend=extend)
    bar.set_label("correlation, student minus teacher", fontsize=SMALL)
    bar.ax.tick_params(labelsize=7)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width + beside, height + below)
    note += " One scale of colours for all panels; without colours, darker is a larger difference of either sign."
    if any(beyond):
        note += f" Beyond its ends are at most {max(beyond):.2g} % of a panel's cells."
    finish(figure, title, note)
    return figure


def common_limit(matrices: list[np.ndarray]) -> float:
    """Return where the scale of colours ends, which neither one cell nor one odd run decides.

    It is the largest 98 % quantile of |difference| of any panel, but at most twice the median panel's.
    """
    ends = [np.quantile(np.abs(matrix), 0.98) for matrix in matrices]
    return max(1e-6, min(max(ends), 2 * float(np.median(ends))))
