"""What holds for every loss with learned layers or a first stage."""

import copy

import pytest
import torch
from slow import batch_of, build, gradients, outputs

from kd.batch import LossContext
from kd.losses.ab import AB
from kd.losses.cc import CC
from kd.losses.fitnet import FitNet
from kd.losses.fsp import FSP
from kd.losses.ft import FT
from kd.losses.reviewkd import ReviewKD
from kd.losses.vid import VID

WIDE = ((2, 4, 4), (3, 4, 4), (4, 2, 2))
NARROW = ((2, 4, 4), (2, 4, 4), (3, 4, 4))
LOSSES = {
    "fitnet": (FitNet, {}),
    "cc": (CC, {}),
    "vid": (VID, {}),
    "ab": (AB, {"keep": True}),
    "ft": (FT, {}),
    "fsp": (FSP, {"keep": True}),
    "reviewkd": (ReviewKD, {}),
}
every = pytest.mark.parametrize("name", LOSSES)
with_layers = pytest.mark.parametrize("name", sorted(LOSSES.keys() - {"fsp"}))
STAGES = [(name, "forward") for name in LOSSES] + [(name, "first_stage") for name in ("ab", "ft", "fsp")]


def make(name, seed=0):
    kind, settings = LOSSES[name]
    return build(kind, *shapes_of(name), seed, **settings)


def shapes_of(name):
    return (WIDE if name == "fsp" else NARROW), WIDE


def converted(output, dtype):
    """Return the output in another precision; its maps are the signed ones, too."""
    raised = [x.detach().to(dtype).requires_grad_(x.requires_grad) for x in (output.feature, *output.maps)]
    return output._replace(feature=raised[0], maps=tuple(raised[1:]), signed=tuple(raised[1:]))


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_gives_one_value_per_sample_or_per_batch(name, stage):
    student, teacher = (converted(x, torch.float32) for x in outputs(*shapes_of(name), size=5))
    value = getattr(make(name), stage)(student, teacher, batch_of(5))
    assert value.shape == (() if name == "cc" else (5,))
    assert value.dtype == torch.float32
    assert value.requires_grad


@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_float32_agrees_with_float64(name, stage):
    exact_loss = make(name).double()
    loss = copy.deepcopy(exact_loss).float()
    exact = [converted(x, torch.float64) for x in outputs(*shapes_of(name), size=4)]
    single = [converted(x, torch.float32) for x in exact]
    value, wanted = (getattr(x, stage)(*pair, batch_of(4)) for x, pair in ((loss, single), (exact_loss, exact)))
    torch.testing.assert_close(value.double(), wanted, rtol=1e-5, atol=0)
    found = zip(gradients(value, single[0], loss), gradients(wanted, exact[0], exact_loss), strict=True)
    pairs = [(a.double(), e) for a, e in found if e is not None]
    largest = max(e.norm() for _, e in pairs)
    assert len(pairs) >= (1 if name == "fsp" else 2)
    for a, e in pairs:  # a bias ahead of batch normalisation has no gradient but rounding errors
        assert (a - e).norm() <= 1e-5 * max(e.norm(), 1e-2 * largest)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_half_precision_is_raised_to_float32_also_under_autocast(name, stage, dtype):
    student, teacher = (converted(x, dtype) for x in outputs(*shapes_of(name)))
    raised = [converted(x, torch.float32) for x in (student, teacher)]
    expected = getattr(make(name), stage)(*raised, batch_of(3))
    with torch.autocast("cpu", torch.bfloat16):
        value = getattr(make(name), stage)(student, teacher, batch_of(3))
    assert value.dtype == torch.float32
    assert value.isfinite().all()
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    value.sum().backward()
    reached = [x.grad for x in (student.feature, *student.maps) if x.grad is not None]
    assert all(gradient.dtype == dtype and gradient.isfinite().all() for gradient in reached)
    assert bool(reached) == ((name, stage) != ("ft", "first_stage"))


@every
def test_leaves_the_global_random_state_alone(name):
    before = torch.get_rng_state()
    loss = make(name)
    loss(*(converted(x, torch.float32) for x in outputs(*shapes_of(name))), batch_of(3)).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


@with_layers
def test_initial_weights_follow_from_the_generator(name):
    torch.manual_seed(1)
    first = make(name).state_dict()
    torch.manual_seed(2)
    again, other = make(name).state_dict(), make(name, seed=1).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    drawn = [key for key in first if first[key].unique().numel() > 1]
    assert drawn
    assert all(not torch.equal(first[key], other[key]) for key in drawn)


@with_layers
def test_the_state_of_a_checkpoint_restores_the_loss(name):
    loss, other = make(name), make(name, seed=1)
    student, teacher = (converted(x, torch.float32) for x in outputs(*shapes_of(name)))
    for stage in ("first_stage", "forward"):
        if (name, stage) in STAGES:
            getattr(loss, stage)(student, teacher, batch_of(3))
    assert not torch.equal(loss(student, teacher, batch_of(3)), other(student, teacher, batch_of(3)))
    other.load_state_dict(loss.state_dict())
    assert torch.equal(loss(student, teacher, batch_of(3)), other(student, teacher, batch_of(3)))


@pytest.mark.parametrize("name", ["vid", "ab", "fsp", "reviewkd"])
@pytest.mark.parametrize("maps", [(NARROW[:2], WIDE), (NARROW, WIDE[:2]), ((), ())])
def test_networks_whose_stages_do_not_pair_are_refused_in_one_line(name, maps):
    kind, settings = LOSSES[name]
    with pytest.raises(ValueError, match=rf"^{name}: .*; choose networks") as refusal:
        build(kind, *maps, **settings)
    assert "\n" not in str(refusal.value)


@with_layers
def test_layers_are_on_the_device_of_the_labels(name):
    kind, settings = LOSSES[name]
    dims = (maps[-1][0] for maps in shapes_of(name))
    labels = torch.empty(2, dtype=torch.int64, device="meta")
    loss = kind(LossContext(*dims, labels, 2, torch.Generator(), *shapes_of(name)), **settings)
    assert {tensor.device.type for tensor in loss.state_dict().values()} == {"meta"}
