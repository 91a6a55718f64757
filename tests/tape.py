"""A CUDA graph played on the CPU: it notes every operation of a step and repeats them on the same memory.

As in a CUDA graph, whatever Python decided or computed while the step was noted stays as it was: numbers are constants,
tensors are places. A step whose course depends on anything else than the content of tensors goes wrong here, too.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kd.training import cuda_graph
from kd.training.stepper import Stepper

WAITING = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero", "aten::masked_select"}


class Tape(TorchDispatchMode):
    """What kd.training.cuda_graph.Graph is on a GPU. Raises RuntimeError for what CUDA would not capture."""

    def __init__(
        self, steps: list[Callable[[], None]], device: torch.device, generators: list[torch.Generator], memory: Any
    ):
        super().__init__()
        self.noted: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []  # tensors that were changed, and what they held
        drawn_from = [*generators, torch.default_generator]
        states = [generator.get_state() for generator in drawn_from]
        try:
            with self:
                for step in steps:
                    step()
        finally:  # unlike a capture, noting a step has run it
            with torch.no_grad():
                for tensor, held in reversed(self.before):
                    tensor.copy_(held)
            self.before.clear()
            for generator, state in zip(drawn_from, states, strict=True):
                generator.set_state(state)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func._schema.name}\nmore words")
        self.before += [(tensor, tensor.clone()) for tensor in written(func, args, kwargs)]
        found = func(*args, **kwargs)
        if not is_view(func):
            self.noted.append((func, args, kwargs, found))
        return found

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, places in self.noted:
                found = func(*args, **kwargs)
                for place, value in zip(tree_leaves(places), tree_leaves(found), strict=True):
                    if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


class Again(Tape):
    """Runs the steps of one run again instead: the same course of operations, from Python each time.

    Under a dispatch mode torch differentiates a few operations otherwise, so the last bits of some runs are others.
    """

    def __init__(self, steps: list[Callable[[], None]], *given: Any):
        super().__init__(steps, *given)
        self.steps = steps

    def replay(self) -> None:
        with self:
            for step in self.steps:
                step()
        self.noted.clear()
        self.before.clear()


def is_view(func: Any) -> bool:
    """Return whether an operation only looks at memory that is there."""
    infos = [result.alias_info for result in func._schema.returns]
    return bool(infos) and all(info is not None and not info.is_write for info in infos)


def written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """Return the tensors that an operation is about to change."""
    named = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)} | kwargs
    if func._schema.name == "aten::native_batch_norm":  # whose schema does not say so
        changed = ["running_mean", "running_var"] if named["training"] else []
    else:
        infos = {argument.name: argument.alias_info for argument in func._schema.arguments}
        changed = [name for name in named if infos[name] is not None and infos[name].is_write]
    return [tensor for name in changed for tensor in tree_leaves(named[name]) if isinstance(tensor, Tensor)]


@contextmanager
def no_waits():
    yield []


@contextmanager
def where_it_is(device: torch.device):
    yield


def play_on_cpu(monkeypatch: Any, graph: type[Tape] = Tape) -> list[Stepper]:
    """Let every stepper capture on the CPU; return the list that the steppers of all runs are added to."""
    made: list[Stepper] = []
    init = Stepper.__init__

    def begin(self: Stepper, *given: Any, **named: Any) -> None:
        init(self, *given, **named)
        self.capture = True
        made.append(self)

    monkeypatch.setattr(Stepper, "__init__", begin)
    monkeypatch.setattr(cuda_graph, "Graph", graph)
    monkeypatch.setattr(cuda_graph, "new_memory", object)
    monkeypatch.setattr(cuda_graph, "aside", where_it_is)
    monkeypatch.setattr(cuda_graph, "waits", no_waits)
    return made
