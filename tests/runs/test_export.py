"""docs/use-the-student.md, done to the letter; what an exported file holds, and what is not written."""

from __future__ import annotations

import importlib.util
import io
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import execute, tiny_run
from docs_project import blocks
from PIL import Image

from kd.__main__ import main
from kd.data import views
from kd.data.augment import Augment
from kd.data.dataset import load
from kd.models.build import build
from kd.models.classifier import Classifier, Reusing, evaluating
from kd.runs.export import ONNX, Network, Ready, _bundle, export, read_bundle, read_run
from kd.runs.latency import latency
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.runtime.weights import read_state

PAGE = "use-the-student.md"
HAS_ONNX = all(importlib.util.find_spec(name) for name in ONNX)


@pytest.fixture(scope="module")
def folder(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, in a results folder of its own."""
    results = tmp_path_factory.mktemp("exported")
    run = tiny_run("kd").teacher
    shutil.copytree(store / run.path, results / run.path)
    (results / run.data_path).parent.mkdir(parents=True)
    shutil.copy(store / run.data_path, results / run.data_path)
    return results / run.path


@pytest.fixture(scope="module")
def found(folder: Path) -> Network:
    return read_run(folder)


def scored(folder: Path, found: Network) -> float:
    """The test accuracy of an exported network, which never saw kd's normalisation."""
    run = tiny_run("kd").teacher
    data = load(folder.parents[len(Path(run.path).parts) - 1] / run.data_path, run.dataset, torch.device("cpu"))
    with torch.no_grad():
        hits = found.ready(data.score.images.float() / 255).argmax(1) == data.score.labels
    return 100 * hits.float().mean().item()


def test_the_page_to_the_letter(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    [command] = blocks(PAGE, "sh")
    _, kd, *words = command.split()[1:]
    formats = [word for word in words[2:] if word != "onnx" or HAS_ONNX]
    formats = [
        word for word, after in zip(formats, [*formats[1:], ""], strict=True) if (word, after) != ("--to", "--to")
    ]
    assert kd == "kd"
    assert main([words[0], str(folder), *formats]) == 0
    assert "network.pt2: " in capsys.readouterr().out
    monkeypatch.chdir(folder)
    grey = np.random.default_rng(0).integers(0, 256, (12, 9), dtype=np.uint8)
    Image.fromarray(grey).save("picture.png")
    names: dict[str, Any] = {}
    for block in blocks(PAGE, "python"):
        if HAS_ONNX or "onnxruntime" not in block:
            exec(block, names)
    assert len(names["names"]) == 5
    assert set(names["names"]) <= set(read_json(folder / "run.json")["classes"])
    torch.testing.assert_close(names["probabilities"].sum(), torch.tensor(1.0))
    assert isinstance(names["network"], Classifier)
    if HAS_ONNX:
        expected = names["student"](names["images"]).detach().numpy()
        np.testing.assert_allclose(names["logits"], expected, rtol=1e-3, atol=1e-4)


def test_the_network_scores_what_its_run_scored(folder: Path, found: Network) -> None:
    assert scored(folder, found) == pytest.approx(read_json(folder / "metrics.json")["accuracy"], abs=0.3)


def test_the_card(folder: Path, found: Network) -> None:
    record = read_json(folder / "run.json")
    card = json.loads(json.dumps(found.card))
    assert (card["model"], card["classes"]) == (record["settings"]["model"], record["classes"])
    assert (card["channels"], card["image_size"], card["view"]) == (1, 8, "rgb")
    assert card["metrics"] == read_json(folder / "metrics.json")
    assert card["parameters"] == sum(value.numel() for value in found.ready.network.parameters())
    assert "images [B, 1, 8, 8]" in card["input"]


def test_a_bundle_is_a_file_of_weights_too(folder: Path, found: Network) -> None:
    export(found, folder, ["bundle"])
    ready, card = read_bundle(folder / "network.pt")
    assert card == found.card
    with torch.no_grad():
        torch.testing.assert_close(ready(found.images), found.logits)
    state, original = read_state(folder / "network.pt"), read_state(folder / "weights.pt")
    assert all(torch.equal(state[name], value) for name, value in original.items())


def test_a_file_that_would_answer_otherwise_is_not_written(found: Network, tmp_path: Path) -> None:
    wrong = replace(found, logits=found.logits + 0.01 * found.logits.abs().max())
    with pytest.raises(ConfigError, match=r"--to bundle: the logits differ .* by 0\.01 of the largest; .* not written"):
        export(wrong, tmp_path, ["bundle"])
    assert list(tmp_path.iterdir()) == []


def test_a_view_of_colours_is_part_of_the_network() -> None:
    """What a bundle of a network with a view gives is what the network gives for the images that a run shows it."""
    torch.manual_seed(0)
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    network = build("wrn_10_1", num_classes=3, in_channels=1, image_size=8).eval()
    views.look_through("luminance", network, Augment(mean, std, 0, False))
    card = {"model": "wrn_10_1", "classes": ["a", "b", "c"], "channels": 3, "image_size": 8, "view": "luminance"}
    card |= {"mean": mean.tolist(), "std": std.tolist()}
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    with evaluating(network):
        expected = network(Augment(mean, std, 0, False).normalise(images)).logits
    made = Network(Ready(network, mean, std).eval(), card, images.float() / 255, expected)
    again, _ = read_bundle(io.BytesIO(_bundle(made)))
    with torch.no_grad():
        torch.testing.assert_close(again(made.images), expected)


def test_a_student_of_simkd_keeps_its_teachers_head(store: Path, tmp_path: Path) -> None:
    run = tiny_run("simkd")
    shutil.copytree(store, tmp_path, dirs_exist_ok=True)
    metrics = execute(run, store, tmp_path / run.path)
    found = read_run(tmp_path / run.path)
    assert isinstance(found.ready.network, Reusing)
    assert scored(tmp_path / run.path, found) == pytest.approx(metrics["accuracy"], abs=0.3)
    with pytest.raises(ConfigError, match="a student of simkd ends in its teacher's head"):
        export(found, tmp_path, ["bundle"])


@pytest.mark.skipif(HAS_ONNX, reason="its packages are installed")
def test_packages_that_are_not_installed_are_named(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(folder), "--to", "onnx"]) == 1
    assert "pip install onnx onnxscript onnxruntime" in capsys.readouterr().err


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(tmp_path)]) == 1
    assert f"{tmp_path}: no finished run" in capsys.readouterr().err
    run = tiny_run("kd").teacher
    shutil.copytree(folder, tmp_path / run.path)
    assert main(["export", str(tmp_path / run.path)]) == 1
    said = capsys.readouterr().err
    assert str(run.data_path) in said
    assert f"run.json --results {tmp_path}" in said


def test_latency_is_measured_in_the_two_ways() -> None:
    batches = []

    class Slow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            batches.append(len(images))
            time.sleep(0.002 if len(images) == 1 else 0.02)
            return images

    measured = latency(Slow(), torch.zeros(1, 3, 8, 8), seconds=0.05)
    assert set(batches) == {1, 64}
    assert 2 <= measured.milliseconds < 20
    assert 64 / 0.2 < measured.images_per_second <= 64 / 0.02


def test_latency_of_a_run_is_kept_next_to_it(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["export", str(folder), "--to", "bundle", "--latency", "--threads", "1"]) == 0
    kept = read_json(folder / "latency.json")
    said = capsys.readouterr().out
    assert f"{kept['milliseconds']:.3g} ms for one image, {kept['images_per_second']:.3g} images/s" in said
    assert kept["measured_on"].endswith(", 1 thread")
