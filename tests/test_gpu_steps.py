"""benchmarks/gpu_steps.py in miniature, on the CPU."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

from conftest import ROOT

from kd.runtime.files import read_json


def test_steps_are_measured_once_each_and_go_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    steps = importlib.import_module("gpu_steps")
    parts = [part for part in steps.PARTS if part.__name__ != "compiled"]
    monkeypatch.setattr(steps, "PARTS", parts)
    steps.measure(tmp_path, time.monotonic() - 1, True, "cpu")
    assert not (tmp_path / "steps.json").exists(), "no time, no part"
    steps.measure(tmp_path, time.monotonic() + 300, True, "cpu")
    text = steps.markdown(read_json(tmp_path / "steps.json"))
    for part in parts:
        assert f"**{part.__name__}** (cpu" in text
    assert "failed" not in text
    written = (tmp_path / "steps.json").stat().st_mtime_ns
    steps.measure(tmp_path, time.monotonic() + 300, True, "cpu")
    assert (tmp_path / "steps.json").stat().st_mtime_ns == written
