"""The methods whose generator learns in rounds, at tiny size."""

from __future__ import annotations

from typing import Any

from conftest import ROOT

from kd.runtime.yaml_files import read_yaml

OWN = read_yaml(ROOT / "config/config.yaml")["methods"]
IN_ROUNDS = tuple(name for name, method in OWN.items() if method.get("inversion", {}).get("source") == "adversarial")


def in_rounds(method: str, batch: int = 8, **changes: Any) -> dict[str, Any]:
    """Changes for `tiny_run`: small batches and networks, three rounds an epoch; weights and proportions stay."""
    inversion = OWN[method]["inversion"]["adversarial"]
    return {
        "inversion__adversarial__batch_size": batch,
        "inversion__adversarial__noise_dim": 8,
        "inversion__adversarial__width": 4,
        "replay__full_size": batch * inversion.get("batches", 1),  # it holds just the current round's
        "distillation__training__batch_size": batch,
        "distillation__steps": 6,
        "distillation__rounds": 3,
        **changes,
    }
