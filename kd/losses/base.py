"""The contract of a loss: what the objective and the training loop ask of it."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from kd.batch import Batch, Output


class Loss(nn.Module):
    """A loss with state: its parameters learn with the student's optimiser, its state is part of a checkpoint.

    A subclass is built as `(context: LossContext, *, setting=default)` and overrides `forward` and what else of the
    following it needs. Its other public names are free, except those that look like a misspelt one of these: they
    raise TypeError, because nobody would call them.
    """

    signed: bool = False  # both outputs must hold `signed`, the maps before the ReLU that ends a stage
    first_epochs: int = 0  # epochs of a first stage, in which only `first_stage` is minimised
    trains_student: bool = True  # the first stage trains the student up to its last map; False: nothing of it
    first_lr: float | None = None  # learning rate of that stage; None: the schedule's first
    logged: Mapping[str, Tensor] = MappingProxyType({})  # scalars [] of the last call, for history.csv
    logits: Tensor | None = None  # [B, K] of the last call, where the loss classifies in the student's place

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss per sample, [B], or of the batch, [] (losses that relate samples)."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        """Return the loss of the first stage, [B] or []."""
        raise NotImplementedError(f"{type(self).__name__} has first_epochs but no first_stage")

    def adopt(self, student: nn.Module, teacher: nn.Module) -> nn.Module:
        """Return the network to score and save; a loss that overrides this has `one_teacher=True` in its entry."""
        return student

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in vars(cls):
            _refuse_misspelt(cls.__name__, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _refuse_misspelt(type(self).__name__, name)
        super().__setattr__(name, value)


CONTRACT = frozenset(name for name in (*vars(Loss), *Loss.__annotations__) if not name.startswith("_"))


@cache
def _refuse_misspelt(owner: str, name: str) -> None:
    """Raise TypeError for a public name that is none of the contract's nor of nn.Module's, but nearly the former."""
    if name.startswith("_") or name in CONTRACT or hasattr(nn.Module, name):
        return
    if near := difflib.get_close_matches(name, CONTRACT, n=1, cutoff=0.75):
        raise TypeError(f"{owner}.{name}: did you mean {near[0]!r}? If not, choose a name less like it, or _{name}")


class FunctionLoss(Loss):
    """A loss without state, written as a function `name(student, teacher, batch, *, setting=default)`."""

    def __init__(self, function: Callable[..., Tensor], **settings: Any) -> None:
        super().__init__()
        self._function, self._settings = function, settings

    def forward(self, student: Output, teacher: Output | None, batch: Batch) -> Tensor:
        return self._function(student, teacher, batch, **self._settings)
