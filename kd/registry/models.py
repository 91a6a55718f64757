"""Networks by name. This file imports no torch, so that names can be checked before any job starts.

A name takes one of four forms:

- a key of `MODELS` below, such as `resnet34` or `vgg8`;
- `resnet<depth>` with depth = 6n + 2 or `wrn_<depth>_<width>` with depth = 6n + 4, such as `wrn_10_1`;
- `torchvision:<name>`, one of torchvision's classifiers, such as `torchvision:mobilenet_v3_small`;
- `module:function`, your own `function(num_classes=..., in_channels=..., image_size=...)` (docs/add-a-model.md).
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kd.models.classifier import Classifier

# name -> (module:class, what the class is built from beside num_classes, in_channels and image_size)
MODELS: dict[str, tuple[str, dict]] = {
    # residual networks of ImageNet's kind, with a 3x3 stem and no max pool
    "resnet18": ("kd.models.resnet:ResNet", {"depth": 18}),
    "resnet34": ("kd.models.resnet:ResNet", {"depth": 34}),
    "resnet50": ("kd.models.resnet:ResNet", {"depth": 50}),
    # residual networks of CIFAR's kind: three stages of basic blocks
    "resnet8": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 8}),
    "resnet14": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 14}),
    "resnet20": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 20}),
    "resnet32": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 32}),
    "resnet44": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 44}),
    "resnet56": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 56}),
    "resnet110": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 110}),
    "resnet8x4": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 8, "stem": 32, "widths": (64, 128, 256)}),
    "resnet32x4": ("kd.models.resnet_cifar:ResNetCifar", {"depth": 32, "stem": 32, "widths": (64, 128, 256)}),
    # wide residual networks
    "wrn_16_1": ("kd.models.wrn:WideResNet", {"depth": 16, "width": 1}),
    "wrn_16_2": ("kd.models.wrn:WideResNet", {"depth": 16, "width": 2}),
    "wrn_40_1": ("kd.models.wrn:WideResNet", {"depth": 40, "width": 1}),
    "wrn_40_2": ("kd.models.wrn:WideResNet", {"depth": 40, "width": 2}),
    # VGG with batch normalisation
    "vgg8": ("kd.models.vgg:VGG", {"depth": 8}),
    "vgg11": ("kd.models.vgg:VGG", {"depth": 11}),
    "vgg13": ("kd.models.vgg:VGG", {"depth": 13}),
    "vgg16": ("kd.models.vgg:VGG", {"depth": 16}),
    "vgg19": ("kd.models.vgg:VGG", {"depth": 19}),
    # mobile networks; mobilenetv2 is the data-free papers', mobilenetv2_half is CRD's
    "mobilenetv2": ("kd.models.mobilenetv2:MobileNetV2", {"width": 1.0, "strides": (2, 1, 2, 2, 2, 1, 2, 1)}),
    "mobilenetv2_half": (
        "kd.models.mobilenetv2:MobileNetV2",
        {"width": 0.5, "strides": (2, 1, 1, 2, 2, 1, 2, 1), "widen_first": True, "relu6": False},
    ),
    "shufflenetv1": ("kd.models.shufflenetv1:ShuffleNetV1", {}),
    "shufflenetv2": ("kd.models.shufflenetv2:ShuffleNetV2", {}),
}

FORMS = (
    "resnet<depth> with depth = 6n + 2",
    "wrn_<depth>_<width> with depth = 6n + 4",
    "torchvision:<name>",
    "module:function for your own",
)

ADAPTERS = "kd.models.adapters"
SMALLEST = 8  # pixels; VGG halves its maps three times


def check(name: str) -> None:
    """Raise ValueError, in one readable line, unless `name` names a network.

    Imports neither torch nor the module that a name points to.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model is named by a string, not by {name!r}")
    if name.startswith("torchvision:"):
        _check_torchvision(name)
    elif ":" in name:
        _check_own(name)
    elif entry(name) is None:
        raise ValueError(
            f"unknown model {name!r}{_close(name, MODELS)}; allowed are {', '.join(MODELS)}; also {'; '.join(FORMS)}"
        )


def source(name: str) -> str:
    """The dotted kd module that implements `name`, whose code decides a run's numbers; ValueError as in `check`.

    For torchvision's and the user's own models that is the adapter; the user's own module is `name.split(":")[0]`.
    """
    check(name)
    return ADAPTERS if ":" in name else entry(name)[0].split(":")[0]


def build(name: str, *, num_classes: int, in_channels: int = 3, image_size: int = 32) -> Classifier:
    """A freshly initialised network for images [B, in_channels, image_size, image_size] and `num_classes` classes.

    The networks of MODELS take any size from 8 pixels on. Raises ValueError for a name that `check` refuses,
    a size that is no positive integer, smaller images, or images that one of torchvision's or your own networks
    cannot take.
    """
    check(name)
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    for key, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} of model {name!r} is {value!r}; give a positive integer")
    if ":" in name:
        return importlib.import_module(ADAPTERS).build(name, **sizes)
    target, settings = entry(name)
    if image_size < SMALLEST:
        raise ValueError(
            f"model {name!r} takes images from {SMALLEST}x{SMALLEST} pixels on, not {image_size}x{image_size}"
        )
    module, _, cls = target.partition(":")
    return getattr(importlib.import_module(module), cls)(**settings, **sizes)


def entry(name: str) -> tuple[str, dict] | None:
    """The line of MODELS for `name`, or the one that the rules of depth and width give; None without either."""
    if name in MODELS:
        return MODELS[name]
    if (match := re.fullmatch(r"resnet([1-9]\d*)", name)) and (depth := int(match[1])) >= 8 and depth % 6 == 2:
        return "kd.models.resnet_cifar:ResNetCifar", {"depth": depth}
    if match := re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)", name):
        depth, width = int(match[1]), int(match[2])
        if depth >= 10 and depth % 6 == 4:
            return "kd.models.wrn:WideResNet", {"depth": depth, "width": width}
    return None


def _check_torchvision(name: str) -> None:
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ValueError(f"model {name!r} needs torchvision, which is not installed: pip install torchvision")
    # Reads the sources instead of importing them: `@register_model()` stands above every builder of a classifier.
    files = sorted((Path(spec.origin).parent / "models").glob("*.py"))
    known = [
        builder
        for file in files
        for builder in re.findall(
            r"^@register_model\(.*\)\n(?:@.*\n)*def (\w+)\(", file.read_text("utf-8"), re.MULTILINE
        )
    ]
    builder = name.partition(":")[2]
    if known and builder not in known:
        raise ValueError(
            f"torchvision has no classifier {builder!r}{_close(builder, known)}; it has {', '.join(known)}"
        )


def _check_own(name: str) -> None:
    module, _, function = name.partition(":")
    if not all(part.isidentifier() for part in [*module.split("."), function]):
        raise ValueError(
            f"model {name!r} is not of the form module:function: write a dotted module, one colon, a function"
        )
    spec = find_spec(module)
    if spec is None:
        raise ValueError(
            f"model {name!r}: there is no module {module!r}; install it, or put its folder on PYTHONPATH or start there"
        )
    if not (spec.origin and spec.origin.endswith(".py")):
        return
    try:
        names = _names(Path(spec.origin))
    except SyntaxError as error:
        raise ValueError(f"model {name!r}: {spec.origin} is not valid Python: {error}") from error
    if function not in names and "*" not in names:  # `from ... import *` may bring anything
        raise ValueError(
            f"model {name!r}: {module} has no {function!r}{_close(function, names)}; "
            f"it has {', '.join(sorted(public for public in names if not public.startswith('_'))) or 'no names'}"
        )


def _names(file: Path) -> set[str]:
    """The names that a Python file defines or imports at its top level, read without running it."""
    names = set()
    nodes = list(ast.iter_child_nodes(ast.parse(file.read_bytes())))
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        else:
            nodes += ast.iter_child_nodes(node)
    return names


def find_spec(module: str) -> ModuleSpec | None:
    """Where a dotted module lies, found without importing its parents, which might import torch."""
    first, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(first)
    except ValueError:  # a module without a spec, such as __main__
        return None
    for depth in range(len(rest)):
        if spec is None or spec.submodule_search_locations is None:
            return None
        name = ".".join([first, *rest[: depth + 1]])
        spec = PathFinder.find_spec(name, spec.submodule_search_locations)
    return spec


def _close(name: str, known) -> str:
    matches = difflib.get_close_matches(name.lower(), list(known), n=3)
    return f" (did you mean {' or '.join(matches)}?)" if matches else ""
