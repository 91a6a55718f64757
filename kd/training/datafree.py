"""Data-free distillation: inversion fills a replay buffer, the student learns from it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from kd.batch import Batch
from kd.data.dataset import Data, stratified
from kd.inversion.replay import ReplayBuffer
from kd.inversion.synthesis import Synthesis, Synthetic
from kd.losses.kd import kl_divergence
from kd.losses.objective import Objective
from kd.models.generator import Generator
from kd.runtime.checkpoint import Checkpoint, RandomState
from kd.runtime.journal import Journal
from kd.settings.run import Run
from kd.training.diagnosis import require_learning, require_sound_loss, require_varied_images
from kd.training.evaluate import Result, evaluate, predict
from kd.training.networks import student_and_teacher
from kd.training.optimisers import learning_rate, set_lr, sgd
from kd.training.step import Sums, train_step

CONFIDENCE_BINS = 20
GAPS, GAP_BATCHES = 10, 4  # how often, and on how many batches of images, the student's gap is measured


def compute(
    run: Run,
    data: Data,
    teacher_weights: list[Path],
    device: torch.device,
    journal: Journal,
    checkpoint: Checkpoint,
) -> Result:
    """Train and score the student of a run of kind datafree. Raises as `distil` does."""
    student, teacher, generator = student_and_teacher(run, data, teacher_weights, device)
    drawn = distil(run, data, student, teacher, generator, journal, checkpoint)
    with journal.phase("evaluation", device):
        metrics, _ = evaluate(student, data.score, data.augment, teacher)
    return Result(student, metrics, {"synthetic.npz": drawn})


def capacity(run: Run, full_size: int) -> int:
    """Images in a full buffer: the data scale of the paper."""
    return max(1, round(run.scale * (run.replay.full_size or full_size)))


def distil(
    run: Run,
    data: Data,
    student: nn.Module,
    teacher: nn.Module,
    generator: torch.Generator,
    journal: Journal,
    checkpoint: Checkpoint,
) -> dict[str, np.ndarray]:
    """Train the student without a real image; gives back what figures show of the synthetic set.

    Liu et al., Small Scale Data-Free Knowledge Distillation, CVPR 2024, on the frame of Fang et al., AAAI 2022. An
    epoch is one inversion and, after the warm-up, ceil(passes * capacity / batch) student steps. Of `data` only
    sizes, class names and normalisation are used; with `inversion.images: original`, so many of its training images
    fill the buffer instead, and nothing is synthesised. A killed run goes on from its checkpoint. Raises Stopped after
    SIGTERM, Unhealthy for a run that leads nowhere.
    """
    device, num_classes = generator.device, len(data.classes)
    network = Generator(run.inversion.noise_dim, run.inversion.width, data.image_size, data.channels)
    network = network.to(device, memory_format=torch.channels_last)
    synthesis = Synthesis(network, run.inversion, run.modulation, data.augment, num_classes, generator)
    shape = (data.channels, data.image_size, data.image_size)
    buffer = ReplayBuffer(capacity(run, data.full_size), shape, num_classes, run.replay, device)
    original = run.inversion.images == "original"
    if original:
        _fill_with_originals(buffer, data, run.seed, generator)
    objective = Objective({"kd": {"weight": 1.0, "temperature": run.distillation.temperature}}, None)
    training = run.distillation.training
    optimizer = sgd([student], training)
    steps = math.ceil(run.distillation.passes * buffer.capacity / training.batch_size)
    sums = Sums(["loss", "agreement", "weight", "divergence"], device)
    course = Course()
    parts = {
        "student": student,
        "synthesis": synthesis,
        "buffer": buffer,
        "optimizer": optimizer,
        "sums": sums,
        "course": course,
        "random": RandomState(generator),
        "journal": journal,
    }
    checkpoint.restore(parts)
    student.train()
    counts = journal.counts
    warmup = 0 if original else run.inversion.warmup
    epochs = warmup + training.epochs
    for epoch in range(len(journal.history), epochs):
        learning = epoch - warmup  # epochs that the student has behind it; negative in the warm-up
        if not original and counts["inversions"] == epoch:
            checkpoint.stop_or_save(parts)
            with journal.phase("inversion", device):
                if learning == run.inversion.reset_epoch and not counts["resets"]:
                    synthesis.reset_first_layer()
                    counts["resets"] = 1
                made = synthesis.epoch(teacher, student, buffer, learning > 0, lambda: checkpoint.stopping != 0)
                if made is None:
                    checkpoint.stop_or_save(parts)
                buffer.add(made.images, made.classes, made.phi, generator)
            with journal.phase("monitoring", device):
                course.note(buffer, made)
                journal.pending = {f"inversion_{name}": float(value) for name, value in made.losses.items()}
            counts["inversions"] += 1
            counts["generator_steps"] += run.inversion.steps
            counts["images"] += run.inversion.batch_size
        if learning >= 0:
            set_lr(optimizer, learning_rate(training, learning))
            buffer.anneal(learning / max(1, training.epochs - 1))
            with journal.phase("distillation", device):
                for _ in range(counts["student_steps"], (learning + 1) * steps):
                    checkpoint.stop_or_save(parts)
                    drawn = buffer.sample(training.batch_size, generator)
                    images = data.augment(buffer.images[drawn.index], generator)
                    batch = Batch(images, buffer.classes[drawn.index], drawn.index, drawn.weight)
                    step = train_step(student, teacher, objective, batch, optimizer, run.precision)
                    divergence = kl_divergence(step.teacher.logits.float(), step.student.logits.float(), 1.0)
                    buffer.update_priority(drawn, divergence)
                    agree = step.teacher.logits.argmax(1) == step.student.logits.argmax(1)
                    sums.add(step.loss.mean(), agree.float().mean(), batch.weight.mean(), divergence.mean())
                    counts["student_steps"] += 1
                if run.replay.refresh == "all":
                    refresh(buffer, data, student, teacher)
            with journal.phase("monitoring", device):
                noted = sums.take()
                if learning % math.ceil(training.epochs / GAPS) == 0:
                    noted |= _gap(buffer, data, student, teacher, GAP_BATCHES * training.batch_size)
        row = journal.log(epoch + 1, epochs, noted if learning >= 0 else {})
        seen = counts["student_steps"] * training.batch_size
        _require_health(run, row, journal.history, course, num_classes, learning + 1, seen)
    return describe(buffer, data, teacher) | course.arrays()


def _fill_with_originals(buffer: ReplayBuffer, data: Data, seed: int, generator: torch.Generator) -> None:
    """So many real training images as the buffer holds, stratified, drawn by the run's seed."""
    chosen = stratified(data.train.labels, buffer.capacity / len(data.train), seed)[: buffer.capacity]
    real = data.train.take(chosen.to(data.train.labels.device))
    buffer.add(real.images, real.labels, torch.ones_like(real.labels, dtype=torch.float32), generator)


def _gap(
    buffer: ReplayBuffer, data: Data, student: nn.Module, teacher: nn.Module, samples: int
) -> dict[str, torch.Tensor]:
    """Mean KL(teacher || student) over samples as they lie in the buffer, and over samples as they are drawn, [] each.

    On so many images spread over the buffer, not augmented, the student in eval mode.
    """
    index = torch.linspace(0, buffer.size - 1, min(samples, buffer.size), device=buffer.priority.device).long()
    logits = (predict(network, buffer.images[index], data.augment) for network in (teacher, student))
    divergence = kl_divergence(*logits, 1.0).double()
    drawn = buffer.probabilities()[index]
    return {"gap_stored": divergence.mean(), "gap_drawn": (drawn * divergence).sum() / drawn.sum()}


def _require_health(
    run: Run,
    row: dict[str, float],
    history: list[dict[str, float]],
    course: Course,
    num_classes: int,
    learned: int,
    seen: int,
) -> None:
    """Raise Unhealthy for losses that run away, a generator that has collapsed, a student that learns nothing."""
    if "inversion_loss" in row:
        remedy = "lower inversion.lr_generator or inversion.bn"
        require_sound_loss(row, [], "inversion_loss", remedy)
        if learned > 0:
            share = course.class_counts[-1].max() / course.class_counts[-1].sum()
            require_varied_images(round(row["epoch"]), share, row["inversion_image_std"], num_classes)
    if learned > 0:
        remedy = "lower distillation.training.lr, or look at the synthetic images (inversion.bn, inversion.oh)"
        require_sound_loss(row, history, "loss", remedy)
        epochs = run.distillation.training.epochs
        hits = [earlier["agreement"] for earlier in history if "agreement" in earlier]
        what = "its agreement with the teacher on drawn samples"
        require_learning(learned, epochs, seen, hits, num_classes, what, remedy)


class Course:
    """How the synthetic set changes, an entry per epoch: for figures and for the collapse check; part of a checkpoint.

    class_counts: [epochs, K] samples of each class in the buffer; confidence_counts: [epochs, CONFIDENCE_BINS] the
    teacher's confidence in the images just made; priorities: [epochs, 5] the buffer's quantiles 0, 0.25, ..., 1.
    """

    NAMES = ("class_counts", "confidence_counts", "priorities")

    def __init__(self) -> None:
        self.class_counts: list[np.ndarray] = []
        self.confidence_counts: list[np.ndarray] = []
        self.priorities: list[np.ndarray] = []

    def note(self, buffer: ReplayBuffer, made: Synthetic) -> None:
        """Once per epoch; waits for the device."""
        priorities = buffer.priority[: buffer.size].cpu().numpy()
        confidence = made.confidence.cpu().numpy()
        self.class_counts.append(buffer.class_counts.cpu().numpy().copy())  # on the CPU it is the buffer's own memory
        self.confidence_counts.append(np.histogram(confidence, bins=CONFIDENCE_BINS, range=(0, 1))[0])
        self.priorities.append(np.quantile(priorities, [0, 0.25, 0.5, 0.75, 1]))

    def arrays(self) -> dict[str, np.ndarray]:
        """For synthetic.npz; nothing where nothing was synthesised."""
        return {f"{name}_by_epoch": np.stack(getattr(self, name)) for name in self.NAMES if getattr(self, name)}

    def state_dict(self) -> dict[str, Any]:
        return {name: [torch.from_numpy(entry) for entry in getattr(self, name)] for name in self.NAMES}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self.NAMES:
            setattr(self, name, [entry.numpy() for entry in state[name]])


def refresh(buffer: ReplayBuffer, data: Data, student: nn.Module, teacher: nn.Module) -> None:
    """Set the priority of every stored sample from its divergence, without augmentation, the student in eval mode."""
    images = buffer.images[: buffer.size]
    logits = (predict(network, images, data.augment) for network in (teacher, student))
    buffer.update_priority(buffer.everything(), kl_divergence(*logits, 1.0))


def describe(buffer: ReplayBuffer, data: Data, teacher: nn.Module, shown: int = 64) -> dict[str, np.ndarray]:
    """The synthetic set for figures: `shown` images [n, C, S, S], class counts [K], confidence counts [bins].

    Class and confidence are the teacher's on the stored, unaugmented images.
    """
    logits = predict(teacher, buffer.images[: buffer.size], data.augment)
    confidence, classes = logits.softmax(1).max(1)
    spread = torch.linspace(0, buffer.size - 1, min(shown, buffer.size), device=classes.device).long()
    order = spread[classes[spread].sort(stable=True).indices]
    return {
        "images": buffer.images[order].cpu().numpy(),
        "image_classes": classes[order].cpu().numpy(),
        "class_counts": np.bincount(classes.cpu().numpy(), minlength=len(data.classes)),
        "confidence_counts": np.histogram(confidence.cpu().numpy(), bins=CONFIDENCE_BINS, range=(0, 1))[0],
        "priority": buffer.priority[: buffer.size].cpu().numpy(),
    }
