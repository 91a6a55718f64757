"""Networks of other codes: their files, with their names written here layer by layer, give kd's logits."""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from torch import Tensor, nn

from kd.__main__ import main
from kd.models.build import build
from kd.models.imported import read
from kd.runtime.messages import ConfigError
from kd.runtime.torchvision_compat import import_torchvision
from kd.studies.study import load_study

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def norm(path: str) -> list[str]:
    return [f"{path}.{name}" for name in NORM]


def pairs(path: str, *numbers: int) -> Iterator[str]:
    """Convolutions conv1, ... each followed by its normalisation bn1, ..."""
    for number in numbers:
        yield from [f"{path}conv{number}.weight", *norm(f"{path}bn{number}")]


def linear(path: str) -> list[str]:
    return [f"{path}.weight", f"{path}.bias"]


def residual(lengths: list[int], convolutions: int, shortcut: str, head: str, first: bool) -> Iterator[str]:
    """Residual networks, and ShuffleNet V1, which has no shortcut with weights; `first`: the first stage has one."""
    yield from pairs("", 1)
    for stage, length in enumerate(lengths, 1):
        for block in range(length):
            path = f"layer{stage}.{block}."
            yield from pairs(path, *range(1, convolutions + 1))
            if shortcut and block == 0 and (stage > 1 or first):
                yield from [f"{path}{shortcut}.0.weight", *norm(f"{path}{shortcut}.1")]
    yield from linear(head)


def wide() -> Iterator[str]:
    yield "conv1.weight"
    for stage in (1, 2, 3):
        for block in range(2):
            path = f"block{stage}.layer.{block}"
            for number in (1, 2):
                yield from [*norm(f"{path}.bn{number}"), f"{path}.conv{number}.weight"]
            if block == 0:
                yield f"{path}.convShortcut.weight"
    yield from [*norm("bn1"), *linear("fc")]


def vgg() -> Iterator[str]:
    for stage, length in enumerate((1, 1, 2, 2, 2)):
        for place in range(0, 3 * length, 3):
            yield from [*linear(f"block{stage}.{place}"), *norm(f"block{stage}.{place + 1}")]
    yield from linear("classifier")


def mobile_half() -> Iterator[str]:
    yield from ["conv1.0.weight", *norm("conv1.1")]
    for row, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)):
        for block in range(blocks):
            for place in (0, 3, 6):
                path = f"blocks.{row}.{block}.conv"
                yield from [f"{path}.{place}.weight", *norm(f"{path}.{place + 1}")]
    yield from ["conv2.0.weight", *norm("conv2.1"), *linear("classifier.0")]


def mobile() -> Iterator[str]:
    yield from ["features.0.0.weight", *norm("features.0.1")]
    for block in range(1, 18):
        path = f"features.{block}.conv"
        inner = ["0"] if block == 1 else ["0", "1"]
        for place in inner:
            yield from [f"{path}.{place}.0.weight", *norm(f"{path}.{place}.1")]
        yield from [f"{path}.{len(inner)}.weight", *norm(f"{path}.{len(inner) + 1}")]
    yield from ["features.18.0.weight", *norm("features.18.1"), *linear("classifier.1")]


def shuffle_2() -> Iterator[str]:
    yield from pairs("", 1)
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for unit in range(units):
            yield from pairs(f"layer{stage}.{unit}.", *((1, 2, 3, 4, 5) if unit == 0 else (1, 2, 3)))
    yield from [*pairs("", 2), *linear("linear")]


THEIRS: dict[tuple[str, str], Callable[[], Iterator[str]]] = {
    ("repdistiller", "resnet14"): lambda: residual([2, 2, 2], 2, "downsample", "fc", first=False),
    ("repdistiller", "resnet8x4"): lambda: residual([1, 1, 1], 2, "downsample", "fc", first=True),
    ("repdistiller", "resnet50"): lambda: residual([3, 4, 6, 3], 3, "shortcut", "linear", first=True),
    ("repdistiller", "shufflenetv1"): lambda: residual([4, 8, 4], 3, "", "linear", first=False),
    ("repdistiller", "wrn_16_2"): wide,
    ("repdistiller", "vgg11"): vgg,
    ("repdistiller", "mobilenetv2_half"): mobile_half,
    ("repdistiller", "shufflenetv2"): shuffle_2,
    ("fast-datafree", "resnet18"): lambda: residual([2, 2, 2, 2], 2, "shortcut", "linear", first=False),
    ("fast-datafree", "resnet20"): lambda: residual([3, 3, 3], 2, "downsample", "fc", first=False),
    ("fast-datafree", "wrn_16_2"): wide,
    ("fast-datafree", "vgg11"): vgg,
    ("fast-datafree", "mobilenetv2"): mobile,
    ("fast-datafree", "shufflenetv2"): shuffle_2,
}


def stirred(network: nn.Module) -> nn.Module:
    """Give every normalisation statistics, weights and biases of its own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(std=0.1)
    return network.eval()


def made(source: str, model: str, **sizes: int) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a network of kd and its tensors under the names of another code, in the order of these names."""
    torch.manual_seed(0)
    network = stirred(build(model, **{"num_classes": 10, **sizes}))
    return network, dict(zip(THEIRS[source, model](), network.state_dict().values(), strict=True))


def same(ours: nn.Module, theirs: Callable[[Tensor], Any], size: int = 32) -> None:
    images = torch.randn(2, ours.in_channels, size, size)
    with torch.no_grad():
        expected = theirs(images)
        assert torch.equal(ours(images).logits, getattr(expected, "logits", expected))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "theirs.pth"


@pytest.mark.parametrize(("source", "model"), THEIRS)
def test_a_file_with_their_names_in_any_order_gives_the_same_logits(source: str, model: str, file: Path) -> None:
    network, theirs = made(source, model)
    mixed = random.Random(0).sample(list(theirs.items()), len(theirs))
    torch.save({"epoch": 240, "model" if source == "repdistiller" else "state_dict": dict(mixed)}, file)
    imported = read(file, source, model)
    assert (imported.model, imported.tensors, imported.left_out) == (model, len(theirs), [])
    same(imported.network, network)


def test_what_checkpoints_look_like(file: Path) -> None:
    """Other classes, grey images, options beside the weights, DataParallel, formats from before torch 1.6 and 0.4.1."""
    network, theirs = made("repdistiller", "wrn_16_2", num_classes=7, in_channels=1)
    theirs = {f"module.{name}": value for name, value in theirs.items() if "num_batches" not in name}
    content = {"opt": argparse.Namespace(lr=0.05), "model": theirs, "accuracy": torch.tensor(76.0)}
    torch.save(content, file, _use_new_zipfile_serialization=False)
    imported = read(file, "repdistiller", "wrn_16_2").network
    assert (imported.num_classes, imported.in_channels) == (7, 1)
    same(imported, network)


def test_their_own_names_of_networks(file: Path) -> None:
    for source, theirs, ours in (
        ("repdistiller", "ShuffleV1", "shufflenetv1"),
        ("repdistiller", "MobileNetV2", "mobilenetv2_half"),
        ("fast-datafree", "wrn16_2", "wrn_16_2"),
    ):
        torch.save(made(source, ours)[1], file)
        assert read(file, source, theirs).model == ours


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer2.1.bn2.bias"), "1 missing (body.1.1.bn2.bias); 91 of 92 tensors"),
        (lambda state: state.update(extra=torch.ones(1)), "1 of its names are no part of it (first: extra); 92 of 92"),
        (lambda state: state.update({"linear.bias": torch.ones(10)}), "are no part of it (first: linear.bias); 92 of"),
        (lambda state: state.update({"conv1.weight": torch.ones(16, 3, 1, 1)}), "stem.0.weight: [16, 3, 1, 1], not"),
        (lambda state: state.pop("fc.weight"), "no tensor belongs to the linear layer that ends it"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(change: Callable[[dict], Any], message: str, file: Path) -> None:
    _, theirs = made("repdistiller", "resnet14")
    change(theirs)
    torch.save(theirs, file)
    with pytest.raises(ConfigError) as raised:
        read(file, "repdistiller", "resnet14")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_file_of_another_network_names_it(file: Path) -> None:
    torch.save(made("fast-datafree", "resnet20")[1], file)
    with pytest.raises(ConfigError, match=r"60 missing .*; 128 of 200 tensors .*; the file fits --model resnet20$"):
        read(file, "fast-datafree", "resnet32")


def test_a_unit_with_too_many_layers_is_refused(file: Path) -> None:
    _, theirs = made("repdistiller", "shufflenetv2")
    torch.save(theirs | {"layer1.1.conv4.weight": torch.ones(58, 1, 3, 3)}, file)
    with pytest.raises(ConfigError, match=r"1 of its names are no part of it \(first: layer1.1.conv4.weight\)"):
        read(file, "repdistiller", "shufflenetv2")


@pytest.mark.parametrize(
    ("source", "model", "message"),
    [
        ("repdistiller", "mobilenetv2", "repdistiller has no network 'mobilenetv2'; allowed, by kd's names: resnet50,"),
        ("repdistiller", "wrn_17_2", "unknown model 'wrn_17_2'"),
        ("torchvision", "resnet18", "allowed, by kd's names: torchvision:<name>"),
        ("torchvision", "torchvision:resnet19", "torchvision has no classifier 'resnet19' (did you mean"),
        ("repdistiller", "vgg8", "No such file"),
    ],
)
def test_what_is_not_there_is_refused(source: str, model: str, message: str, file: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        read(file, source, model)
    assert message in str(raised.value)


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet"])
def test_torchvisions(name: str, file: Path) -> None:
    settings = {"init_weights": False, "aux_logits": True} if name == "googlenet" else {}
    theirs = stirred(import_torchvision().models.get_model(name, weights=None, num_classes=12, **settings))
    state = {}
    for path, value in theirs.state_dict().items():  # published densenets have names of an early torchvision
        old = path.rpartition("denselayer")[2].partition(".")[2][:5] if "denselayer" in path else ""
        state[path.replace(f".{old}", f".{old[:-1]}.{old[-1]}") if old in ("norm1", "norm2", "conv1") else path] = value
    torch.save(state, file)
    imported = read(file, "torchvision", f"torchvision:{name}", 64)
    assert len(imported.left_out) == (20 if name == "googlenet" else 0)
    assert (imported.network.num_classes, imported.network.image_size) == (12, 64)
    same(imported.network, theirs, 64)


def test_the_command_writes_weights_and_prints_what_a_study_needs(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    network, theirs = made("fast-datafree", "wrn_16_2")
    torch.save({"state_dict": theirs}, file)
    command = ["import", str(file), "--from", "fast-datafree", "--model", "wrn16_2"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "wrn_16_2, 10 classes, all 83 tensors" in said
    settings = yaml.safe_load(said.partition("In a study:")[2])["settings"]
    assert settings["teacher"] == {"model": "wrn_16_2", "weights": "wrn_16_2-fast-datafree.pt"}
    mean, std = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.201]
    assert settings["dataset"] == {"name": "cifar10", "image_size": 32, "mean": mean, "std": std}
    experiment = {"pairs": [["wrn_16_2", "wrn_10_1"]], "methods": ["ssdkd", "kd"], "seeds": [1]}
    written = {"title": "theirs", "settings": settings, "experiments": {"main": experiment}}
    Path("theirs.yaml").write_text(yaml.safe_dump(written))
    study = load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", {"study": "theirs.yaml"})
    given = [run for run in study.runs.values() if run.kind == "given"]
    assert [run.weights.file for run in given] == ["wrn_16_2-fast-datafree.pt"]
    again = build("wrn_16_2", num_classes=10).eval()
    again.load_state_dict(torch.load("wrn_16_2-fast-datafree.pt", weights_only=True))
    same(again, network)
    assert main(command) == 1
    assert "wrn_16_2-fast-datafree.pt exists already" in capsys.readouterr().err


def test_a_data_set_of_which_the_code_says_nothing(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    torch.save(made("repdistiller", "vgg11")[1], file)
    out = str(tmp_path / "out.pt")
    assert main(["import", str(file), "--from", "repdistiller", "--model", "vgg11", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "the code names none for 10 classes" in said
    assert yaml.safe_load(said.partition("In a study:")[2])["settings"]["dataset"] == {
        "name": "folder",
        "image_size": 32,
    }
