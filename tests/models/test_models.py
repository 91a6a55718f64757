"""Networks against the published facts of models.csv, against torchvision's, and against their contract."""

import copy
import csv
import importlib
import io
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Output
from kd.models import shufflenetv1, shufflenetv2
from kd.models.classifier import Classifier, Ensemble, LogitsOnly, evaluating
from kd.registry import models
from kd.runtime.torchvision_compat import import_torchvision

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


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['family']}-{row['name']}")
def test_published_sizes(row):
    with torch.device("meta"):
        model = models.build(row["name"], num_classes=int(row["num_classes"]))
    assert count(model) == int(row["parameters"])
    assert model.feature_dim == int(row["penultimate_dim"])
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == int(row["batchnorm_layers"])
    if row["feature_maps"]:
        *maps, feature = row["feature_maps"].split()
        assert ["x".join(map(str, shape)) for shape in model.map_shapes()] == maps
        assert model.feature_dim == int(feature)


def test_every_model_has_a_published_row():
    assert {row["name"] for row in ROWS} == set(models.MODELS)
    assert {row["family"] for row in ROWS} == {"crd", "datafree"}


@pytest.mark.parametrize("size", [8, 16, 28, 32, 64])
@pytest.mark.parametrize("name", SAMPLE)
def test_networks_take_every_size(name, size):
    model = models.build(name, num_classes=5, in_channels=1, image_size=size)
    with evaluating(model):
        output = model(torch.zeros(2, 1, size, size), maps=True)
    assert output.logits.shape == (2, 5)
    assert output.feature.shape == (2, model.feature_dim)
    assert all(min(map_.shape[2:]) >= 1 for map_ in output.maps)
    assert tuple(tuple(map_.shape[1:]) for map_ in output.maps) == model.map_shapes()


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 16), (1, 28)])
@pytest.mark.parametrize("name", SAMPLE)
def test_training_step_is_finite_and_reaches_every_parameter(name, channels, size):
    torch.manual_seed(0)
    model = models.build(name, num_classes=4, in_channels=channels, image_size=size)
    output = model(torch.randn(8, channels, size, size))
    assert output.maps == ()
    F.cross_entropy(output.logits, torch.arange(8) % 4).backward()
    assert output.logits.isfinite().all()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert parameter.grad.isfinite().all(), path
    assert model.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", SAMPLE)
def test_features_and_head_are_what_forward_gives(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=10)
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


@pytest.mark.parametrize("name", models.MODELS)
def test_the_flag_says_whether_the_last_map_is_signed(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=3, image_size=16).train()
    with torch.no_grad():
        last = model(torch.randn(4, 3, 16, 16), maps=True).maps[-1]
    assert bool((last < 0).any()) == model.maps_are_signed


# --- signed maps


@pytest.mark.parametrize("name", [*SAMPLE, "resnet50"])
def test_a_step_is_the_same_whether_or_not_signed_maps_are_asked_for(name):
    """Bit for bit: logits, maps, running statistics, which move once, and gradients. Those of ShuffleNetV2, whose
    ReLU then comes after the shuffle, are added up in another order."""
    torch.manual_seed(0)
    plain = models.build(name, num_classes=4, image_size=16)
    signed, images, steps, gradients = copy.deepcopy(plain), torch.randn(4, 3, 16, 16), [], []
    for model, asked in ((plain, {}), (signed, {"signed": True})):
        output = model(images, maps=True, **asked)
        loss = F.cross_entropy(output.logits, torch.arange(4)) + sum(map_.square().mean() for map_ in output.maps)
        loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        steps.append([output.logits, output.feature, *output.maps, *model.buffers()])
        assert len(output.signed) == (len(output.maps) if asked else 0)
        assert all(count == 1 for path, count in model.named_buffers() if path.endswith("num_batches_tracked"))
    assert all(torch.equal(*pair) for pair in zip(*steps, strict=True))
    for pair in zip(*gradients, strict=True):
        if name == "shufflenetv2":
            torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
        else:
            assert torch.equal(*pair)
    assert signed(images, signed=True).maps == ()
    assert list(signed.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("name", [*SAMPLE, "resnet50"])
def test_signed_maps_are_the_maps_before_the_relu(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=4, image_size=16)
    images = torch.randn(8, 3, 16, 16)
    with torch.no_grad():
        model(images)  # statistics that are not 0 and 1
        model.eval()
        output = model(images, maps=True, signed=True)
        pairs = list(zip(output.maps, output.signed, strict=True))
        if name.startswith("wrn"):
            norms = [*(stage[0].bn1 for stage in model.body), model.norm]
            expected = [(norm(map_), signed) for norm, (map_, signed) in zip(norms, pairs, strict=True)]
        elif name.startswith("mobilenet"):
            expected = [(pairs[0][0], model.stem[-1](pairs[0][1])), *pairs[1:]]  # only the stem has an activation
        else:
            expected = [(map_, F.relu(signed)) for map_, signed in pairs]
    assert all(torch.equal(*pair) for pair in expected)
    assert all((signed < 0).any() for signed in output.signed)
    assert tuple(tuple(signed.shape[1:]) for signed in output.signed) == model.map_shapes()


@pytest.mark.parametrize("halve", [False, True])
def test_a_half_that_passes_a_shufflenet_unit_unchanged_stays_as_it_was(halve):
    torch.manual_seed(0)
    unit, x = shufflenetv2.Unit(24, 48 if halve else 24, halve=halve), torch.rand(2, 24, 8, 8)
    with evaluating(unit):
        signed = unit.signed(x)
        assert torch.equal(F.relu(signed), unit(x))
    assert (signed[:, 1::2] < 0).any()
    if halve:
        assert (signed[:, ::2] < 0).any()
    else:
        assert torch.equal(signed[:, ::2], x[:, :12])


@pytest.mark.parametrize("name", SAMPLE)
def test_every_normalisation_runs_once_a_pass(name):
    """What looks at the inputs of batch normalisation, as the inversion does, sees each of them once."""
    model, seen = models.build(name, num_classes=4, image_size=16), []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, _: seen.append(module))
    for asked in ({}, {"maps": True}, {"signed": True}, {"maps": True, "signed": True}):
        seen.clear()
        model(torch.randn(2, 3, 16, 16), **asked)
        assert len(seen) == len(norms)
        assert set(seen) == set(norms)


def test_signed_maps_of_several_teachers():
    members = [models.build(name, num_classes=4, image_size=8).eval() for name in ("resnet8", "wrn_10_1")]
    images = torch.randn(2, 3, 8, 8)
    for member, output in zip(members, Ensemble(members).each(images, maps=True, signed=True), strict=True):
        alone = member(images, signed=True)
        assert len(output.maps) == len(output.signed) == 4
        assert all(torch.equal(*pair) for pair in zip(output.signed, alone.signed, strict=True))


def test_vgg_pools_once_more_from_64_pixels_on():
    sides = {
        size: [h for _, h, _ in models.build("vgg8", num_classes=2, image_size=size).map_shapes()] for size in (28, 64)
    }
    assert sides == {28: [28, 14, 7, 3, 3], 64: [64, 32, 16, 8, 4]}


def test_looking_at_map_shapes_changes_nothing():
    model = models.build("wrn_10_1", num_classes=10)
    model.body[0].eval()  # a frozen part stays frozen
    modes = [module.training for module in model.modules()]
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert model.map_shapes() == ((16, 32, 32), (16, 32, 32), (32, 16, 16), (64, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert True in modes
    assert False in modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ["resnet20", "vgg8", "mobilenetv2_half", "wrn_16_1"])
def test_convolutions_start_by_fan_out(name):
    torch.manual_seed(0)
    model = models.build(name, num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.all(module.weight == 1)
            assert torch.all(module.bias == 0)


def test_same_seed_same_weights():
    first, second, other = (
        torch.cat([value.flatten() for value in _seeded("resnet8", seed).parameters()]) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def _seeded(name: str, seed: int) -> Classifier:
    torch.manual_seed(seed)
    return models.build(name, num_classes=10)


# --- against torchvision's networks, their stems and pools changed to those for small images


def _reference(name: str) -> nn.Module:
    library = import_torchvision().models
    if name.startswith("resnet"):
        net = library.get_model(name, weights=None, num_classes=10)
        net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    elif name.startswith("vgg"):
        net = library.get_model(f"{name}_bn", weights=None, num_classes=10, init_weights=False).features
        pools = [index for index, module in enumerate(net) if isinstance(module, nn.MaxPool2d)]
        for index in pools[3:]:
            net[index] = nn.Identity()
        net = nn.Sequential(net, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))
    elif name == "mobilenetv2":
        net = library.mobilenet_v2(num_classes=10)
    elif name == "shufflenetv2":
        net = library.shufflenet_v2_x1_0(num_classes=10)
        net.conv1[0], net.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg11", "vgg16", "mobilenetv2", "shufflenetv2"])
def test_same_function_as_torchvisions(name):
    torch.manual_seed(0)
    ours, theirs = models.build(name, num_classes=10), _reference(name)
    images = 3 * torch.randn(4, 3, 32, 32)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.9
            nn.init.uniform_(module.weight, 0.5, 5.0)  # so that some values pass the cap of ReLU6
    with torch.no_grad():
        theirs(images)  # statistics that fit, so that the signal does not fade
    source, target = theirs.state_dict(), ours.state_dict()
    ours.load_state_dict(dict(zip(target, source.values(), strict=True)))
    with evaluating(ours), evaluating(theirs):
        expected = theirs(images)
        torch.testing.assert_close(ours(images).logits, expected, rtol=1e-3, atol=1e-4 * expected.std().item())


def test_wide_residual_network_as_in_its_paper():
    torch.manual_seed(0)
    model = models.build("wrn_10_2", num_classes=10)
    weights, images = dict(model.named_parameters()), torch.randn(4, 3, 16, 16)

    def normal_relu(x, path):
        return F.relu(F.batch_norm(x, None, None, weights[f"{path}.weight"], weights[f"{path}.bias"], training=True))

    x = F.conv2d(images, weights["stem.weight"], padding=1)
    for stage, stride in enumerate((1, 2, 2)):
        block = f"body.{stage}.0"
        active = normal_relu(x, f"{block}.bn1")
        inner = F.conv2d(active, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
        inner = F.conv2d(normal_relu(inner, f"{block}.bn2"), weights[f"{block}.conv2.weight"], padding=1)
        x = inner + F.conv2d(active, weights[f"{block}.shortcut.weight"], stride=stride)
    feature = normal_relu(x, "norm").mean((2, 3))
    output = model(images)
    torch.testing.assert_close(output.feature, feature)
    torch.testing.assert_close(output.logits, feature @ weights["head.weight"].T + weights["head.bias"])


@pytest.mark.parametrize("halve", [False, True])
def test_shufflenet_unit_as_in_its_paper(halve):
    torch.manual_seed(0)
    unit = shufflenetv1.Unit(24, 48 if halve else 24, 3, first_groups=3, halve=halve)
    x = torch.randn(2, 24, 8, 8)
    out = F.relu(unit.bn1(unit.conv1(x)))
    out = F.relu(unit.bn2(unit.conv2(F.channel_shuffle(out, 3))))
    out = unit.bn3(unit.conv3(out))
    pooled = F.avg_pool2d(x, 3, 2, 1)
    torch.testing.assert_close(unit(x), F.relu(torch.cat([out, pooled], 1) if halve else out + x))


@pytest.mark.parametrize(
    "part",
    [
        lambda: models.build("wrn_10_1", num_classes=10, image_size=8),
        lambda: shufflenetv1.Unit(24, 48, 3, first_groups=3, halve=True),
        lambda: shufflenetv2.Unit(24, 24, halve=False),
    ],
    ids=["wrn_10_1", "shufflenetv1", "shufflenetv2"],
)
def test_one_graph_for_the_compiler(part):
    module = part().eval()
    images = torch.randn(2, 3 if isinstance(module, Classifier) else 24, 8, 8)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), module(images))


def test_weights_survive_a_safe_load():
    model, file = models.build("shufflenetv1", num_classes=10), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = models.build("shufflenetv1", num_classes=10)
    other.load_state_dict(torch.load(file, weights_only=True))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images).logits, other.eval()(images).logits)


# --- names


@pytest.mark.parametrize(
    ("name", "depth_or_width"), [("resnet26", 27), ("wrn_10_1", 7), ("wrn_16_4", 13), ("wrn_22_3", 19)]
)
def test_names_by_rule(name, depth_or_width):
    models.check(name)
    with torch.device("meta"):
        model = models.build(name, num_classes=10)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in model.modules()) == depth_or_width
    if name.startswith("wrn"):
        assert model.feature_dim == 64 * int(name.split("_")[2])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ResNet34", "did you mean resnet34"),
        ("wrn16_2", "did you mean wrn_16_2"),
        ("resnet21", r"resnet<depth> with depth = 6n \+ 2"),
        ("resnet2", "unknown model"),
        ("wrn_12_1", r"wrn_<depth>_<width> with depth = 6n \+ 4"),
        ("wrn_4_1", "unknown model"),
        ("wrn_16_0", "unknown model"),
        ("", "unknown model"),
        (34, "named by a string"),
        (None, "named by a string"),
        ("torchvision:resnet19", "did you mean resnet1"),
        ("torchvision:", "it has alexnet"),
        ("torchvision:fcn_resnet50", "no classifier"),
        ("no_such_package.nets:small", "there is no module 'no_such_package.nets'"),
        ("kd.no_such_file:small", "there is no module 'kd.no_such_file'"),
        ("kd.models.wrn:WideResnet", "did you mean WideResNet"),
        ("kd.models.wrn:", "not of the form module:function"),
        ("../nets.py:small", "not of the form module:function"),
    ],
)
def test_unknown_names_are_refused(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.check(name)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        models.build(name, num_classes=10)
    with pytest.raises(ValueError, match=message):
        models.source(name)


def test_sources():
    assert models.source("resnet18") == models.source("resnet50") == "kd.models.resnet"
    assert models.source("resnet26") == models.source("resnet8x4") == "kd.models.resnet_cifar"
    assert models.source("wrn_10_1") == "kd.models.wrn"
    assert models.source("torchvision:resnet18") == "kd.models.adapters"
    for name in models.MODELS:
        assert (Path(models.__file__).parents[2] / f"{models.source(name).replace('.', '/')}.py").is_file()


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="from 8x8 pixels on, not 4x4"):
        models.build("vgg8", num_classes=10, image_size=4)
    with pytest.raises(ValueError, match="num_classes of model 'vgg8' is 0"):
        models.build("vgg8", num_classes=0)
    with pytest.raises(ValueError, match="in_channels of model 'vgg8' is '3'"):
        models.build("vgg8", num_classes=10, in_channels="3")


def test_names_are_checked_without_torch(tmp_path):
    package = tmp_path / "heavy"
    package.mkdir()
    (package / "__init__.py").write_text("import torch\n")
    (package / "nets.py").write_text("import torch\ndef small(**sizes): ...\n")
    script = """
        import sys
        from kd.registry import models
        for name in ("wrn_10_1", "torchvision:resnet18", "heavy.nets:small"):
            models.check(name)
            models.source(name)
        assert not {"torch", "torchvision", "heavy"} & set(sys.modules), "imported"
    """
    environment = {"PYTHONPATH": f"{Path(models.__file__).parents[2]}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


# --- torchvision's and the user's own


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision_classifiers(name, width):
    torch.manual_seed(0)
    model = models.build(f"torchvision:{name}", num_classes=7, in_channels=1, image_size=32)
    assert count(model) == count(
        import_torchvision().models.get_model(name, weights=None, num_classes=7)
    ) - 2 * _first_convolution(model)
    assert model.feature_dim == width
    shapes = model.map_shapes()
    assert [height for _, height, _ in shapes] == [16, 8, 4, 2, 1]
    images = torch.randn(4, 1, 32, 32)
    output = model(images, maps=True)
    assert tuple(tuple(map_.shape[1:]) for map_ in output.maps) == shapes
    (output.logits.sum() + sum(map_.square().mean() for map_ in output.maps)).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    model.eval()
    assert torch.equal(model.head(model.features(images)), model(images).logits)
    assert len(model.stages(images)) == 5
    assert not any(module._forward_hooks for module in model.modules())


def _first_convolution(model: nn.Module) -> int:
    return next(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv2d))


def test_torchvision_network_that_cannot_take_the_images():
    with pytest.raises(ValueError, match="'torchvision:alexnet' cannot take images of 3x32x32"):
        models.build("torchvision:alexnet", num_classes=10)
    with pytest.raises(ValueError, match=r"squeezenet1_1' has no nn\.Linear"):
        models.build("torchvision:squeezenet1_1", num_classes=10)


OWN = '''
import torch
from torch import nn
from kd.batch import Output
from kd.models import shufflenetv1, shufflenetv2
from kd.models.classifier import Classifier


class Mine(Classifier):
    def __init__(self, *, num_classes, in_channels, image_size):
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.stem = nn.Conv2d(in_channels, 6, 3)
        self.head = nn.Linear(6, num_classes)

    def stages(self, images):
        return [self.stem(images)]


def plain(num_classes, in_channels, image_size):
    """Ends in dropout and a linear layer; no batch norm, so that its outputs are easy to follow."""
    return nn.Sequential(
        nn.Conv2d(in_channels, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, num_classes),
    )


class Duck(nn.Module):
    """Has features and head and returns an Output, but is not derived from Classifier."""

    def __init__(self, num_classes, in_channels, image_size):
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 5, 3, stride=2)
        self.head = nn.Linear(5, num_classes)

    def features(self, images):
        return self.stem(images).mean((2, 3))

    def forward(self, images):
        feature = self.features(images)
        return Output(self.head(feature), feature)


def softmaxed(**sizes):
    return nn.Sequential(plain(**sizes), nn.Softmax(1))


def ten_classes(num_classes, in_channels, image_size):
    return plain(10, in_channels, image_size)


def fixed():
    return plain(10, 3, 32)


def nothing(**sizes):
    return None


def convolutional(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Conv2d(in_channels, num_classes, image_size), nn.Flatten())


def dictionary(num_classes, in_channels, image_size):
    class Dictionary(nn.Module):
        def forward(self, images):
            return {"out": images}

    return Dictionary()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets"
    sys.modules.pop("own_nets", None)


def test_own_classifier_is_taken_as_it_is(own):
    model = models.build(f"{own}:Mine", num_classes=3, in_channels=1, image_size=12)
    assert type(model).__name__ == "Mine"
    assert model.map_shapes() == ((6, 10, 10),)
    output = model(torch.randn(2, 1, 12, 12), maps=True, signed=True)
    assert output.logits.shape == (2, 3)
    assert output.signed[0] is output.maps[0]


def test_own_network_with_logits_alone(own):
    torch.manual_seed(0)
    model = models.build(f"{own}:plain", num_classes=3, in_channels=1, image_size=12)
    torch.manual_seed(0)
    plain = sys.modules[own].plain(3, 1, 12)
    images = torch.randn(2, 1, 12, 12)
    assert count(model) == count(plain)
    assert model.training
    with evaluating(model), evaluating(plain):
        output = model(images, maps=True)
        assert torch.equal(output.logits, plain(images))
        assert torch.equal(output.feature, plain[:-1](images))
        assert torch.equal(output.maps[0], plain[:2](images))
        assert torch.equal(output.maps[1], plain[:5](images))
        signed = model(images, signed=True)
        assert (signed.maps, len(signed.signed), output.signed) == ((), 2, ())
        assert all(torch.equal(*pair) for pair in zip(signed.signed, output.maps, strict=True))
    assert model.map_shapes() == ((4, 12, 12), (8, 6, 6))
    assert isinstance(model.head, nn.Linear)
    assert copy.deepcopy(model).map_shapes() == model.map_shapes()


def test_own_network_that_returns_an_output(own):
    model = models.build(f"{own}:Duck", num_classes=3, in_channels=3, image_size=9)
    images = torch.randn(2, 3, 9, 9)
    output = model(images)
    assert isinstance(output, Output)
    assert output.feature.shape == (2, 5)
    assert torch.equal(output.logits, model.head(output.feature))
    assert torch.equal(output.feature, model.body.stem(images).mean((2, 3)))
    assert model.map_shapes() == ((5, 4, 4),)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("softmaxed", r"not what its last nn\.Linear gives"),
        ("ten_classes", r"logits of shape \[2, 10\] for 2 images; they must be \[2, 3\]"),
        ("fixed", r"called as fixed\(num_classes=..., in_channels=..., image_size=...\)"),
        ("nothing", "returned a NoneType"),
        ("convolutional", r"has no nn\.Linear"),
        ("dictionary", "returns a dict; it must return logits"),
        ("plane", "did you mean plain"),
    ],
)
def test_own_networks_that_do_not_fit(own, function, message):
    with pytest.raises(ValueError, match=message) as caught:
        models.build(f"{own}:{function}", num_classes=3, image_size=12)
    assert "\n" not in str(caught.value)


def test_own_file_with_a_syntax_error(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("def small(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="not valid Python"):
        models.check("broken_nets:small")


def test_examples_of_the_guide(tmp_path, monkeypatch):
    guide = (Path(models.__file__).parents[2] / "docs" / "add-a-model.md").read_text(encoding="utf-8")
    plain, derived = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (tmp_path / "guide_plain.py").write_text(plain)
    (tmp_path / "guide_derived.py").write_text(derived)
    monkeypatch.syspath_prepend(tmp_path)
    model = models.build("guide_plain:small", num_classes=10, in_channels=1, image_size=28)
    assert model.map_shapes() == ((16, 28, 28),)
    tiny = importlib.import_module("guide_derived").Tiny(width=4, num_classes=10, in_channels=3, image_size=32)
    assert tiny.map_shapes() == ((4, 32, 32), (8, 16, 16))
    assert tiny(torch.randn(2, 3, 32, 32)).logits.shape == (2, 10)
