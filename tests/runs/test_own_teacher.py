"""A teacher that the user has trained: used as it is, with and without data, and what does not fit is said."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import COMPUTE, PAIR, tiny_run, tiny_settings
from made_runs import source
from torch import Tensor, nn

from kd.data.dataset import load
from kd.models.build import build
from kd.runs.folder import inputs_of
from kd.runs.run import run_step
from kd.runs.worker import work_through
from kd.runtime.messages import ConfigError
from kd.runtime.torchvision_compat import import_torchvision
from kd.settings.merging import merge, run_of
from kd.settings.run import Run
from kd.settings.schema import settings_schema
from kd.settings.validation import validate, validate_run
from kd.training.given import take_over

NONE = {"dataset": {"name": "none", "classes": 10, "channels": 1, "mean": [0.3], "std": [0.37]}}


def state_of(name: str = PAIR[0], seed: int = 7) -> dict[str, Tensor]:
    """A network's state whose BatchNorm statistics are not the initial ones."""
    torch.manual_seed(seed)
    network = build(name, num_classes=10, in_channels=1, image_size=8)
    network.train()
    for _ in range(20):
        network(torch.randn(16, 1, 8, 8))
    return network.state_dict()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "my.pt"
    torch.save(state_of(), file)
    return file


def settings(file: Path | list[str], method: str = "ssdkd", **changes: Any) -> dict[str, Any]:
    given = [str(each) for each in file] if isinstance(file, list) else str(file)
    return merge(tiny_settings(method), {"teacher": {"weights": given}}, changes)


def checked(settings: dict[str, Any]) -> None:
    validate(settings, settings_schema(), "study")


def made(run: Run, results: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Make a run and its teachers; return its numbers and its record."""
    failed = work_through([run], results, COMPUTE, source(results))
    assert not failed, failed
    folder = results / run.path
    return json.loads((folder / "metrics.json").read_text()), json.loads((folder / "run.json").read_text())


def test_a_student_is_made_from_the_file_alone(file: Path, tmp_path: Path) -> None:
    run = run_of(settings(file, **NONE), 0)
    checked(settings(file, **NONE))
    assert [run.kind, run.teacher.kind, run.dataset.label] == ["datafree", "given", "none-10"]
    metrics, record = made(run, tmp_path)
    assert metrics["scored"] == "synthetic"
    assert metrics["accuracy"] == metrics["agreement_synthetic"] > 0
    assert "teacher_accuracy" not in metrics
    assert record["classes"] == [str(number) for number in range(10)]
    student = torch.load(tmp_path / run.path / "weights.pt", weights_only=True)
    assert student.keys() == build(PAIR[1], num_classes=10, in_channels=1, image_size=8).state_dict().keys()
    teacher = json.loads((tmp_path / run.teacher.path / "metrics.json").read_text())
    assert "accuracy" not in teacher, "nothing is there to score it on"


def test_its_weights_and_statistics_stay_byte_for_byte(file: Path, tmp_path: Path) -> None:
    run = run_of(settings(file, **NONE), 0)
    before = file.read_bytes()
    made(run, tmp_path)
    assert file.read_bytes() == before
    taken = torch.load(tmp_path / run.teacher.path / "weights.pt", weights_only=True)
    for name, value in state_of().items():
        assert torch.equal(taken[name], value), name


@pytest.mark.parametrize("method", ["kd", "ssdkd"])
def test_with_data_it_is_scored_there_and_teaches(method: str, store: Path, tmp_path: Path) -> None:
    trained = store / tiny_run("kd").teacher.path
    run = run_of(settings(trained / "weights.pt", method), 0)
    metrics, _ = made(run, tmp_path)
    own = json.loads((tmp_path / run.teacher.path / "metrics.json").read_text())
    before = json.loads((trained / "metrics.json").read_text())
    assert own["accuracy"] == before["accuracy"] == metrics["teacher_accuracy"]
    assert metrics["scored"] == "test"


def test_a_student_is_the_same_whether_its_teacher_was_trained_here_or_given(store: Path, tmp_path: Path) -> None:
    plain = tiny_run("kd")
    made(plain, tmp_path)
    given = run_of(settings(store / plain.teacher.path / "weights.pt", "kd"), 0)
    made(given, tmp_path)
    assert given.path != plain.path
    assert (tmp_path / given.path / "weights.pt").exists()
    first, second = (torch.load(tmp_path / run.path / "weights.pt", weights_only=True) for run in (plain, given))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_content_of_the_file_identifies_it_and_its_place_does_not(file: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere.pt"
    elsewhere.write_bytes(file.read_bytes())
    here, there = (run_of(settings(place, **NONE), 0) for place in (file, elsewhere))
    assert here.path == there.path
    assert here == there
    torch.save(state_of(seed=8), file)
    assert run_of(settings(file, **NONE), 0).path != here.path


def test_a_file_that_changed_since_the_study_was_read_is_refused(file: Path, tmp_path: Path) -> None:
    run = run_of(settings(file, **NONE), 0).teacher
    torch.save(state_of(seed=8), file)
    failed = work_through([run], tmp_path, COMPUTE, source(tmp_path))
    assert "has changed since the study was read" in failed[run.path]


def test_a_run_by_hand_knows_where_the_file_lies(file: Path, tmp_path: Path) -> None:
    run = run_of(settings(file, **NONE), 0)
    again = Run.from_dict(json.loads(json.dumps(run.as_dict())))
    assert inputs_of(again.teacher, tmp_path)[1] == [file]
    for each in (again, again.teacher):
        validate_run(each, Path.cwd(), "run.json")
    assert "file" not in json.dumps(run.identity)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {"state": {}}},
        lambda state: {"net": {f"module.{name}": value for name, value in state.items()}},
        lambda state: {f"_orig_mod.{name}": value for name, value in state.items()},
        lambda state: {name: value.half() if value.is_floating_point() else value for name, value in state.items()},
    ],
)
def test_usual_wrappers_are_opened(wrap: Any, tmp_path: Path) -> None:
    file = tmp_path / "wrapped.pt"
    torch.save(wrap(state_of()), file)
    network = build(PAIR[0], num_classes=10, in_channels=1, image_size=8)
    take_over(network, file, PAIR[0])
    for name, value in state_of().items():
        assert torch.allclose(network.state_dict()[name].float(), value.float(), rtol=1e-3, atol=1e-3), name


def test_a_safetensors_file_is_read_where_the_package_is_installed(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state_of(), tmp_path / "my.safetensors")
    network = build(PAIR[0], num_classes=10, in_channels=1, image_size=8)
    take_over(network, tmp_path / "my.safetensors", PAIR[0])
    assert all(torch.equal(network.state_dict()[name], value) for name, value in state_of().items())


def test_torchvisions_own_names_are_understood(tmp_path: Path) -> None:
    torch.manual_seed(0)
    plain = import_torchvision().models.resnet18(num_classes=10).eval()
    torch.save(plain.state_dict(), tmp_path / "resnet18.pt")
    adapted = build("torchvision:resnet18", num_classes=10, in_channels=3, image_size=32)
    take_over(adapted, tmp_path / "resnet18.pt", "torchvision:resnet18")
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(adapted.eval()(images).logits, plain(images))


def test_a_file_that_does_not_fit_says_which_names_and_how_far(tmp_path: Path) -> None:
    torch.save(state_of("resnet14"), tmp_path / "other.pt")
    network = build(PAIR[0], num_classes=10, in_channels=1, image_size=8)
    with pytest.raises(
        ConfigError, match=r"other.pt: cannot be used as resnet8: .*of \d+ tensors: \d+ unknown \(first: "
    ):
        take_over(network, tmp_path / "other.pt", PAIR[0])


def test_a_teacher_little_above_chance_is_pointed_out(file: Path, store: Path, tmp_path: Path) -> None:
    run = run_of(settings(file), 0).teacher
    run_step(run, tmp_path / "run", store / run.data_path, [file], COMPUTE, log=tmp_path / "log.txt")
    said = (tmp_path / "log.txt").read_text()
    assert re.search(r"WARNING: .*my.pt: .* % on the test images of 10 classes, little above chance", said)


def no_norm(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * image_size**2, num_classes))


def test_the_dry_run_refuses_a_teacher_without_batch_normalisation_by_name(tmp_path: Path) -> None:
    torch.save(no_norm(10, 1, 8).state_dict(), tmp_path / "plain.pt")
    own = settings(tmp_path / "plain.pt", **NONE, teacher={"model": "test_own_teacher:no_norm"})
    own["teacher"]["weights"] = str(tmp_path / "plain.pt")
    with pytest.raises(ConfigError, match=r"teacher.model: test_own_teacher:no_norm has no batch normalisation"):
        checked(own)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": {"classes": None}}, r"dataset.classes: got null; dataset.name none has no images that say it"),
        ({"dataset": {"mean": None, "std": None}}, r"dataset.mean: got null; .*for example \[0.5, 0.5, 0.5\]"),
        ({"dataset": {"mean": [0.5, 0.5]}}, r"dataset.mean: got 2 numbers; needed: one for each of the 1"),
        ({"dataset": {"std": [0.0]}}, r"dataset.std"),
        ({"replay": {"full_size": None}}, r"replay.full_size: got null"),
        ({"teacher": {"weights": None}}, r"teacher.weights: got null"),
        ({"teacher": {"weights": "gone.pt"}}, r"teacher.weights: no file 'gone.pt'"),
        ({"teacher": {"weights": ["a.pt", "b.pt"]}}, r"teacher.weights: got 2 files for 1 networks"),
        ({"kind": "distill"}, r"kind: got distill; without images \(dataset.name none\) only kind: datafree"),
        ({"inversion": {"source": "original"}}, r"inversion.source: got original; it needs the images"),
    ],
)
def test_what_is_missing_is_said_in_one_line(changes: dict[str, Any], said: str, file: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(merge(settings(file, **NONE), changes))


def test_grey_images_are_repeated_for_a_teacher_of_colours(file: Path, tmp_path: Path) -> None:
    run = tiny_run("scratch", dataset__channels=3, dataset__mean=[0.5, 0.5, 0.5], dataset__std=[0.25, 0.25, 0.25])
    made(run, tmp_path)
    data = load(tmp_path / run.data_path, run.dataset, torch.device("cpu"))
    assert data.channels == 3
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])
    assert data.augment.mean.tolist() == [0.5, 0.5, 0.5]
