"""Replay buffers whose samples carry a number, so that mix-ups show."""

from dataclasses import replace

import torch

from kd.inversion.replay import ReplayBuffer
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
