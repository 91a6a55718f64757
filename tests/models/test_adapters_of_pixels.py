"""The user's own networks that say a class for every pixel."""

import copy
import sys

import pytest
import torch
from torch import nn

from kd.models.build import build

OWN_OF_PIXELS = '''
import torch
from torch import nn
from torch.nn import functional as F
from kd.batch import Output
from kd.models.classifier import Classifier, PixelClassifier


def convolved(inside, outside, stride=1):
    return nn.Sequential(nn.Conv2d(inside, outside, 3, stride, 1), nn.BatchNorm2d(outside), nn.ReLU())


class UNet(nn.Module):
    """Logits at the image's size from a 1x1 convolution, enlarged and not."""
    def __init__(self, num_classes, in_channels, way):
        super().__init__()
        self.way = way
        self.down = convolved(in_channels, 8)
        self.lower = convolved(8, 16, 2)
        self.up = convolved(24, 6) if way == "full" else nn.Identity()
        self.says = nn.Conv2d(6 if way == "full" else 16, num_classes, 1)

    def forward(self, images):
        high = self.down(images)
        low = self.lower(high)
        if self.way == "full":
            return self.says(self.up(torch.cat([high, F.interpolate(low, scale_factor=2.0)], dim=1)))
        logits = self.says(low)
        if self.way == "small":
            return {"out": logits, "aux": logits + 1}
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear", align_corners=self.way == "aligned")


def full(num_classes, in_channels, image_size): return UNet(num_classes, in_channels, "full")
def small(num_classes, in_channels, image_size): return UNet(num_classes, in_channels, "small")
def aligned(num_classes, in_channels, image_size): return UNet(num_classes, in_channels, "aligned")


def torchvisions(num_classes, in_channels, image_size):
    from kd.runtime.torchvision_compat import import_torchvision
    of = import_torchvision().models.segmentation
    return of.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=num_classes)


def fcn(num_classes, in_channels, image_size):
    from kd.runtime.torchvision_compat import import_torchvision
    of = import_torchvision().models.segmentation
    return of.fcn_resnet50(weights=None, weights_backbone=None, num_classes=num_classes, aux_loss=True)


def squared(num_classes, in_channels, image_size):
    class Squared(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Conv2d(in_channels, num_classes, 1)
        def forward(self, images): return self.last(images) ** 2
    return Squared()


def larger(num_classes, in_channels, image_size):
    return nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(in_channels, num_classes, 1))


class Own(Classifier):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.head = nn.Conv2d(in_channels, num_classes, 1)
    def forward(self, images, maps=False, signed=False):
        return Output(self.head(images), images.mean(dim=(2, 3)))


class Dense(PixelClassifier):
    def __init__(self, num_classes, in_channels, image_size):
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.head = nn.Conv2d(in_channels, num_classes, 1)
    def forward(self, images, maps=False, signed=False):
        return Output(self.head(images), images.mean(dim=(2, 3)))
'''


@pytest.fixture
def own_of_pixels(tmp_path, monkeypatch):
    (tmp_path / "own_of_pixels.py").write_text(OWN_OF_PIXELS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield lambda name, **sizes: build(f"own_of_pixels:{name}", **{"num_classes": 5, "image_size": 16, **sizes})
    sys.modules.pop("own_of_pixels", None)


@pytest.mark.parametrize(
    ("name", "path", "width", "sizes"),
    [("full", "says", 6, [16, 8, 16]), ("small", "says", 16, [16, 8]), ("aligned", "says", 16, [16, 8])],
)
def test_an_own_network_may_say_a_class_for_every_pixel(own_of_pixels, name, path, width, sizes):
    torch.manual_seed(0)
    model = own_of_pixels(name).eval()
    assert model.dense
    assert (model.head_path, model.feature_dim, model.num_classes) == (path, width, 5)
    images = torch.randn(3, 3, 16, 16)
    output = model(images, maps=True)
    raw = model.body(images)
    logits = raw["out"] if name == "small" else raw
    assert output.logits.shape == (3, 5, 16, 16)
    enlarged = nn.functional.interpolate(logits, size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(output.logits, enlarged, atol=1e-6)
    assert [map_.shape[-1] for map_ in output.maps] == sizes
    if name != "aligned":  # the head is linear: of the mean it says the mean
        said = model.head(output.feature[:, :, None, None])[:, :, 0, 0]
        assert torch.allclose(said, logits.mean(dim=(2, 3)), atol=1e-5)
    assert torch.equal(model.features(images), output.feature)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    (output.logits.square().mean() + output.feature.square().mean()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    body = copy.deepcopy(model.body).state_dict()
    assert set(model.own_names(body)) == set(model.state_dict())
    assert set(model.own_names(model.state_dict())) == set(model.state_dict())


@pytest.mark.parametrize(("name", "path"), [("torchvisions", None), ("fcn", "classifier.4")])
def test_torchvisions_networks_for_segmentation_fit_as_own_ones(own_of_pixels, name, path):
    torch.manual_seed(0)
    if path is None:
        with pytest.raises(ValueError, match=r"not what one of its nn\.Conv2d returns"):  # the sum of two heads
            own_of_pixels(name, image_size=64)
        return
    model = own_of_pixels(name, image_size=64)
    assert model.head_path == path  # not the auxiliary head
    assert model(torch.randn(2, 3, 64, 64)).logits.shape == (2, 5, 64, 64)


def test_an_own_network_of_pixels_that_does_not_fit_is_refused_in_a_line(own_of_pixels):
    with pytest.raises(ValueError, match=r"'own_of_pixels:squared': its logits of every pixel are not what"):
        own_of_pixels("squared")
    with pytest.raises(
        ValueError, match=r"'own_of_pixels:larger' returns logits of shape \[2, 5, 32, 32\].*not be larger"
    ):
        own_of_pixels("larger")
    with pytest.raises(ValueError, match=r"Own' returns logits of shape \[2, 5, 16, 16\].*is a PixelClassifier"):
        own_of_pixels("Own")
    fits = own_of_pixels("Dense")
    assert (fits.dense, fits.feature_dim, fits.num_classes) == (True, 3, 5)
