"""What the tests of CRD share: the loss at a small size, and a float64 reference written from the paper with loops."""

import torch

from kd.batch import Batch, LossContext, Output
from kd.losses.objective import build_loss

STUDENT_DIM, TEACHER_DIM, FEAT_DIM = 5, 6, 8
LABELS = torch.tensor([2, 0, 1, 1, 2, 0, 1, 1, 1, 3, 1, 0])  # unequal classes, in no order


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(labels=LABELS, seed=0, **settings):
    context = LossContext(STUDENT_DIM, TEACHER_DIM, labels, int(labels.max()) + 1, generator(seed))
    return build_loss("crd", context, **{"feat_dim": FEAT_DIM, "negatives": 20} | settings)


def features(size, seed=1):
    g = generator(seed)
    return torch.randn(size, STUDENT_DIM, generator=g), torch.randn(size, TEACHER_DIM, generator=g)


def step(crd, index, student, teacher, labels=LABELS):
    """Return the loss of one batch, [B]."""
    logits = torch.empty(len(index), 0)
    batch = Batch(logits, labels[index], index, torch.ones(len(index)))
    return crd(Output(logits, student), Output(logits, teacher), batch)


def next_draw(crd, index):
    """Return the positives and negatives that the next forward will use."""
    state = crd.generator.get_state()
    drawn = crd.draw(index)
    crd.generator.set_state(state)
    return drawn


def nce_loop(positive_score, negative_scores, num_negatives, num_samples, eps=1e-7):
    """Return the equation's value, term by term, in float64."""
    noise = num_negatives / num_samples
    values = []
    for positive, negatives in zip(positive_score, negative_scores, strict=True):
        value = -(positive / (positive + noise + eps)).log()
        for negative in negatives:
            value = value - (noise / (negative + noise + eps)).log()
        values.append(value)
    return torch.stack(values)


class Reference:
    """CRD as the paper tells it, in float64 and one scalar product at a time."""

    def __init__(self, crd):
        state = {key: value.double() for key, value in crd.state_dict().items()}
        self.parameters = {name: state[name].requires_grad_() for name, _ in crd.named_parameters()}
        self.banks = {side: state[f"{side}_bank"] for side in ("student", "teacher")}
        self.z = {}
        self.tau, self.momentum, self.estimator = crd.tau, crd.momentum, crd.estimator

    def project(self, side, feature):
        weight, bias = self.parameters[f"{side}_embedding.weight"], self.parameters[f"{side}_embedding.bias"]
        rows = [weight @ x + bias for x in feature]
        return [row / (row * row).sum().sqrt() for row in rows]

    def side(self, side, anchors, bank, positive, negatives):
        scores = [
            [torch.dot(a, bank[j]) / self.tau for j in [p, *n]]
            for a, p, n in zip(anchors, positive.tolist(), negatives.tolist(), strict=True)
        ]
        if self.estimator == "infonce":
            return torch.stack([sum(x.exp() for x in row).log() - row[0] for row in scores])
        scores = [[x.exp() for x in row] for row in scores]
        flat = [x.item() for row in scores for x in row]
        self.z.setdefault(side, sum(flat) / len(flat) * len(bank))
        scores = torch.stack([torch.stack(row) for row in scores]) / self.z[side]
        return nce_loop(scores[:, 0], scores[:, 1:], negatives.shape[1], len(bank))

    def step(self, index, student, teacher, positive, negatives):
        anchors = {"student": self.project("student", student), "teacher": self.project("teacher", teacher)}
        loss = self.side("student", anchors["student"], self.banks["teacher"], positive, negatives)
        loss = loss + self.side("teacher", anchors["teacher"], self.banks["student"], positive, negatives)
        for side, bank in self.banks.items():
            rows = list(bank)
            for i, anchor in zip(index.tolist(), anchors[side], strict=True):
                row = self.momentum * bank[i] + (1 - self.momentum) * anchor.detach()
                rows[i] = row / (row * row).sum().sqrt()
            self.banks[side] = torch.stack(rows)  # a new one: autograd still needs the old
        return loss


def relative(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()
