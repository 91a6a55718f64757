"""What an epoch of inversion changes and what it leaves as it was; interrupted, resumed and reset generators."""

import copy
import io

import pytest
import torch
from naive_inversion import DATA, MODULATING, SETTINGS, World, equal, random
from torch import nn

from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.runtime.messages import ConfigError

# --- what an epoch leaves as it was ---


def test_teacher_and_student_are_left_as_they_were():
    world = World()
    states = [copy.deepcopy(net.state_dict()) for net in (world.teacher, world.student)]
    for _ in range(2):
        world.epoch()
    assert [
        equal(net.state_dict(), state) for net, state in zip((world.teacher, world.student), states, strict=True)
    ] == [
        True,
        True,
    ]
    assert world.student.training
    assert not world.teacher.training
    assert all(p.requires_grad and p.grad is None for p in world.student.parameters())
    assert not any(p.requires_grad for p in world.teacher.parameters())
    assert world.student.calls == [False] * 6  # in eval mode while it judged images
    assert world.teacher.calls == [False] * 6
    assert not any(module._forward_pre_hooks for module in world.teacher.modules())
    world.student.eval()
    world.epoch()
    assert not world.student.training


def test_frozen_parts_of_the_student_stay_frozen():
    world = World()
    world.student.conv1.requires_grad_(False)
    world.student.bn1.eval()
    grads = [p.requires_grad for p in world.student.parameters()]
    modes = [module.training for module in world.student.modules()]
    world.epoch()
    assert [p.requires_grad for p in world.student.parameters()] == grads
    assert [module.training for module in world.student.modules()] == modes


def test_networks_are_restored_when_an_epoch_fails():
    world = World()

    def fail():
        if len(world.teacher.calls) == 2:
            raise RuntimeError("broken")
        return False

    with pytest.raises(RuntimeError, match="broken"):
        world.epoch(interrupted=fail)
    assert world.student.training
    assert all(p.requires_grad for p in world.student.parameters())
    assert not any(module._forward_pre_hooks for module in world.teacher.modules())


def test_random_numbers_come_only_from_the_generator():
    one, other = World(), World()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    first = one.epoch()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(54321)
    assert equal(tuple(first), tuple(other.epoch()))


# --- interruption and state ---


def snapshot(world):
    """All that must not change, copied."""
    return copy.deepcopy(
        {
            **world.source.state_dict(),
            "random": world.random.get_state(),
            "student": world.student.state_dict(),
        }
    )


@pytest.mark.parametrize("epochs", [0, 2])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_interrupted_epoch_leaves_no_trace(epochs, after):
    world, undisturbed = World(), World()
    for _ in range(epochs):
        world.epoch()
        undisturbed.epoch()
    before = snapshot(world)
    answers = iter([False] * after + [True])
    assert world.epoch(interrupted=lambda: next(answers)) is None
    assert next(answers, None) is None  # asked before each step, and no more once it is true
    assert equal(snapshot(world), before)
    assert world.student.training
    assert all(p.requires_grad for p in world.student.parameters())
    for _ in range(2):
        assert equal(tuple(world.epoch()), tuple(undisturbed.epoch()))
    assert equal(snapshot(world), snapshot(undisturbed))


@pytest.mark.parametrize("epochs", [0, 1, 3])
def test_a_restored_source_continues_exactly(epochs):
    world = World()
    for _ in range(epochs):
        world.epoch()
    file = io.BytesIO()
    torch.save(world.source.state_dict(), file)
    file.seek(0)
    resumed = World(seed=99)
    resumed.source.load_state_dict(torch.load(file, weights_only=True))
    resumed.random.set_state(world.random.get_state())
    for _ in range(2):
        assert equal(tuple(resumed.epoch()), tuple(world.epoch()))
    assert equal(resumed.source.state_dict(), world.source.state_dict())


def test_the_reset_draws_the_first_layer_again_once_and_nothing_else():
    world, later = World(reset_epoch=1), World(reset_epoch=9)
    for each in (world, later):
        each.epoch(adversarial=False)
    numbers = copy.deepcopy(world.random)
    for layer in (later.generator.first, later.generator.body[1]):
        layer.weight.data = torch.empty_like(layer.weight).normal_(0, 0.02, generator=numbers)
        layer.bias.data = torch.zeros_like(layer.bias)
    later.random.set_state(numbers.get_state())
    for _ in range(2):  # the second time with the same number of epochs learned
        assert equal(tuple(world.epoch()), tuple(later.epoch()))
    assert world.source.was_reset
    assert not later.source.was_reset


def test_a_teacher_without_batch_normalisation_is_refused():
    context = SourceContext(nn.Linear(2, 2), DATA, MODULATING, random(), 20, 0)
    with pytest.raises(ConfigError, match="has no BatchNorm2d layer"):
        MetaGenerator(context, **SETTINGS)
