"""A round of the adversarial source against its equations, what it leaves as it was, and its state."""

import copy
import io
import math

import pytest
import torch
from naive_inversion import CLASSES, DATA, SIZE, Net, equal, random
from test_output_priors import slow_activation, slow_balance, slow_confidence, slow_divergence
from torch import nn

from kd.inversion.sources.adversarial import Adversarial
from kd.inversion.sources.base import SourceContext
from kd.runtime.messages import ConfigError

WEIGHTS = {"adv": 0.9, "oh": 0.7, "activation": 0.3, "balance": 2.0, "bn": 0.5}
SMALL = {"batch_size": 6, "batches": 2, "steps": 3, "lr": 0.01, "noise_dim": 8, "width": 4}
OFF = dict.fromkeys(WEIGHTS, 0.0)


class Round:
    """A source with its teacher and student."""

    def __init__(self, seed=1, **settings):
        self.teacher, self.student = Net(3).eval().requires_grad_(False), Net(4).train()
        torch.manual_seed(seed)  # of the generator's weights
        self.random, self.steps = random(seed), []

        def run(name, step):
            self.steps.append(name)
            step()

        context = SourceContext(self.teacher, DATA, None, self.random, 20, seed, run=run)
        self.source = Adversarial(context, **{**SMALL, **WEIGHTS, **settings})

    def __call__(self):
        return self.source.batch(0, self.student, None)


def expected_losses(images, teacher, student):
    """Return each term for normalised images, from the slow references."""
    inputs = [teacher.conv1(images)]
    inputs.append(teacher.conv2(teacher.bn1(inputs[0]).relu()))
    bn = 0.0
    for layer, maps in zip((teacher.bn1, teacher.bn2), inputs, strict=True):
        bn += (layer.running_mean - maps.mean((0, 2, 3))).norm().item()
        bn += (layer.running_var - maps.var((0, 2, 3), correction=0)).norm().item()
    mine, theirs = teacher(images), student(images)
    rows = mine.logits.tolist()
    return {
        "adv": slow_divergence(rows, theirs.logits.tolist()),
        "oh": slow_confidence(rows),
        "activation": slow_activation(mine.feature.tolist()),
        "balance": slow_balance(rows),
        "bn": bn,
    }


def test_the_terms_are_those_of_the_equations_on_images_of_fresh_noise():
    world = Round(steps=1)
    noise = torch.randn(6, 8, generator=copy.deepcopy(world.random))
    with torch.no_grad():
        images = DATA.augment.normalise(copy.deepcopy(world.source.generator)(noise))
        terms = expected_losses(images, copy.deepcopy(world.teacher), copy.deepcopy(world.student).eval())
    losses = world().losses
    for name, value in terms.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    assert losses["loss"].item() == pytest.approx(sum(WEIGHTS[name] * terms[name] for name in WEIGHTS), rel=1e-4)


@pytest.mark.parametrize("only", WEIGHTS)
def test_each_term_falls_when_the_generator_follows_it_alone(only):
    world = Round(**{**OFF, only: 1.0}, batch_size=32, batches=1, steps=1)
    seen = [world().losses for _ in range(60)]
    assert set(seen[0]) == {"loss", only, "image_std", "confidence"}, "what has no weight is not computed"
    first, last = (sum(losses[only].item() for losses in part) for part in (seen[:10], seen[-10:]))
    assert last < first - 0.01 * abs(first)


def test_losses_are_those_of_their_own_round():
    world = Round()
    kept = [world() for _ in range(2)]
    assert kept[0].losses["loss"].item() != kept[1].losses["loss"].item()
    assert not torch.equal(kept[0].images, kept[1].images)


def test_one_adam_step_is_taken_down_the_weighted_sum_on_other_noise_each_time():
    world, weights = Round(steps=2, batches=1), {**OFF, "adv": 1.5}
    world.source.weights = {"adv": 1.5}
    naive, numbers = copy.deepcopy(world.source.generator), copy.deepcopy(world.random)
    adam = torch.optim.Adam(naive.parameters(), lr=0.01, betas=(0.5, 0.999))
    student = copy.deepcopy(world.student).eval()
    for _ in range(2):
        images = DATA.augment.normalise(naive(torch.randn(6, 8, generator=numbers)))
        one, other = world.teacher(images).logits.log_softmax(1), student(images).logits.log_softmax(1)
        adam.zero_grad()
        (-weights["adv"] * (one.exp() * (one - other)).sum(1).mean()).backward()
        adam.step()
    world()
    for mine, theirs in zip(world.source.generator.parameters(), naive.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_a_round_brings_batches_of_fresh_images_with_the_teachers_classes():
    world = Round()
    numbers = copy.deepcopy(world.random)
    made = world()
    for _ in range(SMALL["steps"]):
        torch.randn(6, 8, generator=numbers)
    generator = copy.deepcopy(world.source.generator)
    with torch.no_grad():
        images = torch.cat([generator(torch.randn(6, 8, generator=numbers)) for _ in range(2)]).mul(255).round()
        probabilities = torch.cat(
            [world.teacher(DATA.augment.normalise(part.byte())).logits.softmax(1) for part in images.split(6)]
        )
    assert made.images.dtype == torch.uint8
    assert made.images.shape == (12, 1, SIZE, SIZE)
    assert torch.equal(made.images, images.byte())
    assert torch.equal(made.classes, probabilities.argmax(1))
    torch.testing.assert_close(made.confidence, probabilities.amax(1))
    assert torch.equal(made.phi, torch.ones(12))
    assert made.losses["image_std"].item() == pytest.approx(images[6:].std(0).mean().item())
    assert world.source.work == {"generator_steps": 3, "images": 12}
    assert world.steps == ["generator's step"] * 3 + ["drawing of images"]


def test_teacher_and_student_are_left_as_they_were():
    world = Round()
    states = [copy.deepcopy(network.state_dict()) for network in (world.teacher, world.student)]
    world()
    assert all(equal(n.state_dict(), s) for n, s in zip((world.teacher, world.student), states, strict=True))
    assert world.student.training
    assert world.student.calls == [False] * 3, "in eval mode while it judges images"
    assert all(parameter.requires_grad and parameter.grad is None for parameter in world.student.parameters())
    assert not any(module._forward_pre_hooks for module in world.teacher.modules())


def test_without_the_adversary_the_student_is_not_asked():
    world = Round(adv=0.0)
    world()
    assert world.student.calls == []


def test_random_numbers_come_only_from_the_generator():
    one, other = Round(), Round()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    first = one()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(54321)
    assert equal(tuple(first), tuple(other()))


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_restored_source_continues_exactly(rounds):
    world = Round()
    for _ in range(rounds):
        world()
    file = io.BytesIO()
    torch.save(world.source.state_dict(), file)
    file.seek(0)
    resumed = Round(seed=99)
    resumed.source.load_state_dict(torch.load(file, weights_only=True))
    resumed.random.set_state(world.random.get_state())
    for _ in range(2):
        assert equal(tuple(resumed()), tuple(world()))
    assert equal(resumed.source.state_dict(), world.source.state_dict())


class Bare(nn.Module):
    """A teacher without BatchNorm."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(SIZE * SIZE, CLASSES)


def test_only_the_batchnorm_prior_needs_a_teacher_with_batch_normalisation():
    context = SourceContext(Bare(), DATA, None, random(), 20, 0)
    with pytest.raises(ConfigError, match="has no BatchNorm2d layer"):
        Adversarial(context, **SMALL, bn=1.0)
    assert Adversarial(context, **SMALL).statistics is None


def test_only_a_loss_that_asks_for_all_classes_may_be_stopped_for_one_class():
    assert Round().source.settled == 10
    assert Round(balance=0.0).source.settled == math.inf
