"""Teachers that come trained with the project: weights in half precision, and where they are from.

A kept teacher is a file NAME.pt (state dict) with NAME.json (settings, metrics, curves, seconds, device, commit,
checksum). NAME follows from the settings of its run, so that a run finds what was kept of the same settings.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from kd.runs.folder import HISTORY, METRICS, RECORD, WEIGHTS, array_file, sealed
from kd.runs.provenance import ROOT, run_code
from kd.runtime.files import file_digest, read_json, write_atomically, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.weights import read_state
from kd.settings.run import Run, slug

KEPT = Path(os.path.expanduser(os.environ.get("KD_TEACHERS", ROOT / "results/reference/teachers")))
RECORDED = (
    *("settings", "git", "environment", "device", "computed"),
    *("seconds", "counts", "train_images", "classes", "finished"),
)


def name_of(run: Run) -> str:
    """Return the name of a run's kept files: a function of its settings and seed."""
    return f"{slug(run.dataset.label)}-{slug(run.model)}-{run.digest}-seed{run.seed}"


def in_half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with floating-point tensors in half precision. Raises ValueError for a number beyond it."""
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    if wrong := [name for name, value in half.items() if value.is_floating_point() and not value.isfinite().all()]:
        raise ValueError(f"{wrong[0]} does not fit half precision")
    return half


def keep(run: Run, folder: Path, metrics: dict[str, Any], to: Path = KEPT) -> Path:
    """Keep the finished run in `folder`; return the file of its weights. `metrics` are those of the rounded weights."""
    record = read_json(folder / RECORD)
    state = in_half_precision(read_state(folder / WEIGHTS))
    to.mkdir(parents=True, exist_ok=True)
    weights = to / f"{name_of(run)}.pt"
    write_atomically(weights, lambda file: torch.save(state, file))
    history = pd.read_csv(folder / HISTORY).to_dict("list")
    kept = {"metrics": metrics, "history": history, "sha256": file_digest(weights)}
    write_json(weights.with_suffix(".json"), {**{key: record.get(key) for key in RECORDED}, **kept})
    return weights


def fill_from_kept(run: Run, folder: Path, identity: str, kept: Path = KEPT) -> dict[str, float] | None:
    """Fill a run's folder from the kept teacher of the same settings and return its metrics; None without one.

    Raises ConfigError for a kept file that is damaged.
    """
    record_file = kept / f"{name_of(run)}.json"
    if run.kind != "train" or not record_file.exists():
        return None
    weights = record_file.with_suffix(".pt")
    try:
        record = read_json(record_file)
        state = read_state(weights, record["sha256"])
        history = pd.DataFrame(record.pop("history"))
        metrics = record.pop("metrics")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{weights}: cannot be used ({error}); restore it, or set compute.pretrained: false"
        ) from None
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    write_atomically(folder / WEIGHTS, lambda file: torch.save(state, file))
    write_atomically(folder / HISTORY, lambda file: history.to_csv(file, index=False))
    (folder / array_file("correlations")).unlink(missing_ok=True)  # of an earlier training
    write_json(folder / METRICS, metrics)
    source = {"identity": identity, "digest": run.digest, "code": run_code(run), "taken_from": weights.name}
    write_json(folder / RECORD, sealed(folder, {"peak_memory_mb": 0.0, **record, **source}))
    return metrics
