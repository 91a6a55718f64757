"""NAYER: not the generator's input is random, which says only the class, but the layer that reads it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kd.inversion.replay import ReplayBuffer
from kd.inversion.sources.base import SourceContext
from kd.inversion.sources.descent import RememberingDescent, adam, restart
from kd.models.generator import Generator
from kd.runtime.files import whole_path
from kd.runtime.messages import ConfigError, shown

BETAS = (0.5, 0.999)


class NoisyLayers(nn.Module):
    """Classes [B], in groups of K -> [B, out_dim]: embedding, BatchNorm1d, and a linear layer for each group.

    embeddings: [K, E], constant. `redraw` draws the layers' weights from N(0, 1); their biases become 0.
    """

    def __init__(self, embeddings: Tensor, batch_size: int, out_dim: int):
        super().__init__()
        self.classes, width = embeddings.shape
        self.groups = -(-batch_size // self.classes)
        self.register_buffer("embeddings", embeddings, persistent=False)
        self.normalisation = nn.BatchNorm1d(width)
        self.weight = nn.Parameter(torch.zeros(self.groups, width, out_dim))
        self.bias = nn.Parameter(torch.zeros(self.groups, 1, out_dim))

    def forward(self, classes: Tensor) -> Tensor:
        normal = self.normalisation(self.embeddings[classes])
        missing = self.groups * self.classes - len(normal)
        grouped = F.pad(normal, (0, 0, 0, missing)).view(self.groups, self.classes, -1)
        return torch.baddbmm(self.bias, grouped, self.weight).flatten(0, 1)[: len(normal)]

    @torch.no_grad()
    def redraw(self, random: torch.Generator) -> None:
        self.weight.normal_(generator=random)
        self.bias.zero_()


class Nayer(RememberingDescent):
    """Images of a generator behind noisy layers (Tran et al., NAYER, CVPR 2024):

        bn * L_BN + oh * mean(phi * L_Task) + adv * mean(L_adv)

    Every batch draws the noisy layers anew and learns them together with the generator, from new moments of Adam. The
    generator and the normalisation of the embeddings last, and are drawn anew in every `life`-th epoch, of all and of
    those in which the student learns. L_BN compares statistics blended with past ones, as Fast's does.

    Raises ConfigError for a file of embeddings that cannot be used.
    """

    remedy_diverged = "lower inversion.nayer.lr or inversion.nayer.bn"
    remedy_alike = "lower inversion.nayer.lr, or raise inversion.nayer.bn"
    remedy_images = "inversion.nayer.bn, inversion.nayer.oh"
    remedy_one_class = "raise inversion.nayer.oh, or lower inversion.nayer.adv"

    def __init__(
        self,
        context: SourceContext,
        *,
        batch_size: int = 400,
        warmup: int = 20,
        steps: int = 30,
        lr: float = 0.004,
        bn: float = 10.0,
        oh: float = 0.5,
        adv: float = 1.33,
        bn_momentum: float = 0.9,
        life: int = 10,
        embeddings: str | None = None,
        noise_dim: int = 1000,
        width: int = 64,
    ):
        super().__init__(context, batch_size, warmup, steps, bn, oh, adv, bn_momentum=bn_momentum)
        data = context.data
        self.life, self.drawn = life, None  # drawn: in which epoch of the student
        rows = context.teacher.head.weight.detach().clone() if embeddings is None else _read(embeddings, data.classes)
        layers = NoisyLayers(rows, batch_size, noise_dim)
        generator = Generator(noise_dim, width, data.image_size, data.channels)
        self.network = nn.Sequential(layers, generator).to(self.device, memory_format=torch.channels_last)
        self.optimizer = adam([(self.network.parameters(), lr)], BETAS)

    def _begin(self, learned: int) -> None:
        layers, generator = self.network
        if learned != self.drawn and 0 in (learned % self.life, (learned + self.warmup) % self.life):
            layers.normalisation.reset_parameters()
            redraw(generator, self.random)
            self.drawn = learned
        layers.redraw(self.random)
        self._draw_balanced_targets()
        restart(self.optimizer)

    def _step(self, adversary: nn.Module | None, buffer: ReplayBuffer) -> None:
        images = self.network(self.targets)
        found, _ = self._judge(self.augment(images, self.random), adversary, buffer)
        self.optimizer.zero_grad(set_to_none=True)
        found["loss"].backward()
        self._keep_better(images, found)
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "drawn": self.drawn, **super().state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.network.load_state_dict(state["network"])
        self.drawn = state["drawn"]


def _read(path: str, classes: list[str]) -> Tensor:
    """Return the embeddings [K, E] of a file of numpy's, a row per class in the data set's order."""
    key = "inversion.nayer.embeddings"
    wanted = f"allowed: an .npy file of finite numbers, [{len(classes)}, E], a row per class"
    file = Path(whole_path(path, key))
    try:
        with file.open("rb") as stream:
            values = np.lib.format.read_array(stream, allow_pickle=False)
    except (OSError, ValueError) as error:
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "it is not such a file"
        raise ConfigError(f"{key}: got {shown(path)}: {why}; {wanted}") from None
    if values.ndim != 2 or len(values) != len(classes) or not values.size or values.dtype.kind not in "fiu":
        raise ConfigError(f"{key}: got {shown(path)}, {list(values.shape)} of {values.dtype}; {wanted}")
    if not np.isfinite(values := values.astype(np.float32)).all():
        raise ConfigError(f"{key}: got {shown(path)}, with numbers that are not finite; {wanted}")
    return torch.from_numpy(values)


@torch.no_grad()
def redraw(generator: nn.Module, random: torch.Generator) -> None:
    """Draw a generator's weights and biases as torch does for new layers: uniform, within 1 / sqrt(inputs)."""
    for module in generator.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for parameter in module.parameters(recurse=False):
                parameter.uniform_(-bound, bound, generator=random)
