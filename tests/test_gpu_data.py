"""Data sets of benchmarks/gpu_evidence.py: in parts, and as test images alone; teachers that are brought."""

from __future__ import annotations

import importlib
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import COMPUTE, ROOT, execute, tiny_run
from PIL import Image

from kd.data import cifar
from kd.data.dataset import load
from kd.runs.run import run_step
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError

NAMES = ["cat", "dog"]
CIFAR = {"dataset__name": "cifar10", "dataset__image_size": 32}
GIVEN = ["--miniature", "--device", "cpu"]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("gpu_evidence")


@pytest.fixture
def data(script):
    return importlib.import_module("gpu_data")


@pytest.fixture
def archives(tmp_path: Path, data, monkeypatch) -> list[Path]:
    """Write a CIFAR-10 of 24 + 8 images in two tars, the test images in the second."""
    monkeypatch.setattr(cifar, "SIZES", (24, 8))
    monkeypatch.setitem(cifar.CLASS_COUNT, "cifar10", 2)
    monkeypatch.setitem(data.SIZES, "cifar10", (24, 8))
    files, random = [], np.random.default_rng(0)
    for part, counts in enumerate(({"train": 8}, {"train": 4, "test": 4})):
        for folder in (tmp_path / f"made{part}/{split}/{name}" for split in counts for name in NAMES):
            folder.mkdir(parents=True)
            for number in range(counts[folder.parent.name]):
                image = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(image).save(folder / f"{part}-{number}.png")
        files.append(tmp_path / f"part{part}.tar.gz")
        with tarfile.open(files[-1], "w:gz") as tar:
            tar.add(tmp_path / f"made{part}", "cifar10")
    return files


def test_archives_come_in_parts_and_runs_wait_for_the_whole(
    tmp_path: Path, script, data, archives, monkeypatch
) -> None:
    run = tiny_run("scratch", **CIFAR)
    options = script.parsed(["--results", f"{tmp_path}/r", "--data", f"{tmp_path}/data"])
    queue = SimpleNamespace(left=lambda done: [run] * 100)
    counted, count = [], data.images_in
    monkeypatch.setattr(data, "images_in", lambda root: counted.append(root) or count(root))
    data.unpack(archives[:1], options.data)
    assert data.images_in(options.data / "cifar10") == 16
    counted.clear()
    assert data.prepare(queue, options, set()) == {}
    assert len(counted) == 1, "once for all runs: there are tens of thousands of files"
    data.unpack(archives, options.data)
    assert data.prepare(queue, options, set()) == {"cifar10": True}
    assert len(load(tmp_path / "r" / run.data_path, run.dataset, torch.device("cpu")).train) == 24
    (tmp_path / "torn.tar.gz").write_bytes(archives[0].read_bytes()[:60])
    with pytest.raises(ConfigError, match=r"torn\.tar\.gz cannot be unpacked"):
        data.unpack([tmp_path / "torn.tar.gz"], options.data)


def test_data_free_students_learn_the_same_without_training_images(tmp_path: Path, script, data, archives) -> None:
    free, teacher = tiny_run("ssdkd", **CIFAR, replay__full_size=None), tiny_run("ssdkd", **CIFAR).teacher
    options = script.parsed(["--results", f"{tmp_path}/r", "--data", f"{tmp_path}/data"])
    file, weights = options.results / free.data_path, tmp_path / "teacher/weights.pt"
    queue = SimpleNamespace(left=lambda done: [free])
    data.gpu_test_images.pack(archives, tmp_path / "test.tar.gz")
    data.unpack([tmp_path / "test.tar.gz"], options.data)
    assert not (options.data / "cifar10/train").exists()
    assert data.prepare(queue, options, set()) == {"cifar10": False}
    small = torch.load(file, weights_only=True)
    assert small["train_images"].shape == (0, 3, 32, 32)

    data.unpack(archives, tmp_path / "all")
    options.data = tmp_path / "all"
    shutil.copy(file, tmp_path / "small.pt")
    assert data.prepare(queue, options, set()) == {"cifar10": True}, "prepared again when the rest arrives"
    whole = torch.load(file, weights_only=True)
    for key in ("test_images", "test_labels", "mean", "std"):
        assert torch.equal(small[key], whole[key])
    run_step(teacher, weights.parent, file, [], COMPUTE)
    from_all = run_step(free, tmp_path / "a", file, [weights], COMPUTE)
    assert run_step(free, tmp_path / "b", tmp_path / "small.pt", [weights], COMPUTE) == from_all
    assert [read_json(tmp_path / name / "run.json")["train_images"] for name in "ab"] == [24, 24], "for estimates"
    assert read_json(tmp_path / "b/run.json")["counts"] == read_json(tmp_path / "a/run.json")["counts"]

    for run in (tiny_run("original", **CIFAR), tiny_run("kd", **CIFAR), teacher):
        with pytest.raises(ConfigError, match=r"^run: it learns from training images, and [^\n]*holds test images"):
            run_step(run, tmp_path / "no", tmp_path / "small.pt", [weights] * (run is not teacher), COMPUTE)
    tuned = tiny_run("ssdkd", **CIFAR, dataset__validation=0.2)
    with pytest.raises(ConfigError, match=r"^dataset\.validation: got 0\.2; [^\n]*small\.pt holds test images alone"):
        run_step(tuned, tmp_path / "no", tmp_path / "small.pt", [weights], COMPUTE)


def test_a_teacher_that_is_brought_is_scored_and_says_where_from(tmp_path: Path, script, store: Path) -> None:
    teacher = tiny_run("kd").teacher
    metrics = execute(teacher, store, tmp_path / "elsewhere")
    file = (tmp_path / "elsewhere/weights.pt").rename(tmp_path / "good.pt")
    options = script.parsed([*GIVEN, "--results", f"{tmp_path}/r", "--teachers", f"{tmp_path}/t"])
    data = options.results / teacher.data_path
    data.parent.mkdir(parents=True)
    queue = SimpleNamespace(teachers={teacher.path: teacher}, runs={teacher.path: teacher})
    options.bring_teacher = [f"digits/resnet8={file}"]
    script.bring(queue, options)
    script.keep_teachers(queue, options)
    assert script.finished(queue, options.results) == set(), "it cannot be scored before its data is there"
    data.symlink_to(store / teacher.data_path)
    script.bring(queue, options)
    script.keep_teachers(queue, options)
    assert script.finished(queue, options.results) == {teacher.path}
    record = read_json(options.results / teacher.path / "run.json")
    assert record["brought_from"].startswith("good.pt (")
    assert record["git"]["commit"] == "unknown"
    found = read_json(options.results / teacher.path / "metrics.json")
    assert found.keys() <= metrics.keys()
    assert found["accuracy"] == pytest.approx(metrics["accuracy"], abs=1), "as rounded"
    assert execute(teacher, store, options.results / teacher.path) == found, "students find it complete"
    (tmp_path / "bad.pt").write_bytes(b"\0")
    for given, said in (("digits/wrn_16_2=x", "allowed: "), (f"digits/resnet8={tmp_path}/bad.pt", "cannot be used as")):
        options.bring_teacher, options.teachers = [given], tmp_path / "others"
        with pytest.raises(ConfigError, match=f"^--bring-teacher: [^\n]*{said}"):
            script.bring(queue, options)


def test_a_brought_teacher_is_not_kept_with_the_projects_own(tmp_path: Path, script, capsys) -> None:
    assert script.main([*GIVEN, "--results", f"{tmp_path}/r", "--bring-teacher", "digits/resnet8=x"]) == 1
    assert "give --teachers FOLDER" in capsys.readouterr().err
