"""The kinds of figures. A new one is a module here that returns a matplotlib figure, and an entry below.

matplotlib is imported when something is drawn, so that a plan of figures needs no more than numpy and pandas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kd.reports.figures import agreement, bars, correlations, course, pairs, scale, segmentation, synthetic
from kd.runs.folder import HISTORY, METRICS, RECORD, array_file

# An experiment's `view` -> draw(summary, results, title): one figure per experiment, from results.csv.
# workflow/schemas/study.schema.yaml lists the same names.
VIEWS: dict[str, Callable[..., Any]] = {
    "scale": scale.draw,
    "modules": bars.draw,
    "methods": bars.draw,
    "pairs": pairs.draw,
}
VIEW_CAPTIONS = {"scale": scale.CAPTION, "modules": bars.CAPTION, "methods": bars.CAPTION, "pairs": pairs.CAPTION}


@dataclass(frozen=True)
class OfRuns:
    """A figure of one run per method and ablation, drawn from the files of these runs; one per study."""

    kinds: tuple[str, ...]  # of the runs: train, distill, datafree
    files: tuple[str, ...]  # in a run's folder, read by `draw`
    draw: Callable[[dict[str, Path], str, str], Any]  # label -> folder of the run; title; what the runs share
    title: str
    caption: str  # plain sentences
    of_maps: bool = False  # only where each pixel has a label
    with_scratch: bool = False  # also shows the student without a teacher; its files may be missing


# name of the figure's file -> what it shows
OF_RUNS: dict[str, OfRuns] = {
    "correlations": OfRuns(
        ("distill",),
        (array_file("correlations"), METRICS, RECORD),
        correlations.draw,
        "How logits correlate across classes, student minus teacher",
        "Correlation of the student's logits across classes minus that of the teacher's, on the scored images; one run "
        "of each method, and the student without a teacher. Less colour: the student has learned more of how the "
        "teacher relates classes. All panels have the same scale of colours.",
        with_scratch=True,
    ),
    "synthetic-images": OfRuns(
        ("datafree",),
        (array_file("synthetic"), RECORD),
        synthetic.draw_images,
        "Synthetic images at the end of a run",
        "Images spread over the replay buffer at the end of one run of each method and ablation; of one class each, "
        "they are sorted by it as the teacher sees it. No real image was used to make them, but for those of the "
        "source `original`, which are real.",
    ),
    "synthetic-histograms": OfRuns(
        ("datafree",),
        (array_file("synthetic"), RECORD),
        synthetic.draw_histograms,
        "Classes and the teacher's confidence in the synthetic set at the end of a run",
        "Bars count the teacher's class and confidence for the images as they are stored at the end; dashes count "
        "classes when the images were made, as the figure of the course does. Dotted line: all classes equally often.",
    ),
    "predictions": OfRuns(
        ("train", "distill", "datafree"),
        (RECORD,),
        segmentation.draw_predictions,
        "What the networks say of test images",
        "From top to bottom: images, their label maps, the teacher's classes, and those of one run of each method and "
        "ablation, each with its mean IoU over all scored images. Black: pixels without a label.",
        of_maps=True,
    ),
    "iou": OfRuns(
        ("train", "distill", "datafree"),
        (METRICS, RECORD),
        segmentation.draw_iou,
        "Intersection over union of each class",
        "The teacher and one run of each method and ablation, in percent, over all scored images; the last column is "
        "the mean. Empty: a class that is neither there nor predicted.",
        of_maps=True,
    ),
    "agreement": OfRuns(
        ("datafree",),
        (HISTORY,),
        agreement.draw,
        "How often the student agrees with the teacher on what it is shown",
        "Share of the drawn samples (of segmentation, of their pixels) on which student and teacher name the same "
        "class, in training mode, over the epochs; one run of each method and ablation, the first one of a method in "
        "grey behind its others. A curve that falls: the student cannot follow what the buffer brings.",
    ),
    "synthetic-course": OfRuns(
        ("datafree",),
        (array_file("synthetic"), HISTORY, RECORD),
        course.draw,
        "How the synthetic set changes over the epochs",
        "From top to bottom: class shares in the buffer, counted when an image is made; the teacher's confidence in "
        "the images just made; priorities in the buffer (median, quartiles, extremes); and the student's divergence "
        "from the teacher on samples as they are stored and as they are drawn.",
    ),
}
