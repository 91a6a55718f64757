"""One epoch of inversion against a naive one: plain loops, deepcopy, torch.optim.Adam, and the same random numbers."""

import copy
import io
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Output
from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.runtime.messages import ConfigError
from kd.settings.shapes import Modulation, Replay

CLASSES, SIZE = 4, 8
SETTINGS = {
    "batch_size": 12,
    "warmup": 0,
    "steps": 3,
    "lr_generator": 0.01,
    "lr_noise": 0.02,
    "bn": 1.5,
    "oh": 0.7,
    "adv": 0.9,
    "bn_momentum": 0.8,
    "meta": "maml",
    "reset_epoch": None,
    "noise_dim": 8,
    "width": 4,
}
MODULATING = Modulation(diversity=0.5, gamma=1.0, class_of="prediction", gradient=False, normalise=False)
AUGMENT = Augment(torch.tensor([0.4]), torch.tensor([0.3]), 1, True)
NOTHING = Split(torch.zeros(0, 1, SIZE, SIZE, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
DATA = Data(NOTHING, NOTHING, "test", 0, [str(label) for label in range(CLASSES)], AUGMENT)


def random(seed=0):
    return torch.Generator().manual_seed(seed)


class Net(nn.Module):
    """Two convolutions with BatchNorm and a linear layer; weights and running statistics of its own per seed."""

    def __init__(self, seed, width=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, CLASSES)
        numbers = random(seed)
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor.is_floating_point():
                tensor.data = 0.5 * torch.randn(tensor.shape, generator=numbers)
        for layer in (self.bn1, self.bn2):
            layer.running_var.abs_().add_(0.3)
        self.calls = []  # whether in training mode, per forward pass

    def forward(self, x):
        self.calls.append(self.training)
        feature = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu().mean((2, 3))
        return Output(3 * self.linear(feature), feature)


class World:
    """Everything that one epoch needs."""

    def __init__(self, seed=1, modulating=MODULATING, **settings):
        self.settings, self.modulating = SimpleNamespace(**SETTINGS | settings), modulating
        self.teacher = Net(3).eval().requires_grad_(False)
        self.student = Net(4).train()
        torch.manual_seed(seed)  # of the generator's weights
        self.random = random(seed)
        context = SourceContext(self.teacher, DATA, modulating, self.random, 20, seed)
        self.source = MetaGenerator(context, **vars(self.settings))
        self.generator = self.source.generator
        replay = Replay(
            full_size=None,
            initial_priority="phi",
            alpha=0.6,
            beta=0.4,
            final_beta=None,
            eps=1e-6,
            priority_feedback=True,
            normalise_weights=True,
            refresh="drawn",
        )
        self.buffer = ReplayBuffer(20, (1, SIZE, SIZE), CLASSES, replay, torch.device("cpu"))
        classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 3])
        self.buffer.add(torch.zeros(8, 1, SIZE, SIZE, dtype=torch.uint8), classes, torch.ones(8), self.random)

    def epoch(self, adversarial=True, **kwargs):
        return self.source.batch(1 if adversarial else 0, self.student, self.buffer, **kwargs)


class Naive:
    """The epoch as the equations tell it. It starts from a copy of a world and draws the same random numbers."""

    def __init__(self, world):
        self.world = copy.deepcopy(world)
        self.common = self.world.generator
        self.past = None
        self.step = 0
        self.moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in self.common.parameters()]

    def loss(self, images, targets, adversarial):
        world, settings, modulating = self.world, self.world.settings, self.world.modulating
        augmented = AUGMENT(images, world.random)
        net = world.teacher
        inputs = [net.conv1(augmented)]
        inputs.append(net.conv2(net.bn1(inputs[0]).relu()))
        statistics = [(x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)) for x in inputs]
        bn = 0
        for number, layer in enumerate((net.bn1, net.bn2)):
            for kind, running in enumerate((layer.running_mean, layer.running_var)):
                value = statistics[number][kind]
                if self.past is not None:
                    value = settings.bn_momentum * self.past[number][kind] + (1 - settings.bn_momentum) * value
                bn = bn + (running - value).norm()
        logits = net(augmented).logits
        predicted = logits.argmax(1)
        classes = targets if modulating.class_of == "target" else predicted
        phi = []
        for row, label in zip(logits.softmax(1), classes.tolist(), strict=True):
            share = world.buffer.classes[: world.buffer.size].tolist().count(label) / world.buffer.size
            confidence = row[label] if modulating.gradient else row[label].detach()
            phi.append((1 - modulating.diversity * share) * (1 - confidence) ** modulating.gamma)
        tasks = F.cross_entropy(logits, targets, reduction="none")
        oh = sum(weight * task for weight, task in zip(phi, tasks, strict=True)) / len(images)
        loss = settings.bn * bn + settings.oh * oh
        if adversarial:
            frozen = copy.deepcopy(world.student).eval()
            answers = frozen(augmented).logits
            divergence = (logits.softmax(1) * (logits.log_softmax(1) - answers.log_softmax(1))).sum(1)
            loss = loss - settings.adv * (divergence * (predicted == answers.argmax(1)).float()).mean()
        return loss, statistics, classes, torch.stack(phi).detach()

    def epoch(self, adversarial=True):
        settings, numbers = self.world.settings, self.world.random
        noise = torch.randn(settings.batch_size, settings.noise_dim, generator=numbers).requires_grad_()
        targets = torch.randint(CLASSES, (settings.batch_size,), generator=numbers)
        inner = copy.deepcopy(self.common)
        groups = [{"params": [*inner.parameters()], "lr": settings.lr_generator}]
        groups += [{"params": [noise], "lr": settings.lr_noise}]
        optimizer = torch.optim.Adam(groups, betas=(0.5, 0.999), foreach=False)
        gradients, self.steps = [0.0 for _ in inner.parameters()], []
        for _ in range(settings.steps):
            images = inner(noise)
            loss, statistics, classes, phi = self.loss(images, targets, adversarial)
            optimizer.zero_grad()
            loss.backward()
            gradients = [total + p.grad for total, p in zip(gradients, inner.parameters(), strict=True)]
            optimizer.step()
            self.steps.append((loss.item(), images.detach(), classes, phi))
        with torch.no_grad():
            if settings.meta == "reptile":
                gradients = [p - q for p, q in zip(self.common.parameters(), inner.parameters(), strict=True)]
            self.gradients = gradients
            self.adam(settings.lr_generator * settings.steps)
            now = [[value.detach() for value in layer] for layer in statistics]
            if self.past is not None:
                share = settings.bn_momentum
                now = [
                    [share * old + (1 - share) * new for old, new in zip(*both, strict=True)]
                    for both in zip(self.past, now, strict=True)
                ]
            self.past = now

    def adam(self, lr):
        """Adam's equations, with state over the epochs."""
        self.step += 1
        for p, g, (m, v) in zip(self.common.parameters(), self.gradients, self.moments, strict=True):
            m.mul_(0.5).add_(0.5 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            p -= lr * (m / (1 - 0.5**self.step)) / ((v / (1 - 0.999**self.step)).sqrt() + 1e-8)


def relative(actual, expected):
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def equal(left, right):
    """Bitwise equality of nested states."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(equal(*both) for both in zip(left, right, strict=True))
    return left == right


# --- against the naive epoch ---


@pytest.mark.parametrize("adversarial", [False, True])
@pytest.mark.parametrize("meta", ["maml", "reptile"])
def test_three_epochs_equal_the_naive_ones(meta, adversarial):
    world = World(meta=meta)
    naive = Naive(world)
    for _ in range(3):
        before = [p.detach().clone() for p in world.generator.parameters()]
        made = world.epoch(adversarial)
        naive.epoch(adversarial)
        for p, wanted in zip(world.generator.parameters(), naive.gradients, strict=True):
            assert relative(p.grad, wanted) < 1e-4
        moved = [
            (p - old, q - old)
            for p, q, old in zip(world.generator.parameters(), naive.common.parameters(), before, strict=True)
        ]
        for actual, wanted in moved:
            assert relative(actual, wanted) < 1e-3
        for actual, wanted in zip(world.source.past, naive.past, strict=True):
            torch.testing.assert_close(list(actual), wanted, rtol=1e-4, atol=1e-5)
        assert made.losses["loss"].item() == pytest.approx(min(step[0] for step in naive.steps), rel=1e-4)
        assert torch.equal(world.random.get_state(), naive.world.random.get_state())


@pytest.mark.parametrize(
    "modulating",
    [
        replace(MODULATING, class_of="target", diversity=1.0),
        replace(MODULATING, gradient=True, gamma=2.0),
        replace(MODULATING, diversity=0.0, gamma=0.0),
    ],
    ids=["target", "gradient", "off"],
)
def test_other_modulations_equal_the_naive_epoch(modulating):
    world = World(modulating=modulating, oh=5.0)
    naive = Naive(world)
    made = world.epoch()
    naive.epoch()
    for p, wanted in zip(world.generator.parameters(), naive.gradients, strict=True):
        assert relative(p.grad, wanted) < 1e-4
    _, _, classes, phi = min(naive.steps, key=lambda step: step[0])
    assert torch.equal(made.classes, classes)
    torch.testing.assert_close(made.phi, phi, rtol=1e-4, atol=1e-5)


def test_the_step_with_the_lowest_loss_is_kept_whole():
    best = []
    for seed, rate in ((1, 0.05), (2, 0.3), (6, 0.3), (8, 0.3)):  # high rates make later steps worse
        world = World(seed, lr_generator=rate, lr_noise=rate, steps=4)
        naive = Naive(world)
        made = world.epoch()
        naive.epoch()
        losses = [step[0] for step in naive.steps]
        best.append(losses.index(min(losses)))
        loss, images, classes, phi = naive.steps[best[-1]]
        assert made.losses["loss"].item() == pytest.approx(loss, rel=1e-3)
        assert made.images.dtype == torch.uint8
        assert made.images.shape == (12, 1, SIZE, SIZE)
        assert (made.images.float() - 255 * images).abs().max() < 0.51
        assert made.images.unique().numel() > 20
        assert torch.equal(made.classes, classes)
        torch.testing.assert_close(made.phi, phi, rtol=1e-3, atol=1e-4)
        assert not made.phi.requires_grad
        terms = made.losses
        total = 1.5 * terms["bn"] + 0.7 * terms["oh"] + 0.9 * terms["adv"]
        torch.testing.assert_close(terms["loss"], total)
        torch.testing.assert_close(terms["phi_mean"], made.phi.mean())
    assert {0, 3} < set(best)  # first, last and between


# --- what an epoch leaves alone ---


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


def test_random_numbers_come_from_the_generator_alone():
    one, other = World(), World()
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    first = one.epoch()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(54321)
    assert equal(tuple(first), tuple(other.epoch()))


# --- the adversarial term ---


def test_the_student_is_asked_only_for_the_adversarial_term():
    for settings, adversarial, asked in (({}, True, 3), ({}, False, 0), ({"adv": 0.0}, True, 0)):
        world = World(**settings)
        made = world.epoch(adversarial)
        assert len(world.student.calls) == asked
        assert ("adv" in made.losses) == bool(asked)


def test_the_adversarial_term_drives_the_images_away_from_the_student():
    gaps = []
    for weight in (0.0, 20.0):
        world = World(adv=weight, steps=10, lr_generator=0.02)
        for _ in range(4):
            images = world.epoch().images
        normalised = AUGMENT.normalise(images)
        t, s = world.teacher(normalised).logits, world.student.eval()(normalised).logits
        gaps.append((t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean().item())
    assert gaps[1] > 1.1 * gaps[0]


# --- interruption and state ---


def snapshot(world):
    """All that must not change, copied."""
    return copy.deepcopy(
        {
            **world.source.state_dict(),
            "grads": [p.grad for p in world.generator.parameters()],
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
    weight = torch.empty_like(world.generator.first.weight).normal_(0, 0.02, generator=numbers)
    later.generator.first.weight.data, later.generator.first.bias.data = (
        weight,
        torch.zeros_like(later.generator.first.bias),
    )
    later.random.set_state(numbers.get_state())
    for _ in range(2):  # the second time with the same number of epochs learned
        assert equal(tuple(world.epoch()), tuple(later.epoch()))
    assert world.source.was_reset
    assert not later.source.was_reset


def test_a_teacher_without_batch_normalisation_is_refused():
    context = SourceContext(nn.Linear(2, 2), DATA, MODULATING, random(), 20, 0)
    with pytest.raises(ConfigError, match="has no BatchNorm2d layer"):
        MetaGenerator(context, **SETTINGS)
