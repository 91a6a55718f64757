"""CRD against float64 references written from its equations with plain loops."""

import math

import pytest
import torch
from crd_reference import (
    FEAT_DIM,
    LABELS,
    STUDENT_DIM,
    Reference,
    build,
    features,
    generator,
    nce_loop,
    next_draw,
    relative,
    step,
)

from kd.batch import LossContext, Output
from kd.losses.crd import CRD, infonce_loss, nce_loss

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
    """The same as with embeddings that are the identity, and only the student learns."""
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
