"""Data-free distillation: inversion fills a replay buffer, the student learns from it."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from kd.batch import Batch
from kd.checkpoint import Checkpoint, RandomState
from kd.config import Run
from kd.data.dataset import Data
from kd.evaluate import predict
from kd.inversion.replay import ReplayBuffer
from kd.inversion.synthesis import Synthesis
from kd.journal import Journal
from kd.losses.kd import kl_divergence
from kd.losses.objective import Objective
from kd.models.generator import Generator
from kd.optim import set_lr, sgd
from kd.train import Sums, require_finite, train_step

CONFIDENCE_BINS = 20


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
) -> ReplayBuffer:
    """Train the student without a real image; gives back the final buffer.

    Liu et al., Small Scale Data-Free Knowledge Distillation, CVPR 2024, on the frame of Fang et al., AAAI 2022. An
    epoch is one inversion and, after the warm-up, ceil(passes * capacity / batch) student steps. Of `data` only
    sizes, class names and normalisation are used. A killed run goes on from its checkpoint. Raises Stopped after
    SIGTERM, FloatingPointError when a loss is not finite.
    """
    device = generator.device
    network = Generator(run.inversion.noise_dim, run.inversion.width, data.image_size, data.channels)
    network = network.to(device, memory_format=torch.channels_last)
    synthesis = Synthesis(network, run.inversion, run.modulation, data.augment, len(data.classes), generator)
    shape = (data.channels, data.image_size, data.image_size)
    buffer = ReplayBuffer(capacity(run, data.full_size), shape, len(data.classes), run.replay, device)
    objective = Objective({"kd": {"weight": 1.0, "temperature": run.distillation.temperature}}, None)
    training = run.distillation.training
    optimizer = sgd([student], training)
    steps = math.ceil(run.distillation.passes * buffer.capacity / training.batch_size)
    sums = Sums(["loss", "agreement", "weight", "divergence"], device)
    parts = {
        "student": student,
        "synthesis": synthesis,
        "buffer": buffer,
        "optimizer": optimizer,
        "sums": sums,
        "random": RandomState(generator),
        "journal": journal,
    }
    checkpoint.restore(parts)
    student.train()
    counts = journal.counts
    warmup, epochs = run.inversion.warmup, run.inversion.warmup + training.epochs
    for epoch in range(len(journal.history), epochs):
        learning = epoch - warmup  # epochs that the student has behind it; negative in the warm-up
        if counts["inversions"] == epoch:
            checkpoint.stop_or_save(parts)
            with journal.phase("inversion", device):
                if learning == run.inversion.reset_epoch and not counts["resets"]:
                    synthesis.reset_first_layer()
                    counts["resets"] = 1
                made = synthesis.epoch(teacher, student, buffer, learning > 0, lambda: checkpoint.stopping != 0)
                if made is None:
                    checkpoint.stop_or_save(parts)
                buffer.add(made.images, made.classes, made.phi, generator)
                inversion = {f"inversion_{name}": value for name, value in made.losses.items()}
            counts["inversions"] += 1
            counts["generator_steps"] += run.inversion.steps
            counts["images"] += run.inversion.batch_size
            journal.pending = {name: float(value) for name, value in inversion.items()}
        if learning >= 0:
            set_lr(optimizer, training, learning)
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
        row = journal.log(epoch + 1, epochs, sums.take() if learning >= 0 else {})
        require_finite(row, "inversion_loss", "lower inversion.lr_generator or inversion.bn")
        if learning >= 0:
            require_finite(row, "loss", "lower distillation.training.lr")
    return buffer


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
