"""Runs that lead nowhere: what stops them, what they say, and that healthy ones go on."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import execute, tiny_run

from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images
from kd.inversion.sources.generator import MetaGenerator
from kd.models.generator import Generator
from kd.runtime.checkpoint import Checkpoint
from kd.training import datafree
from kd.training.diagnosis import Unhealthy, require_learning, require_sound_loss, require_varied_images
from kd.training.step import Sums
from kd.training.synthetic_set import Course, followed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_is_refused_with_a_remedy(value: float) -> None:
    require_sound_loss({"epoch": 3.0, "loss": 1.0}, [], "loss", "lower lr")
    with pytest.raises(Unhealthy, match=r"^epoch 3: loss is .*; lower lr$"):
        require_sound_loss({"epoch": 3.0, "loss": value}, [], "loss", "lower lr")


def test_a_loss_may_grow_but_not_a_thousandfold() -> None:
    history = [{"epoch": 1.0, "loss": 2.0}, {"epoch": 2.0}, {"epoch": 3.0, "loss": 0.5}]
    require_sound_loss({"epoch": 4.0, "loss": 499.0}, history, "loss", "lower lr")
    with pytest.raises(Unhealthy, match=r"epoch 4: loss is 501, and was 0.5; lower lr"):
        require_sound_loss({"epoch": 4.0, "loss": 501.0}, history, "loss", "lower lr")
    require_sound_loss({"epoch": 4.0, "loss": 1.0}, [{"loss": 0.0}], "loss", "a loss of 0 is no measure")
    require_sound_loss({"epoch": 4.0, "loss": -3.0}, [{"loss": 0.001}], "loss", "a likelihood may pass through 0")
    require_sound_loss({"epoch": 5.0, "loss": 3.0}, [{"loss": 0.001}, {"loss": -3.0}], "loss", "and back")


def test_a_collapsed_generator_is_named_with_its_remedy() -> None:
    remedies = ("raise bn", "raise oh")
    require_varied_images(5, 0.9, 1.0, 10, *remedies)
    with pytest.raises(Unhealthy, match=r"epoch 5: 91 % of the buffer are of one class; raise oh"):
        require_varied_images(5, 0.91, 20.0, 10, *remedies)
    with pytest.raises(Unhealthy, match=r"epoch 5: the generator makes one image only .*; raise bn"):
        require_varied_images(5, 0.1, 0.5, 10, *remedies)
    require_varied_images(5, 0.95, 20.0, 2, *remedies)  # of two classes one may well be that frequent


def test_a_student_has_time_before_it_must_be_better_than_chance() -> None:
    require_learning(9, 30, 10_000, [0.1] * 9, 10, "its accuracy", "lower lr")
    require_learning(39, 200, 10_000, [0.1] * 39, 10, "its accuracy", "lower lr")
    require_learning(40, 200, 10_000, [0.13] * 40, 10, "its accuracy", "lower lr")
    with pytest.raises(Unhealthy, match=r"epoch 10: .* its accuracy is 10.0 %, chance is 10 %; lower lr"):
        require_learning(10, 30, 10_000, [0.1] * 10, 10, "its accuracy", "lower lr")
    with pytest.raises(Unhealthy, match=r"epoch 40"):
        require_learning(40, 200, 10_000, [0.1] * 40, 10, "its accuracy", "lower lr")


def test_few_samples_and_single_bad_epochs_prove_nothing() -> None:
    """14 images, two steps of 16 an epoch: three hits of 32 are chance, and no reason to stop."""
    require_learning(13, 60, 416, [0.094] * 13, 10, "its accuracy", "lower lr")
    require_learning(20, 60, 10_000, [0.3] * 19 + [0.05], 10, "its accuracy", "lower lr")
    with pytest.raises(Unhealthy):
        require_learning(20, 60, 10_000, [0.9] * 10 + [0.05] * 10, 10, "its accuracy", "lower lr")


def test_a_state_that_is_not_finite_does_not_replace_the_last_good_one(tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint = Checkpoint(tmp_path, "x", 1.0, said.append)
    sums = Sums(["loss"], torch.device("cpu"))
    sums.add(torch.tensor(1.0))
    assert checkpoint.save({"sums": sums})
    good = (tmp_path / "checkpoint.pt").read_bytes()
    sums.add(torch.tensor(math.nan))
    assert not checkpoint.save({"sums": sums})
    assert (tmp_path / "checkpoint.pt").read_bytes() == good
    assert "a loss is not finite" in said[-1]


def test_a_run_with_a_generator_stuck_on_one_image_stops(store: Path, tmp_path: Path, monkeypatch) -> None:
    forward = Generator.forward
    monkeypatch.setattr(Generator, "forward", lambda self, noise: forward(self, noise) * 0 + 0.5)
    with pytest.raises(Unhealthy, match=r"epoch 2: .* makes one image only .*lower inversion.generator.lr_generator"):
        execute(tiny_run("ssdkd"), store, tmp_path)
    assert "one image only" in (tmp_path / "ended.json").read_text()


def test_a_run_whose_images_are_of_one_class_stops(store: Path, tmp_path: Path, monkeypatch) -> None:
    batch = MetaGenerator.batch

    def one_class(self, *given):
        made = batch(self, *given)
        return made._replace(classes=torch.zeros_like(made.classes))

    monkeypatch.setattr(MetaGenerator, "batch", one_class)
    with pytest.raises(Unhealthy, match=r"100 % of the buffer are of one class; raise inversion.generator.oh"):
        execute(tiny_run("ssdkd"), store, tmp_path)


@pytest.mark.parametrize("value", [1.5, math.nan])
def test_of_what_a_source_measures_each_value_is_watched_by_itself(value, store: Path, tmp_path: Path, monkeypatch):
    batch = MetaGenerator.batch

    def only_a_loss(self, *given):
        return batch(self, *given)._replace(confidence=None, losses={"loss": torch.tensor(value)})

    monkeypatch.setattr(MetaGenerator, "batch", only_a_loss)
    if math.isnan(value):
        with pytest.raises(Unhealthy, match=r"^epoch 1: inversion_loss is nan; lower inversion.generator"):
            execute(tiny_run("ssdkd"), store, tmp_path)
        return
    execute(tiny_run("ssdkd"), store, tmp_path)
    assert pd.read_csv(tmp_path / "history.csv")["inversion_loss"].tolist() == [1.5] * 4


def test_a_student_that_learns_nothing_stops_with_and_without_data(store: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("kd.training.diagnosis.ENOUGH", 100)
    with pytest.raises(Unhealthy, match=r"does not learn: its training accuracy.*lower training.lr"):
        execute(tiny_run("scratch", training__lr=1e-12, training__epochs=12, scale=0.25), store, tmp_path / "a")
    slow = {"distillation__training__lr": 1e-12, "distillation__training__epochs": 12, "replay__full_size": 60}
    slow["inversion__generator__lr_generator"] = 0.003  # seed 5: far from one class, and from agreeing by chance
    with pytest.raises(Unhealthy, match=r"does not learn: its agreement.*distillation.training.lr"):
        execute(tiny_run("ssdkd", 5, **slow), store, tmp_path / "b")


def test_original_samples_fill_the_buffer_and_nothing_is_synthesised(store: Path, tmp_path: Path, monkeypatch) -> None:
    seen = []
    gap = datafree.gap
    monkeypatch.setattr(
        datafree, "gap", lambda buffer, data, *rest: seen.append((buffer, data)) or gap(buffer, data, *rest)
    )
    metrics = execute(tiny_run("original", scale=0.5), store, tmp_path)
    buffer, data = seen[0]
    assert buffer.size == buffer.capacity == 50
    real = {image.numpy().tobytes(): int(label) for image, label in zip(*vars(data.train).values(), strict=True)}
    for image, label in zip(buffer.images, buffer.classes, strict=True):
        assert real[image.numpy().tobytes()] == int(label)
    assert np.bincount(buffer.classes, minlength=10).min() >= 4, "stratified"
    assert metrics["accuracy"] > 0
    record = (tmp_path / "run.json").read_text()
    assert '"images"' not in record.split('"counts"')[1].split("}")[0]
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 1 + 3, "no warm-up"


def test_the_course_of_the_synthetic_set_is_kept(store: Path, tmp_path: Path) -> None:
    execute(tiny_run("ssdkd"), store, tmp_path)
    arrays = np.load(tmp_path / "synthetic.npz")
    assert arrays["class_counts_by_epoch"].shape == (4, 10)
    assert arrays["class_counts_by_epoch"].sum(1).tolist() == [16, 32, 48, 64]
    assert arrays["confidence_counts_by_epoch"].sum(1).tolist() == [16] * 4
    quantiles = arrays["priorities_by_epoch"]
    assert (np.diff(quantiles, axis=1) >= 0).all()
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert {"gap_stored", "gap_drawn", "inversion_image_std"} <= set(rows[0].split(","))


def test_a_buffer_may_stop_changing_and_an_epoch_may_have_steps_of_its_own(store: Path, tmp_path: Path) -> None:
    changes = {"inversion__generator__until": 0.5, "distillation__steps": 3, "distillation__training__epochs": 4}
    execute(tiny_run("ssdkd", **changes), store, tmp_path)
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [bool(row["inversion_loss"]) for row in rows] == [True] * 3 + [False] * 2, "a warm-up, half of four epochs"
    counts = json.loads((tmp_path / "run.json").read_text())["counts"]
    assert (counts["images"], counts["student_steps"]) == (3 * 16, 4 * 3)


def test_how_well_the_student_followed_what_it_was_shown() -> None:
    history = [{"epoch": 1.0}] + [{"agreement": value} for value in np.linspace(0.2, 0.8, 30)]  # a warm-up first
    assert followed(history) == {"agreement_drawn": pytest.approx(80), "agreement_fall": 0.0}
    falling = history + [{"agreement": 0.5}] * 10  # of 40 epochs the last twentieth are two
    top = 50 * (history[-1]["agreement"] + history[-2]["agreement"])
    found = followed(falling)
    assert found == {"agreement_drawn": pytest.approx(50), "agreement_fall": pytest.approx(top - 50)}
    assert followed([{"agreement": 0.25}]) == {"agreement_drawn": 25.0, "agreement_fall": 0.0}


def test_two_images_of_one_class_are_no_collapse(store: Path, tmp_path: Path, monkeypatch) -> None:
    note = Course.note

    def one_class(self: Course, buffer: ReplayBuffer, made: Images) -> None:
        note(self, buffer, made)
        self.class_counts[-1][:] = 0
        self.class_counts[-1][3] = buffer.size

    monkeypatch.setattr(Course, "note", one_class)
    assert execute(tiny_run("ssdkd", replay__full_size=2), store, tmp_path / "two")["accuracy"] > 0
    with pytest.raises(Unhealthy, match="100 % of the buffer are of one class"):
        execute(tiny_run("ssdkd", replay__full_size=20), store, tmp_path / "twenty")
