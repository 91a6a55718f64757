"""Every setting, written once: type, default, range and the sentence that documents it.

config/config.yaml, workflow/schemas/config.schema.yaml and the tables of config/README.md are made from this file
(`python -m kd.settings.documents`). Imports no torch.

A setting that is added after runs were finished has a neutral value (`setting(..., neutral=0.0)`), at which it changes
nothing: there it is left out of a run's identity, so that old results stay what they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

from kd.registry.sources import SOURCES, SourceEntry, source_defaults
from kd.settings.compute import Compute
from kd.settings.fields import section, setting
from kd.settings.given_file import GivenFile

PER_CHANNEL = {"uniqueItems": False, "minItems": 1}  # a list of numbers, in which some may be equal


@dataclass(frozen=True)
class Dataset:
    """Where the images come from, and how they are augmented.

    `root` belongs to a run's identity for `folder` and `pairs` only: other data sets are the same everywhere, and
    `run_of` leaves out where they were found. It is kept as typed, but imgs/ and ./imgs are imgs.
    """

    name: str = setting(
        "digits",
        "digits (scikit-learn's 1,797 images), cifar10, cifar100, fashion_mnist, folder (your images) or none "
        "(no images; classes, channels, mean and std say what your own teacher was trained on); for segmentation rooms "
        "(2,000 synthetic scenes), nyuv2 or pairs (your images and label maps)",
    )
    root: str | None = setting(
        None,
        "where the data lies, for folder: root/{train,test}/<class>/*.png, .jpg, .tif, ...; null: found or downloaded",
        pattern="",
    )
    classes: int | tuple[str, ...] | None = setting(
        None, "null: all; 10: the first ten; or a list of names; labels are numbered from 0", at_least=2
    )
    image_size: int = setting(
        16, "images are made square and resized to this when the data set is prepared", at_least=8, at_most=512
    )
    validation: float = setting(
        0.0,
        "fraction of the training data held out and scored instead of the test set: for tuning and choosing",
        at_least=0,
        below=1,
    )
    pad: int = setting(2, "augmentation: random crop after padding by this many pixels", at_least=0)
    flip: bool = setting(False, "augmentation: random horizontal flip")
    rescale: float = setting(
        1.0,
        "augmentation: images are enlarged or shrunk at random, by up to this factor; 1: not",
        neutral=1.0,
        at_least=1,
        at_most=4,
    )
    channels: int | None = setting(
        None,
        "null: as the images are; 3: grey images are repeated; of none: 1 or 3; of rooms, nyuv2 4: colours and depth",
        neutral=None,
        at_least=1,
    )
    mean: tuple[float, ...] | None = setting(
        None,
        "what images are normalised with, per channel, in the range [0, 1]: those of your own teacher; null: of the "
        "training images",
        neutral=None,
        schema=PER_CHANNEL,
        at_least=0,
        at_most=1,
    )
    std: tuple[float, ...] | None = setting(
        None, "likewise, the standard deviation", neutral=None, schema=PER_CHANNEL, above=0
    )
    stream: bool = setting(
        False,
        "true, for folder: images stay in their files and are decoded while runs learn, each time with another random "
        "crop of any size (docs/imagenet.md)",
        neutral=False,
    )

    def __post_init__(self) -> None:
        if self.stream:
            for name, neutral in (("pad", 0), ("rescale", 1.0)):  # its crops are others, of any size
                object.__setattr__(self, name, neutral)
        if self.root is not None:
            object.__setattr__(self, "root", str(PurePosixPath(self.root)))  # a link's `..` leads elsewhere: it stays

    @property
    def label(self) -> str:
        """Name for paths and tables: cifar100, cifar100-20 (a subset of its classes), folder-flowers."""
        count = len(self.classes) if isinstance(self.classes, tuple) else self.classes
        return "-".join(filter(None, [self.name, PurePosixPath(self.root or "").name, str(count or "")]))

    @property
    def prepared(self) -> dict[str, Any]:
        """What its prepared file depends on, and nothing else: augmentation and splits happen later."""
        classes = list(self.classes) if isinstance(self.classes, tuple) else self.classes
        prepared = {"name": self.name, "root": self.root, "classes": classes}
        if self.stream:
            return {**prepared, "stream": True}
        prepared["image_size"] = self.image_size
        return prepared if self.channels is None else {**prepared, "channels": self.channels}

    @classmethod
    def from_prepared(cls, prepared: dict[str, Any]) -> Dataset:
        """Return the data set that `prepared` described, without split and augmentation."""
        classes = tuple(prepared["classes"]) if isinstance(prepared["classes"], list) else prepared["classes"]
        given = {"image_size": 0, **prepared, "classes": classes}
        return cls(**given, validation=0.0, pad=0, flip=False)


@dataclass(frozen=True, kw_only=True)
class Training:
    """The schedule of one network's training."""

    epochs: int = setting(240, "passes over the data (data-free: epochs after the warm-up)", at_least=1)
    batch_size: int = setting(64, "samples per step", at_least=2)
    lr: float = setting(0.05, "SGD's learning rate", above=0)
    schedule: Literal["steps", "cosine", "poly"] = setting(
        "steps",
        "steps: lr x gamma at each milestone; cosine, poly: down to final_lr; poly is segmentation's, power 0.9",
    )
    milestones: tuple[int, ...] = setting((150, 180, 210), "epochs, for steps", neutral=(), at_least=1)
    gamma: float = setting(0.1, "factor at each milestone, for steps", neutral=1.0, above=0, at_most=1)
    final_lr: float = setting(0.0, "learning rate at the end, for cosine and poly", neutral=0.0, at_least=0)
    momentum: float = setting(0.9, "of SGD", at_least=0, below=1)
    nesterov: bool = setting(False, "of SGD")
    weight_decay: float = setting(0.0005, "of SGD", at_least=0)

    def effective(self) -> Training:
        """Return the same schedule; what its kind does not use is at its neutral value."""
        if self.schedule != "steps":
            return replace(self, milestones=(), gamma=1.0)
        return replace(self, final_lr=0.0, gamma=self.gamma if self.milestones else 1.0)


@dataclass(frozen=True)
class Inversion:
    """The data-free source that fills the replay buffer, and all settings of that one."""

    source: str
    settings: dict[str, Any]

    @classmethod
    def of(cls, source: str, given: dict[str, Any]) -> Inversion:
        """Return a known source's settings: those given, the others at their defaults, files as GivenFile.

        Raises ConfigError for a file that cannot be read.
        """
        values = {key: given.get(key, default) for key, default in source_defaults(source).items()}
        for key in SOURCES[source].files:
            if isinstance(place := values[key], str):
                values[key] = GivenFile.at(place, f"inversion.{source}.{key}")
        return cls(source, values)

    def arguments(self) -> dict[str, Any]:
        """Return the settings as the source's class takes them. Raises ConfigError for a file that has changed."""
        where = f"inversion.{self.source}"
        return {
            key: value.unchanged(f"{where}.{key}") if isinstance(value, GivenFile) else value
            for key, value in self.settings.items()
        }

    @property
    def entry(self) -> SourceEntry:
        """What the registry knows of the source."""
        return SOURCES[self.source]


@dataclass(frozen=True, kw_only=True)
class Modulation:
    """phi = (1 - diversity * share of the class in the buffer) * (1 - confidence)^gamma, weight of the task loss."""

    diversity: float = setting(1.0, "weight of the class-share factor of phi; 0 switches it off", at_least=0, at_most=1)
    gamma: float = setting(1.0, "exponent of the difficulty factor of phi; 0 switches it off", at_least=0)
    class_of: Literal["prediction", "target"] = setting(
        "prediction", "class of a sample: the teacher's prediction, or the target asked of the generator"
    )
    gradient: bool = setting(False, "let gradients flow through phi")
    normalise: bool = setting(False, "scale phi to mean 1 over the batch")


@dataclass(frozen=True, kw_only=True)
class Replay:
    """The dynamic replay buffer with priority sampling."""

    full_size: int | None = setting(None, "images at scale 1.0; null: the size of the training set", at_least=1)
    replacement: Literal["oldest", "lowest", "random"] = setting(
        "oldest", "which stored images new ones replace; lowest: of the lowest priority", neutral="oldest"
    )
    admitted: float = setting(
        1.0, "share of a round's new images that enters a buffer that is full", neutral=1.0, above=0, at_most=1
    )
    initial_priority: Literal["phi", "max"] = setting(
        "max", "priority of a new sample: its phi, or the largest in the buffer", neutral="max"
    )
    alpha: float = setting(0.6, "exponent of the priority; 0: uniform sampling", at_least=0, at_most=10)
    beta: float = setting(0.4, "exponent of the importance-sampling weights; 0: all 1", at_least=0, at_most=10)
    final_beta: float | None = setting(
        None, "beta at the last epoch, reached in a straight line; null: beta stays", at_least=0, at_most=10
    )
    eps: float = setting(0.000001, "added to priorities", above=0)
    priority_feedback: bool = setting(True, "the published form: the previous weight multiplies the new priority")
    normalise_weights: bool = setting(True, "divide the weights by the largest one drawn")
    with_replacement: bool = setting(
        True, "false: images are drawn in shuffled passes over the buffer, as in Fast; needs alpha: 0", neutral=True
    )
    refresh: Literal["drawn", "all"] = setting(
        "drawn", "priorities of the samples drawn, after each step; or also of all, once per epoch"
    )


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How a data-free student learns."""

    temperature: float = setting(20.0, "divides both networks' logits in the student's KL loss", above=0)
    passes: float = setting(2.0, "student steps per epoch = ceil(passes * full buffer / batch size)", above=0)
    steps: int | None = setting(
        None, "student steps per epoch, whatever the buffer holds; null: from passes", neutral=None, at_least=1
    )
    rounds: int = setting(
        1, "how often per epoch images are made, each time followed by its share of the steps", neutral=1, at_least=1
    )
    training: Training = section(
        "the data-free student's schedule",
        epochs=200,
        batch_size=256,
        lr=0.2,
        schedule="cosine",
        milestones=(),
        final_lr=0.0002,
        weight_decay=0.0001,
    )

    def steps_per_epoch(self, capacity: int) -> int:
        """Return the student's steps per epoch with a buffer that holds `capacity` images when full.

        Each round has as many; their number is rounded up.
        """
        steps = self.steps or math.ceil(self.passes * capacity / self.training.batch_size)
        return self.rounds * math.ceil(steps / self.rounds)

    def effective(self) -> Distillation:
        """Return the same with `passes` at its default where `steps` takes its place."""
        return self if self.steps is None else replace(self, passes=2.0)


# ------------------------------------------------------------------------------ the rest of config.yaml, as a whole


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """How teachers are trained; an experiment's `pairs` name them."""

    model: str | tuple[str, ...] = setting(
        "wrn_16_2",
        "the first name of an experiment's pair replaces it; a list of names is an ensemble",
        schema={"uniqueItems": False, "maxItems": 32},
    )
    weights: str | tuple[str, ...] | None = setting(
        None,
        "file of your own trained teacher (a state dict), which is used as it is; a list for an ensemble; null: "
        "teachers are trained",
        neutral=None,
        pattern="",
        schema={"minItems": 1, "maxItems": 32, "items": {"type": "string", "minLength": 1}, "uniqueItems": False},
    )
    view: Literal["rgb", "luminance", "chrominance", "depth"] = setting(
        "rgb", "what the network sees of an image; depth: of dataset.channels 4"
    )
    seed: int | None = setting(
        0,
        "seed of the one teacher that all students share; null: one teacher per student seed",
        at_least=0,
        at_most=1_000_000,
    )
    training: Training = section("the teacher's schedule: CRD's published one for CIFAR-100")


@dataclass(frozen=True, kw_only=True)
class Student:
    """The student; an experiment's `pairs` name it."""

    model: str = setting("wrn_16_1", "the second name of an experiment's pair replaces it")
    view: Literal["rgb", "luminance", "chrominance", "depth"] = setting(
        "rgb", "what the network sees of an image; depth: of dataset.channels 4"
    )


@dataclass(frozen=True, kw_only=True)
class Tracking:
    """MLflow."""

    enabled: bool = setting(True, "log every step to MLflow; tables never depend on it")
    uri: str | None = setting(None, "null: $MLFLOW_TRACKING_URI, else an SQLite file in the results folder")
    models: bool = setting(True, "store networks as MLflow models, for torch alone; false: as weights.pt")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """config.yaml from top to bottom; `objective`, `inversion` and `methods` are open maps."""

    study: str = setting("demo", "a file of config/studies without its ending, or the path of your own .yaml")
    quick: bool = setting(False, "true: the study's own small version, for a CPU, where it has one")
    results: str = setting("results", "folder of everything that is generated; `~` is the home folder", pattern="")
    dataset: Dataset = section("what is learned")
    teacher: Teacher = section("how teachers are trained")
    student: Student = section("the student")
    scale: float = setting(
        1.0,
        "data scale: fraction of the training set (with data), or size of the replay buffer relative to it (data-free)",
        above=0,
        at_most=1,
    )
    precision: Literal["float32", "bf16"] = setting("float32", "bf16 is autocast; only GPUs gain from it")
    training: Training = section("the schedule of students with data: from scratch, KD, CRD, ...")
    kind: Literal["train", "distill", "datafree"] = setting(
        "train", "train (labels), distill (teacher and data), datafree (only the teacher); methods set it"
    )
    objective: dict = section("weighted sum of losses, with data; weight 0 switches a term off")
    inversion: Inversion = section("data-free: what fills the replay buffer, and the settings of each source")
    modulation: Modulation = section(
        "data-free: phi = (1 - diversity * share of the class in the buffer) * (1 - confidence)^gamma"
    )
    replay: Replay = section("data-free: the dynamic replay buffer with priority sampling")
    distillation: Distillation = section("data-free: how the student learns")
    compute: Compute = section("how it is computed; changes no result's identity")
    tracking: Tracking = section("MLflow, a view of the results")
    methods: dict = section("methods by name")
