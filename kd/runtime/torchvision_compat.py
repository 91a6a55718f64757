"""Import torchvision next to a torch that its compiled operators do not match."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import torch

from kd.runtime.plain_pickle import read_plain_pickles

_operators: torch.library.Library | None = None  # the schemas live as long as this object


def import_torchvision() -> ModuleType:
    """Return the torchvision module; use this instead of `import torchvision` everywhere in kd.

    torchvision from the package index is linked to CUDA libraries. Beside CPU torch its operators do not load, and
    its import stops at `operator torchvision::nms does not exist`. There, and only there, this declares the two
    operators that the import asks for, without an implementation: classifiers, segmenters, datasets, transforms and
    utils work; box operators, detection models and the image codecs of `torchvision.io` do not.

    It can go once the oldest torchvision that pyproject.toml allows imports next to CPU torch without help, or once the
    installation takes torchvision from the index that has CPU builds.

    The pickles of CIFAR can hold no code: torchvision compares their checksums, but opens them again to read them.

    Raises ModuleNotFoundError where torchvision is not installed.
    """
    if "torchvision" not in sys.modules:
        make_importable()
    torchvision = importlib.import_module("torchvision")
    read_plain_pickles(importlib.import_module("torchvision.datasets.cifar"))
    return torchvision


def make_importable() -> None:
    """Let `import torchvision` work from now on, also in the user's code. Raises ModuleNotFoundError without it."""
    global _operators
    spec = importlib.util.find_spec("torchvision")
    if spec is None:
        raise ModuleNotFoundError("torchvision is not installed; run: pip install torchvision")
    if _operators is None and not _operators_load(Path(spec.origin).parent):
        _operators = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            _operators.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _operators_load(folder: Path) -> bool:
    """Whether torchvision's compiled operators load (and then they are loaded, as the import would do)."""
    for library in folder.glob("_C.*"):
        try:
            torch.ops.load_library(library)
        except OSError:
            continue
        return True
    return False
