"""Teachers of gpu_evidence.py: scored as they are after rounding, and adopted by their own runs."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.append(str(Path(__file__).resolve().parent))


from kd.runtime.files import read_json
from kd.settings.run import Run


def adopt(run: Run, options: argparse.Namespace) -> float:
    """Let the teacher's own run adopt what is kept."""
    from kd.runs.kept_teachers import fill_from_kept
    from kd.runs.run import identity_of

    identity = identity_of(run, options.results / run.data_path, [])
    return fill_from_kept(run, options.results / run.path, identity, options.teachers)["accuracy"]


def rounded_metrics(run: Run, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    import torch

    from kd.data.dataset import load
    from kd.runs.kept_teachers import in_half_precision
    from kd.training.evaluate import evaluate
    from kd.training.networks import network

    device = torch.device("cuda" if torch.cuda.is_available() and options.device != "cpu" else "cpu")
    data = load(options.results / run.data_path, run.dataset, device)
    model = network(run, data, device)
    model.load_state_dict(in_half_precision(torch.load(folder / "weights.pt", weights_only=True, map_location="cpu")))
    return read_json(folder / "metrics.json") | evaluate(model, data.score, data.augment)[0]
