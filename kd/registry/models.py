"""Networks by name. This file imports no torch, so that names can be checked before any job starts.

A name has one of five forms:

- a key of `MODELS` below, such as `resnet34` or `vgg8`;
- `resnet<depth>` with depth = 6n + 2 or `wrn_<depth>_<width>` with depth = 6n + 4, such as `wrn_10_1`;
- `torchvision:<name>`, one of torchvision's classifiers, such as `torchvision:mobilenet_v3_small`;
- `timm:<name>`, one of timm's where that is installed, such as `timm:resnet26`;
- `module:function`, your own `function(num_classes=..., in_channels=..., image_size=...)` (docs/add-a-model.md).

To add one: write `kd/models/<name>.py` and add its entry to `MODELS`. `kd.models.build` constructs what is named.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from kd.registry import map_shapes as maps


@dataclass(frozen=True)
class Model:
    """One network: where its code is, what it is built from, and what is known of it without building it."""

    code: str  # module:class
    settings: dict[str, Any] = field(default_factory=dict)  # arguments next to num_classes, in_channels, image_size
    # map_shapes(image_size, **settings) returns what Classifier.map_shapes() of the built network returns.
    # Without it, losses on maps are checked only when the network is built.
    map_shapes: Callable[..., maps.Shapes] | None = None
    dense: bool = False  # a class for every pixel
    has_batchnorm: bool = True  # whether it has a BatchNorm2d, as teachers of data-free methods need
    multiply_adds: float | None = None  # in millions, of a 32x32 image, about; without it plans know no GPU-hours


def _resnet(depth: int) -> Model:
    cost = {18: 555, 34: 1159, 50: 1298}[depth]
    return Model("kd.models.resnet:ResNet", {"depth": depth}, maps.resnet, multiply_adds=cost)


def _resnet_cifar(depth: int, **widths: Any) -> Model:
    cost = _three_stages(widths.get("stem", 16), widths.get("widths", (16, 32, 64)), (depth - 2) // 3)
    settings = {"depth": depth, **widths}
    return Model("kd.models.resnet_cifar:ResNetCifar", settings, maps.resnet_cifar, multiply_adds=cost)


def _wrn(depth: int, width: int) -> Model:
    cost = _three_stages(16, (16 * width, 32 * width, 64 * width), (depth - 4) // 3)
    return Model("kd.models.wrn:WideResNet", {"depth": depth, "width": width}, maps.wrn, multiply_adds=cost)


def _three_stages(stem: int, widths: tuple[int, ...], convolutions: int) -> float:
    """Return the millions of multiply-adds of three stages of that many 3x3 convolutions, on 32x32, 16x16 and 8x8."""
    total, before = 27 * stem * 32**2, stem
    for stage, width in enumerate(widths):
        total += 9 * width * (before + (convolutions - 1) * width) * (32 >> stage) ** 2
        before = width
    return total / 1e6


def _vgg(depth: int) -> Model:
    cost = {8: 96, 11: 209, 13: 285, 16: 398, 19: 511}[depth]
    return Model("kd.models.vgg:VGG", {"depth": depth}, maps.vgg, multiply_adds=cost)


def _mobilenetv2(cost: float, **settings: Any) -> Model:
    return Model("kd.models.mobilenetv2:MobileNetV2", settings, maps.mobilenetv2, multiply_adds=cost)


def _deeplabv3(cost: float, **settings: Any) -> Model:
    return Model("kd.models.deeplabv3:DeepLabV3", settings, dense=True, multiply_adds=cost)


MODELS: dict[str, Model] = {
    # residual networks of ImageNet's kind, with a 3x3 stem and no max pool
    "resnet18": _resnet(18),
    "resnet34": _resnet(34),
    "resnet50": _resnet(50),
    # residual networks of CIFAR's kind: three stages of basic blocks
    "resnet8": _resnet_cifar(8),
    "resnet14": _resnet_cifar(14),
    "resnet20": _resnet_cifar(20),
    "resnet32": _resnet_cifar(32),
    "resnet44": _resnet_cifar(44),
    "resnet56": _resnet_cifar(56),
    "resnet110": _resnet_cifar(110),
    "resnet8x4": _resnet_cifar(8, stem=32, widths=(64, 128, 256)),
    "resnet32x4": _resnet_cifar(32, stem=32, widths=(64, 128, 256)),
    # wide residual networks
    "wrn_16_1": _wrn(16, 1),
    "wrn_16_2": _wrn(16, 2),
    "wrn_40_1": _wrn(40, 1),
    "wrn_40_2": _wrn(40, 2),
    # VGG with batch normalisation
    "vgg8": _vgg(8),
    "vgg11": _vgg(11),
    "vgg13": _vgg(13),
    "vgg16": _vgg(16),
    "vgg19": _vgg(19),
    # mobile networks; mobilenetv2 is the data-free papers', mobilenetv2_half is CRD's
    "mobilenetv2": _mobilenetv2(6.1, width=1.0, strides=(2, 1, 2, 2, 2, 1, 2, 1)),
    "mobilenetv2_half": _mobilenetv2(6.4, width=0.5, strides=(2, 1, 1, 2, 2, 1, 2, 1), widen_first=True, relu6=False),
    "shufflenetv1": Model("kd.models.shufflenetv1:ShuffleNetV1", {}, maps.shufflenetv1, multiply_adds=38.6),
    "shufflenetv2": Model("kd.models.shufflenetv2:ShuffleNetV2", {}, maps.shufflenetv2, multiply_adds=44.4),
    # segmentation; the first two are torchvision's, the last two are for small images on a CPU
    "deeplabv3_resnet50": _deeplabv3(639, backbone="resnet50"),
    "deeplabv3_mobilenetv3": _deeplabv3(40.1, backbone="mobilenet_v3_large"),
    "deeplabv3_mobilenetv2": _deeplabv3(22.2, backbone="mobilenetv2"),
    "deeplabv3_small": _deeplabv3(5.9, backbone="resnet8", width=64, rates=(1, 2, 3)),
    "deeplabv3_tiny": _deeplabv3(3.3, backbone="resnet8", width=48, rates=(1, 2, 3), stem=12, widths=(12, 24, 48)),
}

FORMS = (
    "resnet<depth> with depth = 6n + 2",
    "wrn_<depth>_<width> with depth = 6n + 4",
    "torchvision:<name>",
    "timm:<name>",
    "module:function for your own",
)

ADAPTERS = "kd.models.adapters"
LIBRARIES = ("torchvision", "timm")  # of networks, before the colon of a name
# torchvision's families of classifiers, by how their builders' names begin; its VGGs say it themselves: vgg11_bn
WITH_BATCHNORM = (
    "densenet",
    "efficientnet",
    "googlenet",
    "inception",
    "maxvit",
    "mnasnet",
    "mobilenet",
    "regnet",
    "resnet",
    "resnext",
    "shufflenet",
    "wide_resnet",
)
WITHOUT_BATCHNORM = ("alexnet", "convnext", "squeezenet", "swin", "vit")


def check(name: str) -> None:
    """Raise ValueError, in one readable line, unless `name` names a network.

    Imports neither torch nor the module that a name points to.
    """
    if not isinstance(name, str):
        raise ValueError(f"a model is named by a string, not by {name!r}")
    if name.startswith(tuple(f"{library}:" for library in LIBRARIES)):
        _check_of_library(*name.split(":", 1))
    elif ":" in name:
        _check_own(name)
    elif entry(name) is None:
        raise ValueError(
            f"unknown model {name!r}{_close(name, MODELS)}; allowed are {', '.join(MODELS)}; also {'; '.join(FORMS)}"
        )


def is_own(name: str) -> bool:
    """Return whether a name is module:function: code of the user's, which building the network runs."""
    return ":" in name and name.split(":")[0] not in LIBRARIES


def source(name: str) -> str:
    """Return the dotted kd module that implements `name`, whose code decides a run's numbers.

    For a library's and the user's own networks that is the adapter; the user's own module is `name.split(":")[0]`.
    Raises ValueError as `check` does.
    """
    check(name)
    return ADAPTERS if ":" in name else entry(name).code.split(":")[0]


def entry(name: str) -> Model | None:
    """Return the entry of MODELS for `name`, or the one by the rules of depth and width; None if there is neither."""
    if name in MODELS:
        return MODELS[name]
    if (match := re.fullmatch(r"resnet([1-9]\d*)", name)) and (depth := int(match[1])) >= 8 and depth % 6 == 2:
        return _resnet_cifar(depth)
    if match := re.fullmatch(r"wrn_([1-9]\d*)_([1-9]\d*)", name):
        depth, width = int(match[1]), int(match[2])
        if depth >= 10 and depth % 6 == 4:
            return _wrn(depth, width)
    return None


def built_from(name: str) -> str:
    """Return, as text, the class and the arguments that `name` is built from: what of its entry decides numbers.

    A library's and the user's own networks have no entry: "None".
    """
    found = entry(name)
    return repr(found and (found.code, found.settings))


def map_shapes(name: str, image_size: int) -> maps.Shapes | None:
    """Return (C, H, W) of each map that the network's `Classifier.map_shapes` would return; None where it is unknown.

    Unknown are a library's and the user's own networks, entries without `map_shapes`, and names that do not exist.
    """
    found = entry(name)
    if found is None or found.map_shapes is None:
        return None
    return found.map_shapes(image_size, **found.settings)


def has_batchnorm(name: str) -> bool | None:
    """Return whether the network has a BatchNorm2d layer; None where only building it would tell."""
    where, _, builder = name.rpartition(":")
    if where == "torchvision":
        if builder.startswith("vgg"):
            return builder.endswith("_bn")
        if builder.startswith(WITH_BATCHNORM):
            return True
        return False if builder.startswith(WITHOUT_BATCHNORM) else None
    found = entry(name)
    return None if found is None else found.has_batchnorm


def is_dense(name: str) -> bool | None:
    """Return whether the network says a class for every pixel; a library's do not; None for the user's own, where only
    building it would tell.
    """
    if is_own(name):
        return None
    found = entry(name)
    return found is not None and found.dense


def _check_of_library(library: str, builder: str) -> None:
    spec = importlib.util.find_spec(library)
    if spec is None:
        raise ValueError(f"model '{library}:{builder}' needs {library}, which is not installed: pip install {library}")
    known = builders(Path(spec.origin).parent)
    if known and builder not in known:
        listed = known if len(known) < 150 else [*known[:20], f"... ({len(known)} in all)"]
        raise ValueError(f"{library} has no classifier {builder!r}{_close(builder, known)}; it has {', '.join(listed)}")


@cache
def builders(package: Path) -> list[str]:
    """Return the names of a library's classifiers, read from its sources without importing them.

    `@register_model` stands above the builder of each, in torchvision with parentheses.
    """
    builder = re.compile(r"^@register_model(?:\(.*\))?\n(?:@.*\n)*def (\w+)\(", re.MULTILINE)
    files = sorted((package / "models").glob("*.py"))
    return [name for file in files for name in builder.findall(file.read_text("utf-8"))]


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
    """Return the names that a Python file defines or imports at its top level, read without running it."""
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
    """Return where a dotted module lies, found without importing its parents, which might import torch."""
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
