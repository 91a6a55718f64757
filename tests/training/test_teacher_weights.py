"""Weights of a teacher that cannot be used: one line with the file, what it is, and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from conftest import execute, tiny_run

from kd.models.build import build
from kd.runs import kept_teachers
from kd.runtime.messages import ConfigError

RUN = tiny_run("kd")


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """Copy the results folder, for the teacher's file to be changed."""
    return Path(shutil.copytree(store, tmp_path / "results"))


@pytest.fixture
def file(own: Path) -> Path:
    return own / RUN.teacher.path / "weights.pt"


def good(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True)


def network(name: str, channels: int = 1) -> dict[str, torch.Tensor]:
    return build(name, num_classes=10, in_channels=channels, image_size=8).state_dict()


def cut(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])


def with_first(file: Path, value: float) -> None:
    state = good(file)
    state["head.bias"][3] = value
    torch.save(state, file)


def as_kind(file: Path, change) -> None:
    state = good(file)
    state["head.weight"] = change(state["head.weight"])
    torch.save(state, file)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 330171\n"
WRONG = {
    "empty": (lambda file: file.write_bytes(b""), "it is empty"),
    "cut at its start": (lambda file: cut(file, 20), "it is truncated or damaged"),
    "cut in its middle": (lambda file: cut(file, 100_000), "it is truncated or damaged"),
    "cut at its end": (lambda file: cut(file, -1), "it is truncated or damaged"),
    "bytes": (lambda file: file.write_bytes(bytes(range(256)) * 9), "it is truncated or damaged"),
    "web page": (lambda file: file.write_text("\n<!DOCTYPE html>\n<html>404"), "it is a web page"),
    "pointer": (lambda file: file.write_text(LFS), "it is a pointer of git-lfs; `git lfs pull`"),
    "text": (lambda file: file.write_text("Not Found\r\n"), "it is text"),
    "sparse": (lambda file: as_kind(file, torch.Tensor.to_sparse), "head.weight is torch.float32, torch.sparse_coo"),
    "complex": (lambda file: as_kind(file, lambda value: value + 0j), "head.weight is torch.complex64"),
    "eight bits": (
        lambda file: as_kind(file, lambda value: value.to(torch.float8_e4m3fn)),
        "head.weight is torch.float8_e4m3fn, torch.strided, on cpu; save only model.state_dict() in float32",
    ),
    "signs": (
        lambda file: as_kind(file, lambda value: value > 0),
        "1 of another kind (head.weight: torch.bool",
    ),
    "module": (lambda file: torch.save(torch.nn.Linear(2, 3), file), "it holds more than tensors; save only"),
    "tensor": (lambda file: torch.save(torch.zeros(3), file), "it is a Tensor; save only model.state_dict"),
    "numbers": (lambda file: torch.save({0: torch.zeros(3)}, file), "it holds 0; save only model.state_dict"),
    "nothing": (lambda file: torch.save({}, file), "it holds nothing; save only model.state_dict"),
    "checkpoint": (
        lambda file: torch.save({"weights": good(file), "epoch": 3}, file),
        "it holds weights, epoch; save only",
    ),
    "deeper": (
        lambda file: torch.save(network("resnet14"), file),
        "it does not fit the network, of 56 tensors: 36 unknown (first: body.0.1.conv1.weight)",
    ),
    "colour": (
        lambda file: torch.save(network("resnet8", channels=3), file),
        "1 of another shape (stem.0.weight: [16, 3, 3, 3], not [16, 1, 3, 3])",
    ),
    "other names": (
        lambda file: torch.save({"0.weight": good(file).pop("head.weight")}, file),
        "56 missing (first: stem.0.weight), 1 unknown (0.weight)",
    ),
    "nan": (lambda file: with_first(file, torch.nan), "its numbers are not finite (first: head.bias)"),
    "inf": (lambda file: with_first(file, -torch.inf), "its numbers are not finite (first: head.bias)"),
}


@pytest.mark.parametrize(("spoil", "words"), WRONG.values(), ids=WRONG)
def test_the_file_and_what_is_wrong_with_it_are_named(spoil, words: str, own: Path, file: Path, tmp_path: Path) -> None:
    spoil(file)
    with pytest.raises(ConfigError) as refused:
        execute(RUN, own, tmp_path / "run")
    assert str(refused.value).startswith(f"{file}: cannot be used as weights of the teacher resnet8: ")
    assert words in str(refused.value)
    assert str(refused.value).endswith("; put the right file there, or delete this one: the teacher is then made again")
    assert len(str(refused.value).splitlines()) == 1
    assert not (tmp_path / "run/metrics.json").exists()


def test_weights_saved_from_data_parallel_are_the_same_teacher(own: Path, file: Path, tmp_path: Path) -> None:
    metrics = execute(RUN, own, tmp_path / "plain")
    torch.save({f"module.{name}": value for name, value in good(file).items()}, file)
    assert execute(RUN, own, tmp_path / "wrapped") == metrics


@pytest.mark.parametrize(("spoil", "words"), [WRONG["pointer"], WRONG["web page"]])
def test_a_kept_teacher_that_is_another_file_is_named_too(spoil, words, store, tmp_path, monkeypatch) -> None:
    kept_teachers.keep(RUN.teacher, store / RUN.teacher.path, {"accuracy": 12.5}, tmp_path / "kept")
    monkeypatch.setattr(kept_teachers.fill_from_kept, "__defaults__", (tmp_path / "kept",))
    spoil(next((tmp_path / "kept").glob("*.pt")))
    with pytest.raises(ConfigError) as refused:
        execute(RUN.teacher, store, tmp_path / "taken")
    assert words in str(refused.value)
    assert "set compute.pretrained: false" in str(refused.value)
