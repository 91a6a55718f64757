"""Studies whose runs are finished, with numbers, curves and images that nobody trained for."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from fake_results import fake_finished

from kd.runs.folder import HISTORY, METRICS
from kd.settings.run import Run
from kd.studies.study import Study

ENVIRONMENT = {"python": "3.11.7", "torch": "2.13.0", "platform": "Linux", "host": "secret-host"}
GIT = {"commit": "0123456789abcdef", "diff": ""}
EPOCHS = 20


def finish(study: Study, classes: list[str], accuracy: dict[str, list[float]] | None = None) -> None:
    """Write the files of every run of a study, of CIFAR's size.

    accuracy: method -> % of each seed, of a run that methods share the first one's; without it, numbers that depend on
        the settings and the seed.
    """
    methods = study.table.drop_duplicates("path").set_index("path")["method"].to_dict()
    for path, run in study.runs.items():
        random = np.random.default_rng(int(run.digest[:8], 16) + run.seed)
        phases = {"inversion": 4.0, "distillation": 8.0} if run.kind == "datafree" else {"training": 3.0}
        counts = {"student_steps": 720, **({"images": 1560} if run.kind == "datafree" else {})}
        about = {"environment": ENVIRONMENT, "git": GIT, "device": "cpu, 1 thread", "peak_memory_mb": 99.0}
        folder = fake_finished(study, run, phases, **about, counts=counts, classes=classes)
        value = accuracy[methods[path]][run.seed] if accuracy and path in methods else 50 + 40 * float(random.random())
        numbers = {
            "accuracy": value,
            "scored": "test",
            "parameters": 77562,
            **({"teacher_accuracy": 95.0} if run.teachers else {}),
        }
        (folder / METRICS).write_text(json.dumps(numbers), encoding="utf-8")
        _write_arrays(folder, run, random, len(classes))


def _write_arrays(folder: Path, run: Run, random: np.random.Generator, classes: int) -> None:
    lines = ["epoch,loss,agreement,gap_stored,gap_drawn"]
    lines += [f"{epoch},{9 / epoch},{0.5 + epoch / 99},{3 / epoch},{2 / epoch}" for epoch in range(1, EPOCHS + 1)]
    (folder / HISTORY).write_text("\n".join(lines), encoding="utf-8")
    if run.kind == "datafree":
        size = run.dataset.image_size
        images = random.integers(0, 256, (64, 3, size, size), dtype=np.uint8)
        counts = random.integers(1, 99, (EPOCHS + 1, classes))
        by_epoch = {
            "class_counts_by_epoch": counts[1:],
            "confidence_counts_by_epoch": random.integers(1, 99, (EPOCHS, 20)),
            "priorities_by_epoch": np.sort(random.random((EPOCHS, 5)), axis=1),
        }
        confidence = random.integers(1, 99, 20)
        end = {"class_counts": counts[0], "confidence_counts": confidence}
        arrays = {"images": images, "image_classes": np.sort(random.integers(0, classes, 64)), **end, **by_epoch}
        _save(folder / "synthetic.npz", arrays)
    elif run.kind == "distill":
        student, teacher = (np.corrcoef(random.random((classes, 2 * classes))) for _ in range(2))
        _save(folder / "correlations.npz", {"student": student, "teacher": teacher, "difference": student - teacher})


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    content = io.BytesIO()
    np.savez(content, **arrays)
    file.write_bytes(content.getvalue())
