"""Random crops and flips against slicing image by image, and normalisation against its formula."""

import math
from itertools import product

import pytest
import torch

from kd.data.augment import Augment, random_crop_flip, random_rescale
from kd.data.raw import IGNORED

PAD = 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(count, seed=0):
    """Images in which no two crops are alike; higher than wide, so that rows and columns cannot be confused."""
    return torch.randint(1, 256, (count, 2, 6, 5), generator=generator(seed), dtype=torch.uint8)


def crop(image, top, left, mirrored, pad=PAD):
    """The slow way: pad, slice, flip one image [C, H, W]."""
    channels, height, width = image.shape
    padded = image.new_zeros(channels, height + 2 * pad, width + 2 * pad)
    padded[:, pad : pad + height, pad : pad + width] = image
    part = padded[:, top : top + height, left : left + width]
    return part.flip(2) if mirrored else part


def choices(pad=PAD, flip=True):
    shifts = range(2 * pad + 1)
    return list(product(shifts, shifts, [False, True] if flip else [False]))


def found(images, outputs, pad=PAD, flip=True):
    """The choice that made each output from its own image; exactly one fits."""
    made = []
    for image, output in zip(images, outputs, strict=True):
        fitting = [choice for choice in choices(pad, flip) if torch.equal(crop(image, *choice, pad), output)]
        assert len(fitting) == 1
        made += fitting
    return made


@pytest.mark.parametrize("flip", [False, True])
def test_every_output_is_a_crop_of_its_own_image_and_all_crops_are_equally_likely(flip):
    images = pictures(500)
    outputs = random_crop_flip(images, PAD, flip, generator())
    assert outputs.shape == images.shape
    assert outputs.dtype == torch.uint8
    made = found(images, outputs, flip=flip)
    allowed = choices(flip=flip)
    assert set(made) == set(allowed)
    expected = len(made) / len(allowed)
    statistic = sum((made.count(choice) - expected) ** 2 for choice in allowed) / expected
    freedom = len(allowed) - 1
    assert abs(statistic - freedom) < 6 * math.sqrt(2 * freedom)


def test_flip_alone_mirrors_half_of_the_images():
    images = pictures(400)
    made = found(images, random_crop_flip(images, 0, True, generator()), pad=0)
    mirrored = sum(choice[2] for choice in made)
    assert abs(mirrored - 200) < 5 * math.sqrt(400 / 4)


def test_without_padding_and_flip_nothing_changes():
    images = pictures(3)
    assert torch.equal(random_crop_flip(images, 0, False, generator()), images)


def test_float_images_take_the_crops_of_uint8_images_and_the_gradient_of_slicing():
    images = pictures(30)
    made = found(images, random_crop_flip(images, PAD, True, generator()))
    values = images.float().requires_grad_()
    outputs = random_crop_flip(values, PAD, True, generator())
    reference = images.float().requires_grad_()
    expected = torch.stack([crop(image, *choice) for image, choice in zip(reference, made, strict=True)])
    assert torch.equal(outputs, expected)
    cotangent = torch.randn(outputs.shape, generator=generator(1))
    (gradient,) = torch.autograd.grad(outputs, values, cotangent)
    (wanted,) = torch.autograd.grad(expected, reference, cotangent)
    assert torch.equal(gradient, wanted)
    assert wanted.count_nonzero() < wanted.numel()  # some pixels were cut away


def test_generator_is_the_only_source_of_randomness():
    images, before = pictures(20), torch.get_rng_state()
    first = random_crop_flip(images, PAD, True, generator(3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(12345)
    assert torch.equal(random_crop_flip(images, PAD, True, generator(3)), first)
    assert not torch.equal(random_crop_flip(images, PAD, True, generator(4)), first)


# --- normalisation ---

MEAN, STD = [0.1, 0.6], [0.2, 0.9]


def augment(pad=PAD, flip=True):
    return Augment(torch.tensor(MEAN), torch.tensor(STD), pad, flip)


def test_normalise_is_its_formula_for_uint8_and_float():
    images = pictures(4)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(2, 1, 1) for values in (MEAN, STD))
    expected = (images.double() / 255 - mean) / std
    for given in (images, images.float() / 255):
        actual = augment().normalise(given)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


def test_augmenting_crops_first_and_normalises_then():
    images = pictures(10)
    cropped = random_crop_flip(images, PAD, True, generator(5))
    assert torch.equal(augment()(images, generator(5)), augment().normalise(cropped))
    black = augment()(torch.full((60, 2, 6, 5), 255, dtype=torch.uint8), generator()).amin((0, 2, 3))
    torch.testing.assert_close(black, -torch.tensor(MEAN) / torch.tensor(STD))  # the margin is black, not grey


def test_augmenting_passes_gradients():
    images = (pictures(5).float() / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(augment(pad=0, flip=False)(images, generator()).sum(), images)
    torch.testing.assert_close(gradient, (1 / torch.tensor(STD)).view(2, 1, 1).expand_as(images))


def rescaled(most: float, size: int = 40, count: int = 400, seed: int = 0):
    """Return plain images of 0.5, rescaled, and for each the share of pixels that show it."""
    images = random_rescale(torch.full((count, 1, size, size), 0.5), most, torch.Generator().manual_seed(seed))
    return images, (images / 0.5).mean(dim=(1, 2, 3))


def test_sizes_are_even_in_their_logarithm_and_places_keep_windows_and_images_whole():
    images, share = rescaled(2.0)
    full = share > 1 - 1e-5
    assert 0.4 < full.float().mean() < 0.6  # enlarged: no border is seen
    factor = share[~full].sqrt()
    assert factor.min() > 0.49
    for shrunk in (0.6, 0.7, 0.8, 0.9):  # the share of those that are smaller
        assert (factor < shrunk).float().mean() == pytest.approx(math.log(shrunk / 0.5) / math.log(2), abs=0.1)
    seen = (images[~full] > 0.01).flatten(1).float().mean(0).view(40, 40)
    assert seen[20, 20] > 0.9
    corners = seen[0, 0], seen[0, -1], seen[-1, 0], seen[-1, -1]
    assert 0 < min(corners) <= max(corners) < 0.5


def test_a_pixel_shows_what_lies_at_its_place_in_the_image():
    """A ramp stays a ramp: its slope is 1 / factor, and rows and columns have the same factor."""
    size = 32
    x = torch.arange(size, dtype=torch.float32).expand(200, 1, size, size)
    ramps = torch.cat([x, x.transpose(2, 3), torch.ones_like(x)], dim=1)
    moved = random_rescale(ramps, 1.8, torch.Generator().manual_seed(1))
    inside = (moved[:, 2] > 1 - 1e-6).all(2).all(1)  # enlarged: far from the zeros around
    across, down = moved[inside, 0], moved[inside, 1]
    middle = slice(8, -8)  # the outermost half pixel is mixed with zeros
    slopes = across.diff(dim=2)[:, middle, middle], down.diff(dim=1)[:, middle, middle]
    for slope in slopes:
        assert (slope - slope.mean(dim=(1, 2), keepdim=True)).abs().max() < 1e-4
    assert torch.allclose(slopes[0].mean(dim=(1, 2)), slopes[1].mean(dim=(1, 2)), atol=1e-4)
    assert slopes[0].min() > 1 / 1.8 - 1e-3
    assert slopes[0].max() < 1 + 1e-3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_maps_are_rescaled_as_their_images_are(dtype):
    blocks = torch.arange(4).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1).expand(50, 32, 32)
    images = (blocks[:, None] * 60).to(torch.uint8)
    moved, maps = random_rescale(images, 2.0, torch.Generator().manual_seed(2), blocks.to(dtype))
    assert maps.dtype == dtype
    assert moved.dtype == torch.float32
    ignored = maps == IGNORED
    assert (moved[:, 0][ignored] < 60 * 3 / 255 / 2 + 1e-6).all()
    assert 0.1 < ignored.float().mean() < 0.4
    agree = ((moved[:, 0] * 255 / 60 - maps).abs() < 1e-3)[~ignored]
    assert agree.float().mean() > 0.85  # the others lie on edges, where images are mixed


def test_rescaling_by_1_changes_nothing_and_gradients_flow_through_it():
    images = torch.rand(3, 2, 8, 8, requires_grad=True)
    assert torch.allclose(random_rescale(images, 1.0, torch.Generator()), images, atol=1e-6)
    random_rescale(images, 1.5, torch.Generator().manual_seed(0)).sum().backward()
    assert (images.grad > 0).float().mean() > 0.8
    augment = Augment(torch.zeros(2), torch.ones(2), 0, False, rescale=2.0)
    plain = Augment(torch.zeros(2), torch.ones(2), 0, False)
    maps = torch.zeros(3, 8, 8, dtype=torch.uint8)
    draw = lambda: torch.Generator().manual_seed(5)  # noqa: E731
    expected, expected_maps = random_rescale(images, 2.0, draw(), maps)
    assert torch.equal(augment(images, draw()), expected)
    assert [
        torch.equal(a, b) for a, b in zip(augment.pair(images, maps, draw()), (expected, expected_maps), strict=True)
    ]
    assert torch.equal(plain(images, draw()), images)
