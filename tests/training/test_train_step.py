"""One training step against a loop over samples, the learning rate against its closed form, and running means."""

import copy
import io
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kd.batch import Batch, Output
from kd.losses.objective import Objective
from kd.settings.shapes import Training
from kd.training.optimisers import learning_rate, set_lr, sgd
from kd.training.step import Sums, train_step

CLASSES, SIZE = 5, 8
TRAINING = Training(
    epochs=10,
    batch_size=SIZE,
    lr=0.5,
    schedule="steps",
    milestones=(4, 7),
    gamma=0.1,
    final_lr=0.02,
    momentum=0.9,
    nesterov=False,
    weight_decay=0.01,
)


class Net(nn.Module):
    """One hidden layer without BatchNorm, so that no sample touches another; dropout and BatchNorm on request."""

    dense = False

    def __init__(self, seed, normalised=False):
        super().__init__()
        self.hidden, self.last = nn.Linear(12, 6), nn.Linear(6, CLASSES)
        self.between = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5)) if normalised else nn.Identity()
        numbers = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=numbers)

    def forward(self, x):
        feature = self.between(self.hidden(x.flatten(1))).tanh()
        return Output(self.last(feature), feature)


def batch(weight=None):
    numbers = torch.Generator().manual_seed(7)
    images = torch.randn(SIZE, 3, 2, 2, generator=numbers)
    labels = torch.randint(CLASSES, (SIZE,), generator=numbers)
    weight = torch.rand(SIZE, generator=numbers) * 3 if weight is None else torch.as_tensor(weight)
    return Batch(images, labels, torch.arange(SIZE), weight)


def objective():
    return Objective({"ce": {"weight": 0.3}, "kd": {"weight": 0.7, "temperature": 4.0}}, None)


def slow_losses(student, teacher, images, labels):
    """0.3 CE + 0.7 KD(T=4), sample by sample."""
    losses = []
    for image, label in zip(images, labels, strict=True):
        s, t = student(image[None]).logits[0], teacher(image[None]).logits[0].detach()
        p, q = (t / 4).softmax(0), (s / 4).softmax(0)
        losses.append(-0.3 * s.softmax(0)[label].log() + 0.7 * 16 * (p * (p / q).log()).sum())
    return losses


def gradients(given, lr=0.0):
    """The gradients of one step and the step itself."""
    student, teacher = Net(1), Net(2).eval().requires_grad_(False)
    optimizer = torch.optim.SGD(student.parameters(), lr=lr)
    step = train_step(student, teacher, objective(), given, optimizer, "float32")
    return [p.grad for p in student.parameters()], step


# --- the step ---


def test_gradient_is_that_of_the_mean_of_weighted_losses():
    given = batch()
    student, teacher = Net(1).double(), Net(2).double()
    losses = slow_losses(student, teacher, given.images.double(), given.labels)
    total = sum(weight * loss for weight, loss in zip(given.weight.double(), losses, strict=True)) / SIZE
    expected = torch.autograd.grad(total, list(student.parameters()))
    actual, step = gradients(given)
    for gradient, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(step.loss.double(), torch.stack(losses).detach(), rtol=1e-5, atol=1e-6)  # unweighted
    assert torch.equal(step.teacher.logits, Net(2)(given.images).logits)
    assert torch.equal(step.student.logits, Net(1)(given.images).logits)  # before the update


def test_weights_of_one_give_the_plain_mean():
    given = batch(torch.ones(SIZE))
    student = Net(1)
    with torch.no_grad():
        teacher = Net(2)(given.images).logits
    logits = student(given.images).logits
    kd = 16 * F.kl_div((logits / 4).log_softmax(1), (teacher / 4).softmax(1), reduction="batchmean")
    loss = 0.3 * F.cross_entropy(logits, given.labels) + 0.7 * kd
    actual, _ = gradients(given)
    for gradient, wanted in zip(actual, torch.autograd.grad(loss, list(student.parameters())), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_a_sample_of_weight_zero_has_no_influence():
    weight = torch.ones(SIZE)
    weight[3] = 0
    given = batch(weight)
    images, labels = given.images.clone(), given.labels.clone()
    images[3], labels[3] = -5.0, (labels[3] + 1) % CLASSES
    other = given._replace(images=images, labels=labels)
    for gradient, wanted in zip(gradients(given)[0], gradients(other)[0], strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-7)
    changed = [given._replace(weight=torch.ones(SIZE)), other._replace(weight=torch.ones(SIZE))]
    first, second = (gradients(each)[0] for each in changed)
    assert not torch.allclose(first[0], second[0], rtol=1e-2)  # at weight 1 it has


def test_the_optimizer_steps_once_and_forgets_older_gradients():
    given, student, teacher = batch(), Net(1), Net(2)
    for parameter in student.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.25)
    before = [p.detach().clone() for p in student.parameters()]
    train_step(student, teacher, objective(), given, optimizer, "float32")
    for parameter, old, gradient in zip(student.parameters(), before, gradients(given)[0], strict=True):
        torch.testing.assert_close(parameter.detach(), old - 0.25 * gradient)


def test_the_teacher_is_only_asked():
    student, teacher = Net(1), Net(2, normalised=True).eval()  # its parameters ask for gradients
    state = copy.deepcopy(teacher.state_dict())
    given = batch()
    expected = teacher(given.images).logits.detach()
    step = train_step(student, teacher, objective(), given, torch.optim.SGD(student.parameters(), lr=0.1), "float32")
    assert not teacher.training
    assert student.training
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert torch.equal(step.teacher.logits, expected)
    tensors = [step.loss, *step.teacher[:2], *step.student[:2]]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_without_a_teacher_the_labels_are_learned():
    student, given = Net(1), batch(torch.ones(SIZE))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
    labels_alone = Objective({"ce": {"weight": 1.0}}, None)
    steps = [train_step(student, None, labels_alone, given, optimizer, "float32") for _ in range(60)]
    assert steps[0].teacher is None
    torch.testing.assert_close(
        steps[0].loss, F.cross_entropy(Net(1)(given.images).logits, given.labels, reduction="none")
    )
    assert steps[-1].loss.mean() < 0.2 * steps[0].loss.mean()


def test_parameters_of_the_objective_learn_as_well():
    class Scale(nn.Module):
        maps = signed = False

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, student, teacher, batch):
            return self.scale * student.logits.square().sum(1)

    given, student, scale = batch(), Net(1), Scale()
    optimizer = sgd([student, scale], replace(TRAINING, momentum=0.0, weight_decay=0.0))
    expected = 2.0 - 0.5 * (given.weight * student(given.images).logits.square().sum(1)).mean().item()
    train_step(student, None, scale, given, optimizer, "float32")
    assert scale.scale.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_networks_and_not_of_the_loss(precision, dtype):
    student, teacher = Net(1), Net(2).eval()
    step = train_step(student, teacher, objective(), batch(), torch.optim.SGD(student.parameters(), lr=0.1), precision)
    assert (step.student.logits.dtype, step.teacher.logits.dtype) == (dtype, dtype)
    assert step.loss.dtype == torch.float32
    assert all(p.grad.dtype == p.dtype == torch.float32 for p in student.parameters())


# --- optimiser and schedule ---


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_equations_for_all_modules(nesterov):
    training = replace(TRAINING, nesterov=nesterov)
    modules = [nn.Linear(3, 2), nn.Linear(2, 1)]
    parameters = [p for module in modules for p in module.parameters()]
    expected = [p.detach().double() for p in parameters]
    velocity = [torch.zeros_like(p) for p in expected]
    optimizer = sgd(modules, training)
    for step in range(4):
        for number, (p, q, v) in enumerate(zip(parameters, expected, velocity, strict=True)):
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(10 * step + number))
            gradient = p.grad.double() + 0.01 * q
            v.mul_(0.9).add_(gradient)
            q -= 0.5 * (gradient + 0.9 * v if nesterov else v)
        optimizer.step()
    for p, q in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach().double(), q, rtol=1e-5, atol=1e-6)


def test_learning_rate_falls_at_each_milestone():
    rates = [learning_rate(TRAINING, epoch) for epoch in range(10)]
    assert rates == pytest.approx([0.5] * 4 + [0.05] * 3 + [0.005] * 3)
    assert learning_rate(replace(TRAINING, milestones=()), 9) == 0.5
    assert learning_rate(replace(TRAINING, gamma=0.5, milestones=(2, 4, 6)), 9) == pytest.approx(0.5 / 8)


def test_learning_rate_falls_along_a_cosine():
    cosine = replace(TRAINING, schedule="cosine")
    assert learning_rate(cosine, 0) == 0.5
    assert learning_rate(cosine, 5) == pytest.approx((0.5 + 0.02) / 2)
    assert learning_rate(cosine, 10) == pytest.approx(0.02)
    rates = [learning_rate(cosine, epoch) for epoch in range(10)]
    assert rates[9] == pytest.approx(0.02 + 0.48 * math.sin(math.pi / 20) ** 2)
    assert all(after < before for before, after in pairwise(rates))
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.02)
    for rate in rates:
        assert rate == pytest.approx(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()


def test_learning_rate_is_set_in_every_group():
    parameters = [nn.Parameter(torch.zeros(1)) for _ in range(2)]
    rates = [torch.tensor(9.0, dtype=torch.float64) for _ in parameters]
    optimizer = torch.optim.SGD([{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)])
    set_lr(optimizer, 0.05)
    assert [rate.item() for rate in rates] == [0.05, 0.05], "in place"


# --- running means ---


def test_sums_are_means_since_the_last_take():
    sums = Sums(["loss", "accuracy"], torch.device("cpu"))
    for loss, accuracy in ((1.0, 0.5), (2.0, 0.25), (6.0, 0.0)):
        sums.add(torch.tensor(loss), torch.tensor(accuracy))
    assert sums.read_and_reset() == pytest.approx({"loss": 3.0, "accuracy": 0.25})
    sums.add(torch.tensor(4.0), torch.tensor(1.0))
    assert sums.read_and_reset() == {"loss": 4.0, "accuracy": 1.0}
    assert sums.read_and_reset() == {"loss": 0.0, "accuracy": 0.0}  # nothing added


def test_restored_sums_continue():
    sums = Sums(["loss"], torch.device("cpu"))
    sums.add(torch.tensor(1.0))
    sums.add(torch.tensor(2.0))
    file = io.BytesIO()
    torch.save(sums.state_dict(), file)
    file.seek(0)
    resumed = Sums(["loss"], torch.device("cpu"))
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for each in (sums, resumed):
        each.add(torch.tensor(6.0))
        assert each.read_and_reset() == {"loss": 3.0}
