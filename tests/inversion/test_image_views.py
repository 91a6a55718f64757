"""Random views: rolled batches are torch's own, resized crops those of plain loops."""

import math

import pytest
import torch

from kd.inversion.views import jittered, resized_crop


def random(seed=0):
    return torch.Generator().manual_seed(seed)


IMAGES = torch.rand(6, 2, 7, 7, generator=random(1))


@pytest.mark.parametrize("flip", [False, True])
def test_a_batch_is_rolled_and_mirrored_as_one(flip):
    expected = {
        (down, right, mirrored): torch.roll(IMAGES.flip(3) if mirrored else IMAGES, (down, right), (2, 3))
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
        for mirrored in ((False, True) if flip else (False,))
    }
    numbers, seen = random(), set()
    for _ in range(200):
        view = jittered(IMAGES, 1, flip, numbers)
        [found] = [key for key, value in expected.items() if torch.equal(view, value)]
        seen.add(found)
    assert seen == set(expected)


def test_without_jitter_nothing_is_moved():
    assert torch.equal(jittered(IMAGES, 0, False, random()), IMAGES)


def slow_crop(images, flip, numbers):
    """Every output pixel by interpolation at its place in the part."""
    batch, channels, size, _ = images.shape
    drawn = torch.rand(4, batch, generator=numbers).tolist()
    mirror = torch.randint(0, 2, (batch, 1, 1), generator=numbers, dtype=torch.bool) if flip else torch.zeros(batch)
    out = torch.zeros_like(images)
    for b in range(batch):
        area, ratio = 0.25 + 0.75 * drawn[0][b], (4 / 3) ** (2 * drawn[1][b] - 1)
        height, width = min(size, size * math.sqrt(area / ratio)), min(size, size * math.sqrt(area * ratio))
        top, left = drawn[2][b] * (size - height), drawn[3][b] * (size - width)
        for row in range(size):
            for column in range(size):
                y = min(max(top + (row + 0.5) * height / size - 0.5, 0), size - 1)
                x = min(max(left + (column + 0.5) * width / size - 0.5, 0), size - 1)
                y0, x0 = math.floor(y), math.floor(x)
                y1, x1 = min(y0 + 1, size - 1), min(x0 + 1, size - 1)
                place = size - 1 - column if mirror[b] else column
                for c in range(channels):
                    upper = (1 - x + x0) * images[b, c, y0, x0] + (x - x0) * images[b, c, y0, x1]
                    lower = (1 - x + x0) * images[b, c, y1, x0] + (x - x0) * images[b, c, y1, x1]
                    out[b, c, row, place] = (1 - y + y0) * upper + (y - y0) * lower
    return out


@pytest.mark.parametrize("flip", [False, True])
def test_resized_crops_equal_interpolation_pixel_by_pixel(flip):
    doubles = IMAGES.double()
    torch.testing.assert_close(
        resized_crop(IMAGES, flip, random(3)).double(), slow_crop(doubles, flip, random(3)), rtol=0, atol=1e-5
    )


def test_parts_keep_a_uniform_image_and_pass_gradients():
    images = torch.full((50, 1, 8, 8), 0.3, requires_grad=True)
    view = resized_crop(images, True, random())
    torch.testing.assert_close(view, images)
    (gradient,) = torch.autograd.grad(view.sum(), images)
    torch.testing.assert_close(gradient.sum((1, 2, 3)), torch.full((50,), 64.0))
