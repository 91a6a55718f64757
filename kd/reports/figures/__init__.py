"""The kinds of figures. A new one is a module here that returns a matplotlib figure, and an entry below.

matplotlib is imported when something is drawn, so that a plan of figures needs no more than numpy and pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.reports.figures import agreement, bars, correlations, pairs, scale, synthetic
from kd.runs.folder import HISTORY, RECORD, array_file

# An experiment's `view` -> draw(summary, results, title): one figure per experiment, from results.csv.
# workflow/schemas/study.schema.yaml lists the same names.
VIEWS: dict[str, Callable[..., Any]] = {
    "scale": scale.draw,
    "modules": bars.draw,
    "methods": bars.draw,
    "pairs": pairs.draw,
}
VIEW_CAPTION = "Points are seeds, bars or lines their mean, error bars one standard deviation."


@dataclass(frozen=True)
class OfRuns:
    """A figure of one run per method and ablation, drawn from the files of these runs; one per study."""

    kind: str  # of the runs: train, distill or datafree
    files: tuple[str, ...]  # in a run's folder, read by `draw`
    draw: Callable[[dict[str, Path]], Any]  # label -> folder of the run
    caption: str
    with_scratch: bool = False  # also shows the student without a teacher; its files may be missing


# name of the figure's file -> what it shows
OF_RUNS: dict[str, OfRuns] = {
    "correlations": OfRuns(
        "distill",
        (array_file("correlations"),),
        correlations.draw,
        "Correlation of the student's logits across classes minus that of the teacher's, on the scored images; first "
        "pair and seed of each method, and of the student without a teacher. Less colour: the student has learned more "
        "of how the teacher relates classes.",
        with_scratch=True,
    ),
    "synthetic-images": OfRuns(
        "datafree",
        (array_file("synthetic"),),
        synthetic.draw_images,
        "Synthetic images in the replay buffer at the end of a run, sorted by the teacher's class. No real image was "
        "used.",
    ),
    "synthetic-histograms": OfRuns(
        "datafree",
        (array_file("synthetic"), RECORD),
        synthetic.draw_histograms,
        "Classes and confidences that the teacher sees in the final synthetic set of a run; dashed: all classes "
        "equally often.",
    ),
    "agreement": OfRuns(
        "datafree",
        (HISTORY,),
        agreement.draw,
        "How often student and teacher agree on the samples that the student is shown, in training mode, over the "
        "epochs; first pair and seed of each method and ablation, the first one of a method in grey behind its others.",
    ),
    "synthetic-course": OfRuns(
        "datafree",
        (array_file("synthetic"), HISTORY),
        synthetic.draw_course,
        "How the synthetic set changes over the epochs: class shares in the buffer, the teacher's confidence in the "
        "images just made, priorities, and the student's divergence from the teacher on samples as they are stored and "
        "as they are drawn.",
    ),
}
