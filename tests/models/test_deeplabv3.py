"""DeepLabv3: torchvision's logits and weights, the contract of a network, sizes that are no multiple of a stride."""

import pytest
import torch

from kd.models.build import build
from kd.models.generator import Generator
from kd.registry.models import MODELS, is_dense
from kd.runtime.torchvision_compat import import_torchvision
from kd.runtime.weights import fill
from kd.training.given import take_over

DENSE = [name for name, entry in MODELS.items() if entry.dense]


def network(name, size=64, **given):
    torch.manual_seed(0)
    return build(name, **{"num_classes": 21, "in_channels": 3, "image_size": size, **given}).eval()


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("deeplabv3_resnet50", "deeplabv3_resnet50"), ("deeplabv3_mobilenetv3", "deeplabv3_mobilenet_v3_large")],
)
def test_torchvisions_weights_give_torchvisions_logits(name, theirs, tmp_path):
    torch.manual_seed(1)
    builder = getattr(import_torchvision().models.segmentation, theirs)
    reference = builder(weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()
    ours = network(name)
    torch.save(reference.state_dict(), tmp_path / "theirs.pt")
    take_over(ours, tmp_path / "theirs.pt", name)  # the auxiliary head is left out
    images = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        assert torch.equal(ours(images).logits, reference(images)["out"])


@pytest.mark.parametrize("name", DENSE)
def test_a_segmenting_network_keeps_the_contract(name):
    net = network(name, num_classes=5, in_channels=4, size=48)
    images = torch.randn(2, 4, 48, 48)
    with torch.no_grad():
        output, plain = net(images, maps=True), net(images)
    assert output.logits.shape == (2, 5, 48, 48)
    assert output.feature.shape == (2, net.feature_dim)
    assert net.num_classes == 5
    assert net.dense
    assert torch.equal(output.logits, plain.logits)
    assert [tuple(each.shape[1:]) for each in output.maps] == list(net.map_shapes())
    assert torch.equal(net.features(images), output.feature)
    sizes = [shape[1] for shape in net.map_shapes()]
    assert sizes == sorted(sizes, reverse=True)
    again = network(name, num_classes=5, in_channels=4, size=48)
    fill(again, net.state_dict())


@pytest.mark.parametrize(("height", "width"), [(48, 48), (33, 57), (50, 31)])
def test_logits_have_the_size_of_the_image(height, width):
    with torch.no_grad():
        assert network("deeplabv3_tiny")(torch.randn(1, 3, height, width)).logits.shape == (1, 21, height, width)


def test_mobilenetv2_keeps_its_last_maps_a_sixteenth_of_the_image():
    assert network("deeplabv3_mobilenetv2").map_shapes()[-1] == (320, 4, 4)


def test_only_networks_for_maps_are_dense():
    assert "deeplabv3_tiny" in DENSE
    assert not any(map(is_dense, ("wrn_16_1", "resnet18", "torchvision:resnet18", "nothing")))


@pytest.mark.parametrize(("size", "doublings"), [(48, 3), (64, 4), (256, 5), (32, 1)])
def test_a_generator_doubles_its_maps_up_to_any_size(size, doublings):
    generator = Generator(8, 4, size, 3, doublings)
    assert generator(torch.randn(2, 8)).shape == (2, 3, size, size)
    assert generator.first.out_features == 8 * (size // 2**doublings) ** 2


def test_a_size_that_cannot_be_doubled_up_to_is_refused():
    with pytest.raises(ValueError, match="doubles its maps 3 times, so image_size must be a multiple of 8, not 20"):
        Generator(8, 4, 20, 3, 3)
