"""DeepInversion, CMI and NAYER against batches told in plain loops; what they leave as it was; interrupted, resumed."""

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from descent_worlds import CLASSES, KINDS, Naive, World
from naive_inversion import DATA, MODULATING, equal, random
from torch import nn

from kd.inversion.sources import nayer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.nayer import NoisyLayers
from kd.runtime.messages import ConfigError

each_kind = pytest.mark.parametrize("kind", KINDS)

# --- one batch ---


@each_kind
@pytest.mark.parametrize("adversarial", [True, False])
def test_three_batches_equal_the_naive_ones(kind, adversarial):
    world = World(kind)
    naive = Naive(world)
    for learned in range(3):
        made = world.batch(learned if adversarial else learned - 4)
        naive.batch(adversarial)
        loss, images = min(naive.steps, key=lambda step: step[0])
        assert made.losses["loss"].item() == pytest.approx(loss, rel=1e-4)
        torch.testing.assert_close(world.source.best["images"], images, rtol=0, atol=2e-3)
        expected = images.mul(255).round()
        assert made.images.dtype == torch.uint8
        assert (made.images - expected).abs().max() <= 1
        assert ("adv" in made.losses) == adversarial
        assert made.losses["image_std"].item() == pytest.approx(255 * images.std(0).mean().item(), rel=1e-2)


@each_kind
def test_the_loss_falls_and_the_best_step_is_kept(kind):
    left = []  # of the first loss
    for seed in range(1, 7):  # rounding decides how far a single batch gets
        world, seen = World(kind, seed, steps=80, bn=0.0), []  # no image has the statistics that this teacher asks for
        keep = world.source._keep_better
        world.source._keep_better = lambda images, found, seen=seen, keep=keep: (
            seen.append(found["loss"].item()),
            keep(images, found),
        )
        best = world.batch(-1).losses["loss"]
        assert len(seen) == 80
        assert best.item() == min(seen)
        left.append(sum(seen[-10:]) / 10 / seen[0])
    assert sum(left) / 6 < 0.8


def test_every_class_is_asked_for_equally_often():
    for kind in ("deepinversion", "nayer"):
        world, extra = World(kind), set()
        for _ in range(20):
            world.batch()
            counts = world.source.targets.bincount(minlength=CLASSES)
            assert set(counts.tolist()) == {2, 3}  # 10 images, 4 classes
            extra |= set((counts == 3).nonzero()[:, 0].tolist())
        assert extra == set(range(CLASSES))


def test_pixels_stay_within_what_an_image_can_have():
    world = World("deepinversion", lr=5.0, steps=5)
    world.batch()
    values = world.source.pixels.detach() * 0.3 + 0.4
    assert -1e-6 <= values.min() < 0.001
    assert 0.999 < values.max() <= 1 + 1e-6


def test_terms_of_weight_0_are_left_out():
    made = World("deepinversion", tv_l1=0.0, tv_l2=0.0, l2=0.0).batch()
    assert not {"tv_l1", "tv_l2", "l2"} & set(made.losses)
    world = World("cmi", cr=0.0)
    made = world.batch()
    assert "cr" not in made.losses
    assert len(world.teacher.calls) == world.settings.steps, "no local views"
    assert not world.source.filled
    torch.testing.assert_close(
        made.losses["loss"], sum(KINDS["cmi"][1][name] * made.losses[name] for name in ("bn", "oh", "adv"))
    )


def test_contrast_makes_the_images_of_a_batch_differ():
    alone, contrasted = (World("cmi", cr=cr, steps=120).batch(-1).losses["image_std"] for cr in (0.0, 30.0))
    assert contrasted > 2 * alone


def test_the_bank_is_a_ring_and_only_what_it_holds_is_a_negative():
    world = World("cmi", bank=24, negatives=50)
    assert world.source.negatives == 24
    features = []
    for number in range(3):
        world.batch()
        features.append(world.source.best["features"].clone())
        assert world.source.filled.item() == min(24, 10 * (number + 1))
    expected = torch.cat([features[2][4:], features[0][6:], features[1], features[2][:4]])
    assert torch.equal(world.source.bank, expected)


# --- NAYER's layers ---


def test_noisy_layers_are_one_linear_layer_for_each_group_of_classes():
    embeddings = torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(1))
    layers = NoisyLayers(embeddings, 10, 6)
    layers.redraw(torch.Generator().manual_seed(2))
    assert layers.weight.shape == (3, 5, 6)
    assert layers.weight.std().item() == pytest.approx(1, abs=0.2)
    classes = torch.tensor([2, 0, 1, 3, 0, 1, 2, 3, 1, 1])
    normal = nn.BatchNorm1d(5)(embeddings[classes])
    found = layers(classes)
    assert found.shape == (10, 6)
    for number in range(10):
        torch.testing.assert_close(found[number], normal[number] @ layers.weight[number // CLASSES])
    assert not torch.equal(found[8], found[5]), "the same class through another layer"
    assert torch.equal(found[8], found[9])


def test_the_generator_is_drawn_anew_every_life_and_the_noisy_layers_for_every_batch(monkeypatch):
    world, redrawn, noisy = World("nayer", life=3, warmup=4), [], []
    for owner, done in ((nayer, redrawn), (NoisyLayers, noisy)):
        original = owner.redraw
        monkeypatch.setattr(owner, "redraw", lambda *given, f=original, done=done: (done.append(learned), f(*given)))
    for learned in (-4, -3, -3, -2, -1, -1, 0, 0, 1, 2, 3):
        world.batch(learned)
    assert redrawn == [-4, -3, -1, 0, 2, 3], "every third of all epochs and of the student's, once each"
    assert noisy == [-4, -3, -3, -2, -1, -1, 0, 0, 1, 2, 3]


def test_embeddings_come_from_a_file_or_from_the_teacher(tmp_path):
    world = World("nayer")
    assert torch.equal(world.source.network[0].embeddings, world.teacher.head.weight)
    np.save(tmp_path / "words.npy", np.arange(12).reshape(4, 3))
    given = World("nayer", embeddings=str(tmp_path / "words.npy"))
    assert given.source.network[0].embeddings.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert given.batch().losses["loss"].isfinite()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, ": No such file or directory; allowed: an .npy file of finite numbers, [4, E], a row per"),
        (b"text", ": it is not such a file; allowed"),
        (np.zeros((3, 2)), ", [3, 2] of float64; allowed"),
        (np.zeros(4), ", [4] of float64; allowed"),
        (np.zeros((4, 0)), ", [4, 0] of float64; allowed"),
        (np.array([["a"]] * 4), ", [4, 1] of <U1; allowed"),
        (np.full((4, 2), np.nan), ", with numbers that are not finite; allowed"),
    ],
)
def test_a_file_of_embeddings_that_cannot_be_used_is_refused_in_a_line(content, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # messages shorten long paths
    file = Path("words.npy")
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        np.save(file, content)
    with pytest.raises(ConfigError) as caught:
        World("nayer", embeddings="words.npy")
    assert str(caught.value).startswith(f"inversion.nayer.embeddings: got 'words.npy'{said}")
    assert "\n" not in str(caught.value)


@each_kind
def test_a_teacher_without_batch_normalisation_is_refused(kind):
    build, settings = KINDS[kind]
    context = SourceContext(nn.Linear(2, 2), DATA, MODULATING, random(), 20, 0)
    with pytest.raises(ConfigError, match="has no BatchNorm2d layer"):
        build(context, **settings)


# --- what a batch leaves as it was ---


@each_kind
def test_teacher_student_and_torchs_own_generator_are_left_as_they_were(kind):
    world, other = World(kind), World(kind)
    nets = (world.teacher, world.student)
    states = [copy.deepcopy(net.state_dict()) for net in nets]
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    made = world.batch()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(54321)
    assert equal(tuple(made), tuple(other.batch())), "random numbers come only from the source's generator"
    assert all(equal(net.state_dict(), state) for net, state in zip(nets, states, strict=True))
    assert world.student.training
    assert not world.teacher.training
    assert all(p.requires_grad and p.grad is None for p in world.student.parameters())
    assert not any(world.student.calls), "in eval mode while it judged images"
    assert not any(module._forward_pre_hooks for module in world.teacher.modules())


def snapshot(world):
    return copy.deepcopy({**world.source.state_dict(), "random": world.random.get_state()})


@each_kind
@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("after", [0, 1, 3])
def test_an_interrupted_batch_leaves_no_trace(kind, batches, after):
    world, undisturbed = World(kind), World(kind)
    for learned in range(batches):
        world.batch(learned)
        undisturbed.batch(learned)
    before = snapshot(world)
    answers = iter([False] * after + [True])
    assert world.batch(batches, interrupted=lambda: next(answers)) is None
    assert next(answers, None) is None  # asked before each step, and no more once it is true
    if batches:  # an optimiser that never took a step has no moments to go back to
        assert equal(snapshot(world), before)
    for learned in range(batches, batches + 2):
        assert equal(tuple(world.batch(learned)), tuple(undisturbed.batch(learned)))
    assert equal(snapshot(world), snapshot(undisturbed))


@each_kind
@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_restored_source_continues_exactly(kind, batches):
    world = World(kind)
    for learned in range(batches):
        world.batch(learned)
    file = io.BytesIO()
    torch.save(world.source.state_dict(), file)
    file.seek(0)
    resumed = World(kind, seed=99)
    resumed.source.load_state_dict(torch.load(file, weights_only=True))
    resumed.random.set_state(world.random.get_state())
    for learned in range(batches, batches + 2):
        assert equal(tuple(resumed.batch(learned)), tuple(world.batch(learned)))
    assert equal(resumed.source.state_dict(), world.source.state_dict())
