"""What the replay buffer stores and replaces, the priority of a new sample; a resumed buffer goes on exactly."""

import io
import math

import pytest
import torch
from numbered_samples import POLICIES, Source, build, check, generator, numbers


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


@pytest.mark.parametrize("policy", POLICIES)
def test_a_share_of_new_images_enters_a_full_buffer(policy):
    buffer, source, random = build(10, replacement=policy, admitted=0.3), Source(), generator()
    buffer.add(*source.take(8), random)
    assert numbers(buffer) == list(range(8)), "while there is room, all enter"
    buffer.add(*source.take(8), random)
    assert buffer.size == 10
    before = set(numbers(buffer))
    new = source.take(8)
    buffer.add(*new, random)
    check(buffer, source)
    assert set(numbers(buffer)) - before == {16, 17}, "0.3 of eight, the first"
    buffer.add(*source.take(1), random)
    assert 24 in numbers(buffer), "at least one"
