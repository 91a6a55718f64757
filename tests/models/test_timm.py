"""`timm:<name>`: checked without importing timm, built with the data's sizes. A stand-in takes timm's place here."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from kd.models.build import build
from kd.registry import models
from kd.runtime.weight_names import names_in

PACKAGE = """
from torch import nn

def create_model(name, pretrained, num_classes, in_chans):  # no img_size: as most of timm's networks
    assert (name, pretrained) == ("tiny_net", False)
    return nn.Sequential(
        nn.Conv2d(in_chans, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
    )
"""


@pytest.fixture
def timm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "timm"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "models/tiny.py").write_text("@register_model\ndef tiny_net(pretrained=False, **kwargs):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "timm", raising=False)
    importlib.invalidate_caches()
    yield folder
    sys.modules.pop("timm", None)


def test_its_networks_are_known_without_importing_it(timm: Path) -> None:
    models.check("timm:tiny_net")
    assert "timm" not in sys.modules
    with pytest.raises(ValueError, match=r"timm has no classifier 'tiny_nett' \(did you mean tiny_net\?\)"):
        models.check("timm:tiny_nett")


def test_a_network_has_the_datas_classes_and_channels(timm: Path) -> None:
    network = build("timm:tiny_net", num_classes=7, in_channels=1, image_size=8)
    assert network(torch.zeros(2, 1, 8, 8)).logits.shape == (2, 7)


def test_without_timm_the_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"model 'timm:resnet26' needs timm, which is not installed: pip install timm"):
        models.check("timm:resnet26")


def test_names_of_tensors_are_read_from_files_without_torch(tmp_path: Path) -> None:
    torch.save({"norm.running_mean": torch.zeros(3)}, tmp_path / "a.pt")
    header = b'{"norm.running_mean": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'
    (tmp_path / "b.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    (tmp_path / "c.txt").write_text("hello")
    assert "norm.running_mean" in names_in(tmp_path / "a.pt")
    assert "norm.running_mean" in names_in(tmp_path / "b.safetensors")
    assert names_in(tmp_path / "c.txt") is None
    assert names_in(tmp_path / "gone.pt") is None
