"""What tests of losses share: layers as loops in float64, networks' outputs, comparison."""

import pytest
import torch

from kd.batch import Batch, LossContext, Output
from kd.losses.objective import build_loss


def formula(loss, *rest):
    """Return parameters of a test that compares the first, a function, with its equation."""
    return pytest.param(loss, *rest, marks=pytest.mark.formula(loss.__name__), id=loss.__name__)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(kind, student_maps, teacher_maps, seed=0, **settings):
    """Build a loss as a run does, for networks with maps (C, H, W) whose feature is as wide as the last map."""
    dims = (maps[-1][0] if maps else 1 for maps in (student_maps, teacher_maps))
    context = LossContext(*dims, torch.tensor([0, 1]), 2, generator(seed), student_maps, teacher_maps)
    return build_loss(kind.__module__.removeprefix("kd.losses."), context, **settings)


def scatter(loss, seed=9):
    """Return the loss in float64 with every parameter random, those that begin at 0 or 1 included."""
    g = generator(seed)
    with torch.no_grad():
        for parameter in loss.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g, dtype=torch.float64) * 0.6)
    return loss


def outputs(student_maps, teacher_maps, size=3, seed=1):
    """Return float64 outputs of both networks; the student's maps and feature require a gradient."""
    g = generator(seed)

    def draw(maps):
        drawn = [torch.randn(size, *shape, generator=g, dtype=torch.float64) for shape in [*maps, maps[-1][:1]]]
        return Output(torch.empty(size, 0), drawn[-1], tuple(drawn[:-1]))

    student, teacher = draw(student_maps), draw(teacher_maps)
    for x in (student.feature, *student.maps):
        x.requires_grad_()
    return student, teacher


def signed(output):
    """Return the output with its maps as the signed ones, and no others."""
    return output._replace(maps=(), signed=output.maps)


def batch_of(size):
    return Batch(torch.empty(size, 0), torch.zeros(size).long(), torch.arange(size), torch.ones(size))


def gradients(value, student, loss):
    """Return gradients of the student's feature and maps and of the loss's parameters, samples weighted unequally."""
    weight = torch.arange(1.0, 1 + value.numel(), dtype=value.dtype).reshape(value.shape)
    inputs = [student.feature, *student.maps, *student.signed, *loss.parameters()]
    return torch.autograd.grad((weight * value).sum(), inputs, retain_graph=True, allow_unused=True)


def require_equal(actual, expected, student, loss):
    """Compare value and all gradients of the loss with the reference's, in float64."""
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-13)
    reached = 0
    for a, e in zip(gradients(actual, student, loss), gradients(expected, student, loss), strict=True):
        assert (a is None) == (e is None)
        if a is not None:
            torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-11)
            reached += int(e.abs().max() > 1e-6)
    assert reached > 0


def positions(x):
    return [(i, j) for i in range(x.shape[2]) for j in range(x.shape[3])]


def conv_loop(x, weight, bias=None, stride=1, padding=0):
    """Return the cross-correlation, one output value at a time."""
    width, channels, height, breadth = weight.shape
    samples = []
    for sample in x:
        rows = (sample.shape[1] + 2 * padding - height) // stride + 1
        columns = (sample.shape[2] + 2 * padding - breadth) // stride + 1
        values = []
        for o in range(width):
            for i in range(rows):
                for j in range(columns):
                    total = torch.zeros((), dtype=x.dtype) if bias is None else bias[o]
                    for u in range(height):
                        for v in range(breadth):
                            at, to = i * stride + u - padding, j * stride + v - padding
                            if 0 <= at < sample.shape[1] and 0 <= to < sample.shape[2]:
                                total = total + sum(sample[c, at, to] * weight[o, c, u, v] for c in range(channels))
                    values.append(total)
        samples.append(torch.stack(values).reshape(width, rows, columns))
    return torch.stack(samples)


def transposed_loop(x, weight, bias, stride=1, padding=0):
    """Return the transposed convolution: every input value writes its multiple of the kernel."""
    _, width, height, breadth = weight.shape
    rows = (x.shape[2] - 1) * stride - 2 * padding + height
    columns = (x.shape[3] - 1) * stride - 2 * padding + breadth
    samples = []
    for sample in x:
        sums = {(o, i, j): bias[o] for o in range(width) for i in range(rows) for j in range(columns)}
        for c in range(len(sample)):
            for i, j in positions(x):
                for o in range(width):
                    for u in range(height):
                        for v in range(breadth):
                            place = (o, i * stride - padding + u, j * stride - padding + v)
                            if place in sums:
                                sums[place] = sums[place] + sample[c, i, j] * weight[c, o, u, v]
        samples.append(torch.stack(list(sums.values())).reshape(width, rows, columns))
    return torch.stack(samples)


def norm_loop(x, weight, bias, statistics=None):
    """Normalise each channel by the batch's mean and biased variance or by given ones."""
    channels = []
    for c in range(x.shape[1]):
        values = [x[b, c, i, j] for b in range(len(x)) for i, j in positions(x)]
        if statistics is None:
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
        else:
            mean, variance = statistics[0][c], statistics[1][c]
        channels.append((x[:, c] - mean) / (variance + 1e-5).sqrt() * weight[c] + bias[c])
    return torch.stack(channels, dim=1)


def rectify(x, slope=0.0):
    """Return values above 0 as they are, others times the slope."""
    return torch.where(x > 0, x, slope * x)


def pool_loop(x, size):
    """Return means over equal windows: [B, C, H, W] -> [B, C, size, size], H and W multiples of the size."""
    step = x.shape[2] // size
    assert step * size == x.shape[2] == x.shape[3]
    rows = []
    for i in range(size):
        row = []
        for j in range(size):
            window = [x[:, :, i * step + u, j * step + v] for u in range(step) for v in range(step)]
            row.append(sum(window) / len(window))
        rows.append(torch.stack(row, dim=2))
    return torch.stack(rows, dim=2)


def pool_both_loop(a, b):
    size = min(a.shape[2], b.shape[2])
    return pool_loop(a, size), pool_loop(b, size)
