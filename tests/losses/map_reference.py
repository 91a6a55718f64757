"""What the tests of AT, SP, NST and KD-SVD share: maps, calls, and float64 loops written from the equations."""

import math

import torch

from kd.batch import Batch, LossContext, Output
from kd.losses.at import at
from kd.losses.kdsvd import kdsvd
from kd.losses.nst import nst
from kd.losses.objective import build_loss
from kd.losses.sp import sp

SIZE = 3
STEM = (2, 4, 4)
STUDENT = [STEM, (3, 4, 4), (5, 2, 2)]  # (C, H, W); the stem comes first
WIDER = [STEM, (4, 4, 4), (2, 2, 2)]  # other channels
LARGER = [STEM, (4, 4, 4), (2, 4, 4)]  # and another size in the second stage
SMALLER = [STEM, (4, 3, 3), (2, 2, 2)]
SAME_CHANNELS = [STEM, (3, 3, 3), (5, 4, 4)]

PER_SAMPLE = {"at": at, "nst": nst, "kdsvd": kdsvd}
ALL = PER_SAMPLE | {"sp": sp}


def maps(shapes, seed, size=SIZE):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def output(maps_):
    return Output(torch.empty(len(maps_[0]) if maps_ else SIZE, 0), torch.empty(0), tuple(maps_))


def call(loss, student, teacher, **settings):
    size = len(student[0]) if student else SIZE
    batch = Batch(torch.empty(size, 0), torch.zeros(size).long(), torch.arange(size), torch.ones(size))
    shapes = [tuple(tuple(map_.shape[1:]) for map_ in maps_) for maps_ in (student, teacher)]
    context = LossContext(1, 1, batch.labels, 2, torch.Generator(), *shapes)
    return build_loss(loss.__name__, context, **settings)(output(student), output(teacher), batch)


def assert_alike(loss, reference, student_shapes, teacher_shapes, **settings):
    """Compare value and gradients to all maps of the student, float64 to rounding and float32 nearly."""
    student, teacher = maps(student_shapes, 0), maps(teacher_shapes, 1)
    for map_ in student:
        map_.requires_grad_()
    actual, expected = call(loss, student, teacher, **settings), reference(student, teacher, **settings)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    weight = torch.arange(1.0, actual.numel() + 1, dtype=torch.float64).view_as(actual)
    gradients = torch.autograd.grad((weight * actual).sum(), student, materialize_grads=True)
    wanted = torch.autograd.grad((weight * expected).sum(), student, materialize_grads=True)
    for a, e in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5 * float(e.abs().max()))
    assert not gradients[0].any()  # of the stem
    assert gradients[-1].any()
    low = call(loss, [m.detach().float() for m in student], [m.float() for m in teacher], **settings)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), expected.detach(), rtol=1e-4, atol=1e-7)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def unit(values):
    length = sum(v * v for v in values).sqrt()
    return [v / length for v in values]


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def shrink(channel, height):
    """Return a square channel averaged over windows; they overlap where the sizes do not divide."""
    old = len(channel)
    window = [range(i * old // height, math.ceil((i + 1) * old / height)) for i in range(height)]
    return [mean(channel[y, x] for y in rows for x in columns) for rows in window for columns in window]


def channels(map_, height):
    """Return a sample's map [C, H, W] as C lists of its values at `height` x `height` positions."""
    return [shrink(channel, height) for channel in map_]


def stages(student, teacher):
    """Yield, sample by sample, the stages' channels of student and teacher at the smaller size."""
    for i in range(SIZE):
        yield [
            (channels(s[i], min(s.shape[2], t.shape[2])), channels(t[i], min(s.shape[2], t.shape[2])))
            for s, t in zip(student[1:], teacher[1:], strict=True)
        ]


def at_loop(student, teacher, p=2):
    def attention(sample):
        return unit([mean(c[n].abs() ** p for c in sample) for n in range(len(sample[0]))])

    return torch.stack(
        [
            sum(mean((a - b) ** 2 for a, b in zip(attention(s), attention(t), strict=True)) for s, t in sample)
            for sample in stages(student, teacher)
        ]
    )


def nst_loop(student, teacher):
    def kernel(first, second):
        return mean(dot(unit(a), unit(b)) ** 2 for a in first for b in second)

    return torch.stack(
        [sum(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t) for s, t in sample) for sample in stages(student, teacher)]
    )


def sp_loop(student, teacher):
    def similarity(map_):
        flat = [list(sample.flatten()) for sample in map_]
        return [unit([dot(a, b) for b in flat]) for a in flat]

    s, t = similarity(student[-1]), similarity(teacher[-1])
    return sum((t[i][j] - s[i][j]) ** 2 for i in range(SIZE) for j in range(SIZE)) / SIZE**2


def kdsvd_loop(student, teacher, k=1, chosen=None):
    """Use torch's singular vectors and their derivative; `chosen` collects which of the student's are nearest."""
    losses = []
    for i in range(SIZE):
        total, before = 0, None
        for s_map, t_map in zip(student[1:], teacher[1:], strict=True):
            (_, _, s_rows), (_, t_values, t_rows) = (
                torch.linalg.svd(m[i].flatten(1).T, full_matrices=False) for m in (s_map, t_map)
            )
            scales = unit(t_values[:k])
            pair = ([], [])
            for scale, t_row in zip(scales, t_rows[:k], strict=True):
                turned = -t_row if t_row.sum() < 0 else t_row
                cosines = [float(dot(s_row, turned).detach()) for s_row in s_rows[: k + 3]]
                nearest = max(range(len(cosines)), key=lambda j: abs(cosines[j]))
                if chosen is not None:
                    chosen.append(nearest)
                pair[0].append(scale * math.copysign(1, cosines[nearest]) * s_rows[nearest])
                pair[1].append(scale * turned)
            if before is not None:
                for j in range(k):
                    (s, t), (s_before, t_before) = (x[j] for x in pair), (x[j] for x in before)
                    for a in range(len(s)):
                        for b in range(len(s_before)):
                            r_s, r_t = ((-((x[a] - y[b]) ** 2) / 8).exp() for x, y in ((s, s_before), (t, t_before)))
                            total = total + (r_s - r_t) ** 2
            before = pair
        losses.append(total)
    return torch.stack(losses)
