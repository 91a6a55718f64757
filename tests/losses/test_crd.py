"""CRD against float64 references written from its equations with plain loops, and its state over training steps."""

import math

import pytest
import torch

from kd.batch import Batch, LossContext, Output
from kd.losses.crd import CRD, infonce_loss, nce_loss
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
    """One answer of the loss, [B]."""
    logits = torch.empty(len(index), 0)
    batch = Batch(logits, labels[index], index, torch.ones(len(index)))
    return crd(Output(logits, student), Output(logits, teacher), batch)


def next_draw(crd, index):
    """The positives and negatives that the next forward will use."""
    state = crd.generator.get_state()
    drawn = crd.draw(index)
    crd.generator.set_state(state)
    return drawn


def nce_loop(positive_score, negative_scores, num_negatives, num_samples, eps=1e-7):
    """The equation, term by term, in float64."""
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


# --- the formulas ---


@pytest.mark.parametrize(("num_negatives", "num_samples"), [(7, 50), (50, 7)])
def test_nce_equals_the_equation(num_negatives, num_samples):
    g = generator()
    positive = torch.rand(3, generator=g, dtype=torch.float64).requires_grad_()
    negatives = (torch.rand(3, num_negatives, generator=g, dtype=torch.float64) / 20).requires_grad_()
    actual = nce_loss(positive, negatives, num_negatives, num_samples)
    expected = nce_loop(positive, negatives, num_negatives, num_samples)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=0)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), (positive, negatives)),
        torch.autograd.grad(expected.sum(), (positive, negatives)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-11, atol=0)


def test_nce_gradcheck():
    g = generator()
    positive = torch.rand(2, generator=g, dtype=torch.float64).requires_grad_()
    negatives = torch.rand(2, 3, generator=g, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p, n: nce_loss(p, n, 3, 10), (positive, negatives))


def test_nce_in_float32_keeps_its_digits_at_16384_negatives():
    count, samples = 16384, 50_000
    scores = torch.empty(4, count).log_normal_(0, 1, generator=generator()) / samples
    scores[1] = 1.3 / samples  # equal scores: their rounding errors add up instead of cancelling
    positive = torch.tensor([1e-9, 1e-5, 1e-2, 1.0])
    noise = count / samples
    expected = -(positive.double() / (positive.double() + noise + 1e-7)).log()
    expected -= (noise / (scores.double() + noise + 1e-7)).log().sum(1)
    torch.testing.assert_close(nce_loss(positive, scores, count, samples).double(), expected, rtol=1e-6, atol=0)


def test_nce_of_scores_at_the_noise_level_has_its_closed_form():
    count, samples = 64, 1000  # every score 1/M: h = 1 / (1 + K)
    score = torch.full((1, count), 1 / samples, dtype=torch.float64)
    expected = math.log(1 + count) + count * math.log(1 + 1 / count)
    assert nce_loss(score[:, 0], score, count, samples).item() == pytest.approx(expected, rel=1e-4)  # eps


def test_infonce_is_cross_entropy_of_the_positive():
    g = generator()
    positive = torch.randn(3, generator=g, dtype=torch.float64).mul_(14).requires_grad_()
    negatives = torch.randn(3, 9, generator=g, dtype=torch.float64).mul_(14).requires_grad_()
    expected = torch.stack([sum(x.exp() for x in [p, *n]).log() - p for p, n in zip(positive, negatives, strict=True)])
    actual = infonce_loss(positive, negatives)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-12)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), (positive, negatives)),
        torch.autograd.grad(expected.sum(), (positive, negatives)),
        strict=True,
    ):
        torch.testing.assert_close(a, e, rtol=1e-7, atol=1e-12)


def test_infonce_of_equal_logits_is_the_log_of_their_number():
    logits = torch.full((2, 15), 3.0)
    torch.testing.assert_close(infonce_loss(logits[:, 0], logits), torch.full((2,), math.log(16)))


# --- the whole loss ---


@pytest.mark.formula("crd")
@pytest.mark.parametrize("estimator", ["nce", "infonce"])
@pytest.mark.parametrize(
    ("negatives_from", "positive"), [("other_classes", "exact"), ("other_classes", "relax"), ("other_indices", "exact")]
)
def test_three_steps_equal_the_reference(negatives_from, positive, estimator):
    crd = build(negatives_from=negatives_from, positive=positive, estimator=estimator, momentum=0.3)
    reference = Reference(crd)
    for seed, index in enumerate(torch.tensor([[0, 5, 9, 2], [7, 2, 4, 0], [1, 0, 11, 6]])):
        student, teacher = features(4, seed)
        student.requires_grad_()
        student64 = student.detach().double().requires_grad_()
        expected = reference.step(index, student64, teacher.double(), *next_draw(crd, index))
        actual = step(crd, index, student, teacher)
        assert relative(actual, expected) < 1e-6
        weight = torch.tensor([0.5, 1.0, 2.0, 3.0])  # as importance sampling weighs samples
        gradients = torch.autograd.grad((weight * actual).sum(), [student, *crd.parameters()])
        wanted = torch.autograd.grad((weight * expected).sum(), [student64, *reference.parameters.values()])
        for a, e in zip(gradients, wanted, strict=True):
            assert relative(a, e) < 1e-5
        for side, bank in reference.banks.items():
            assert relative(getattr(crd, f"{side}_bank"), bank) < 1e-6


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_float32_agrees_with_float64_at_16384_negatives_of_a_large_bank(estimator):
    labels = torch.arange(20_000) % 100
    crd = build(labels, feat_dim=128, negatives=16384, estimator=estimator)
    index = torch.tensor([3, 777, 19_999])
    student, teacher = features(3)
    student.requires_grad_()
    exact = build(labels, feat_dim=128, negatives=16384, estimator=estimator).double()
    exact.load_state_dict(crd.state_dict())
    exact.generator.set_state(crd.generator.get_state())
    _, negatives = next_draw(crd, index)

    def literal(anchor, bank):  # anchor by anchor, float64
        scores = torch.stack(
            [
                bank[[i, *rows]] @ a / crd.tau
                for a, i, rows in zip(anchor, index.tolist(), negatives.tolist(), strict=True)
            ]
        )
        if estimator == "infonce":
            return -scores.log_softmax(1)[:, 0]
        scores = scores.exp()
        scores = scores / (scores.mean().detach() * len(bank))
        noise = 16384 / len(bank)
        negative_terms = (noise / (scores[:, 1:] + noise + 1e-7)).log().sum(1)
        return -(scores[:, 0] / (scores[:, 0] + noise + 1e-7)).log() - negative_terms

    student64 = student.detach().double().requires_grad_()
    s, t = exact.project(Output(None, student64), Output(None, teacher.double()))
    expected = literal(s, exact.teacher_bank) + literal(t, exact.student_bank)
    actual = step(crd, index, student, teacher, labels)
    assert relative(actual, expected) < 1e-6
    gradients = torch.autograd.grad(actual.mean(), [student, *crd.parameters()])
    wanted = torch.autograd.grad(expected.mean(), [student64, *exact.parameters()])
    for a, e in zip(gradients, wanted, strict=True):
        assert relative(a, e) < 1e-5


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_contrast_gradcheck(estimator):
    crd = build(estimator=estimator, tau=0.5, negatives=6).double()
    crd.student_normaliser.fill_(9.0)
    anchor = torch.randn(3, FEAT_DIM, generator=generator(), dtype=torch.float64).requires_grad_()
    positive, negatives = crd.draw(torch.tensor([0, 2, 9]))
    positive[2] = negatives[2, 0]  # no draw does so, but the gradient must hold for any rows

    def contrast(anchor):
        bank = crd.teacher_bank
        return crd.contrast(anchor, bank[positive], bank, crd.student_normaliser, negatives)

    assert torch.autograd.gradcheck(contrast, anchor)


def test_only_the_embeddings_are_trainable():
    crd = build()
    assert {name for name, _ in crd.named_parameters()} == {
        f"{side}_embedding.{part}" for side in ("student", "teacher") for part in ("weight", "bias")
    }
    student, teacher = features(3)
    loss = step(crd, torch.tensor([0, 2, 9]), student, teacher)
    assert loss.shape == (3,)
    loss.mean().backward()
    assert all(p.grad.norm() > 0 for p in crd.parameters())


def test_training_the_embeddings_lowers_the_loss():
    crd = build(momentum=0.5)
    optimizer = torch.optim.SGD(crd.parameters(), lr=0.1)
    student, teacher = features(len(LABELS))
    index = torch.arange(len(LABELS))
    losses = []
    for _ in range(40):
        loss = step(crd, index, student, teacher).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_autocast_leaves_the_critic_in_float32():
    student, teacher = (x.bfloat16() for x in features(3))
    index = torch.tensor([0, 2, 9])
    expected = step(build(), index, student.float(), teacher.float())
    crd = build()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = step(crd, index, student.requires_grad_(), teacher)
    actual.mean().backward()
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert student.grad.dtype == torch.bfloat16
    assert crd.student_bank.dtype == torch.float32


# --- the queue ---


class QueueReference:
    """The same contrast against lists of past embeddings, in float64 and one scalar product at a time."""

    def __init__(self, crd, labels):
        self.labels = labels
        self.inner = Reference(crd)
        self.rows, self.length = {side: [] for side in self.inner.banks}, crd.negatives

    def step(self, index, student, teacher):
        anchors = {"student": self.inner.project("student", student), "teacher": self.inner.project("teacher", teacher)}
        for side, rows in self.rows.items():
            rows += [(anchor.detach(), int(self.labels[i])) for anchor, i in zip(anchors[side], index, strict=True)]
            del rows[: -self.length]
        total = 0
        for side, other in (("student", "teacher"), ("teacher", "student")):
            positives = [torch.dot(a, b.detach()) for a, b in zip(anchors[side], anchors[other], strict=True)]
            negatives = [
                [torch.dot(a, row) for row, group in self.rows[other] if group != self.labels[i]]
                for a, i in zip(anchors[side], index.tolist(), strict=True)
            ]
            total = total + self.loss(side, positives, negatives)
        return total

    def loss(self, side, positives, negatives):
        tau, inner = self.inner.tau, self.inner
        if inner.estimator == "infonce":
            values = [
                (sum((n / tau).exp() for n in row) + (p / tau).exp()).log() - p / tau
                for p, row in zip(positives, negatives, strict=True)
            ]
            return torch.stack(values)
        flat = [(x / tau).exp().item() for p, row in zip(positives, negatives, strict=True) for x in [p, *row]]
        size = len(self.labels)
        z = inner.z.setdefault(side, sum(flat) / len(flat) * size)
        values = []
        for p, row in zip(positives, negatives, strict=True):
            scores = torch.stack([(n / tau).exp() / z for n in row])
            values.append(nce_loop(((p / tau).exp() / z)[None], scores[None], len(row), size)[0])
        return torch.stack(values)


@pytest.mark.formula("crd")
@pytest.mark.parametrize("negatives_from", ["other_classes", "other_indices"])
@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_queue_equals_lists_of_past_embeddings(estimator, negatives_from):
    """Seven entries and batches of three: the queue is full after three steps and its oldest entries give way."""
    crd = build(memory="queue", negatives=7, estimator=estimator, negatives_from=negatives_from)
    groups = LABELS if negatives_from == "other_classes" else torch.arange(len(LABELS))
    reference = QueueReference(crd, groups)
    for number in range(5):
        student, teacher = features(3, seed=number)
        index = torch.tensor([[0, 2, 9], [1, 3, 4], [5, 6, 7], [0, 2, 9], [8, 10, 11]][number])
        student64, teacher64 = student.double().requires_grad_(), teacher.double()
        student.requires_grad_()
        expected = reference.step(index, student64, teacher64)
        actual = step(crd, index, student, teacher)
        assert relative(actual.detach(), expected.detach()) < 1e-5
        (gradient,) = torch.autograd.grad(actual.mean(), student)
        (wanted,) = torch.autograd.grad(expected.mean(), student64)
        assert relative(gradient, wanted) < 1e-5


def test_queue_does_not_grow_with_the_data_and_takes_the_last_of_a_large_batch():
    crd = build(torch.arange(500) % 5, memory="queue", negatives=4)
    assert crd.student_bank.shape == crd.teacher_bank.shape == (4, FEAT_DIM)
    index = torch.arange(10, 16)
    student, teacher = features(6)
    step(crd, index, student, teacher, torch.arange(500) % 5)
    projected, _ = crd.project(Output(None, student), Output(None, teacher))
    for number in range(2, 6):  # the last four of six
        torch.testing.assert_close(crd.student_bank[number % 4], projected[number])
    assert int(crd.queue_next) == 2


def test_no_entry_of_a_queue_counts_before_it_holds_an_embedding():
    """A queue far longer than what has been seen gives what one of just that length does."""
    losses = []
    for length in (6, 1000):
        crd = build(memory="queue", negatives=length)
        losses.append([step(crd, torch.tensor(index), *features(3, seed=index[0])) for index in ([0, 2, 9], [1, 3, 4])])
        assert int((crd.queue_group >= 0).sum()) == 6
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_a_queue_without_negatives_gives_finite_gradients(estimator):
    crd = build(memory="queue", negatives=2, estimator=estimator)
    index = torch.tensor([2, 3])  # both of class 1
    for _ in range(2):
        student, teacher = features(2)
        loss = step(crd, index, student.requires_grad_(), teacher)
        loss.mean().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()
    assert crd.logged["bound"].isfinite()


# --- large banks, and the bound ---


@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_a_bank_too_large_for_the_product_gives_the_same(estimator, monkeypatch):
    results = []
    for limits in ((2**28, 2**24), (1, 3 * FEAT_DIM * 6)):  # at once; in pieces of six negatives, the last of two
        monkeypatch.setattr("kd.losses.crd.FULL_PRODUCT", limits[0])
        monkeypatch.setattr("kd.losses.crd.CHUNK", limits[1])
        crd, losses = build(estimator=estimator), []
        student, teacher = features(3)
        student.requires_grad_()
        for _ in range(2):
            losses.append(step(crd, torch.tensor([0, 2, 9]), student, teacher))
        results.append((torch.stack(losses), torch.autograd.grad(torch.stack(losses).sum(), student)[0]))
    for whole, pieces in zip(*results, strict=True):
        torch.testing.assert_close(pieces, whole, rtol=1e-5, atol=1e-6)


def test_the_bound_is_log_k_minus_the_mean_loss_of_a_side():
    crd = build(estimator="infonce")
    loss = step(crd, torch.tensor([0, 2, 9]), *features(3))
    assert crd.logged["bound"].item() == pytest.approx(math.log(20) - loss.mean().item() / 2, rel=1e-6)


def test_the_bound_of_a_queue_counts_the_negatives_that_it_offers():
    crd = build(estimator="infonce", memory="queue", negatives=8)
    for index in ([0, 1, 2, 3], [4, 5, 6, 7]):
        step(crd, torch.tensor(index), *features(4))
    index = torch.tensor([0, 2, 9])
    loss = step(crd, index, *features(3))
    entries = [*(int(LABELS[i]) for i in (3, 4, 5, 6, 7)), *(int(LABELS[i]) for i in index)]  # the last eight
    offered = [sum(entry != LABELS[i] for entry in entries) for i in index]
    assert len(set(offered)) > 1
    expected = math.log(sum(offered) / 3) - loss.mean().item() / 2
    assert crd.logged["bound"].item() == pytest.approx(expected, rel=1e-6)


# --- without an embedding ---


def test_without_embedding_the_normalised_features_are_contrasted():
    """As with embeddings that are the identity, and nothing beside the student learns."""
    context = LossContext(STUDENT_DIM, STUDENT_DIM, LABELS, 4, generator())
    bare = CRD(context, embedding="none", feat_dim=99, negatives=20)
    assert list(bare.parameters()) == []
    assert bare.student_bank.shape == (len(LABELS), STUDENT_DIM)
    linear = CRD(context, feat_dim=STUDENT_DIM, negatives=20)
    with torch.no_grad():
        for layer in (linear.student_embedding, linear.teacher_embedding):
            layer.weight.copy_(torch.eye(STUDENT_DIM))
            layer.bias.zero_()
    linear.load_state_dict(bare.state_dict(), strict=False)
    student, teacher = (features(3, seed)[0] for seed in (1, 2))
    student.requires_grad_()
    losses = []
    for crd in (bare, linear):
        crd.generator.manual_seed(5)
        losses.append(step(crd, torch.tensor([0, 2, 9]), student, teacher))
    torch.testing.assert_close(losses[0], losses[1])
    gradients = [torch.autograd.grad(loss.sum(), student)[0] for loss in losses]
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_features_of_unlike_widths_need_an_embedding():
    with pytest.raises(ValueError, match=r"crd: embedding must be linear for features of unlike widths \(5, 6\)"):
        build(embedding="none")


# --- positives and negatives ---


def within_chi_square(draws, allowed):
    """Whether draws are uniform over `allowed`: the statistic within 6 of its standard deviations, and none outside."""
    counts = torch.bincount(draws.flatten(), minlength=int(max(allowed)) + 1).double()
    expected = draws.numel() / len(allowed)
    freedom = len(allowed) - 1
    statistic = float(((counts[allowed] - expected) ** 2).sum() / expected)
    return counts[allowed].sum() == draws.numel() and abs(statistic - freedom) < 6 * math.sqrt(2 * freedom)


def test_supervised_negatives_are_uniform_over_all_other_classes():
    labels = torch.randint(0, 7, (200,), generator=generator())
    crd = build(labels, negatives=20_000)
    index = torch.arange(0, 200, 11)
    positive, negatives = crd.draw(index)
    assert torch.equal(positive, index)
    assert negatives.shape == (len(index), 20_000)
    assert (labels[negatives] != labels[index][:, None]).all()
    for i, drawn in zip(index, negatives, strict=True):
        assert within_chi_square(drawn, (labels != labels[i]).nonzero().squeeze(1))


def test_unsupervised_negatives_are_uniform_over_all_other_indices():
    crd = build(LABELS, negatives=20_000, negatives_from="other_indices")
    index = torch.arange(len(LABELS))
    positive, negatives = crd.draw(index)
    assert torch.equal(positive, index)
    for i, drawn in zip(index, negatives, strict=True):
        assert within_chi_square(drawn, index[index != i])


def test_relaxed_positive_is_uniform_over_its_class():
    crd = build(positive="relax", negatives=1)
    for i in range(len(LABELS)):
        positive, _ = crd.draw(torch.full((6000,), i))
        same = (LABELS[i] == LABELS).nonzero().squeeze(1)
        assert (LABELS[positive] == LABELS[i]).all()
        assert len(same) == 1 or within_chi_square(positive, same)


def test_chi_square_bound_refuses_a_skewed_draw():
    allowed = torch.arange(10)
    skewed = torch.cat([allowed.repeat(2000), torch.zeros(400, dtype=torch.int64)])
    assert not within_chi_square(skewed, allowed)


def test_two_classes_draw_all_negatives_from_the_other():
    labels = torch.tensor([1, 0, 0, 0, 0])
    _, negatives = build(labels, negatives=500).draw(torch.tensor([0, 1]))
    assert set(negatives[0].tolist()) == {1, 2, 3, 4}
    assert set(negatives[1].tolist()) == {0}


def test_classes_without_samples_are_no_obstacle():
    labels = torch.tensor([5, 2, 2, 5])
    _, negatives = build(labels, negatives=100).draw(torch.tensor([0, 1]))
    assert set(negatives[0].tolist()) == {1, 2}
    assert set(negatives[1].tolist()) == {0, 3}


def test_draws_are_fresh_in_every_step_and_row():
    crd = build(negatives=50)
    index = torch.tensor([0, 0])
    first, second = crd.draw(index)[1], crd.draw(index)[1]
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


# --- state ---


def test_banks_start_uniform_in_their_range():
    crd = build(torch.arange(500) % 3)
    bound = 1 / math.sqrt(FEAT_DIM / 3)
    for bank in (crd.student_bank, crd.teacher_bank):
        assert bank.shape == (500, FEAT_DIM)
        assert bank.abs().max() <= bound
        assert bank.max() > 0.99 * bound
        assert bank.min() < -0.99 * bound
        assert bank.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    assert not torch.equal(crd.student_bank, crd.teacher_bank)


def test_normaliser_is_set_by_the_first_batch_only():
    crd = build()
    index = torch.tensor([0, 2, 9])
    student, teacher = features(3)
    reference = Reference(crd)
    reference.step(index, student.double(), teacher.double(), *next_draw(crd, index))
    assert crd.student_normaliser == 0
    step(crd, index, student, teacher)
    first = {side: getattr(crd, f"{side}_normaliser").clone() for side in ("student", "teacher")}
    for side, z in first.items():
        assert z.item() == pytest.approx(reference.z[side], rel=1e-6)
    assert first["student"] != first["teacher"]
    step(crd, index, *features(3, seed=2))
    for side, z in first.items():
        assert torch.equal(getattr(crd, f"{side}_normaliser"), z)


def test_update_normalises_the_rows_of_the_batch_and_leaves_the_others():
    crd = build()
    before = {side: getattr(crd, f"{side}_bank").clone() for side in ("student", "teacher")}
    index = torch.tensor([0, 2, 9])
    step(crd, index, *features(3))
    others = torch.tensor([i not in index for i in range(len(LABELS))])
    for side, old in before.items():
        bank = getattr(crd, f"{side}_bank")
        torch.testing.assert_close(bank[index].norm(dim=1), torch.ones(3))
        assert ((bank[index] - old[index]).norm(dim=1) > 1e-3).all()
        assert torch.equal(bank[others], old[others])


def test_repeated_index_takes_its_last_embedding():
    index = torch.tensor([4, 7, 4, 4, 7])
    student, teacher = features(5)
    crd = build()
    reference = Reference(crd)  # writes row after row from the old bank, so that the last one stays
    expected = reference.step(index, student.double(), teacher.double(), *next_draw(crd, index))
    assert relative(step(crd, index, student, teacher), expected) < 1e-6
    for side, bank in reference.banks.items():
        assert relative(getattr(crd, f"{side}_bank"), bank) < 1e-6


def test_repeated_index_does_not_depend_on_the_order_of_the_writes(monkeypatch):
    index = torch.tensor([4, 7, 4, 4, 7])
    forwards, backwards = build(), build()
    step(forwards, index, *features(5))
    index_copy = torch.Tensor.index_copy_
    monkeypatch.setattr(
        torch.Tensor, "index_copy_", lambda self, dim, at, rows: index_copy(self, dim, at.flip(0), rows.flip(0))
    )  # as a parallel device might
    step(backwards, index, *features(5))
    assert torch.equal(forwards.student_bank, backwards.student_bank)
    assert torch.equal(forwards.teacher_bank, backwards.teacher_bank)


def run(crd, steps=3):
    losses = []
    for seed in range(steps):
        index = torch.randperm(len(LABELS), generator=generator(seed))[:4]
        losses.append(step(crd, index, *features(4, seed)).detach())
    return torch.stack(losses)


def test_generator_is_the_only_source_of_randomness():
    settings = {"positive": "relax"}
    before = torch.get_rng_state()
    first = run(build(seed=3, **settings))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(run(build(seed=3, **settings)), first)
    assert not torch.equal(run(build(seed=4, **settings)), first)


@pytest.mark.parametrize("memory", ["bank", "queue"])
@pytest.mark.parametrize("estimator", ["nce", "infonce"])
def test_resumed_run_continues_exactly(estimator, memory):
    crd = build(estimator=estimator, memory=memory)
    run(crd)
    state = {key: value.clone() for key, value in crd.state_dict().items()}
    random_state = crd.generator.get_state()
    resumed = build(seed=99, estimator=estimator, memory=memory)
    resumed.load_state_dict(state)
    resumed.generator.set_state(random_state)
    assert torch.equal(run(resumed), run(crd))
    for key, value in crd.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value)
    unresumed = build(seed=99, estimator=estimator, memory=memory)
    unresumed.generator.set_state(random_state)
    assert not torch.equal(run(unresumed), run(resumed))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feat_dim": 0}, "feat_dim must be at least 1; got 0"),
        ({"negatives": 0}, "negatives must be at least 1; got 0"),
        ({"tau": 0.0}, r"tau must be above 0; got 0\.0"),
        ({"momentum": 1.0}, r"momentum must be at least 0 and below 1; got 1\.0"),
        ({"momentum": -0.1}, r"momentum must be at least 0 and below 1; got -0\.1"),
        ({"negatives_from": "all"}, "negatives_from must be one of other_classes, other_indices; got 'all'"),
        ({"positive": "near"}, "positive must be one of exact, relax; got 'near'"),
        ({"estimator": "mine"}, "estimator must be one of nce, infonce; got 'mine'"),
        ({"memory": "disk"}, "memory must be one of bank, queue; got 'disk'"),
        ({"memory": "queue", "positive": "relax"}, "positive must be exact when memory is queue; got 'relax'"),
        (
            {"positive": "relax", "negatives_from": "other_indices"},
            "positive must be exact when negatives_from is other_indices; got 'relax'",
        ),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build(**settings)


def test_training_set_without_negatives_is_refused():
    with pytest.raises(ValueError, match=r"other_classes .*\(4 samples\) must hold at least two classes"):
        build(torch.full((4,), 2))
    with pytest.raises(ValueError, match=r"other_indices .*\(1 samples\) must hold at least two indices"):
        build(torch.tensor([0]), negatives_from="other_indices")
    build(torch.full((4,), 2), negatives_from="other_indices")
