"""Networks compute what torchvision's compute, with stems and pools for small images, and what their papers say."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.models import shufflenetv1, shufflenetv2
from kd.models.build import build
from kd.models.classifier import Classifier, evaluating
from kd.runtime.torchvision_compat import import_torchvision


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
    ours, theirs = build(name, num_classes=10), _reference(name)
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
    model = build("wrn_10_2", num_classes=10)
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
        lambda: build("wrn_10_1", num_classes=10, image_size=8),
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
