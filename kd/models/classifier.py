"""The contract of a network: stages, a penultimate feature, a linear head; and networks made of others."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Output


class Classifier(nn.Module):
    """Base class of every network: images [B, C, H, W] -> `Output` with logits [B, K] and penultimate feature [B, D].

    Losses and training loops use nothing but what this class defines. A subclass

    - must set `head = nn.Linear(D, K)` and write `stages`: logits = head(pool(stages(images)[-1]));
    - writes `pool` if something learned stands between the last stage and the feature (SimKD reuses `pool` and `head`
      of a teacher);
    - writes `signed_stages` if its maps have been through a ReLU, for losses on the maps before it (AB, ReviewKD),
      and `pool_signed` if the feature is computed from the signed map;
    - sets `maps_are_signed = True` if its last map has not been through a ReLU yet.

    The rest has one meaning for all: `features`, `forward`, `map_shapes`, `behind_maps`, `feature_dim`, `num_classes`,
    `in_channels` and `image_size`, the size of the images that the network was built for.
    """

    head: nn.Linear  # penultimate feature [B, D] -> logits [B, K]
    maps_are_signed = False  # True: SimKD lets the projected last map keep negative values
    dense = False  # True: logits are [B, K, H, W], a class for every pixel

    def __init__(self, *, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image_size = image_size

    @property
    def feature_dim(self) -> int:
        """Return D, the width of the penultimate feature."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """Return K, the number of logits."""
        return self.head.out_features

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return the intermediate maps [B, C, H, W], from the stem's to the last stage's."""
        raise NotImplementedError

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return the maps of `stages`, and the same maps before the ReLU that ends a stage; here the same tensors."""
        maps = self.stages(images)
        return maps, maps

    def pool(self, last: Tensor) -> Tensor:
        """Return the penultimate feature [B, D] of the last stage's map [B, C, H, W]; here the mean over positions."""
        return last.mean(dim=(2, 3))

    def pool_signed(self, last: Tensor, signed: Tensor) -> Tensor:
        """Return what `pool` returns, [B, D], where the signed map of the last stage has been computed already."""
        return self.pool(last)

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate feature [B, D], the input of `head`."""
        return self.pool(self.stages(images)[-1])

    def forward(self, images: Tensor, maps: bool = False, signed: bool = False) -> Output:
        """Return the `Output` for images [B, C, H, W]; its `maps` and `signed` are empty unless asked for."""
        if signed:
            stages, before = self.signed_stages(images)
            feature = self.pool_signed(stages[-1], before[-1])
        else:
            stages, before = self.stages(images), []
            feature = self.pool(stages[-1])
        return Output(self.head(feature), feature, tuple(stages) if maps else (), tuple(before))

    def map_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """Return (C, H, W) of each intermediate map, also of each signed one, found by passing one black image.

        The image has the size that the network was built for. The pass draws no random number and leaves running
        statistics and modes as they are.
        """
        like = next(self.parameters())
        size = (1, self.in_channels, self.image_size, self.image_size)
        with evaluating(self):
            maps = self.forward(torch.zeros(size, dtype=like.dtype, device=like.device), maps=True).maps  # past hooks
        return tuple(tuple(map_.shape[1:]) for map_ in maps)

    def behind_maps(self) -> list[nn.Module]:
        """Return the parts behind the last map: the children that `pool` calls, found by calling it, and the head.

        The call draws no random number and leaves running statistics and modes as they are.
        """
        last = next(self.parameters()).new_zeros((1, *self.map_shapes()[-1]))
        with evaluating(self):
            return [*called(self.children(), lambda: self.pool(last)), self.head]


class PixelClassifier(Classifier):
    """Base class of networks that label every pixel: images [B, C, H, W] -> `Output` with logits [B, K, H, W].

    The penultimate feature [B, D] is the mean over pixels of what `head` sees, an nn.Conv2d that computes the logits,
    which may be enlarged afterwards. A subclass writes `forward`, `stages` and `features` or `pool`.
    """

    dense = True

    @property
    def feature_dim(self) -> int:
        return self.head.in_channels

    @property
    def num_classes(self) -> int:
        return self.head.out_channels


class Rectified(Classifier):
    """A classifier whose stem and stages end in a ReLU.

    A subclass sets `stem`, without its ReLU, which is applied here, and `body`, a list of nn.Sequentials. The last
    block of each has two methods: `forward(x)`, and `signed(x)`, the same before the block's last ReLU.
    """

    stem: nn.Module
    body: nn.ModuleList

    def stages(self, images: Tensor) -> list[Tensor]:
        maps = [F.relu(self.stem(images))]
        for stage in self.body:
            maps.append(stage(maps[-1]))
        return maps

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        signed = [self.stem(images)]
        maps = [F.relu(signed[0])]
        for *blocks, last in self.body:
            x = maps[-1]
            for block in blocks:
                x = block(x)
            signed.append(last.signed(x))
            maps.append(F.relu(signed[-1]))
        return maps, signed


class Ensemble(nn.Module):
    """Several teachers as one: `Output` with the log of their mean probabilities as logits [B, K].

    Losses compare the student with each of them separately, see `kd.losses.objective.EnsembleObjective`.
    """

    def __init__(self, members: list[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.dense = members[0].dense

    def forward(self, images: Tensor) -> Output:
        return self.together(self.each(images))

    def each(self, images: Tensor, **asked: bool) -> list[Output]:
        """Return every member's output; `asked` as in `Classifier.forward`."""
        return [member(images, **asked) for member in self.members]

    @staticmethod
    def together(outputs: list[Output]) -> Output:
        """Return the log of the mean probability, [B, K], with an empty feature, [B, 0]: an ensemble has none."""
        logs = torch.stack([output.logits.float().log_softmax(1) for output in outputs])
        logits = logs.logsumexp(0) - math.log(len(outputs))
        return Output(logits, logits.new_empty(len(logits), 0))


class Reusing(Classifier):
    """A student whose last map goes through a projector into its teacher's pooling and head (SimKD).

    Only the teacher's pooling and head are kept, in a copy. The student passed in loses its own head. Weights:
    `student.*`, `projector.*`, `teacher.*`.
    """

    def __init__(self, student: Classifier, projector: nn.Module, teacher: Classifier) -> None:
        super().__init__(in_channels=student.in_channels, image_size=student.image_size)
        self.student, self.projector = student, projector
        student.head = nn.Identity()
        self.teacher = copy.deepcopy(teacher)
        self.size = teacher.map_shapes()[-1][1:]
        kept = self.teacher.behind_maps()
        for name, child in list(self.teacher.named_children()):
            if child not in kept:
                delattr(self.teacher, name)

    @property
    def head(self) -> nn.Linear:
        return self.teacher.head

    def stages(self, images: Tensor) -> list[Tensor]:
        *earlier, last = self.student.stages(self._seen(images))
        size = tuple(min(pair) for pair in zip(last.shape[2:], self.size, strict=True))
        return [*earlier, self.projector(F.adaptive_avg_pool2d(last, size))]

    def _seen(self, images: Tensor) -> Tensor:
        """Return the images as the student's view shows them: its hooks do not run when only its stages are called."""
        for hook in self.student._forward_pre_hooks.values():
            (images, *_) = hook(self.student, (images,))
        return images

    def pool(self, last: Tensor) -> Tensor:
        return self.teacher.pool(last)


class LogitsOnly(nn.Module):
    """A classifier that returns only its logits [B, K], for export and logging."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


def called(parts: Iterable[nn.Module], call: Callable[[], Any]) -> list[nn.Module]:
    """Return which parts of a network run in a call, in the order in which they end."""
    ended: list[nn.Module] = []
    hooks = [part.register_forward_hook(lambda module, *_: ended.append(module)) for part in parts]
    try:
        call()
    finally:
        for hook in hooks:
            hook.remove()
    return ended


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode inside; afterwards every module is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode and record nothing for gradients inside."""
    with eval_mode(model), torch.no_grad():
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode, with no parameter of the model requiring a gradient; its inputs' gradients still flow."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with eval_mode(model):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def init_convolutions(model: nn.Module) -> None:
    """Initialise convolutions by fan out, N(0, sqrt(2 / (k * k * C_out))), biases 0: He et al. 2015 (arXiv 1502.01852).

    Batch normalisation keeps torch's initialisation, weight 1 and bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
