"""One run from its settings to its files: what the workflow's scripts and `python -m kd run` call."""

from __future__ import annotations

import csv
import io
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kd import datafree, devices, models
from kd.checkpoint import Checkpoint
from kd.config import Compute, Run
from kd.data.dataset import Data, load
from kd.evaluate import evaluate
from kd.files import file_digest, write_atomically, write_json
from kd.journal import Journal, Progress, Sink
from kd.provenance import environment, git_state, run_code
from kd.train import train


def run_step(
    run: Run,
    folder: Path,
    data_file: Path,
    teacher_weights: Path | None,
    compute: Compute,
    tracker: AbstractContextManager[Sink | None] | None = None,
    log: Path | None = None,
) -> dict[str, float]:
    """Train, score once, and write the run's files into `folder`; a killed run goes on from its checkpoint there.

    metrics.json (final numbers alone), run.json (settings, code, environment, seconds, counts), history.csv (curves),
    weights.pt (state dict), and for data-free runs synthetic.npz. Returns the content of metrics.json.
    """
    started = time.time()
    folder.mkdir(parents=True, exist_ok=True)
    device = devices.pick(compute)
    progress = Progress(f"{run.path} on {device}", log)
    data = load(data_file, run.dataset, device)
    torch.manual_seed(run.seed)
    student = _network(run.model, data, device)
    teacher = None
    if run.teacher is not None:
        teacher = _network(run.teacher.model, data, device)
        teacher.load_state_dict(torch.load(teacher_weights, weights_only=True, map_location=device))
        teacher.eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(run.seed)
    code = run_code(run)
    made_from = "-".join(file_digest(path) for path in (data_file, teacher_weights) if path is not None)
    identity = f"{run.digest}-{run.seed}-{code}-{made_from}"
    checkpoint = Checkpoint(folder, identity, compute.checkpoint_seconds, progress.say)
    with checkpoint, tracker or nullcontext() as sink:
        journal = Journal(progress, sink)
        buffer = None
        if run.kind == "datafree":
            buffer = datafree.distil(run, data, student, teacher, generator, journal, checkpoint)
        else:
            train(run, data, student, teacher, generator, journal, checkpoint)
        with journal.phase("evaluation", device):
            metrics = evaluate(student, data.score, data.augment, teacher)
        metrics |= {"parameters": sum(parameter.numel() for parameter in student.parameters())}
        if buffer is not None:
            drawn = datafree.describe(buffer, data, teacher)
            _write_npz(folder / "synthetic.npz", drawn)
        weights = {name: value.cpu() for name, value in student.state_dict().items()}
        write_atomically(folder / "weights.pt", lambda file: torch.save(weights, file))
        write_atomically(folder / "history.csv", lambda file: file.write(_csv(journal.history).encode()))
        write_json(folder / "metrics.json", {**metrics, "scored": data.scored})
        write_json(folder / "run.json", _record(run, code, journal, device, started, data))
        progress.say(f"done: accuracy {metrics['accuracy']:.2f} % on the {data.scored} images")
    checkpoint.remove()
    progress.close()
    return metrics


def _network(name: str, data: Data, device: torch.device) -> nn.Module:
    network = models.build(name, num_classes=len(data.classes), in_channels=data.channels, image_size=data.image_size)
    return network.to(device, memory_format=torch.channels_last)


def _record(run: Run, code: str, journal: Journal, device: torch.device, started: float, data: Data) -> dict[str, Any]:
    seconds = {name: round(value, 3) for name, value in journal.seconds.items()}
    return {
        "settings": run.as_dict(),
        "digest": run.digest,
        "code": code,
        "git": git_state(),
        "environment": environment(),
        "device": devices.describe(device),
        "seconds": {**seconds, "total": round(sum(journal.seconds.values()), 3)},
        "counts": dict(journal.counts),
        "train_images": len(data.train),
        "classes": data.classes,
        "peak_memory_mb": round(devices.peak_memory_mb(device), 1),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _csv(history: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
