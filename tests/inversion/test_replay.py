"""The replay buffer against slow lists and float64 formulas: what it holds, what it draws, and how priorities move."""

import io
import math
from dataclasses import replace

import pytest
import torch

from kd.inversion.replay import Drawn, ReplayBuffer
from kd.settings.shapes import Replay

CLASSES = 6
SETTINGS = Replay(
    full_size=None,
    replacement="oldest",
    initial_priority="phi",
    alpha=0.6,
    beta=0.4,
    final_beta=None,
    eps=1e-6,
    priority_feedback=True,
    normalise_weights=True,
    refresh="drawn",
)
POLICIES = ("oldest", "lowest", "random")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def build(capacity=20, **settings):
    return ReplayBuffer(capacity, (1, 2, 2), CLASSES, replace(SETTINGS, **settings), torch.device("cpu"))


class Source:
    """Samples with numbers: the image spells the number, class and phi follow from it, so that mix-ups show."""

    def __init__(self, seed=0):
        self.made = 0
        self.random = generator(seed)
        self.classes, self.phi = [], []

    def take(self, count):
        numbers = torch.arange(self.made, self.made + count)
        classes = torch.randint(CLASSES, (count,), generator=self.random)
        phi = torch.rand(count, generator=self.random) + 0.01
        self.made += count
        self.classes += classes.tolist()
        self.phi += phi.tolist()
        pixels = torch.stack([numbers // 256, numbers % 256, numbers % 256, 255 - numbers % 256], 1)
        return pixels.view(count, 1, 2, 2).to(torch.uint8), classes, phi


def numbers(buffer):
    """The numbers of the stored samples, by slot; checks that image, class and count belong together."""
    pixels = buffer.images[: buffer.size].view(buffer.size, 4).long()
    return (256 * pixels[:, 0] + pixels[:, 1]).tolist()


def check(buffer, source):
    """What holds after every `add`."""
    stored = numbers(buffer)
    assert buffer.size == len(stored) <= buffer.capacity
    assert len(set(stored)) == buffer.size
    assert buffer.classes[: buffer.size].tolist() == [source.classes[number] for number in stored]
    assert torch.equal(buffer.class_counts, torch.bincount(buffer.classes[: buffer.size], minlength=CLASSES))


def filled(priority, **settings):
    """A buffer with the given priorities, none of which came from the student."""
    buffer = build(len(priority), **settings)
    images, classes, _ = Source().take(len(priority))
    buffer.add(images, classes, torch.as_tensor(priority, dtype=torch.float32), generator())
    return buffer


# --- what is stored ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("initial_priority", ["phi", "max"])
def test_size_classes_and_counts_stay_right_through_many_adds(policy, initial_priority):
    sizes = torch.randint(1, 30, (150,), generator=generator(1)).tolist()  # often larger than what is left, or than all
    buffer, source = build(20, replacement=policy, initial_priority=initial_priority), Source()
    seen_partial = False
    for step, count in enumerate([3, 9, 30, *sizes]):
        before = buffer.size
        batch = source.take(count)
        first = source.made - count
        buffer.add(*batch, generator(step))
        check(buffer, source)
        assert buffer.size == min(20, before + count)
        assert set(range(first, first + min(count, 20))) <= set(numbers(buffer))  # all new samples are there
        seen_partial |= before < 20 < before + count
        if step % 7 == 0:
            drawn = buffer.sample(5, generator(step))
            buffer.update_priority(drawn, torch.rand(5, generator=generator(step)))
    assert seen_partial


@pytest.mark.parametrize("policy", POLICIES)
def test_of_a_batch_larger_than_the_buffer_the_first_samples_are_stored(policy):
    buffer, source = build(8, replacement=policy), Source()
    for _ in range(3):
        first = source.made
        buffer.add(*source.take(11), generator())
        check(buffer, source)
        assert set(numbers(buffer)) == set(range(first, first + 8))


def test_oldest_is_first_in_first_out():
    for seed in range(10):  # each fills its buffer once, with another remainder
        buffer, source, queue = build(20), Source(), []
        for count in torch.randint(1, 13, (30,), generator=generator(seed)).tolist():
            first = source.made
            buffer.add(*source.take(count), generator())
            queue = [*queue, *range(first, first + count)][-20:]
            assert set(numbers(buffer)) == set(queue)
            check(buffer, source)


@pytest.mark.parametrize("fill", [20, 13])
@pytest.mark.parametrize("count", [1, 7, 15, 20])
def test_lowest_replaces_exactly_the_lowest_priorities(fill, count):
    buffer, source = build(20, replacement="lowest"), Source()
    buffer.add(*source.take(fill), generator())
    buffer.priority[:fill] = torch.randperm(fill, generator=generator(3)).float()  # as the student might set them
    ranked = sorted(range(fill), key=lambda number: buffer.priority[number].item())
    buffer.add(*source.take(count), generator())
    replaced = max(0, fill + count - 20)
    assert set(numbers(buffer)) == set(ranked[replaced:]) | set(range(fill, fill + count))


def test_random_replaces_every_stored_sample_equally_often():
    gone = torch.zeros(20)
    for seed in range(400):
        buffer, source = build(20, replacement="random"), Source()
        buffer.add(*source.take(20), generator())
        buffer.add(*source.take(5), generator(seed))
        stored = numbers(buffer)
        assert len(set(stored)) == 20
        assert {20, 21, 22, 23, 24} <= set(stored)
        gone += torch.tensor([float(number not in stored) for number in range(20)])
    # each of 400 trials removes 5 of 20: mean 100, variance 75
    assert ((gone - 100).abs() < 5 * math.sqrt(75)).all()


def test_class_share_counts_the_stored_samples():
    buffer = build(20)
    classes = torch.tensor([0, 0, 0, 3, 5])
    assert torch.equal(buffer.class_share(torch.tensor([0, 1])), torch.zeros(2))
    buffer.add(Source().take(5)[0], classes, torch.ones(5), generator())
    torch.testing.assert_close(buffer.class_share(torch.tensor([0, 3, 1, 0])), torch.tensor([0.6, 0.2, 0.0, 0.6]))


# --- the priority of a new sample ---


def test_new_samples_enter_with_their_phi():
    buffer, source = build(20), Source()
    for count in (12, 12, 5):
        buffer.add(*source.take(count), generator())
    expected = torch.tensor([source.phi[number] for number in numbers(buffer)])
    assert torch.equal(buffer.priority, expected)


def test_new_samples_enter_with_the_largest_priority():
    buffer, source = build(20, initial_priority="max"), Source()
    buffer.add(*source.take(8), generator())
    assert torch.equal(buffer.priority[:8], torch.ones(8))
    buffer.priority[:8] = torch.tensor([0.5, 3.0, 0.1, 7.5, 0.2, 0.2, 0.2, 0.2])
    buffer.add(*source.take(4), generator())
    assert torch.equal(buffer.priority[8:12], torch.full((4,), 7.5))


# --- probabilities and weights ---

PRIORITY = [0.0, 1e-7, 0.02, 0.5, 0.5, 1.0, 3.0, 40.0]


@pytest.mark.parametrize("alpha", [0.0, 0.4, 0.6, 1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_probabilities_and_weights_are_their_formulas(alpha, beta):
    buffer = filled(PRIORITY, alpha=alpha, beta=beta, eps=1e-3)
    powers = [(float(torch.tensor(value)) + 1e-3) ** alpha for value in PRIORITY]
    expected = torch.tensor([power / sum(powers) for power in powers], dtype=torch.float64)
    probabilities = buffer.probabilities()
    torch.testing.assert_close(probabilities, expected, rtol=1e-9, atol=0)
    weights = torch.tensor([(8 * value) ** -beta for value in expected.tolist()], dtype=torch.float64)
    torch.testing.assert_close(buffer.weights(probabilities), weights, rtol=1e-9, atol=0)
    if alpha == 0:
        torch.testing.assert_close(probabilities, torch.full_like(probabilities, 1 / 8))
    if beta == 0 or alpha == 0:
        torch.testing.assert_close(buffer.weights(probabilities), torch.ones(8, dtype=torch.float64))


def test_only_slots_in_use_are_drawn_from():
    buffer = build(20, beta=1.0)
    images, classes, _ = Source().take(3)
    buffer.add(images, classes, torch.tensor([1.0, 2.0, 5.0]), generator())
    powers = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).add(1e-6) ** 0.6
    torch.testing.assert_close(buffer.probabilities(), powers / powers.sum(), rtol=1e-9, atol=0)
    torch.testing.assert_close(buffer.weights(buffer.probabilities()), powers.sum() / powers / 3)
    assert set(buffer.sample(500, generator()).index.tolist()) == {0, 1, 2}
    assert buffer.everything().index.tolist() == [0, 1, 2]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_draws_follow_the_probabilities(alpha):
    buffer = filled([0.5, 0.1, 3.0, 0.0, 0.7, 0.7, 9.0], alpha=alpha, eps=0.05)
    draws = buffer.sample(30_000, generator(5)).index
    expected = 30_000 * buffer.probabilities()
    counts = torch.bincount(draws, minlength=7).double()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert abs(statistic - 6) < 6 * math.sqrt(2 * 6)


def test_sample_that_cannot_be_drawn_is_not_drawn():
    buffer = filled([0.0, 1.0, 0.0, 1.0, 0.0], alpha=1.0, eps=0.0)
    assert set(buffer.sample(2000, generator()).index.tolist()) == {1, 3}


def test_draws_come_from_the_generator_alone():
    buffer = filled(PRIORITY)
    before = torch.get_rng_state()
    first = buffer.sample(50, generator(1)).index
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(buffer.sample(50, generator(1)).index, first)
    assert not torch.equal(buffer.sample(50, generator(2)).index, first)


def test_loss_weights_are_divided_by_the_largest_one_drawn():
    plain, scaled = (filled(PRIORITY, normalise_weights=on) for on in (False, True))
    for draw in range(5):
        drawn = plain.sample(6, generator(draw))
        expected = plain.weights(plain.probabilities())[drawn.index].float()
        torch.testing.assert_close(drawn.weight, expected)
        same = scaled.sample(6, generator(draw))
        assert torch.equal(same.index, drawn.index)
        torch.testing.assert_close(same.weight, expected / expected.max())
        assert same.weight.max() == 1
        assert same.weight.dtype == torch.float32


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_importance_weights_remove_the_bias_of_priority_sampling(alpha):
    priority = torch.linspace(0.2, 3, 40)
    buffer = filled(priority, alpha=alpha, beta=1.0, normalise_weights=False)
    f = priority.double() ** 2
    drawn = buffer.sample(60_000, generator(4))
    weighted = drawn.weight.double() * f[drawn.index]
    error = weighted.std() / math.sqrt(60_000)
    assert abs(weighted.mean() - f.mean()) < 4 * error
    if alpha:
        assert abs(f[drawn.index].mean() - f.mean()) > 40 * error  # unweighted, the bias is plain to see


# --- priorities from the student ---


def test_priority_is_the_divergence_at_first_and_then_weighted_by_the_last_weight():
    buffer = filled(PRIORITY, alpha=0.7, beta=0.5, eps=1e-3)  # loss weights normalised: not so the feedback
    priority = torch.tensor(PRIORITY, dtype=torch.float64)
    seen = [False] * 8
    for step in range(6):
        drawn = buffer.sample(4, generator(step))
        divergence = torch.rand(4, generator=generator(100 + step))
        buffer.update_priority(drawn, divergence)
        powers = (priority + 1e-3) ** 0.7
        weights = (8 * powers / powers.sum()) ** -0.5
        new = {}
        for slot, value in zip(drawn.index.tolist(), divergence.tolist(), strict=True):
            delta = (weights[slot].item() if seen[slot] else 1.0) * value
            new[slot] = max(delta, new.get(slot, 0.0))  # of a slot drawn twice the largest stays
        for slot, delta in new.items():
            priority[slot], seen[slot] = delta, True
        torch.testing.assert_close(buffer.priority.double(), priority, rtol=1e-5, atol=1e-9)
    assert sum(seen) > 4  # so that first and later draws both occurred


def test_without_feedback_the_priority_is_the_divergence():
    buffer = filled(PRIORITY, priority_feedback=False)
    for step in range(3):
        divergence = torch.rand(8, generator=generator(step))
        buffer.update_priority(buffer.everything(), divergence)
        assert torch.equal(buffer.priority, divergence)


def test_a_replaced_slot_starts_anew():
    buffer, source = build(4, alpha=1.0, beta=1.0), Source()
    buffer.add(*source.take(4), generator())
    buffer.update_priority(buffer.everything(), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    buffer.add(*source.take(1), generator())  # slot 0, the oldest
    feedback = buffer.everything().feedback
    assert feedback[0] == 1
    assert (feedback[1:] != 1).all()


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
def test_of_a_slot_drawn_more_than_once_the_largest_value_stays(order):
    buffer = filled([50.0, 60.0, 70.0])
    index = torch.tensor([1, 0, 1, 1])[order]
    divergence = torch.tensor([2.0, 5.0, 9.0, 4.0])[order]
    buffer.update_priority(Drawn(index, torch.ones(4), torch.ones(4)), divergence)
    assert buffer.priority.tolist() == [5.0, 9.0, 70.0]  # the old value counts no more, the undrawn one stays
    assert buffer.seen.tolist() == [True, True, False]


def deltas(steps, **settings):
    """Priorities over time when the student does not learn and every sample is seen in every step, [steps, N]."""
    divergence = torch.tensor([0.1, 0.5, 1.0, 4.0])
    buffer = filled(torch.ones(4), eps=1e-9, **settings)
    history = []
    for _ in range(steps):
        buffer.update_priority(buffer.everything(), divergence)
        history.append(buffer.priority.clone())
    return torch.stack(history), divergence


def test_published_priority_oscillates_undamped_at_alpha_and_beta_one():
    history, divergence = deltas(20, alpha=1.0, beta=1.0)
    for step in range(20):  # KL, then equal for all, then KL again, for ever
        expected = divergence if step % 2 == 0 else divergence.mean().expand(4)
        torch.testing.assert_close(history[step], expected, rtol=1e-4, atol=0)


def test_published_priority_settles_at_smaller_exponents():
    history, divergence = deltas(40, alpha=0.6, beta=0.4)
    torch.testing.assert_close(history[-1], history[-2], rtol=1e-4, atol=0)
    assert (history[1] / history[0]).log().abs().max() > 0.3  # there was something to settle
    # the fixed point: delta ~ KL * delta^(-alpha beta), so that delta ~ KL^(1 / (1 + alpha beta))
    fixed = divergence ** (1 / 1.24)
    torch.testing.assert_close(history[-1] / history[-1][0], fixed / fixed[0], rtol=1e-3, atol=0)


def test_priority_without_feedback_does_not_oscillate():
    history, divergence = deltas(20, alpha=1.0, beta=1.0, priority_feedback=False)
    assert torch.equal(history, divergence.expand(20, 4))


# --- state ---


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batches", [1, 5])  # partly filled, and full with the oldest slot in the middle
def test_restored_buffer_continues_exactly(policy, batches):
    buffer, source = build(20, replacement=policy), Source()
    for step in range(batches):
        buffer.add(*source.take(7), generator(step))
    buffer.update_priority(buffer.sample(5, generator(9)), torch.rand(5, generator=generator(8)))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    resumed = build(20, replacement=policy)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    batch = source.take(7)
    for step in range(4):
        for name, value in buffer.state_dict().items():
            again = resumed.state_dict()[name]
            assert torch.equal(again, value) if isinstance(value, torch.Tensor) else again == value
        for each in (buffer, resumed):
            each.add(*batch, generator(20 + step))
            drawn = each.sample(6, generator(30 + step))
            each.update_priority(drawn, torch.rand(6, generator=generator(40 + step)))
        batch = source.take(7)
        assert numbers(resumed) == numbers(buffer)


def test_beta_is_annealed_in_a_straight_line():
    source = Source()
    for final, expected in ((1.0, [0.4, 0.7, 1.0]), (None, [0.4, 0.4, 0.4]), (0.0, [0.4, 0.2, 0.0])):
        buffer = build(final_beta=final, normalise_weights=False)
        buffer.add(*source.take(12), generator())
        for progress, beta in zip((0.0, 0.5, 1.0), expected, strict=True):
            buffer.anneal(progress)
            probabilities = buffer.probabilities()
            torch.testing.assert_close(
                buffer.everything().weight.double(), (12 * probabilities) ** -beta, rtol=1e-6, atol=0
            )
