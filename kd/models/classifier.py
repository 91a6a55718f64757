"""What every classifier offers: stages, a penultimate feature, a linear head."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.batch import Output


class Classifier(nn.Module):
    """Base class: images [B, C, H, W] -> `Output` with logits [B, K] and penultimate feature [B, D].

    A subclass sets `head = nn.Linear(D, K)` and writes `stages`; `pool` too, where something learned stands between
    the last stage and the feature; `signed_stages`, where its maps have been through a ReLU.
    """

    head: nn.Linear
    maps_are_signed = False  # whether the last map has not been through a ReLU yet

    def __init__(self, *, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image_size = image_size

    @property
    def feature_dim(self) -> int:
        """D, the width of the penultimate feature."""
        return self.head.in_features

    @property
    def num_classes(self) -> int:
        """K, the number of logits."""
        return self.head.out_features

    def stages(self, images: Tensor) -> list[Tensor]:
        """The intermediate maps [B, C, H, W], from the stem's to the last stage's."""
        raise NotImplementedError

    def signed_stages(self, images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The maps that `stages` gives, and the same maps before the ReLU that ends a stage; here the same tensors."""
        maps = self.stages(images)
        return maps, maps

    def pool(self, last: Tensor) -> Tensor:
        """The last stage's map [B, C, H, W] -> the penultimate feature [B, D]; here the mean over positions."""
        return last.mean(dim=(2, 3))

    def pool_signed(self, last: Tensor, signed: Tensor) -> Tensor:
        """What `pool` gives for the last map, where its signed map is known, too: the feature [B, D]."""
        return self.pool(last)

    def features(self, images: Tensor) -> Tensor:
        """The penultimate feature [B, D], what `head` sees."""
        return self.pool(self.stages(images)[-1])

    def forward(self, images: Tensor, maps: bool = False, signed: bool = False) -> Output:
        """Images [B, C, H, W] -> `Output`; its `maps` and `signed` are empty unless asked for."""
        if signed:
            stages, before = self.signed_stages(images)
            feature = self.pool_signed(stages[-1], before[-1])
        else:
            stages, before = self.stages(images), []
            feature = self.pool(stages[-1])
        return Output(self.head(feature), feature, tuple(stages) if maps else (), tuple(before))

    def map_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(C, H, W) of each intermediate map, found by passing one black image of the size the network was built for.

        Signed maps have the same shapes.

        The pass draws no random number and leaves running statistics and modes as they are.
        """
        like = next(self.parameters())
        size = (1, self.in_channels, self.image_size, self.image_size)
        with evaluating(self):
            maps = self.forward(torch.zeros(size, dtype=like.dtype, device=like.device), maps=True).maps  # past hooks
        return tuple(tuple(map_.shape[1:]) for map_ in maps)


class Rectified(Classifier):
    """A classifier whose stem and stages end in a ReLU.

    A subclass sets `stem`, which leaves its ReLU to this class, and `body`, nn.Sequentials whose last block has,
    beside `forward`, the same before its ReLU: `signed(x)`.
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

    Losses see each of them by itself, see `kd.losses.objective.EnsembleObjective`.
    """

    def __init__(self, members: list[Classifier]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Output:
        return self.together(self.each(images))

    def each(self, images: Tensor, **asked: bool) -> list[Output]:
        """What every one says; `asked` as in `Classifier.forward`."""
        return [member(images, **asked) for member in self.members]

    @staticmethod
    def together(outputs: list[Output]) -> Output:
        """The log of the mean probability, [B, K]; the ensemble has no feature of its own, [B, 0]."""
        logs = torch.stack([output.logits.float().log_softmax(1) for output in outputs])
        logits = logs.logsumexp(0) - math.log(len(outputs))
        return Output(logits, logits.new_empty(len(logits), 0))


class Reusing(Classifier):
    """A student whose last map goes through a projector into its teacher's pooling and head (SimKD).

    The rest of the teacher and the student's own head are left out, the latter of the given student, too. Weights:
    `student.*`, `projector.*`, `teacher.*`.
    """

    def __init__(self, student: Classifier, projector: nn.Module, teacher: Classifier) -> None:
        super().__init__(in_channels=student.in_channels, image_size=student.image_size)
        self.student, self.projector = student, projector
        student.head = nn.Identity()
        self.teacher = copy.deepcopy(teacher)
        self.size = teacher.map_shapes()[-1][1:]
        called: set[nn.Module] = set()
        children = dict(self.teacher.named_children())
        hooks = [child.register_forward_hook(lambda module, *_: called.add(module)) for child in children.values()]
        with evaluating(self.teacher):
            like = next(self.teacher.parameters())
            self.teacher.pool(like.new_zeros((1, *teacher.map_shapes()[-1])))
        for hook in hooks:
            hook.remove()
        for name, child in children.items():
            if child not in called and child is not self.teacher.head:
                delattr(self.teacher, name)

    @property
    def head(self) -> nn.Linear:
        return self.teacher.head

    def stages(self, images: Tensor) -> list[Tensor]:
        *earlier, last = self.student.stages(self._seen(images))
        size = tuple(min(pair) for pair in zip(last.shape[2:], self.size, strict=True))
        return [*earlier, self.projector(F.adaptive_avg_pool2d(last, size))]

    def _seen(self, images: Tensor) -> Tensor:
        """Through the student's view, if it has one: its hooks do not run when its stages are asked directly."""
        for hook in self.student._forward_pre_hooks.values():
            (images, *_) = hook(self.student, (images,))
        return images

    def pool(self, last: Tensor) -> Tensor:
        return self.teacher.pool(last)


class LogitsOnly(nn.Module):
    """Wraps a classifier so that it returns logits [B, K] alone, for export and logging."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images).logits


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every module is back in the mode it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode, and nothing inside is recorded for gradients."""
    with eval_mode(model), torch.no_grad():
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no parameter of the model requires a gradient; those of its inputs still flow through it."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    try:
        with eval_mode(model):
            yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def init_convolutions(model: nn.Module) -> None:
    """Convolutions as in He et al. 2015 (arXiv 1502.01852), by fan out, N(0, sqrt(2 / (k * k * C_out))), biases 0.

    Batch normalisation keeps torch's start, weight 1 and bias 0.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
