"""What is found of a network from outside of kd by calling it: its logits, and which of its parts return maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from kd.batch import Output
from kd.models.classifier import evaluating


def logits_of(output: Tensor | Output | Mapping[str, Tensor]) -> Tensor:
    """Return the logits of a network from outside of kd: what it returned, its field `logits` or its entry `out`."""
    if isinstance(output, Mapping) and "out" in output:  # torchvision's networks for segmentation
        return output["out"]
    return getattr(output, "logits", output)


def last_of_each_resolution(model: nn.Module, images: Tensor, head: nn.Module | None = None) -> list[str]:
    """Return the paths of parts whose output is the last square map before the resolution changes, or before a pool or
    the head of a network that labels every pixel ends them.
    """
    found: list[tuple[str, int]] = []
    ended: list[nn.Module] = []  # by these

    def note(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: object) -> None:
            if isinstance(module, nn.AdaptiveAvgPool2d) or module is head:
                ended.append(module)
            is_map = isinstance(out, Tensor) and out.dim() == 4 and out.shape[2] == out.shape[3]
            if ended or not is_map or isinstance(module, nn.MaxPool2d | nn.AvgPool2d):
                return
            if found and found[-1][1] == out.shape[3]:
                found.pop()
            found.append((path, out.shape[3]))

        return hook

    parts = [*_parts(model), *([("", head)] if head is not None else [])]
    hooks = [module.register_forward_hook(note(path)) for path, module in parts]
    try:
        with evaluating(model):
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return [path for path, _ in found]


def _parts(model: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Return the direct parts of a network, those of an nn.Sequential instead of itself: nothing bypasses them."""
    parts = []
    for path, module in model.named_children():
        inside = _parts(module, f"{prefix}{path}.") if type(module) is nn.Sequential else []
        parts += inside or [(f"{prefix}{path}", module)]
    return parts
