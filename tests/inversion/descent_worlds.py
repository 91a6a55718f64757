"""Small worlds for DeepInversion, CMI and NAYER, and a batch of each as its equations tell it, in plain loops."""

import copy
import math
from types import SimpleNamespace

import torch
from naive_inversion import AUGMENT, CLASSES, DATA, MODULATING, SIZE, Net, random
from numbered_samples import SETTINGS as REPLAY
from torch.nn import functional as F

from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.cmi import ContrastiveInversion
from kd.inversion.sources.deepinversion import DeepInversion
from kd.inversion.sources.nayer import Nayer
from kd.inversion.views import resized_crop

COMMON = {"batch_size": 10, "warmup": 0, "steps": 4, "bn": 1.5, "oh": 0.7, "adv": 0.9}
PIXELS = {"lr": 0.1, "tv_l2": 0.02, "tv_l1": 0.3, "l2": 0.01, "adv_temperature": 3.0, "jitter": 2, "flip": True}
FRESH = {"lr": 0.02, "cr": 0.8, "cr_temperature": 0.2, "negatives": 14, "bank": 24, "head_dim": 6}
NOISY = {"lr": 0.01, "bn_momentum": 0.8, "life": 2, "embeddings": None}
SHAPE = {"noise_dim": 8, "width": 4}
KINDS = {
    "deepinversion": (DeepInversion, COMMON | PIXELS),
    "cmi": (ContrastiveInversion, COMMON | FRESH | SHAPE),
    "nayer": (Nayer, COMMON | NOISY | SHAPE),
}


class World:
    """Everything that a batch of one kind needs."""

    def __init__(self, kind, seed=1, **settings):
        build, defaults = KINDS[kind]
        self.kind, self.settings = kind, SimpleNamespace(**defaults | settings)
        self.teacher = Net(3).eval().requires_grad_(False)
        self.student = Net(4).train()
        torch.manual_seed(seed)  # of networks that are not drawn anew
        self.random = random(seed)
        context = SourceContext(self.teacher, DATA, MODULATING, self.random, 20, seed)
        self.source = build(context, **vars(self.settings))
        self.buffer = ReplayBuffer(20, (1, SIZE, SIZE), CLASSES, REPLAY, torch.device("cpu"))
        classes = torch.tensor([0, 0, 1, 3, 3, 3, 3, 3])
        self.buffer.add(torch.zeros(8, 1, SIZE, SIZE, dtype=torch.uint8), classes, torch.ones(8), self.random)

    def batch(self, learned=0, **kwargs):
        return self.source.batch(learned, self.student, self.buffer, **kwargs)


class Naive:
    """Starts from a copy of a world, draws the same random numbers; keeps (loss, images) of every step."""

    def __init__(self, world):
        self.world = copy.deepcopy(world)
        self.settings, self.random = self.world.settings, self.world.random
        self.past = None  # NAYER's statistics
        self.earlier = []  # CMI's (local, global) features of earlier images, the oldest first

    def batch(self, adversarial=True):
        self.adversarial, self.steps = adversarial, []
        return getattr(self, self.world.kind)()

    def teacher_loss(self, seen, targets):
        """bn * L_BN + oh * mean(phi * L_Task) + adv * mean(L_adv), and the feature."""
        world, net = self.world, self.world.teacher
        inputs = [net.conv1(seen)]
        inputs.append(net.conv2(net.bn1(inputs[0]).relu()))
        now = [[x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)] for x in inputs]
        if self.past is not None:
            share = self.settings.bn_momentum
            pairs = zip(self.past, now, strict=True)
            now = [[share * old + (1 - share) * new for old, new in zip(*pair, strict=True)] for pair in pairs]
        self.statistics = [[value.detach() for value in pair] for pair in now]
        running = [[layer.running_mean, layer.running_var] for layer in (net.bn1, net.bn2)]
        bn = sum((r - v).norm() for pairs in zip(running, now, strict=True) for r, v in zip(*pairs, strict=True))
        output = net(seen)
        p, predicted = output.logits.softmax(1), output.logits.argmax(1)
        oh = 0.0
        for row, target, label in zip(p, targets.tolist(), predicted.tolist(), strict=True):
            share = world.buffer.classes[: world.buffer.size].tolist().count(label) / world.buffer.size
            phi = (1 - 0.5 * share) * (1 - row[label].item())
            oh = oh - phi * torch.log(row[target]) / len(seen)
        loss = self.settings.bn * bn + self.settings.oh * oh
        if self.adversarial:
            answers = copy.deepcopy(world.student).eval()(seen).logits
            loss = loss + self.settings.adv * self.disagreement(output.logits, answers)
        return loss, output.feature

    def disagreement(self, teacher, student):
        if self.world.kind == "deepinversion":
            p, q = ((logits / self.settings.adv_temperature).softmax(1) for logits in (teacher, student))
            m = (p + q) / 2
            return 1 - ((p * (p / m).log()).sum(1) + (q * (q / m).log()).sum(1)).mean() / 2
        p, q = teacher.softmax(1), student.softmax(1)
        alike = (teacher.argmax(1) == student.argmax(1)).float()
        return -(alike * (p * (p / q).log()).sum(1)).mean()

    def adam(self, parameters, betas):
        return torch.optim.Adam(parameters, self.settings.lr, betas=betas, foreach=False)

    def deepinversion(self):
        settings, numbers = self.settings, self.random
        pixels = torch.randn(settings.batch_size, 1, SIZE, SIZE, generator=numbers)
        low, high = ((value - AUGMENT.mean.item()) / AUGMENT.std.item() for value in (0, 1))
        pixels = pixels.clamp(low, high).requires_grad_()
        order = torch.randperm(CLASSES, generator=numbers)
        targets = torch.cat([order] * 3)[: settings.batch_size]
        optimizer = self.adam([pixels], (0.9, 0.999))
        for _ in range(settings.steps):
            down, right = torch.randint(-settings.jitter, settings.jitter + 1, (2,), generator=numbers).tolist()
            mirrored = settings.flip and torch.randint(0, 2, (1,), generator=numbers, dtype=torch.bool).item()
            rolled = torch.roll(pixels, (down, right), (2, 3))
            seen = rolled.flip(3) if mirrored else rolled
            loss, _ = self.teacher_loss(seen, targets)
            for d in (
                seen[..., 1:] - seen[..., :-1],
                seen[..., 1:, :] - seen[..., :-1, :],
                seen[..., 1:, 1:] - seen[..., :-1, :-1],
                seen[..., 1:, :-1] - seen[..., :-1, 1:],
            ):
                loss = loss + settings.tv_l2 * (d**2).sum().sqrt() + settings.tv_l1 * d.abs().mean()
            loss = loss + settings.l2 * (seen**2).sum().sqrt()
            self.steps.append((loss.item(), (pixels.detach() * AUGMENT.std + AUGMENT.mean).clone()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                pixels.clamp_(low, high)

    def cmi(self):
        settings, numbers, world = self.settings, self.random, self.world
        generator, head = world.source.generator, world.source.head
        with torch.no_grad():
            for module in generator.modules():
                weight = getattr(module, "weight", None)
                if weight is not None:
                    weight.normal_(1.0 if isinstance(module, torch.nn.BatchNorm2d) else 0.0, 0.02, generator=numbers)
                if getattr(module, "bias", None) is not None:
                    module.bias.zero_()
        noise = torch.randn(settings.batch_size, settings.noise_dim, generator=numbers).requires_grad_()
        targets = torch.randint(CLASSES, (settings.batch_size,), generator=numbers)
        optimizer = self.adam([*generator.parameters(), noise], (0.5, 0.999))
        self.head_optimizer = getattr(self, "head_optimizer", None) or self.adam(head.parameters(), (0.9, 0.999))
        features = []
        for _ in range(settings.steps):
            images = generator(noise)
            loss, whole = self.teacher_loss(AUGMENT(images, numbers), targets)
            local = world.teacher(AUGMENT.normalise(resized_crop(images, True, numbers))).feature
            keys = torch.rand(settings.bank, generator=numbers).tolist()
            used = sorted(range(len(self.earlier)), key=lambda row: keys[row])[: settings.negatives]
            locals_ = [*local, *(self.earlier[row][0] for row in used)]
            wholes = [*whole, *(self.earlier[row][1] for row in used)]
            anchors = [F.normalize(head(value), dim=0) for value in locals_]
            others = [F.normalize(head(value), dim=0).detach() for value in wholes]
            contrast = []
            for i, anchor in enumerate(anchors):
                scores = [anchor @ other / settings.cr_temperature for other in others]
                contrast.append(-scores[i] + torch.log(sum(torch.exp(score) for score in scores)))
            size = settings.batch_size
            cr = sum(contrast[:size]) / size + (sum(contrast[size:]) / len(used) if used else 0.0)
            loss = loss + settings.cr * cr
            self.steps.append((loss.item(), images.detach()))
            features.append(list(zip(local.detach(), whole.detach(), strict=True)))
            for each in (optimizer, self.head_optimizer):
                each.zero_grad()
            loss.backward()
            for each in (optimizer, self.head_optimizer):
                each.step()
        best = min(range(settings.steps), key=lambda step: self.steps[step][0])
        rows = len(self.earlier)
        for number, pair in enumerate(features[best]):  # the bank is a ring
            place = (self.place if rows else 0) + number
            if place % settings.bank < len(self.earlier):
                self.earlier[place % settings.bank] = pair
            else:
                self.earlier.append(pair)
        self.place = ((self.place if rows else 0) + len(features[best])) % settings.bank

    def nayer(self):
        settings, numbers, world = self.settings, self.random, self.world
        layers, generator = world.source.network
        self.epoch = getattr(self, "epoch", -1) + 1
        if self.epoch % settings.life == 0:
            layers.normalisation = torch.nn.BatchNorm1d(layers.normalisation.num_features)
            for module in generator.modules():
                if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
                    for parameter in (module.weight, *([] if module.bias is None else [module.bias])):
                        bound = 1 / math.sqrt(module.weight[0].numel())
                        parameter.data.uniform_(-bound, bound, generator=numbers)
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.weight.data.fill_(1)
                    module.bias.data.fill_(0)
        rows = world.teacher.head.weight
        groups = math.ceil(settings.batch_size / CLASSES)
        weights = torch.empty(groups, rows.shape[1], settings.noise_dim).normal_(generator=numbers)
        noisy = [(weight.clone(), torch.zeros(settings.noise_dim)) for weight in weights]
        for weight, bias in noisy:
            weight.requires_grad_()
            bias.requires_grad_()
        order = torch.randperm(CLASSES, generator=numbers)
        targets = torch.cat([order] * groups)[: settings.batch_size]
        parameters = [*layers.normalisation.parameters(), *generator.parameters()]
        optimizer = self.adam([*parameters, *(each for pair in noisy for each in pair)], (0.5, 0.999))
        for _ in range(settings.steps):
            normal = layers.normalisation(rows[targets])
            hidden = [noisy[i // CLASSES][0].T @ row + noisy[i // CLASSES][1] for i, row in enumerate(normal)]
            images = generator(torch.stack(hidden))
            loss, _ = self.teacher_loss(AUGMENT(images, numbers), targets)
            self.steps.append((loss.item(), images.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.past = self.statistics
