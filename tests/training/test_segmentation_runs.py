"""Whole runs on label maps: captured, stopped and resumed, with each loss, without data; and what is refused."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import COMPUTE, ROOT, execute, tiny_run
from PIL import Image
from tape import play_on_cpu

from kd.data.prepare import prepare
from kd.data.raw import IGNORED, Source
from kd.data.rooms import scene
from kd.models.build import build
from kd.registry.datasets import NYU_13
from kd.registry.losses import LOSSES
from kd.runs.export import read_run
from kd.runs.run import run_step
from kd.runtime.checkpoint import Checkpoint, Stopped
from kd.runtime.messages import ConfigError
from kd.settings.run import Run
from kd.settings.validation import validate_run

SIZE, K = 16, 13

SETTINGS = {
    "dataset__name": "pairs",
    "dataset__image_size": SIZE,
    "teacher__model": "deeplabv3_tiny",
    "student__model": "deeplabv3_tiny",
    "teacher__training__batch_size": 8,
    "teacher__training__epochs": 30,
    "training__batch_size": 8,
    "inversion__generator__batch_size": 8,
    "replay__full_size": 20,
    "distillation__training__epochs": 4,
    "distillation__training__batch_size": 8,
}
CASES = [
    ("scratch", {}),
    ("kd", {"dataset__rescale": 1.5}),
    ("crd", {"objective__crd__negatives": 8}),
    ("ssdkd", {}),
    ("ssdkd", {"dataset__rescale": 1.5, "inversion__generator__doublings": 3}),
    ("ssdkd", {"inversion__generator__targets": "own"}),
    ("fast", {"replay__with_replacement": False, "replay__refresh": "all"}),
    ("original", {"scale": 0.5, "distillation__passes": 3.0}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of scenes with their maps, and a results folder with the data set and its teacher."""
    root, results = tmp_path_factory.mktemp("scenes"), tmp_path_factory.mktemp("results")
    (root / "classes.yaml").write_text(yaml.safe_dump({"names": list(NYU_13), "ignore": [IGNORED]}), "utf-8")
    for number, (split, count) in enumerate((("train", 24), ("test", 10))):
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for each in range(count):
            image, labels = scene(np.random.default_rng([number, each]), SIZE)
            labels[0, :2] = IGNORED
            Image.fromarray(image[..., :3]).save(root / split / "images" / f"{each}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{each}.png")
    run = a_run(root, "kd")
    prepare(run.dataset, results / run.data_path, Source(None, results, download=False), lambda line: None)
    run_step(run.teacher, results / run.teacher.path, results / run.data_path, [], COMPUTE)
    return root, results


def a_run(root: Path, method: str, **changes) -> Run:
    return tiny_run(method, **{**SETTINGS, "dataset__root": str(root), **changes})


def numbers(folder: Path) -> tuple:
    weights = torch.load(folder / "weights.pt", weights_only=True)
    bytes_of = {name: value.contiguous().numpy().tobytes() for name, value in weights.items()}
    return bytes_of, (folder / "metrics.json").read_text("utf-8"), (folder / "history.csv").read_text("utf-8")


@pytest.mark.parametrize(("method", "changes"), CASES)
def test_captured_and_stopped_runs_end_with_the_bytes_of_plain_ones(method, changes, world, tmp_path, monkeypatch):
    root, results = world
    run = a_run(root, method, **changes)
    if run.teacher:  # augmented likewise
        run_step(run.teacher, results / run.teacher.path, results / run.data_path, [], COMPUTE)
    metrics = execute(run, results, tmp_path / "plain")
    assert 0 <= metrics["accuracy"] <= 100
    assert "pixel_accuracy" in metrics
    plain, calls = numbers(tmp_path / "plain"), 0

    def stop(self: Checkpoint, parts: dict) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            self.stopping = 15
        original(self, parts)

    original = Checkpoint.stop_or_save
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "stop_or_save", stop)
        with pytest.raises(Stopped):
            execute(run, results, tmp_path / "stopped")
    execute(run, results, tmp_path / "stopped")
    assert numbers(tmp_path / "stopped") == plain

    steppers = play_on_cpu(monkeypatch)
    execute(run, results, tmp_path / "replayed")
    assert steppers[-1].computed["not_captured"] == {}
    assert steppers[-1].computed["captured"]
    assert numbers(tmp_path / "replayed") == plain


@pytest.mark.parametrize("name", sorted(name for name, entry in LOSSES.items() if entry.dense))
def test_a_loss_for_maps_trains_a_student(name, world, tmp_path):
    root, results = world
    staged = {f"objective__{name}__first_epochs": 1} if name in ("ab", "ft", "fsp") else {}
    method = {"ce": "scratch", "crd": "crd"}.get(name, name)
    changes = {"objective__crd__negatives": 8, "training__epochs": 1} if name == "crd" else {"training__epochs": 1}
    run = a_run(root, method, **staged, **changes)
    assert math.isfinite(execute(run, results, tmp_path)["loss"])


@pytest.mark.parametrize("name", sorted(name for name, entry in LOSSES.items() if not entry.dense))
def test_a_loss_for_one_class_per_image_is_refused_in_a_line(name, world):
    with pytest.raises(ConfigError) as refused:
        validate_run(a_run(world[0], name), ROOT, "here")
    lines = str(refused.value).split("\n")
    assert f"here: objective.{name}: is for one class per image, and there is one for every pixel" in lines[0]


@pytest.mark.parametrize("method", ["deepinversion", "cmi", "nayer", "dafl"])
def test_a_source_for_one_class_per_image_is_refused_in_a_line(method, world):
    with pytest.raises(ConfigError, match=r"inversion\.source: got .*take generator or original"):
        validate_run(a_run(world[0], method), ROOT, "here")


def test_a_teacher_of_ones_own_teaches_without_data(world, tmp_path):
    root, results = world
    weights = results / a_run(root, "kd").teacher.path / "weights.pt"
    described = {"classes": K, "image_size": SIZE, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    of_data = {f"dataset__{key}": value for key, value in {"name": "none", "root": None, **described}.items()}
    run = a_run(root, "ssdkd", **of_data, teacher__weights=str(weights), inversion__generator__targets="own")
    prepare(run.dataset, tmp_path / run.data_path, Source(None, tmp_path, download=False), lambda line: None)
    run_step(run.teacher, tmp_path / run.teacher.path, tmp_path / run.data_path, [weights], COMPUTE)
    metrics = execute(run, tmp_path, tmp_path / run.path)
    assert metrics["scored"] == "synthetic"
    assert metrics["accuracy"] == metrics["agreement_synthetic"] == metrics["pixel_accuracy"], "a share of pixels"
    exported = read_run(tmp_path / run.path)
    assert exported.logits.shape == (len(exported.images), K, SIZE, SIZE)
    assert exported.card["output"].startswith("logits [B, 13, 16, 16]")


OWN = """
from torch import nn


def convolved(inside, outside, stride):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


def pixels(num_classes, in_channels, image_size):
    return nn.Sequential(convolved(in_channels, 8, 2), convolved(8, 12, 2), nn.Conv2d(12, num_classes, 1))


def image(num_classes, in_channels, image_size):
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes)]
    return nn.Sequential(convolved(in_channels, 8, 2), *pooled)
"""


@pytest.fixture
def own_nets(tmp_path, monkeypatch):
    (tmp_path / "nets_of_pixels.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "nets_of_pixels"
    sys.modules.pop("nets_of_pixels", None)


@pytest.mark.parametrize("method", ["scratch", "kd", "crd", "ssdkd"])
def test_a_network_of_ones_own_learns_to_label_pixels(method, world, own_nets):
    root, results = world
    changes = {"objective__crd__negatives": 8} if method == "crd" else {}
    run = a_run(root, method, student__model=f"{own_nets}:pixels", **changes)
    validate_run(run, ROOT, "here")
    metrics = execute(run, results, results / run.path)
    assert {"accuracy", "pixel_accuracy", "loss"} <= set(metrics)
    assert math.isfinite(metrics["loss"])
    exported = read_run(results / run.path)
    assert exported.logits.shape == (len(exported.images), K, SIZE, SIZE)


def test_a_network_of_ones_own_that_says_one_class_per_image_is_refused_in_a_line(world, own_nets, tmp_path):
    root, results = world
    run = a_run(root, "kd", student__model=f"{own_nets}:image")
    validate_run(run, ROOT, "here")  # only building it tells
    says = r"nets_of_pixels:image says one class per image; the labels of pairs-.* are a class for every pixel"
    with pytest.raises(ConfigError, match=says):
        execute(run, results, tmp_path / "made")


def test_of_networks_without_data_both_must_label_pixels(world, own_nets, tmp_path):
    described = {"classes": K, "image_size": SIZE, "channels": 3, "mean": [0.5] * 3, "std": [0.25] * 3}
    of_data = {f"dataset__{key}": value for key, value in {"name": "none", "root": None, **described}.items()}
    taught = build(f"{own_nets}:pixels", num_classes=K, image_size=SIZE)
    learned = a_run(world[0], "scratch", student__model=f"{own_nets}:pixels", training__epochs=30)
    execute(learned, world[1], tmp_path / "learned")
    taught.load_state_dict(torch.load(tmp_path / "learned" / "weights.pt", weights_only=True))
    torch.save(taught.body.state_dict(), tmp_path / "own.pt")
    teacher = {"teacher__model": f"{own_nets}:pixels", "teacher__weights": str(tmp_path / "own.pt")}

    def made(method, student):
        run = a_run(world[0], method, **of_data, **teacher, student__model=f"{own_nets}:{student}")
        prepare(run.dataset, tmp_path / run.data_path, Source(None, tmp_path, download=False), lambda line: None)
        weights = [tmp_path / "own.pt"]
        run_step(run.teacher, tmp_path / run.teacher.path, tmp_path / run.data_path, weights, COMPUTE)
        return execute(run, tmp_path, tmp_path / run.path)

    assert made("ssdkd", "pixels")["scored"] == "synthetic"
    with pytest.raises(ConfigError, match=r"pixels says a class for every pixel, .*one class per image; take two"):
        made("ssdkd", "image")
    with pytest.raises(ConfigError, match=r"inversion\.source: got cmi, .*take generator or original"):
        made("cmi", "pixels")
