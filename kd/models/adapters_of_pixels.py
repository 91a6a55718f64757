"""The user's own networks that say a class for every pixel, adapted to the contract of `Classifier`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Output
from kd.models.classifier import Classifier, PixelClassifier, evaluating
from kd.models.looking_inside import last_of_each_resolution, logits_of


def of_pixels(name: str, model: nn.Module, images: Tensor, logits: Tensor) -> Classifier:
    """Return a network that labels every pixel, adapted unless it is a `Classifier`; `logits` are its own of `images`.

    Raises ValueError for a `Classifier` that is not dense or whose logits do not have the images' size.
    """
    if logits.shape[-1] > images.shape[-1]:
        raise ValueError(
            f"model {name!r} returns logits of shape {list(logits.shape)} for images of {images.shape[3]} pixels; they "
            "must not be larger than the images"
        )
    if not isinstance(model, Classifier):
        return MapsAdapter(name, model, images, logits)
    if not model.dense or logits.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"model {name!r} returns logits of shape {list(logits.shape)} for images of {images.shape[3]} pixels: a "
            "Classifier that labels every pixel is a PixelClassifier and returns logits of the images' size"
        )
    return model


class MapsAdapter(PixelClassifier):
    """A network `body` that labels every pixel: the convolution `head` computes its logits, at the images' size or
    smaller; these are enlarged bilinearly. The penultimate feature [B, D] is the mean over pixels of what `head` sees.

    `logits` [B, K, h, w] are the network's for `images` [B, C, H, W]: they tell which convolution it is, also next to
    heads that only training uses. Intermediate maps are found as in `LogitsAdapter`, before the head. Raises ValueError
    if there is no such convolution.
    """

    def __init__(self, name: str, body: nn.Module, images: Tensor, logits: Tensor) -> None:
        super().__init__(in_channels=images.shape[1], image_size=images.shape[-1])
        self.known_as = name
        self.body = body
        self.head_path = _head_of_pixels(name, body, images, logits)
        self.taps = last_of_each_resolution(body, images, self.head)  # paths within body

    @property
    def head(self) -> nn.Conv2d:
        """The convolution that computes the logits, [B, D, h, w] -> [B, K, h, w]."""
        return self.body.get_submodule(self.head_path)

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict of the network as it came under the names of this adapter, others as they are."""
        return state if set(state) == set(self.state_dict()) else {f"body.{key}": state[key] for key in state}

    def features(self, images: Tensor) -> Tensor:
        return self.forward(images).feature

    def stages(self, images: Tensor) -> list[Tensor]:
        return list(self.forward(images, maps=True).maps)

    def forward(self, images: Tensor, maps: bool = False, signed: bool = False) -> Output:
        kept: list[Tensor] = []
        seen: list[Tensor] = []
        taps = self.taps if maps or signed else []
        hooks = [
            self.body.get_submodule(path).register_forward_hook(lambda module, args, out: kept.append(out))
            for path in taps
        ]
        hooks.append(self.head.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
        try:
            logits = _enlarged(logits_of(self.body(images)), images)
        finally:
            for hook in hooks:
                hook.remove()
        return Output(logits, seen[-1].mean(dim=(2, 3)), tuple(kept) if maps else (), tuple(kept) if signed else ())


def _enlarged(logits: Tensor, images: Tensor) -> Tensor:
    """Return logits [B, K, h, w] at the size of the images."""
    if logits.shape[2:] == images.shape[2:]:
        return logits
    return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def _head_of_pixels(name: str, body: nn.Module, images: Tensor, logits: Tensor) -> str:
    """Return the path of the last nn.Conv2d whose output, enlarged or not, the logits are.

    Raises ValueError if there is none.
    """
    found: list[str] = []
    ways = (*({"mode": "bilinear", "align_corners": aligned} for aligned in (False, True)), {"mode": "nearest"})

    def note(path: str) -> Callable:
        def hook(module: nn.Module, args: tuple, out: Tensor) -> None:
            if out.shape[:2] != logits.shape[:2]:
                return
            enlarged = (F.interpolate(out, size=logits.shape[2:], **way) for way in ways)
            if logits.is_meta or any(torch.allclose(each, logits, rtol=1e-4, atol=1e-5) for each in enlarged):
                found.append(path)

        return hook

    convolutions = [(path, part) for path, part in body.named_modules() if isinstance(part, nn.Conv2d) and path]
    hooks = [part.register_forward_hook(note(path)) for path, part in convolutions]
    try:
        with evaluating(body):
            body(images)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ValueError(
            f"model {name!r}: its logits of every pixel are not what one of its nn.Conv2d returns, enlarged where that "
            "is smaller; let the network end in such a layer, or derive it from "
            "kd.models.classifier.PixelClassifier"
        )
    return found[-1]
