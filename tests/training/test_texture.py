"""How far the texture of synthetic images is from that of real ones."""

import math

import pytest
import torch
from torch.nn import functional as F

from kd.training.texture import _spectrum, texture


def noise(count=50, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(64, 192, (count, 3, size, size), generator=generator, dtype=torch.uint8)


def smooth(images):
    return F.avg_pool2d(images.float(), 5, 1, 2, count_include_pad=False).round().to(torch.uint8)


def test_equal_sets_are_at_distance_0():
    assert texture(noise(), noise()) == {"tv_distance": 0, "spectrum_distance": 0}


def test_sets_of_one_kind_are_near_and_smoothed_ones_far():
    near, far = texture(noise(seed=1), noise()), texture(smooth(noise(seed=1)), noise())
    for name in ("tv_distance", "spectrum_distance"):
        assert near[name] < 0.5
        assert far[name] > 5


def test_half_the_contrast_is_six_decibels_in_both():
    real = noise()
    half = ((real.float() - 128) / 2 + 128).round().to(torch.uint8)
    found = texture(half, real)
    assert found["tv_distance"] == pytest.approx(20 * math.log10(2), abs=0.1)
    assert found["spectrum_distance"] == pytest.approx(20 * math.log10(2), abs=0.1)


def test_the_spectrum_is_that_of_a_wave_at_its_frequency():
    size, frequency = 32, 5
    wave = torch.cos(2 * math.pi * frequency * torch.arange(size, dtype=torch.float64) / size).expand(1, size, size)
    spectrum = _spectrum(wave)
    assert spectrum.shape == (size // 2,)
    assert spectrum.argmax() == frequency - 1
    assert spectrum[frequency + 3 :].max() < 1e-3 * spectrum.max()
