"""Imported for what it does: an optimiser's first step then does not import torch._dynamo, which takes two seconds.

kd compiles no optimiser, so what torch does here for its compiler is of no use. Where torch is built otherwise than
expected, nothing is changed.
"""

from __future__ import annotations

import functools
from typing import Any

import torch


def _leave_dynamo_out() -> None:
    """Mark methods that torch would set up for its compiler on their first call as being their own unmarked selves."""
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        original = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if original is not None and not hasattr(original, "__dynamo_disable"):
            original.__dynamo_disable = original


def _step_without_dynamo(kind: type[torch.optim.Optimizer]) -> None:
    """Replace the wrapper of `step`, which sets whether gradients are recorded, by one that does only that."""
    original = getattr(kind.step, "__wrapped__", None)
    if original is None:
        return

    @functools.wraps(original)
    def step(self: torch.optim.Optimizer, *given: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return original(self, *given, **named)

    kind.step = step


_leave_dynamo_out()
for _kind in (torch.optim.SGD, torch.optim.Adam):
    _step_without_dynamo(_kind)
