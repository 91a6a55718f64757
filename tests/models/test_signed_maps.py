"""Maps before the ReLU that ends a stage."""

import copy

import pytest
import torch
from test_networks import SAMPLE
from torch import nn
from torch.nn import functional as F

from kd.models import shufflenetv2
from kd.models.build import build
from kd.models.classifier import Ensemble, evaluating


@pytest.mark.parametrize("name", [*SAMPLE, "resnet50"])
def test_a_step_is_the_same_whether_or_not_signed_maps_are_asked_for(name):
    """Bit for bit: logits, maps, running statistics, which move once, and gradients. Those of ShuffleNetV2, whose
    ReLU then comes after the shuffle, are added up in another order."""
    torch.manual_seed(0)
    plain = build(name, num_classes=4, image_size=16)
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
    model = build(name, num_classes=4, image_size=16)
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
    model, seen = build(name, num_classes=4, image_size=16), []
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda module, _: seen.append(module))
    for asked in ({}, {"maps": True}, {"signed": True}, {"maps": True, "signed": True}):
        seen.clear()
        model(torch.randn(2, 3, 16, 16), **asked)
        assert len(seen) == len(norms)
        assert set(seen) == set(norms)


def test_signed_maps_of_several_teachers():
    members = [build(name, num_classes=4, image_size=8).eval() for name in ("resnet8", "wrn_10_1")]
    images = torch.randn(2, 3, 8, 8)
    for member, output in zip(members, Ensemble(members).each(images, maps=True, signed=True), strict=True):
        single = member(images, signed=True)
        assert len(output.maps) == len(output.signed) == 4
        assert all(torch.equal(*pair) for pair in zip(output.signed, single.signed, strict=True))
