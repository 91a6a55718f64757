"""Networks against the published facts of models.csv and against their contract."""

import copy
import csv
import io
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Output
from kd.models.build import build
from kd.models.classifier import Classifier, LogitsOnly, evaluating
from kd.registry import models

ALIASES = {  # names of models.csv that differ from ours
    "ResNet50": "resnet50",
    "MobileNetV2": "mobilenetv2_half",
    "ShuffleV1": "shufflenetv1",
    "ShuffleV2": "shufflenetv2",
    "wrn16_1": "wrn_16_1",
    "wrn16_2": "wrn_16_2",
    "wrn40_1": "wrn_40_1",
    "wrn40_2": "wrn_40_2",
}
ROWS = [
    row | {"name": ALIASES.get(row["model"], row["model"])}
    for row in csv.DictReader((Path(__file__).parent / "models.csv").open())
    if not row["model"].startswith("generator")
]
SAMPLE = ("resnet18", "resnet8", "wrn_10_1", "vgg8", "mobilenetv2", "mobilenetv2_half", "shufflenetv1", "shufflenetv2")
SEEN = {models.entry(name).code for name in SAMPLE}
CONTRACT = [  # and one classifier of each class that is not among them; tests/models/test_deeplabv3.py has the others
    *SAMPLE,
    *{model.code: name for name, model in models.MODELS.items() if model.code not in SEEN and not model.dense}.values(),
]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['family']}-{row['name']}")
def test_published_sizes(row):
    with torch.device("meta"):
        model = build(row["name"], num_classes=int(row["num_classes"]))
    assert count(model) == int(row["parameters"])
    assert model.feature_dim == int(row["penultimate_dim"])
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == int(row["batchnorm_layers"])
    if row["feature_maps"]:
        *maps, feature = row["feature_maps"].split()
        assert ["x".join(map(str, shape)) for shape in model.map_shapes()] == maps
        assert model.feature_dim == int(feature)


def test_every_published_row_is_of_a_model():
    assert {row["name"] for row in ROWS} <= set(models.MODELS)
    assert {row["family"] for row in ROWS} == {"crd", "datafree"}


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", CONTRACT)
def test_networks_take_every_size(name, size):
    model = build(name, num_classes=5, in_channels=1, image_size=size)
    with evaluating(model):
        output = model(torch.zeros(2, 1, size, size), maps=True)
    assert output.logits.shape == (2, 5)
    assert output.feature.shape == (2, model.feature_dim)
    assert all(min(map_.shape[2:]) >= 1 for map_ in output.maps)
    assert tuple(tuple(map_.shape[1:]) for map_ in output.maps) == model.map_shapes()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 28)])
@pytest.mark.parametrize("name", CONTRACT)
def test_training_step_is_finite_and_reaches_every_parameter(name, channels, size):
    torch.manual_seed(0)
    model = build(name, num_classes=4, in_channels=channels, image_size=size)
    output = model(torch.randn(8, channels, size, size))
    assert output.maps == ()
    F.cross_entropy(output.logits, torch.arange(8) % 4).backward()
    assert output.logits.isfinite().all()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", CONTRACT)
def test_features_and_head_are_what_forward_gives(name):
    torch.manual_seed(0)
    model = build(name, num_classes=10)
    images = torch.randn(2, 3, 32, 32)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(images)  # statistics that fit, so that the signal does not fade
        model.eval()
        output = model(images, maps=True)
        assert isinstance(output, Output)
        assert torch.equal(model.features(images), output.feature)
        assert torch.equal(model.head(output.feature), output.logits)
        assert torch.equal(LogitsOnly(model)(images), output.logits)
        for seen, expected in zip(output.maps, model.stages(images), strict=True):
            assert torch.equal(seen, expected)
        strided = model.to(memory_format=torch.channels_last)(images.to(memory_format=torch.channels_last))
        torch.testing.assert_close(strided.logits, output.logits, rtol=1e-3, atol=1e-4)
    assert (output.logits[0] - output.logits[1]).abs().max() > 1e-4  # the image matters


@pytest.mark.parametrize("name", CONTRACT)
def test_a_network_has_no_public_method_that_its_contract_does_not_know(name):
    """A misspelt one would be ignored: `sign_stages` leaves `signed_stages` as it was."""
    network = type(build(name, num_classes=2))
    assert issubclass(network, Classifier)
    assert {key for key, value in vars(network).items() if callable(value) and key[0] != "_"} <= set(vars(Classifier))


@pytest.mark.parametrize("name", models.MODELS)
def test_the_flag_says_whether_the_last_map_is_signed(name):
    torch.manual_seed(0)
    model = build(name, num_classes=3, image_size=16).train()
    with torch.no_grad():
        last = model(torch.randn(4, 3, 16, 16), maps=True).maps[-1]
    assert bool((last < 0).any()) == model.maps_are_signed


def test_vgg_pools_once_more_from_64_pixels_on():
    sides = {size: [h for _, h, _ in build("vgg8", num_classes=2, image_size=size).map_shapes()] for size in (28, 64)}
    assert sides == {28: [28, 14, 7, 3, 3], 64: [64, 32, 16, 8, 4]}


def test_looking_at_map_shapes_changes_nothing():
    model = build("wrn_10_1", num_classes=10)
    model.body[0].eval()  # a frozen part stays frozen
    modes = [module.training for module in model.modules()]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert model.map_shapes() == ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_the_parts_behind_the_last_map_are_those_that_pool_calls_and_the_head():
    for name, parts in {"resnet8": [], "wrn_10_1": ["norm"], "mobilenetv2": ["last"], "shufflenetv2": ["last"]}.items():
        model = build(name, num_classes=3, image_size=16)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        assert model.behind_maps() == [*map(model.get_submodule, parts), model.head]
        assert model.training
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet50", "resnet20", "vgg8", "mobilenetv2_half", "wrn_16_1"])
def test_convolutions_start_by_fan_out(name):
    torch.manual_seed(0)
    model = build(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_the_data_free_papers_residual_networks_start_as_torch_starts_layers(name):
    """From the same seed, layers built one after the other have the same weights, and nothing is drawn after them."""
    torch.manual_seed(0)
    model = build(name, num_classes=10)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            kernel, stride = module.kernel_size[0], module.stride[0]
            again = nn.Conv2d(module.in_channels, module.out_channels, kernel, stride, bias=False)
            assert torch.equal(module.weight, again.weight)
            assert again.weight.std().item() == pytest.approx((3 * again.weight[0].numel()) ** -0.5, rel=0.1)
        if isinstance(module, nn.Linear):
            assert torch.equal(module.weight, nn.Linear(512, 10).weight)
    assert torch.equal(torch.rand(1), drawn)


def test_same_seed_same_weights():
    first, second, other = (
        torch.cat([value.flatten() for value in _seeded("resnet8", seed).parameters()]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def _seeded(name: str, seed: int) -> Classifier:
    torch.manual_seed(seed)
    return build(name, num_classes=10)


def test_weights_survive_a_safe_load():
    model, file = build("shufflenetv1", num_classes=10), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build("shufflenetv1", num_classes=10)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images).logits, other.eval()(images).logits)
