"""benchmarks/datafree.py still measures what kd does: on small networks its two implementations agree."""

from __future__ import annotations

import importlib

import pytest
from conftest import ROOT


def test_both_implementations_of_the_inversion_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    datafree = importlib.import_module("datafree")
    for name, small in {"TEACHER": "wrn_16_1", "STUDENT": "resnet20", "INVERSION_BATCH": 16}.items():
        monkeypatch.setattr(datafree, name, small)
    monkeypatch.setattr(datafree.INVERSION, "batch_size", 16)
    agreement = datafree.agreement_of_inversion()
    assert {"inversion's loss", "images, as stored", "meta-gradient"} <= set(agreement)
