"""Codes whose trained networks kd can take over: which networks they have, and how they normalise images.

This file imports no torch, so that the command line can name them. `kd.models.imported` knows the names of tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from kd.registry.models import MODELS


@dataclass(frozen=True)
class Normalisation:
    """What a code subtracts from images in [0, 1] and divides them by, per channel, for one data set."""

    dataset: str  # a name of kd.registry.datasets
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    written: str  # where in the code
    classes: str = "in torchvision's order, which is alphabetical, as in kd"


@dataclass(frozen=True)
class Published:
    """One code, as it was read."""

    code: str
    models: str  # regular expression of the networks that it has, by kd's names
    normalised: Mapping[int, Normalisation]  # by number of classes
    image_size: int = 32
    other_names: Mapping[str, str] = field(default_factory=dict)  # its own name (regular expression) -> kd's


CIFAR10 = Normalisation("cifar10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "NORMALIZE_DICT in registry.py")
CIFAR100 = Normalisation(
    "cifar100", (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), "NORMALIZE_DICT in registry.py"
)
IMAGENET = Normalisation(
    *("folder", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "transforms/_presets.py"),
    classes="in the order of their WordNet ids: name the folders by these",
)
PUBLISHED: dict[str, Published] = {
    "repdistiller": Published(
        "HobbitLong/RepDistiller b84f547",
        r"resnet(8|14|20|32|44|56|110|8x4|32x4|50)|wrn_\d+_\d+|vgg(8|11|13|16|19)|mobilenetv2_half|shufflenetv[12]",
        {100: replace(CIFAR100, written="dataset/cifar100.py")},
        other_names={
            "ResNet50": "resnet50",
            "MobileNetV2": "mobilenetv2_half",
            r"Shuffle(V[12])": "shufflenet{0}",
        },
    ),
    "fast-datafree": Published(
        "zju-vipa/Fast-Datafree 0dcecbc and zju-vipa/CMI 9e79fa9",
        r"resnet(8|20|32|56|110|8x4|32x4|18|34|50)|wrn_\d+_\d+|vgg(8|11|13)|mobilenetv2|shufflenetv2",
        {10: CIFAR10, 100: CIFAR100},
        other_names={r"wrn-?(\d+)[-_](\d+)": "wrn_{0}_{1}"},
    ),
    "torchvision": Published(
        "torchvision",
        r"torchvision:\w+",
        {1000: IMAGENET},
        image_size=224,
    ),
}


def model_named(source: str, model: str) -> str:
    """Return kd's name of a network of a code, which may be given by the code's own. Raises ValueError."""
    published = PUBLISHED[source]
    for pattern, ours in published.other_names.items():
        if match := re.fullmatch(pattern, model):
            model = ours.format(*(group.lower() for group in match.groups()))
    if not re.fullmatch(published.models, model):
        names = [name for name in MODELS if re.fullmatch(published.models, name)] or ["torchvision:<name>"]
        raise ValueError(f"{source} has no network {model!r}; allowed, by kd's names: {', '.join(names)}")
    return model


def normalisation(source: str, model: str, classes: int) -> Normalisation | None:
    """Return what a network of a code, with that many classes, wants its images normalised by; None where unknown."""
    known = PUBLISHED[source].normalised.get(classes)
    if known is IMAGENET and model in ("torchvision:googlenet", "torchvision:inception_v3"):
        # with published weights these two turn ImageNet's normalisation into another one; kd's build does not
        return replace(known, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), written="transform_input of the network")
    return known
