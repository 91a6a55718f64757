"""The results of a study as one tidy frame, for notebooks and scripts. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from kd.reports.tables import collect, read_results
from kd.runs.folder import with_results
from kd.runtime.messages import ConfigError
from kd.studies.study import Study, asked_study

TEXT, WHOLE, NUMBER = "string", "Int64", "float64"
COLUMNS: dict[str, tuple[str, str]] = {  # name -> type, meaning; docs/results.md is made of this
    "study": (TEXT, "the study that was asked for"),
    "experiment": (TEXT, "of the study; a run that several experiments share has a row in each"),
    "dataset": (TEXT, "name and, of a part of the classes, their number"),
    "teacher": (TEXT, "the teacher's network, an ensemble's with + between; of a student without one that of its pair"),
    "student": (TEXT, "the student's network"),
    "method": (TEXT, "a name of config.yaml or of the study"),
    "ablation": (TEXT, "`full` where nothing is changed"),
    "scale": (NUMBER, "data scale, 1.0 for all data"),
    "seed": (WHOLE, "of the student"),
    "kind": (TEXT, "train, distill or datafree"),
    "path": (TEXT, "the run's folder below the results folder"),
    "quoted": (NUMBER, "accuracy in % that others published for this method and pair, where the study quotes it"),
    "accuracy": (
        NUMBER,
        "% of the `scored` images on which the student is right, after the last epoch; of segmentation the mean IoU",
    ),
    "pixel_accuracy": (NUMBER, "of segmentation, % of the labelled pixels"),
    "top5": (NUMBER, "% of images whose class is among the student's first five"),
    "loss": (NUMBER, "mean cross entropy on the scored images, in nats"),
    "agreement": (NUMBER, "% of the scored images for which student and teacher name the same class"),
    "agreement_synthetic": (NUMBER, "the same, of synthetic images that the student never saw"),
    "agreement_drawn": (NUMBER, "the same, of drawn samples, in %, mean of the last twentieth of the epochs"),
    "agreement_fall": (NUMBER, "how far agreement_drawn lies below its highest such mean, in points of %"),
    "tv_distance": (NUMBER, "of segmentation without data: total variation of synthetic to real images, in dB"),
    "spectrum_distance": (NUMBER, "the same of their spectra, mean over frequencies"),
    "correlation_gap": (NUMBER, "mean difference between the correlations of the student's and the teacher's logits"),
    "scored": (TEXT, "which images: test, validation or synthetic"),
    "teacher_accuracy": (NUMBER, "% of the teacher, on the same images"),
    "teacher_view": (TEXT, "what the teacher sees of a colour image"),
    "student_steps": (WHOLE, "steps of the student's optimiser"),
    "images": (WHOLE, "images synthesised"),
    "generator_steps": (WHOLE, "steps of the inversion: of a generator, or of pixels"),
    "inversions": (WHOLE, "batches or rounds of the inversion"),
    "seconds_total": (NUMBER, "computing time without start-up and the teacher's training; scoring included"),
    "seconds_inversion": (NUMBER, "of them making images"),
    "seconds_distillation": (NUMBER, "of them the data-free student's steps"),
    "seconds_training": (NUMBER, "of them the steps with data"),
    "seconds_compiling": (NUMBER, "of them torch.compile"),
    "seconds_evaluation": (NUMBER, "of them scoring"),
    "seconds_monitoring": (NUMBER, "of them what only curves need"),
    "parameters": (WHOLE, "of the student"),
    "multiply_adds": (NUMBER, "of the student for one image, in millions, about"),
    "weights_bytes": (WHOLE, "of the student's parameters in float32"),
    "milliseconds": (NUMBER, "of the student for one image, where that was measured (`kd tables --latency`)"),
    "images_per_second": (NUMBER, "of the student in batches of 64, likewise"),
    "measured_on": (TEXT, "the processor of that measurement"),
    "teacher_parameters": (WHOLE, "as parameters, of all teachers together, as are the following"),
    "teacher_multiply_adds": (NUMBER, "as multiply_adds"),
    "teacher_weights_bytes": (WHOLE, "as weights_bytes"),
    "teacher_milliseconds": (NUMBER, "as milliseconds"),
    "teacher_images_per_second": (NUMBER, "as images_per_second"),
    "teacher_measured_on": (TEXT, "as measured_on"),
    "peak_memory_mb": (NUMBER, "most memory that the run's process, or its GPU, held"),
    "device": (TEXT, "what it was computed on"),
    "computed": (TEXT, "the same, with how: captured, compiled, how many together. Seconds compare where it is equal"),
    "commit": (TEXT, "of kd's code; `+changes` where there were any"),
}


def load_results(study: str | Path | None = None, **config: Any) -> pd.DataFrame:
    """Return a study's finished runs, a row per run and experiment, with the columns of docs/results.md.

    study: a name, or the path of a .yaml, whose finished runs are read from the results folder; or the path of a
        results.csv, or of a folder with one, which is taken as it is; None: the study of config.yaml.
    config: settings as after Snakemake's --config, such as quick=True or results="elsewhere".

    Every column is there whatever was run; what does not apply is missing (NaN). Percentages are between 0 and 100.
    Raises ConfigError for a study that cannot be read, or of which no run is finished.
    """
    file = Path(study or "")
    file = file / "results.csv" if file.is_dir() and study else file
    if file.suffix == ".csv":
        if not file.is_file():
            raise ConfigError(f"no results in {file}; name a study, or a folder of results/studies")
        return typed(read_results(file), file.resolve().parent.name)
    found = asked_study(str(study) if study else None, config)
    return typed(finished(found), found.name)


def finished(study: Study) -> pd.DataFrame:
    """Return the frame of a study's runs that have results. Raises ConfigError where there is none."""
    done = {path for path in study.students if with_results(study.root / path) is not None}
    if not done:
        raise ConfigError(f"{study.name}: no run is finished in {study.root}; `python -m kd status` says what is")
    return collect(study.table[study.table["path"].isin(done)], study.root)


def typed(results: pd.DataFrame, study: str) -> pd.DataFrame:
    """Return a frame with all COLUMNS, in their order and of their types; others follow as they are."""
    others = [name for name in results if name not in COLUMNS]
    frame = results.assign(study=study).reindex(columns=[*COLUMNS, *others])
    return frame.astype({name: kind for name, (kind, _) in COLUMNS.items()}).reset_index(drop=True)
