"""Imported for what it does: torch's first optimiser then takes no two seconds to make."""

from __future__ import annotations

import torch


def _leave_dynamo_out() -> None:
    """Spare every job the 2 seconds in which torch's first optimiser imports torch._dynamo.

    These methods are marked as not to be compiled, and the mark is set up on their first call. kd compiles no
    optimiser, so each may stand for its own unmarked self. Where torch is built otherwise, nothing happens.
    """
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        original = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if original is not None and not hasattr(original, "__dynamo_disable"):
            original.__dynamo_disable = original


_leave_dynamo_out()
