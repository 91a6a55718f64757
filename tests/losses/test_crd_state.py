"""CRD's memory banks and normalisers over training steps, resumption, and what is refused."""

import math

import pytest
import torch
from crd_reference import FEAT_DIM, LABELS, Reference, build, features, generator, next_draw, relative, step


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
