"""Teachers of gpu_evidence.py: trained here or brought, scored as rounded, and adopted by their own runs."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))

import torch
from gpu_data import say
from gpu_plan import Queue

from kd.data.dataset import load
from kd.runtime.files import file_digest, read_json, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.weights import fill, read_state
from kd.settings.run import Run
from kd.training.evaluate import evaluate
from kd.training.networks import network


def adopt(run: Run, options: argparse.Namespace) -> float:
    """Let the teacher's own run adopt what is kept."""
    from kd.runs.kept_teachers import fill_from_kept
    from kd.runs.run import identity_of

    identity = identity_of(run, options.results / run.data_path, [])
    return fill_from_kept(run, options.results / run.path, identity, options.teachers)["accuracy"]


def keep_teachers(queue: Queue, options: argparse.Namespace) -> None:
    """Round each new teacher to half precision, score the rounded one and keep it; its run is filled from it."""
    from kd.runs.kept_teachers import in_half_precision, keep, name_of

    for path, run in queue.teachers.items():
        folder, kept = options.results / path, options.teachers / f"{name_of(run)}.pt"
        record = folder / "run.json"
        if record.exists() and not kept.exists() and (folder / "weights.pt").exists():
            state = in_half_precision(torch.load(folder / "weights.pt", weights_only=True, map_location="cpu"))
            metrics = read_json(folder / "metrics.json") | scores(run, state, options)
            keep(run, folder, metrics, options.teachers)
        data = options.results / run.data_path
        if kept.exists() and data.exists() and not (record.exists() and "taken_from" in read_json(record)):
            folder.mkdir(parents=True, exist_ok=True)
            say(f"teacher {kept.name}: {adopt(run, options):.2f} %")


def bring(queue: Queue, options: argparse.Namespace) -> None:
    """Keep the teachers of --bring-teacher, scored here, in place of those that the queue would train.

    A teacher that is kept already stays. Raises ConfigError for a file that is none of the queue's teachers.
    """
    from kd.runs.kept_teachers import in_half_precision, name_of

    for given in options.bring_teacher:
        what, _, name = given.partition("=")
        file, names = Path(name), {f"{run.dataset.name}/{run.model}" for run in queue.teachers.values()}
        if what not in names or not file.is_file():
            raise ConfigError(
                f"--bring-teacher: got {given!r}; allowed: TEACHER=FILE, a file of weights and one of "
                f"{', '.join(sorted(names))}"
            )
        for run in queue.teachers.values():
            kept, data = options.teachers / f"{name_of(run)}.pt", options.results / run.data_path
            if f"{run.dataset.name}/{run.model}" != what or kept.exists() or not data.exists():
                continue
            try:
                state = in_half_precision(read_state(file))
                metrics = scores(run, state, options)
            except ValueError as error:
                raise ConfigError(f"--bring-teacher: {file} cannot be used as {what}: {error}") from None
            options.teachers.mkdir(parents=True, exist_ok=True)
            write_atomically(kept, lambda stream, state=state: torch.save(state, stream))
            write_json(kept.with_suffix(".json"), _record(run, file, metrics, file_digest(kept), data))
            say(f"{file.name} stands for {run.path}, which is not trained: {metrics['accuracy']:.2f} %")


def _record(run: Run, file: Path, metrics: dict[str, Any], sha256: str, data: Path) -> dict[str, Any]:
    """Return what is kept of a brought teacher: that it is one, and that nobody knows here how it was trained."""
    origin = f"{file.name} ({file_digest(file)}), trained elsewhere, perhaps with other settings than these"
    classes = torch.load(data, weights_only=True, mmap=True)["classes"]
    unknown = {"git": {"commit": "unknown", "diff": ""}, "environment": {}, "device": None, "counts": {}}
    unknown |= {"seconds": {"total": 0.0}, "train_images": None, "finished": None, "history": {"epoch": []}}
    return unknown | {
        "brought_from": origin,
        "settings": run.as_dict(),
        "classes": classes,
        "metrics": metrics,
        "sha256": sha256,
    }


def scores(run: Run, state: dict[str, torch.Tensor], options: argparse.Namespace) -> dict[str, Any]:
    """Return the metrics of a teacher with these weights. Raises ValueError where they do not fit its network."""
    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    data = load(options.results / run.data_path, run.dataset, device)
    model = network(run, data, device)
    fill(model, state)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return evaluate(model, data.score, data.augment)[0] | {"parameters": parameters, "scored": data.scored}
