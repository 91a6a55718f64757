"""Networks that other codes have trained, under kd's names of their tensors.

A family's rules say where each of their tensors belongs: the first regular expression that matches a whole name makes
ours of it. Rules never go by the order of a file, which some formats do not keep. What is left over, missing or of
another shape is an error, so that a network that is not kd's is never taken for it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
import yaml
from torch import Tensor

from kd.models.build import build
from kd.models.classifier import Classifier
from kd.models.mobilenetv2 import MobileNetV2
from kd.registry.models import MODELS, check
from kd.registry.published import PUBLISHED, model_named, normalisation
from kd.runtime.messages import ConfigError, escaped
from kd.runtime.weights import fill, read_state

Rules = list[tuple[str, Callable[[re.Match], str | None]]]  # None: a part that kd's network does not have
UNKNOWN = ""
COUNTER = ".num_batches_tracked"  # of a BatchNorm; files from before torch 0.4.1 lack it, and nothing reads it


@dataclass(frozen=True)
class Imported:
    """A network of kd that a file has filled, in eval mode; how many tensors were read, and the names left out."""

    model: str
    network: Classifier
    tensors: int
    left_out: list[str]


def read(file: Path, source: str, model: str, image_size: int | None = None) -> Imported:
    """Return the network `model` with the weights of a file that a code of PUBLISHED has written.

    Numbers of classes and of input channels are those of the file. `model` may be the code's own name. Raises
    ConfigError, in one line, for a network that the code does not have, a file that cannot be read, and one that does
    not fit, with what does not, how far it would fit, and which networks it does fit.
    """
    try:
        model = model_named(source, model)
        check(model)
    except ValueError as error:
        raise ConfigError(f"--model: {error}") from None
    size = image_size or PUBLISHED[source].image_size
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # RepDistiller's last files keep the options
            theirs = read_state(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: cannot be imported: {error}") from None
    try:
        ours, left_out, unknown = renamed(theirs, model, size)
        network = _like(model, ours, size)
    except ValueError as error:
        raise ConfigError(f"{file}: cannot be imported as {model}: {error}") from None
    own = network.state_dict()
    fits = sum(name in own and own[name].shape == value.shape for name, value in ours.items())
    ours = {name: value for name, value in own.items() if name.endswith(COUNTER)} | ours
    try:
        if unknown:
            raise ValueError(f"{len(unknown)} of its names are no part of it (first: {escaped(unknown[0])})")
        fill(network, ours)
    except ValueError as error:
        whole = [name for name in MODELS if re.fullmatch(PUBLISHED[source].models, name) and _fits(name, theirs)]
        raise ConfigError(
            f"{file}: cannot be imported as {model}: {error}; {fits} of {len(own)} tensors of {model} are there"
            + (f"; the file fits --model {' or '.join(whole)}" if whole else "")
        ) from None
    return Imported(model, network.eval(), len(theirs), left_out)


def study_lines(imported: Imported, source: str, weights: Path) -> str:
    """Return the YAML for a study whose teacher the network is, with what its code normalises images by."""
    published, classes = PUBLISHED[source], imported.network.num_classes
    known = normalisation(source, imported.model, classes)
    dataset = {"name": known.dataset if known else "folder", "image_size": imported.network.image_size}
    if known:
        says = f"mean and std: {published.code}, {known.written}\n# classes: {known.classes}"
        dataset |= {"mean": list(known.mean), "std": list(known.std)}
    else:
        says = f"mean and std: those that it was trained with; the code names none for {classes} classes"
    teacher = {"model": imported.model, "weights": str(weights)}
    content = {"settings": {"dataset": dataset, "teacher": teacher}}
    return f"# {says}\n{yaml.safe_dump(content, sort_keys=False, width=120, default_flow_style=None)}"


def renamed(theirs: dict[str, Tensor], model: str, image_size: int) -> tuple[dict[str, Tensor], list[str], list[str]]:
    """Return the tensors under kd's names, the names of those left out, and the names that no rule knows."""
    rules = next(rules for models, rules in FAMILIES if re.fullmatch(models, model))
    ours: dict[str, Tensor] = {}
    left_out, unknown = [], []
    for name, value in theirs.items():
        found = next((place(match) for pattern, place in rules if (match := re.fullmatch(pattern, name))), UNKNOWN)
        if found is None:
            left_out.append(name)
        elif found == UNKNOWN or found in ours:
            unknown.append(name)
        else:
            ours[found] = value
    if ":" in model:
        with torch.device("meta"):
            ours = build(model, num_classes=10, image_size=image_size).own_names(ours)
    return ours, left_out, unknown


def _like(model: str, ours: dict[str, Tensor], image_size: int) -> Classifier:
    """Build the network with as many classes and input channels as the tensors have. Raises ValueError."""
    classes = _classes(ours)
    network = build(model, num_classes=classes, image_size=image_size)
    channels = _channels(ours, {name: value.shape for name, value in network.state_dict().items()})
    return network if channels == 3 else build(model, num_classes=classes, in_channels=channels, image_size=image_size)


def _classes(ours: dict[str, Tensor]) -> int:
    head = ours.get("head.weight")
    if head is None or head.dim() != 2:
        raise ValueError("no tensor belongs to the linear layer that ends it")
    return len(head)


def _channels(ours: dict[str, Tensor], shapes: dict[str, torch.Size]) -> int:
    """Return the number of input channels of the first convolution, whose name is the first with four dimensions."""
    first = ours.get(next(name for name, shape in shapes.items() if len(shape) == 4))
    return 3 if first is None or first.dim() != 4 else first.shape[1]


def _fits(model: str, theirs: dict[str, Tensor]) -> bool:
    """Whether a file's tensors are those of one of kd's own networks, found without filling it."""
    ours, _, unknown = renamed(theirs, model, 32)
    if unknown or "head.weight" not in ours:
        return False
    shapes = _shapes(model, len(ours["head.weight"]), 3)
    shapes = _shapes(model, len(ours["head.weight"]), _channels(ours, shapes))
    needed = {name for name in shapes if not name.endswith(COUNTER)}
    return needed <= set(ours) <= set(shapes) and all(ours[name].shape == shapes[name] for name in needed)


@cache
def _shapes(model: str, classes: int, channels: int) -> dict[str, torch.Size]:
    """Return the shapes of a network's tensors."""
    with torch.device("meta"):
        network = build(model, num_classes=classes, in_channels=channels)
    return {name: value.shape for name, value in network.state_dict().items()}


# The rules. Stages are counted from 1 there and from 0 in kd.


def _stage(match: re.Match, path: str) -> str:
    return f"body.{int(match[1]) - 1}.{match[2]}.{path}"


def _mobilenetv2_half(match: re.Match) -> str:
    """Return the place of a block of a row of the paper's table: kd's stages are several rows."""
    row, block, path = int(match[1]), int(match[2]), match[3]
    stage, rows = next((stage, rows) for stage, rows in enumerate(MobileNetV2.STAGES) if row in rows)
    before = sum(MobileNetV2.ROWS[earlier][2] for earlier in rows if earlier < row)
    return f"body.{stage}.{before + block}.layers.{path}"


def _mobilenetv2(match: re.Match) -> str:
    """Return the place in a block, of which all rows make one list, behind the stem. `conv.0.1` is the normalisation in
    the first of the parts with an activation, one or two; the last convolution and its normalisation follow them.
    """
    block, path = int(match[1]) - 1, match[2]
    row = 0
    while block >= MobileNetV2.ROWS[row][2]:
        block -= MobileNetV2.ROWS[row][2]
        row += 1
    with_activation = 1 if MobileNetV2.ROWS[row][0] == 1 else 2
    place, *inside, name = path.split(".")
    layer = 3 * int(place) + int(inside[0]) if inside else 3 * with_activation + int(place) - with_activation
    return _mobilenetv2_half(re.fullmatch(r"(\d+)\.(\d+)\.(.+)", f"{row}.{block}.{layer}.{name}"))


def _shufflenetv2(match: re.Match) -> str:
    """Return the place of the k-th convolution or normalisation of a unit; of one that halves, two are on the left."""
    left = [("left", 0), ("left", 2)] if match[2] == "0" else []
    places = [*left, ("right", 0), ("right", 3), ("right", 5)]
    number = int(match[4]) - 1
    if number >= len(places):
        return UNKNOWN
    side, place = places[number]
    return _stage(match, f"{side}.{place + (match[3] == 'bn')}.{match[5]}")


STEM: Rules = [(r"conv1\.(.+)", lambda m: f"stem.0.{m[1]}"), (r"bn1\.(.+)", lambda m: f"stem.1.{m[1]}")]
HEAD: Rules = [(r"(?:fc|linear|classifier(?:\.[01])?)\.(weight|bias)", lambda m: f"head.{m[1]}")]
FAMILIES: list[tuple[str, Rules]] = [
    (
        r"resnet\w+|shufflenetv1",
        [
            *STEM,
            (r"layer([1-4])\.(\d+)\.((?:conv|bn)[123]\..+)", lambda m: _stage(m, m[3])),
            (r"layer([1-4])\.(\d+)\.(?:downsample|shortcut)\.([01]\..+)", lambda m: _stage(m, f"shortcut.{m[3]}")),
            *HEAD,
        ],
    ),
    (
        r"wrn_\w+",
        [
            (r"conv1\.weight", lambda m: "stem.weight"),
            (r"block([123])\.layer\.(\d+)\.((?:conv|bn)[12]\..+)", lambda m: _stage(m, m[3])),
            (r"block([123])\.layer\.(\d+)\.convShortcut\.weight", lambda m: _stage(m, "shortcut.weight")),
            (r"bn1\.(.+)", lambda m: f"norm.{m[1]}"),
            *HEAD,
        ],
    ),
    (r"vgg\d+", [(r"block([0-4])\.(\d+)\.(.+)", lambda m: f"body.{m[1]}.{m[2]}.{m[3]}"), *HEAD]),
    (
        "mobilenetv2_half",
        [
            (r"conv1\.([01]\..+)", lambda m: f"stem.{m[1]}"),
            (r"blocks\.([0-6])\.(\d+)\.conv\.(\d+\..+)", _mobilenetv2_half),
            (r"conv2\.([01]\..+)", lambda m: f"last.{m[1]}"),
            *HEAD,
        ],
    ),
    (
        "mobilenetv2",
        [
            (r"features\.0\.([01]\..+)", lambda m: f"stem.{m[1]}"),
            (r"features\.18\.([01]\..+)", lambda m: f"last.{m[1]}"),
            (r"features\.([1-9]|1[0-7])\.conv\.([0-3]\.(?:[01]\.)?\w+)", _mobilenetv2),
            *HEAD,
        ],
    ),
    (
        "shufflenetv2",
        [
            *STEM,
            (r"layer([123])\.(\d+)\.(conv|bn)([1-5])\.(.+)", _shufflenetv2),
            (r"conv2\.(.+)", lambda m: f"last.0.{m[1]}"),
            (r"bn2\.(.+)", lambda m: f"last.1.{m[1]}"),
            *HEAD,
        ],
    ),
    (
        r"torchvision:\w+",  # its own names, but for two habits of its oldest files; kd's adapter knows the rest
        [
            (r"(.+\.denselayer\d+\.(?:norm|conv))\.([12]\..+)", lambda m: f"{m[1]}{m[2]}"),
            (r"(?:aux1|aux2|AuxLogits)\..+", lambda m: None),  # heads that only training uses
            (r".+", lambda m: m[0]),
        ],
    ),
]
