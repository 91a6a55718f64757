"""torchvision's and timm's classifiers and the user's own networks, adapted to the contract of `Classifier`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kd.batch import Output
from kd.models.adapters_of_pixels import of_pixels
from kd.models.classifier import Classifier, called, evaluating
from kd.models.looking_inside import last_of_each_resolution, logits_of
from kd.registry.models import find_spec
from kd.runtime.torchvision_compat import import_torchvision, make_importable


def build(name: str, *, num_classes: int, in_channels: int, image_size: int) -> Classifier:
    """Return the network called `torchvision:<name>`, `timm:<name>` or `module:function`.

    A library's have no pretrained weights, and another first convolution if `in_channels` is not 3. The user's
    function returns a `Classifier`, which is used as it is, or any module that returns logits from its last nn.Linear,
    which is wrapped in `LogitsAdapter`, or logits of every pixel from an nn.Conv2d (`MapsAdapter`).

    Raises ValueError if the function does not accept the three keyword arguments, if it returns no network, or if the
    network fails on such images, or returns logits that are neither [B, num_classes] nor [B, num_classes, H, W] or not
    those of such a layer.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels, "image_size": image_size}
    where, _, function = name.partition(":")
    of_library = {"torchvision": _torchvision, "timm": _timm}.get(where)
    model = of_library(function, **sizes) if of_library else _own(name, where, function, sizes)
    images = _ramp(model, in_channels, image_size)
    logits = _trial(name, model, images)
    if logits.shape[:2] != (2, num_classes) or logits.dim() not in (2, 4):
        raise ValueError(
            f"model {name!r} returns logits of shape {list(logits.shape)} for 2 images; they must be "
            f"[2, {num_classes}], one per class, or [2, {num_classes}, H, W], one per class and pixel"
        )
    if logits.dim() == 4:
        return of_pixels(name, model, images, logits)
    if not isinstance(model, Classifier):
        model = LogitsAdapter(name, model, images)
    with evaluating(model):
        again = model.head(model.features(images))
    if again.shape != logits.shape or not (logits.is_meta or torch.allclose(again, logits, rtol=1e-4, atol=1e-5)):
        raise ValueError(
            f"model {name!r}: its logits are not what its last nn.Linear returns for its features; "
            "let the network end in that layer, or derive it from kd.models.classifier.Classifier"
        )
    return model


class LogitsAdapter(Classifier):
    """A network `body` whose last nn.Linear computes the logits: that layer becomes `head`, an identity replaces it.

    The intermediate maps are the last output [B, C, H, W] at each resolution, among the network's direct parts and
    those of its nn.Sequentials, without pools; a network may have none. Signed maps are the same tensors, since
    nothing says which ReLU ends a stage. `images` [B, C, H, W] are passed once to find them. Raises ValueError if
    there is no nn.Linear.
    """

    def __init__(self, name: str, body: nn.Module, images: Tensor) -> None:
        super().__init__(in_channels=images.shape[1], image_size=images.shape[-1])
        self.known_as = name
        linear = [path for path, module in body.named_modules() if isinstance(module, nn.Linear) and path]
        if not linear:
            raise ValueError(f"model {name!r} has no nn.Linear to give its logits, so kd finds no penultimate feature")
        head = body.get_submodule(linear[-1])
        body.set_submodule(linear[-1], nn.Identity())
        self.body = body
        self.head = head
        self.head_path = linear[-1]  # where the head was in the network as it came
        self.taps = last_of_each_resolution(body, images)  # paths within body

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of the network as it came under the names of this adapter, others as they are."""
        if set(state) == set(self.state_dict()):
            return state
        before, after = f"{self.head_path}.", "head."
        return {
            after + name.removeprefix(before) if name.startswith(before) else f"body.{name}": value
            for name, value in state.items()
        }

    def features(self, images: Tensor) -> Tensor:
        return logits_of(self.body(images))

    def stages(self, images: Tensor) -> list[Tensor]:
        return list(self.forward(images, maps=True).maps)

    def behind_maps(self) -> list[nn.Module]:
        """Return the layers that run after the last map, and the head."""
        image = next(self.parameters()).new_zeros((1, self.in_channels, self.image_size, self.image_size))
        last = [self.body.get_submodule(path) for path in self.taps[-1:]]
        layers = [module for module in self.body.modules() if not [*module.children()]]
        with evaluating(self):
            ended = called({*layers, *last}, lambda: self.features(image))
        return [*ended[ended.index(last[0]) + 1 :], self.head] if last else [self.head]

    def forward(self, images: Tensor, maps: bool = False, signed: bool = False) -> Output:
        kept: list[Tensor] = []
        taps = self.taps if maps or signed else []
        hooks = [
            self.body.get_submodule(path).register_forward_hook(lambda module, args, out: kept.append(out))
            for path in taps
        ]
        try:
            feature = self.features(images)
        finally:
            for hook in hooks:
                hook.remove()
        return Output(self.head(feature), feature, tuple(kept) if maps else (), tuple(kept) if signed else ())


def _torchvision(function: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    settings = {}
    if function in ("googlenet", "inception_v3"):
        settings = {"aux_logits": False, "init_weights": True}  # auxiliary heads would change what forward returns
    elif function.startswith("vit_"):
        settings = {"image_size": image_size}  # fixes the number of positions
    try:
        model = import_torchvision().models.get_model(function, weights=None, num_classes=num_classes, **settings)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(
            f"torchvision:{function} cannot be built for {image_size}x{image_size} images: {error}"
        ) from error
    if in_channels != 3:
        path, first = next((path, module) for path, module in model.named_modules() if isinstance(module, nn.Conv2d))
        shape = {key: getattr(first, key) for key in ("out_channels", "kernel_size", "stride", "padding")}
        model.set_submodule(path, nn.Conv2d(in_channels, bias=first.bias is not None, **shape))
    return model


def _timm(function: str, *, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    timm = importlib.import_module("timm")
    given = {"pretrained": False, "num_classes": num_classes, "in_chans": in_channels}
    try:
        return timm.create_model(function, **given, img_size=image_size)
    except TypeError:  # most convolutional networks accept any size, and no such argument
        return timm.create_model(function, **given)


def _own(name: str, where: str, function: str, sizes: dict[str, int]) -> nn.Module:
    if importlib.util.find_spec("torchvision"):  # which the user's module may import, too
        make_importable()
    with _said(name, "its module cannot be imported"):
        builder = getattr(importlib.import_module(where), function, None)
    if not callable(builder):
        raise ValueError(f"model {name!r}: {where} has no function {function!r}")
    try:
        inspect.signature(builder).bind(**sizes)
    except TypeError as error:
        raise ValueError(
            f"model {name!r} is called as {function}(num_classes=..., in_channels=..., image_size=...): {error}"
        ) from error
    with _said(name, f"{function} fails"):
        model = builder(**sizes)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model {name!r} returned a {type(model).__name__}; it must return a torch.nn.Module")
    return model


@contextmanager
def _said(name: str, what: str) -> Iterator[None]:
    """Raise what the user's code raises as a ValueError of one line, with its place in that code."""
    try:
        yield
    except Exception as error:
        file = find_spec(name.partition(":")[0])
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if file and frame.filename == file.origin), frames[-1])
        why = " ".join(str(error).split())
        raise ValueError(
            f"model {name!r}: {what}: {type(error).__name__}{f': {why}' if why else ''} "
            f"({place.filename}, line {place.lineno})"
        ) from error


def _ramp(model: nn.Module, in_channels: int, image_size: int) -> Tensor:
    """Return two different images to try a network on, made without random numbers."""
    like = next(model.parameters(), torch.empty(0))
    ramp = torch.linspace(-1, 1, 2 * in_channels * image_size**2, dtype=like.dtype, device=like.device)
    return ramp.view(2, in_channels, image_size, image_size)


def _trial(name: str, model: nn.Module, images: Tensor) -> Tensor:
    """Return the network's logits for some images; an error in it becomes a ValueError of one line."""
    _, channels, height, width = images.shape
    try:
        with evaluating(model):
            logits = logits_of(model(images))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"model {name!r} cannot take images of {channels}x{height}x{width}: {reason}") from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"model {name!r} returns a {type(logits).__name__}; it must return logits [B, K] or an Output")
    return logits
