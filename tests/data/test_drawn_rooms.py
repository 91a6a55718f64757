"""Rooms that are drawn on the spot."""

import numpy as np
from scenes import described

from kd.data import rooms
from kd.registry.datasets import NYU_13


def test_rooms_are_the_same_on_every_call_and_have_all_classes():
    scenes = [rooms.scene(np.random.default_rng([0, 0, number]), 24) for number in range(40)]
    again = [rooms.scene(np.random.default_rng([0, 0, number]), 24) for number in range(40)]
    assert all((one[0] == two[0]).all() and (one[1] == two[1]).all() for one, two in zip(scenes, again, strict=True))
    labels = np.stack([labels for _, labels in scenes])
    assert set(np.unique(labels)) == set(range(len(NYU_13)))
    assert len({labels.tobytes() for _, labels in scenes}) == 40


def test_floors_are_below_ceilings_and_far_walls_deeper_than_what_stands_before_them():
    images, labels = zip(*[rooms.scene(np.random.default_rng([0, 1, number]), 32) for number in range(30)], strict=True)
    images, labels = np.stack(images), np.stack(labels)
    row = np.arange(32)[None, :, None] * np.ones_like(labels)
    height = {name: row[labels == NYU_13.index(name)].mean() for name in ("ceiling", "wall", "floor")}
    assert height["ceiling"] < height["wall"] < height["floor"]
    depth = images[..., 3]
    assert depth.min() > 0
    assert depth[labels == NYU_13.index("wall")].mean() > depth[labels == NYU_13.index("bed")].mean()


def test_rooms_have_depth_as_a_fourth_channel_where_asked_for(monkeypatch):
    monkeypatch.setattr(rooms, "TRAIN", 3)
    monkeypatch.setattr(rooms, "TEST", 2)
    raws = [rooms.load(described("rooms", image_size=12, channels=channels), None) for channels in (None, 4)]
    assert [raw.train_images.shape for raw in raws] == [(3, 12, 12, 3), (3, 12, 12, 4)]
    assert (raws[0].test_images == raws[1].test_images[..., :3]).all()
    assert raws[0].test_labels.shape == (2, 12, 12)
