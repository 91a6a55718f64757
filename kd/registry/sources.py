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
    files: tuple[str, ...] = ()  # settings that are paths of files, whose content belongs to a run's identity
    size_multiple: int = 1  # the image size must be a multiple of this
    dense: bool = False  # fits teachers that say a class for every pixel


DESCENT: dict[str, Setting] = {  # of all sources that take several steps down a loss for every batch
    "batch_size": Setting("images synthesised per round", at_least=2),
    "warmup": Setting("epochs of inversion before the student begins", at_least=0),
    "bn": Setting("weight of the BatchNorm-statistics prior; 0 switches it off", at_least=0),
    "oh": Setting("weight of the task loss (one-hot cross entropy), modulated by phi; 0: off", at_least=0),
    "adv": Setting("weight of the adversarial term (minus the student's divergence); 0: off", at_least=0),
}
SOURCES: dict[str, SourceEntry] = {
    "generator": SourceEntry(
        "kd.inversion.sources.generator:MetaGenerator",
        "images of Fast's meta-generator, which learns from the teacher",
        {
            **DESCENT,
            "warmup": Setting("epochs of inversion before the student begins", at_least=1),
            "steps": Setting("generator updates per round", at_least=1),
            "lr_generator": Setting("Adam's learning rate of the inner generator", above=0),
            "lr_noise": Setting("Adam's learning rate of the noise", above=0),
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
            "doublings": Setting(
                "how often the generator doubles its maps up to the image's size; more for larger images",
                neutral=2,
                at_least=1,
                at_most=6,
            ),
            "targets": Setting(
                "classes that the task term asks for: random ones (of segmentation, maps of them), or the teacher's "
                "own prediction",
                neutral="random",
            ),
            "precision": Setting("of the inversion; bf16 is autocast, which only GPUs gain from", neutral="float32"),
        },
        size_multiple=4,
        dense=True,
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
    "deepinversion": SourceEntry(
        "kd.inversion.sources.deepinversion:DeepInversion",
        "pixels that are optimised directly (DeepInversion, Adaptive DeepInversion)",
        {
            **DESCENT,
            "steps": Setting("steps of Adam per batch", at_least=1),
            "lr": Setting("Adam's learning rate, in units of normalised colours", above=0),
            "tv_l2": Setting("weight of the total variation, norms of neighbours' differences; 0: off", at_least=0),
            "tv_l1": Setting("weight of the total variation, means of absolute differences; 0: off", at_least=0),
            "l2": Setting("weight of the norm of all pixels; 0: off", at_least=0),
            "adv": Setting("weight of the competition with the student (Adaptive DeepInversion); 0: off", at_least=0),
            "adv_temperature": Setting("divides both networks' logits in that term", above=0),
            "jitter": Setting("pixels by which a batch is moved before a step, at most", at_least=0),
            "flip": Setting("mirror the batch before half of the steps"),
        },
    ),
    "cmi": SourceEntry(
        "kd.inversion.sources.cmi:ContrastiveInversion",
        "images of a generator that every batch draws anew, unlike each other and earlier ones (CMI)",
        {
            **DESCENT,
            "steps": Setting("generator updates per batch", at_least=1),
            "lr": Setting("Adam's learning rate of generator, noise and projection head", above=0),
            "cr": Setting("weight of the contrastive term; 0: off, with bank and head", at_least=0),
            "cr_temperature": Setting("divides the similarities in that term", above=0),
            "negatives": Setting("earlier images per step in that term, at most as many as the bank holds", at_least=1),
            "bank": Setting("earlier images whose features are kept", at_least=1),
            "head_dim": Setting("numbers in a projected feature", at_least=1),
            "noise_dim": Setting("numbers in the generator's input", at_least=1),
            "width": Setting("channels of the generator's last maps", at_least=1),
        },
        size_multiple=4,
    ),
    "nayer": SourceEntry(
        "kd.inversion.sources.nayer:Nayer",
        "images of a generator that sees the class through a layer which every batch draws anew (NAYER)",
        {
            **DESCENT,
            "steps": Setting("generator updates per batch", at_least=1),
            "lr": Setting("Adam's learning rate of generator and noisy layers", above=0),
            "bn_momentum": Setting("share of the past in the prior's batch statistics; 0: only the batch", 0, below=1),
            "life": Setting("epochs after which the generator is drawn anew", at_least=1),
            "embeddings": Setting(
                "null: the rows of the teacher's last layer; or the path of an .npy file, [classes, E], whose content "
                "belongs to the run's identity"
            ),
            "noise_dim": Setting("numbers that the noisy layers pass to the generator", at_least=1),
            "width": Setting("channels of the generator's last maps", at_least=1),
        },
        files=("embeddings",),
        size_multiple=4,
    ),
    "original": SourceEntry(
        "kd.inversion.sources.original:Original",
        "a random subset of the training images, as many as the buffer holds; nothing is synthesised",
        synthesises=False,
        modulates=False,
        needs_batchnorm=False,
        dense=True,
    ),
}


def source_settings(name: str) -> dict[str, str]:
    """Return a source's settings with their annotations."""
    return keywords.annotations(SOURCES[name].code)


def source_defaults(name: str) -> dict[str, Any]:
    """Return a source's settings with their default values."""
    return keywords.defaults(SOURCES[name].code)
