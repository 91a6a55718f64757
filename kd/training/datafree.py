"""Data-free distillation: a source fills a replay buffer, the student learns from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from kd.batch import Batch, per_sample
from kd.data.dataset import Data, Split, targets
from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import Images, SourceContext, build_source
from kd.losses.kd import kl_divergence
from kd.losses.objective import Objective
from kd.runtime.checkpoint import Checkpoint, RandomState
from kd.runtime.journal import Journal
from kd.runtime.messages import ConfigError
from kd.settings.run import Run
from kd.training import compiled
from kd.training.diagnosis import Suspects, require_learning, require_sound_loss, require_varied_images
from kd.training.evaluate import Result, evaluate, predict_classes
from kd.training.networks import student_and_teacher
from kd.training.optimisers import learning_rate, set_lr, sgd
from kd.training.segmentation import shown
from kd.training.step import Sums, asked_of, train_step
from kd.training.stepper import Stepper
from kd.training.synthetic_set import Course, describe, divergences, followed, gap
from kd.training.texture import texture

HELD_OUT_BATCHES = 4  # of the source, that the student is scored on and never sees
GAPS, GAP_BATCHES = 10, 4  # how often per run, and on how many batches of images, the student's gap is measured


def compute(
    run: Run,
    data: Data,
    teacher_weights: list[Path],
    stepper: Stepper,
    journal: Journal,
    checkpoint: Checkpoint,
) -> Result:
    """Train and score the student of a run of kind datafree. Raises as `distil` does."""
    student, teacher, generator = student_and_teacher(run, data, teacher_weights, stepper)
    drawn, hold_out = distil(run, data, student, teacher, generator, stepper, journal, checkpoint)
    with journal.phase("evaluation", stepper.device):
        held_out = hold_out()
        metrics = score(student, teacher, data, held_out) | followed(journal.history)
    images = data.score.images if len(data.score) else held_out
    suspects = Suspects(run, student, teacher, None, images, data.augment, "lower distillation.training.lr")
    suspects.require_finite(metrics)
    arrays = {"synthetic": drawn}
    if data.score.dense and len(data.score):
        arrays["predictions"] = shown(student, data.score, data.augment, data.palette, teacher)
        if held_out is not None:
            metrics |= texture(held_out, data.score.images)
    return Result(student, metrics, arrays)


def score(student: nn.Module, teacher: nn.Module, data: Data, held_out: Tensor | None) -> dict[str, float]:
    """Return the student's scores on the data's images, and its agreement with the teacher on synthetic ones.

    held_out: synthetic images [N, C, S, S] uint8 that the student never saw; their class is what the teacher says.
    Where there are no other images, `accuracy` and `loss` are of these: nothing else can be known.
    """
    metrics = evaluate(student, data.score, data.augment, teacher)[0] if len(data.score) else {}
    if held_out is not None:
        split = Split(held_out, predict_classes(teacher, held_out, data.augment)[0])
        found, _ = evaluate(student, split, data.augment)
        agreement = found.get("pixel_accuracy", found["accuracy"])
        metrics = (metrics or found | {"accuracy": agreement}) | {"agreement_synthetic": agreement}
    return metrics


def capacity(run: Run, full_size: int) -> int:
    """Return the number of images in a full buffer, the paper's data scale. Raises ConfigError for fewer than two."""
    of = run.replay.full_size or full_size
    if (size := round(run.scale * of)) < 2:
        raise ConfigError(
            f"scale: got {run.scale:g}, which leaves {size} of {of:,} images for the buffer; needed: two or more; "
            "raise scale or replay.full_size"
        )
    return size


def distil(
    run: Run,
    data: Data,
    student: nn.Module,
    teacher: nn.Module,
    generator: torch.Generator,
    stepper: Stepper,
    journal: Journal,
    checkpoint: Checkpoint,
) -> tuple[dict[str, np.ndarray], Callable[[], Tensor | None]]:
    """Train the student on what the run's source puts into the buffer; return arrays about that set for figures, and
    what makes images [N, C, S, S] uint8 that the student never sees (None of real images).

    Liu et al., Small Scale Data-Free Knowledge Distillation, CVPR 2024, built on Fang et al., AAAI 2022. The loop uses
    only sizes, class names and normalisation of `data`. A killed run goes on from its checkpoint. Raises Stopped after
    SIGTERM, Unhealthy for a run that leads nowhere.
    """
    distillation = _Distillation(run, data, student, teacher, generator, stepper, journal, checkpoint)
    checkpoint.restore(distillation.parts)
    student.train()
    distillation.compile()
    rounds = distillation.rounds
    for epoch in range(len(journal.history), distillation.epochs):
        for number in range(epoch * rounds, (epoch + 1) * rounds):
            distillation.synthesise(number)
            distillation.learn(number)
        distillation.look(epoch)
    return describe(distillation.buffer, data, teacher) | distillation.course.arrays(), distillation.hold_out


class _Distillation:
    """The phases of an epoch, and their shared state; `parts` are saved in checkpoints.

    An epoch has `rounds` rounds, which are numbered from 0 over the whole run, the warm-up included. Those that were
    done before the checkpoint are passed over.
    """

    def __init__(
        self,
        run: Run,
        data: Data,
        student: nn.Module,
        teacher: nn.Module,
        generator: torch.Generator,
        stepper: Stepper,
        journal: Journal,
        checkpoint: Checkpoint,
    ):
        self.run, self.data, self.student, self.teacher = run, data, student, teacher
        self.generator, self.stepper, self.journal, self.checkpoint = generator, stepper, journal, checkpoint
        self.device, self.training = generator.device, run.distillation.training
        full = capacity(run, data.full_size)
        context = SourceContext(
            teacher,
            data,
            run.modulation,
            generator,
            full,
            run.seed,
            epochs=self.training.epochs,
            relative_lr=lambda learned: learning_rate(self.training, learned) / self.training.lr,
            run=stepper.run,
        )
        self.source = build_source(run.inversion, context)
        shape = (data.channels, data.image_size, data.image_size)
        self.buffer = ReplayBuffer(full, shape, len(data.classes), run.replay, self.device, student.dense)
        terms = {"kd": {"weight": 1.0, "temperature": run.distillation.temperature}}
        self.objective = Objective(terms, None).to(self.device)
        self.optimizer = sgd([student], self.training)
        self.sums = Sums(["loss", "agreement", "weight", "divergence"], self.device)
        self.course = Course()
        self.rounds = run.distillation.rounds
        self.steps = run.distillation.steps_per_epoch(full) // self.rounds  # of the student, per round
        self.epochs = self.source.warmup + self.training.epochs
        self.networks: tuple[nn.Module, nn.Module] = student, teacher  # as the student's step calls them
        self.parts = {
            "student": student,
            "source": self.source,
            "buffer": self.buffer,
            "optimizer": self.optimizer,
            "sums": self.sums,
            "course": self.course,
            "random": RandomState(generator),
            "journal": journal,
        }

    def synthesise(self, number: int) -> None:
        """Add the source's images of a round to the buffer, unless they were in the checkpoint already."""
        counts, (epoch, place) = self.journal.counts, divmod(number, self.rounds)
        if not self.source.brings(epoch) or counts["inversions"] > number:
            return
        self.checkpoint.stop_or_save(self.parts)
        with self.journal.phase("inversion", self.device):
            learned = epoch - self.source.warmup
            new = self.source.batch(learned, self.student, self.buffer, lambda: self.checkpoint.stopping != 0)
            if new is None:
                self.checkpoint.stop_or_save(self.parts)  # raises Stopped
            self.buffer.add(new.images, new.classes, new.phi, self.generator)
        counts["inversions"] = number + 1
        counts.update(self.source.work)
        if place + 1 == self.rounds:  # values come to the host once per epoch
            self._note(new)

    def _note(self, new: Images) -> None:
        """Keep what the curves and the course say of an epoch's last images."""
        with self.journal.phase("monitoring", self.device):
            if new.confidence is not None:
                self.course.note(self.buffer, new)
            self.journal.pending = {f"inversion_{name}": float(value) for name, value in new.losses.items()}

    def compile(self) -> None:
        """Compile the networks of the student's step where that is worth it."""
        shape = (self.training.batch_size, *self.buffer.images.shape[1:])
        given = (self.run, self.stepper, self.journal, self.student, self.teacher, shape, asked_of(self.objective))
        self.networks = compiled.networks(*given, steps=self.training.epochs * self.rounds * self.steps)

    def learn(self, number: int) -> None:
        """After the warm-up, train the student for a round's steps on samples of the buffer."""
        epoch, place = divmod(number, self.rounds)
        learned, counts = epoch - self.source.warmup, self.journal.counts
        if learned < 0:
            return
        set_lr(self.optimizer, learning_rate(self.training, learned))
        self.buffer.anneal(learned / max(1, self.training.epochs - 1))
        first = (learned * self.rounds + place) * self.steps
        with self.journal.phase("distillation", self.device):
            for step in range(counts["student_steps"], first + self.steps):
                self.checkpoint.stop_or_save(self.parts)
                if step == first:  # after saving: a run that is resumed here shuffles by itself
                    self.buffer.shuffle(self.steps * self.training.batch_size, self.generator)
                self.stepper.run("student's step", self._step)
                counts["student_steps"] += 1
            if self.run.replay.refresh == "all" and place + 1 == self.rounds:
                refresh(self.buffer, self.data, self.student, self.teacher)

    def _step(self) -> None:
        """Draw a batch, update the student on it, and set the priorities of what was drawn."""
        drawn = self.buffer.sample(self.training.batch_size, self.generator)
        images = self.data.augment(self.buffer.images[drawn.index], self.generator)
        batch = Batch(images, targets(self.buffer.classes[drawn.index]), drawn.index, drawn.weight)
        step = train_step(*self.networks, self.objective, batch, self.optimizer, self.run.precision)
        divergence = per_sample(kl_divergence(step.teacher.logits.float(), step.student.logits.float(), 1.0))
        self.buffer.update_priority(drawn, divergence)
        agree = step.teacher.logits.argmax(1) == step.student.logits.argmax(1)
        self.sums.add(step.loss.mean(), agree.float().mean(), batch.weight.mean(), divergence.mean())

    def look(self, epoch: int) -> None:
        """Log the epoch's row, and raise Unhealthy for a run that leads nowhere."""
        learned, noted = epoch - self.source.warmup, {}
        if learned >= 0:
            with self.journal.phase("monitoring", self.device):
                noted = self.sums.read_and_reset()
                if learned % math.ceil(self.training.epochs / GAPS) == 0:
                    samples = GAP_BATCHES * self.training.batch_size
                    noted |= gap(self.buffer, self.data, self.student, self.teacher, samples)
        row = self.journal.log(epoch + 1, self.epochs, noted)
        self._require_health(row, learned + 1)

    def hold_out(self) -> Tensor | None:
        """Return batches that the source makes after the last epoch, as it did in it; None of real images."""
        if not self.run.inversion.entry.synthesises:
            return None
        last = self.training.epochs - 1
        return torch.cat([self.source.batch(last, self.student, self.buffer).images for _ in range(HELD_OUT_BATCHES)])

    def _require_health(self, row: dict[str, float], learned: int) -> None:
        """Raise Unhealthy for losses that run away, a generator that has collapsed, a student that learns nothing."""
        source, history, num_classes = self.source, self.journal.history, len(self.data.classes)
        remedy = f"lower distillation.training.lr, or look at the synthetic images ({source.remedy_images})"
        parties = (self.run, self.student, self.teacher, self.objective)
        suspects = Suspects(*parties, self.buffer.images, self.data.augment, remedy)
        if "inversion_loss" in row:
            advice = suspects.advice(row["inversion_loss"], source.remedy_diverged)
            require_sound_loss(row, [], "inversion_loss", advice)
            several = self.buffer.size >= num_classes  # of a handful of images all may be of one class by chance
            if learned > 0 and several and "inversion_image_std" in row and self.course.class_counts:
                counted = self.course.class_counts[-1]
                share = counted.max() / counted.sum() if learned >= source.settled else 0.0
                std, remedies = row["inversion_image_std"], (source.remedy_alike, source.remedy_one_class)
                require_varied_images(round(row["epoch"]), share, std, num_classes, *remedies)
        if learned > 0:
            require_sound_loss(row, history, "loss", suspects.advice(row["loss"], remedy))
            seen = self.journal.counts["student_steps"] * self.training.batch_size
            hits = [earlier["agreement"] for earlier in history if "agreement" in earlier]
            what = "its agreement with the teacher on drawn samples"
            require_learning(learned, self.training.epochs, seen, hits, num_classes, what, remedy)


def refresh(buffer: ReplayBuffer, data: Data, student: nn.Module, teacher: nn.Module) -> None:
    """Set the priority of every stored sample from its divergence, not augmented, the student in eval mode."""
    images = buffer.images[: buffer.size]
    buffer.update_priority(buffer.everything(), divergences(teacher, student, images, data.augment))
