"""A small world for the meta-generator, and its epoch as the equations tell it: plain loops, deepcopy, own Adam."""

import copy
from types import SimpleNamespace

import torch
from numbered_samples import SETTINGS as REPLAY
from torch import nn
from torch.nn import functional as F

from kd.batch import Output
from kd.data.augment import Augment
from kd.data.dataset import Data, Split
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.generator import MetaGenerator
from kd.settings.shapes import Modulation

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

    dense = False

    def __init__(self, seed, width=5):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride=2), nn.BatchNorm2d(width)
        self.head, self.feature_dim = nn.Linear(width, CLASSES), width
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
        return Output(3 * self.head(feature), feature)


class World:
    """Everything that one epoch needs."""

    def __init__(self, seed=1, modulating=MODULATING, epochs=1, relative_lr=lambda learned: 1.0, **settings):
        self.settings, self.modulating = SimpleNamespace(**SETTINGS | settings), modulating
        self.teacher = Net(3).eval().requires_grad_(False)
        self.student = Net(4).train()
        torch.manual_seed(seed)  # of the generator's weights
        self.random = random(seed)
        context = SourceContext(self.teacher, DATA, modulating, self.random, 20, seed, epochs, relative_lr)
        self.source = MetaGenerator(context, **vars(self.settings))
        self.generator = self.source.generator
        self.buffer = ReplayBuffer(20, (1, SIZE, SIZE), CLASSES, REPLAY, torch.device("cpu"))
        classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 3])
        self.buffer.add(torch.zeros(8, 1, SIZE, SIZE, dtype=torch.uint8), classes, torch.ones(8), self.random)

    def epoch(self, adversarial=True, **kwargs):
        return self.learn(0 if adversarial else -2, **kwargs)

    def learn(self, learned, **kwargs):
        return self.source.batch(learned, self.student, self.buffer, **kwargs)


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
