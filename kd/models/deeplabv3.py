"""DeepLabv3, Chen et al. 2017 (arXiv 1706.05587): a class for every pixel; atrous convolutions keep maps large.

The head is torchvision's, and so are two of the backbones, under torchvision's names: its weights can be taken over.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Output
from kd.models.classifier import Classifier, PixelClassifier
from kd.models.mobilenetv2 import MobileNetV2
from kd.models.resnet_cifar import ResNetCifar
from kd.runtime.torchvision_compat import import_torchvision


class DeepLabV3(PixelClassifier):
    """Images [B, C, H, W] -> `Output` with logits [B, K, H, W] and, as feature, the mean over pixels of what the last
    layer sees, [B, width].

    backbone: `resnet50` (maps an eighth of the image) and `mobilenet_v3_large` (a sixteenth) are torchvision's,
    `mobilenetv2` (a sixteenth) is ours, and so is `resnet8`, with the given `stem` and `widths` and a stem of stride 2
    (an eighth), for small images on a CPU. `width`: channels of the head; `rates`: of its atrous convolutions.
    """

    def __init__(
        self,
        *,
        backbone: str,
        width: int = 256,
        rates: tuple[int, ...] = (12, 24, 36),
        stem: int = 16,
        widths: tuple[int, int, int] = (16, 32, 64),
        num_classes: int,
        in_channels: int,
        image_size: int,
    ) -> None:
        super().__init__(in_channels=in_channels, image_size=image_size)
        self.maps_are_signed = backbone.startswith("mobilenet")
        sizes = {"in_channels": in_channels, "image_size": image_size, "num_classes": 1}
        if backbone == "resnet8":
            channels = widths[-1]
            self.backbone: nn.Module = _Stages(ResNetCifar(depth=8, stem=stem, widths=widths, **sizes))
            self.backbone.network.stem[0].stride = (2, 2)
        elif backbone == "mobilenetv2":
            self.backbone = _Stages(MobileNetV2(**sizes))
            channels = MobileNetV2.ROWS[-1][1]
            _dilate(self.backbone.network.body[-1])
        else:
            self.backbone, channels = BACKBONES[backbone](in_channels)
        deeplabv3 = import_torchvision().models.segmentation.deeplabv3
        self.classifier = nn.Sequential(
            deeplabv3.ASPP(channels, rates, width),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, num_classes, 1),
        )

    @property
    def head(self) -> nn.Conv2d:
        """The last layer: [B, width, h, w] -> logits [B, K, h, w]."""
        return self.classifier[-1]

    def stages(self, images: Tensor) -> list[Tensor]:
        return list(self.backbone(images).values())

    def pool(self, last: Tensor) -> Tensor:
        return self._dense(last).mean(dim=(2, 3))

    def forward(self, images: Tensor, maps: bool = False, signed: bool = False) -> Output:
        stages = self.stages(images)
        dense = self._dense(stages[-1])
        logits = F.interpolate(self.head(dense), size=images.shape[-2:], mode="bilinear", align_corners=False)
        return Output(logits, dense.mean(dim=(2, 3)), tuple(stages) if maps else (), tuple(stages) if signed else ())

    def own_names(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return a state dict without torchvision's auxiliary head, which only its own training uses."""
        return {name: value for name, value in state.items() if not name.startswith("aux_classifier.")}

    def _dense(self, last: Tensor) -> Tensor:
        """Return what the last layer sees, [B, width, h, w]."""
        return self.classifier[:-1](last)


class _Stages(nn.Module):
    """The stages of one of kd's classifiers, without what comes behind them."""

    def __init__(self, network: Classifier) -> None:
        super().__init__()
        for part in network.behind_maps():
            name = next(name for name, child in network.named_children() if child is part)
            delattr(network, name)
        self.network = network

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {str(place): maps for place, maps in enumerate(self.network.stages(images))}


def _dilate(stage: nn.Module) -> None:
    """Keep the size of the maps: a stage's stride becomes the dilation of its 3x3 convolutions."""
    for convolution in stage.modules():
        if isinstance(convolution, nn.Conv2d):
            convolution.stride = (1, 1)
            if convolution.kernel_size == (3, 3):
                convolution.dilation = convolution.padding = (2, 2)


def _resnet50(in_channels: int) -> tuple[nn.Module, int]:
    models = import_torchvision().models
    network = models.resnet50(replace_stride_with_dilation=[False, True, True])
    if in_channels != 3:
        network.conv1 = nn.Conv2d(in_channels, 64, 7, 2, 3, bias=False)
    return _tapped(network, ["relu", "layer1", "layer2", "layer3", "layer4"]), 2048


def _mobilenet_v3_large(in_channels: int) -> tuple[nn.Module, int]:
    models = import_torchvision().models
    network = models.mobilenet_v3_large(dilated=True).features
    if in_channels != 3:
        network[0][0] = nn.Conv2d(in_channels, 16, 3, 2, 1, bias=False)
    strided = [str(place) for place, block in enumerate(network) if getattr(block, "_is_cn", False)]
    return _tapped(network, ["0", *strided, str(len(network) - 1)]), network[-1].out_channels


def _tapped(network: nn.Module, names: list[str]) -> nn.Module:
    """Return a network that ends with the last of its named children and returns the outputs of all of these."""
    getter = import_torchvision().models._utils.IntermediateLayerGetter
    return getter(network, {name: name for name in names})


BACKBONES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "resnet50": _resnet50,
    "mobilenet_v3_large": _mobilenet_v3_large,
}
