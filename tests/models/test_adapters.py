"""torchvision's classifiers and the user's own networks."""

import copy
import sys

import pytest
import torch
from torch import nn

from kd.batch import Output
from kd.models.build import build
from kd.models.classifier import evaluating
from kd.registry import models
from kd.runtime.torchvision_compat import import_torchvision


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v3_small", 1024)])
def test_torchvision_classifiers(name, width):
    torch.manual_seed(0)
    model = build(f"torchvision:{name}", num_classes=7, in_channels=1, image_size=32)
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
        build("torchvision:alexnet", num_classes=10)
    with pytest.raises(ValueError, match=r"squeezenet1_1' has no nn\.Linear"):
        build("torchvision:squeezenet1_1", num_classes=10)


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
            return {"answers": images}

    return Dictionary()
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_nets"
    sys.modules.pop("own_nets", None)


def test_the_parts_behind_the_last_map_are_the_layers_that_run_after_it(own):
    plain = build(f"{own}:plain", num_classes=3)
    assert plain.behind_maps() == [*plain.body[5:], plain.head]
    assert plain.training
    resnet = build("torchvision:resnet18", num_classes=3)
    assert resnet.behind_maps() == [resnet.body.avgpool, resnet.body.fc, resnet.head]
    assert not any(module._forward_hooks for module in resnet.modules())
    assert build(f"{own}:Duck", num_classes=3).behind_maps()[-1].out_features == 3


def test_own_classifier_is_taken_as_it_is(own):
    model = build(f"{own}:Mine", num_classes=3, in_channels=1, image_size=12)
    assert type(model).__name__ == "Mine"
    assert model.map_shapes() == ((6, 10, 10),)
    output = model(torch.randn(2, 1, 12, 12), maps=True, signed=True)
    assert output.logits.shape == (2, 3)
    assert output.signed[0] is output.maps[0]


def test_own_network_with_logits_alone(own):
    torch.manual_seed(0)
    model = build(f"{own}:plain", num_classes=3, in_channels=1, image_size=12)
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
    model = build(f"{own}:Duck", num_classes=3, in_channels=3, image_size=9)
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
        ("softmaxed", r"not what its last nn\.Linear returns"),
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
        build(f"{own}:{function}", num_classes=3, image_size=12)
    assert "\n" not in str(caught.value)


def test_what_the_users_code_raises_is_said_in_a_line_with_its_place(tmp_path, monkeypatch):
    (tmp_path / "failing_nets.py").write_text(
        "from torch import nn\n\n\ndef small(num_classes, in_channels, image_size):\n    return nn.Linear(3, 'x\\ny')\n"
    )
    (tmp_path / "missing_nets.py").write_text("import nowhere_to_be_found\n\n\ndef small(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"small fails: TypeError: .*failing_nets\.py, line 5\)$") as caught:
        build("failing_nets:small", num_classes=3, image_size=12)
    assert "\n" not in str(caught.value)
    said = r"cannot be imported: ModuleNotFoundError: .* 'nowhere_to_be_found' \(.*missing_nets\.py, line 1\)$"
    with pytest.raises(ValueError, match=said):
        build("missing_nets:small", num_classes=3, image_size=12)


def test_own_file_with_a_syntax_error(tmp_path, monkeypatch):
    (tmp_path / "broken_nets.py").write_text("def small(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="not valid Python"):
        models.check("broken_nets:small")
