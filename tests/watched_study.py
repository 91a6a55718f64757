"""A finished study of fake runs, of which MLflow can be told: no training, every number known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from conftest import PAIR, ROOT
from fake_results import SETTINGS, fake_finished

from kd.reports.publish import publish
from kd.settings.run import Run
from kd.studies.study import Study, load_study

SEEDS = (0, 1, 2)
ACCURACY = {"ssdkd": (90.0, 91.0, 93.0), "fast": (88.0, 90.0, 89.0), "teacher": (99.0,)}  # by seed
SECONDS = {"ssdkd": 12.0, "fast": 20.0, "teacher": 5.0}
NEITHER = {"replay": {"alpha": 0.0, "beta": 0.0}, "modulation": {"diversity": 0.0, "gamma": 0.0}}
EPOCHS = 4


def study_of(folder: Path, name: str = "watched") -> Study:
    """Return SSD-KD, and without its modules, which is Fast: one run serves both."""
    experiments = {
        "modules": {"methods": ["ssdkd"], "ablations": ["full", "neither"]},
        "free": {"title": "SSD-KD and Fast", "methods": ["fast", "ssdkd"]},
    }
    shared = {"pairs": [PAIR], "scales": [0.5], "seeds": list(SEEDS)}
    experiments = {name: {"title": name, **shared, **experiment} for name, experiment in experiments.items()}
    content = {"title": "Watched", "settings": SETTINGS, "ablations": {"neither": NEITHER}, "experiments": experiments}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    chosen = {"study": str(file), "results": str(folder / "results")}
    return load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", chosen)


def finish_all(study: Study) -> None:
    """Write the files of every run of the study, its tables and a figure of each experiment."""
    for run in study.runs.values():
        fill(study, run)
    folder = study.root / "studies" / study.name
    publish(study, folder, figures=False)
    study.table.to_csv(folder / "runs.csv", index=False)
    (folder / "figures").mkdir(exist_ok=True)
    for name in study.experiments:
        (folder / f"figures/{name}.png").write_bytes(b"a figure")


def fill(study: Study, run: Run, **record: Any) -> Path:
    """Write the files of one run as if it had begun at midnight, by its seed on another day of January 2026."""
    kind = "teacher" if run.kind == "train" else "fast" if run.replay.alpha == 0 else "ssdkd"
    day = f"2026-01-{run.seed + 1:02d}"
    known = {
        "started": f"{day}T00:00:00Z",
        "finished": f"{day}T00:00:{SECONDS[kind]:02.0f}Z",
        "device": "cpu, 1 thread",
        "computed": {},
        "peak_memory_mb": 100.0,
        "git": {"commit": "abc123", "diff": ""},
        "counts": {"student_steps": 100},
        "classes": ["0", "1"],
    }
    folder = fake_finished(study, run, {"training": SECONDS[kind]}, **(known | record))
    metrics = {"accuracy": ACCURACY[kind][run.seed], "parameters": 1000, "scored": "test", "teacher_accuracy": 99.0}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    rows = [f"{epoch}.0,{1 / epoch}" for epoch in range(1, EPOCHS + 1)]
    (folder / "history.csv").write_text("\n".join(["epoch,loss", *rows]) + "\n")
    return folder
