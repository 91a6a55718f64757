"""What the documentation shows works: losses, data sets and models, written as it says, do their work."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT, tiny_settings

from kd.models.build import build
from kd.registry.models import MODELS, Model
from kd.settings.run import run_of


def test_a_loss_added_as_the_docs_say(tmp_path: Path) -> None:
    text = (ROOT / "docs/add-a-loss.md").read_text()
    code, line = re.findall(r"```python\n(.*?)```", text, re.S)
    method = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])["methods"]["mse"]
    package = tmp_path / "kd"
    for name in ("kd", "config", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "losses/logit_mse.py").write_text(code)
    registry = package / "losses/__init__.py"
    registry.write_text(
        registry.read_text().replace("LOSSES: dict[str, str] = {\n", "LOSSES: dict[str, str] = {\n" + line)
    )
    settings = tiny_settings("kd", objective__kd__weight=0.0)
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"settings": settings, "method": method}))
    program = """
import sys, yaml
from pathlib import Path
from kd.registry import losses
from kd.settings.run import merge, run_of
from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml
from kd.settings.validation import validate
content = yaml.safe_load(Path("settings.yaml").read_text())
schema = read_yaml(Path(sys.argv[1]) / "workflow/schemas/config.schema.yaml")
settings = merge(content["settings"], content["method"])
validate(settings, schema, "docs")
try:
    validate(merge(settings, {"objective": {"logit_mse": {"scail": 1.0}}}), schema, "docs")
except ConfigError as error:
    assert "did you mean 'scale'" in str(error), error
else:
    raise AssertionError("a wrong setting was accepted")
Path("run.yaml").write_text(yaml.safe_dump(run_of(settings, 0).as_dict()))
from kd.__main__ import main
sys.exit(main(["run", "--settings", "run.yaml", "--device", "cpu"]))
"""
    command = [sys.executable, "-c", program, str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert "logit_mse" in done.stdout, "the run's folder is named after its losses"


def test_a_data_set_added_as_the_docs_say(tmp_path: Path) -> None:
    code, line = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-dataset.md").read_text(), re.S)
    for name in ("kd", "config", "workflow"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "kd/data/squares.py").write_text(code)
    registry = tmp_path / "kd/registry/datasets.py"
    head = "DATASETS: dict[str, str] = {\n"
    registry.write_text(registry.read_text().replace(head, head + line))
    run = run_of(tiny_settings("scratch", dataset__name="squares", dataset__classes=["top left", "bottom right"]), 0)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run.as_dict()))
    command = [sys.executable, "-m", "kd", "run", "--settings", "run.yaml", "--device", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / run.path / "run.json").read_text())
    assert record["classes"] == ["top left", "bottom right"]
    assert record["train_images"] == 200
    assert run.path.startswith("runs/squares-2/")


def test_a_model_added_as_the_docs_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of one's own, by `module:function`; the class of the last example, by its line in MODELS."""
    mine, tiny = re.findall(r"```python\n(.*?)```", (ROOT / "docs/add-a-model.md").read_text(), re.S)[:2]
    (tmp_path / "my_nets.py").write_text(mine)
    (tmp_path / "my_tiny.py").write_text(tiny)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(MODELS, "tiny", Model("my_tiny:Tiny", {"width": 16}))
    for name, width in (("my_nets:small", 16), ("tiny", 32)):
        network = build(name, num_classes=5, in_channels=3, image_size=32)
        output = network(torch.randn(2, 3, 32, 32), True)
        assert output.logits.shape == (2, 5)
        assert network.feature_dim == output.feature.shape[1] == width


def test_every_setting_is_explained() -> None:
    """Each key of config.yaml stands in config/README.md."""
    text = (ROOT / "config/README.md").read_text()
    defaults = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    training = set(defaults["training"])
    missing = []
    for section, value in defaults.items():
        keys = value if isinstance(value, dict) and section not in ("methods", "objective", "training") else {}
        missing += [key for key in keys if key not in training and f"{section}.{key}" not in text]
        if f"`{section}" not in text:
            missing.append(section)
    missing += [key for key in training if f"`{key}`" not in text]
    assert not missing, f"config/README.md does not explain: {', '.join(missing)}"
