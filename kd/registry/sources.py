"""Data-free sources by name: what fills the replay buffer of a data-free run. Imports no torch.

To add one: write kd/inversion/sources/<name>.py with one class derived from `Source` (kd/inversion/sources/base.py) and
add its entry to SOURCES. The keyword-only arguments of its constructor are the settings that a study may give below
`inversion.<name>`: names, types and defaults in the constructor, meaning and range in this file.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kd.registry import keywords
from kd.registry.setting import Setting


@dataclass(frozen=True)
class SourceEntry:
    """What is known of a data-free source without importing it."""

    code: str  # module:class
    says: str
    settings: dict[str, Setting] = field(default_factory=dict)  # one per keyword-only argument of the class
    synthesises: bool = True  # makes new images every round; else rounds and what new images replace have no effect
    modulates: bool = True  # phi weights its task loss; else the section `modulation` has no effect
    weights: tuple[str, ...] = ()  # settings that weight the terms of its loss, where one has to be above 0
    needs_batchnorm: bool | str = True  # of the teacher: its statistics guide the synthesis; or which weight asks that
    size_multiple: int = 1  # the image size must be a multiple of this


SOURCES: dict[str, SourceEntry] = {
    "generator": SourceEntry(
        "kd.inversion.sources.generator:MetaGenerator",
        "images of Fast's meta-generator, which learns from the teacher",
        {
            "batch_size": Setting("images synthesised per round", at_least=2),
            "warmup": Setting("epochs of inversion before the student begins", at_least=1),
            "steps": Setting("generator updates per round", at_least=1),
            "lr_generator": Setting("Adam's learning rate of the inner generator", above=0),
            "lr_noise": Setting("Adam's learning rate of the noise", above=0),
            "bn": Setting("weight of the BatchNorm-statistics prior; 0 switches it off", at_least=0),
            "oh": Setting("weight of the task loss (one-hot cross entropy), modulated by phi; 0: off", at_least=0),
            "adv": Setting("weight of the adversarial term (minus the student's divergence); 0: off", at_least=0),
            "adv_with_lr": Setting("let that weight fall with the student's learning rate", neutral=False),
            "adv_until": Setting(
                "share of the student's epochs with the adversarial term", neutral=1.0, above=0, at_most=1
            ),
            "until": Setting(
                "share of the student's epochs that bring new images; then the buffer stays as it is",
                neutral=1.0,
                above=0,
                at_most=1,
            ),
            "bn_momentum": Setting("share of the past in the prior's batch statistics; 0: only the batch", 0, below=1),
            "meta": Setting("how the common generator learns from each round's inner copy; maml is first order"),
            "reset_epoch": Setting("student epoch before which the generator's first layer is drawn again", at_least=1),
            "noise_dim": Setting("numbers in the generator's input", at_least=1),
            "width": Setting("channels of the generator's last maps", at_least=1),
            "precision": Setting("of the inversion; bf16 is autocast, which only GPUs gain from", neutral="float32"),
        },
        size_multiple=4,
    ),
    "adversarial": SourceEntry(
        "kd.inversion.sources.adversarial:Adversarial",
        "images of a generator that learns all along, on fresh noise: DAFL, DFQ, ZSKT",
        {
            "batch_size": Setting("images of a generator step, and of each batch that enters the buffer", at_least=2),
            "batches": Setting("batches of fresh images per round", at_least=1),
            "steps": Setting("generator steps per round", at_least=1),
            "lr": Setting("Adam's learning rate of the generator", above=0),
            "adv": Setting("weight of minus the student's divergence from the teacher; 0: off", at_least=0),
            "oh": Setting("weight of the teacher's cross entropy against its own prediction; 0: off", at_least=0),
            "activation": Setting("weight of minus the mean size of the teacher's features; 0: off", at_least=0),
            "balance": Setting("weight of minus the entropy of the batch's mean prediction; 0: off", at_least=0),
            "bn": Setting("weight of the BatchNorm-statistics prior; 0: off", at_least=0),
            "noise_dim": Setting("numbers in the generator's input", at_least=1),
            "width": Setting("channels of the generator's last maps", at_least=1),
        },
        modulates=False,
        weights=("adv", "oh", "activation", "balance", "bn"),
        needs_batchnorm="bn",
        size_multiple=4,
    ),
    "original": SourceEntry(
        "kd.inversion.sources.original:Original",
        "a random subset of the training images, as many as the buffer holds; nothing is synthesised",
        synthesises=False,
        modulates=False,
        needs_batchnorm=False,
    ),
}


def source_settings(name: str) -> dict[str, str]:
    """Return a source's settings with their annotations."""
    return keywords.annotations(SOURCES[name].code)


def source_defaults(name: str) -> dict[str, Any]:
    """Return a source's settings with their default values."""
    return keywords.defaults(SOURCES[name].code)
