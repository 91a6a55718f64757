"""One epoch of inversion against a naive one that draws the same random numbers; the adversarial term."""

from dataclasses import replace

import pytest
import torch
from naive_inversion import AUGMENT, MODULATING, SIZE, Naive, World, relative


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


# --- precision ---


@pytest.mark.parametrize(("precision", "dtype"), [("float32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_is_that_of_the_three_networks_and_of_nothing_else(precision, dtype):
    world, seen = World(precision=precision), set()
    for module in (world.source.inner.body[2], world.source.inner.first, world.teacher.conv2, world.student.conv2):
        module.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    made = world.epoch()
    assert seen == {dtype}
    kept = [made.phi, made.confidence, *made.losses.values(), *sum(world.source.past, ())]
    kept += [p.grad for p in world.generator.parameters()]
    assert {value.dtype for value in kept} == {torch.float32}


def test_a_bf16_epoch_stays_close_to_the_naive_one():
    world = World(precision="bf16", steps=1)
    naive = Naive(world)
    made = world.epoch()
    naive.epoch()
    assert made.losses["loss"].item() == pytest.approx(naive.steps[0][0], rel=0.01)
    actual = torch.cat([p.grad.flatten() for p in world.generator.parameters()])
    wanted = torch.cat([gradient.flatten() for gradient in naive.gradients])
    assert 1e-4 < relative(actual, wanted) < 0.1


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


def learned_world(**settings):
    """A world whose source knows a schedule of ten epochs with a learning rate that falls in a straight line."""
    return World(epochs=10, relative_lr=lambda learned: 1 - learned / 10, **settings)


def test_the_adversary_begins_with_the_last_epoch_of_the_warm_up_and_ends_when_asked_to():
    for share, last in ((1.0, 9), (0.5, 4)):
        world = learned_world(adv_until=share)
        having = [learned for learned in range(-4, 10) if "adv" in world.learn(learned).losses]
        assert having == list(range(-1, last + 1))


def test_the_adversarial_weight_falls_with_the_learning_rate_where_asked_to():
    for follows in (False, True):
        world = learned_world(adv_with_lr=follows)
        for learned in (-1, 0, 6):
            terms = world.learn(learned).losses
            weight = 0.9 * (1 - max(0, learned) / 10 if follows else 1)
            torch.testing.assert_close(terms["loss"], 1.5 * terms["bn"] + 0.7 * terms["oh"] + weight * terms["adv"])


def test_images_come_in_the_first_part_of_the_training_where_asked_to():
    for share, last in ((1.0, 11), (0.45, 5)):  # of ten epochs after a warm-up of two
        world = learned_world(until=share, warmup=2)
        assert [epoch for epoch in range(12) if world.source.brings(epoch)] == list(range(last + 1))
