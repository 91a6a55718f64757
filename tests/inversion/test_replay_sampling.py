"""What the replay buffer draws, by float64 formulas, and how priorities move with the student."""

import math

import pytest
import torch
from numbered_samples import Source, build, filled, generator

from kd.inversion.replay import Drawn

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
    probabilities = buffer.probabilities()
    torch.testing.assert_close(probabilities[:3], powers / powers.sum(), rtol=1e-9, atol=0)
    assert probabilities[3:].tolist() == [0.0] * 17
    torch.testing.assert_close(buffer.weights(probabilities[:3]), powers.sum() / powers / 3)
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


def test_draws_come_only_from_the_generator():
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


def test_beta_is_annealed_in_a_straight_line():
    source = Source()
    for final, expected in ((1.0, [0.4, 0.7, 1.0]), (None, [0.4, 0.4, 0.4]), (0.0, [0.4, 0.2, 0.0])):
        buffer = build(final_beta=final, normalise_weights=False)
        buffer.add(*source.take(12), generator())
        for progress, beta in zip((0.0, 0.5, 1.0), expected, strict=True):
            buffer.anneal(progress)
            probabilities = buffer.probabilities()
            expected = (12 * probabilities[:12]) ** -beta
            torch.testing.assert_close(buffer.everything().weight.double(), expected, rtol=1e-6, atol=0)


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


def test_a_replaced_slot_starts_again():
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


# --- without replacement ---


def test_shuffled_passes_draw_every_image_equally_often_and_resume():
    buffer = build(20, alpha=0.0, with_replacement=False)
    buffer.add(*Source().take(12), generator())
    buffer.shuffle(30, generator(1))
    drawn = [buffer.sample(6, generator()) for _ in range(2)]
    resumed = build(20, alpha=0.0, with_replacement=False)
    resumed.load_state_dict(buffer.state_dict())
    for _ in range(3):
        drawn.append(buffer.sample(6, generator()))
        assert torch.equal(resumed.sample(6, generator()).index, drawn[-1].index)
    index = torch.cat([each.index for each in drawn]).tolist()
    first, second, third = index[:12], index[12:24], index[24:]
    assert sorted(first) == sorted(second) == list(range(12))
    assert len(set(third)) == 6
    assert first != second
    assert torch.equal(torch.cat([each.weight for each in drawn]), torch.ones(30))


def test_every_epoch_is_shuffled_again_over_what_the_buffer_holds():
    buffer = build(20, alpha=0.0, with_replacement=False)
    random, source = generator(1), Source()
    seen = []
    for count in (5, 8):
        buffer.add(*source.take(count), random)
        buffer.shuffle(13, random)
        order = buffer._order
        seen.append(buffer.sample(13, random).index.tolist())
    assert set(seen[0]) == set(range(5))
    assert sorted(seen[1]) == list(range(13))
    assert buffer._order is order, "a captured step reads the same memory"
