"""kd: knowledge distillation as reproducible studies. Importing this package is quick and touches no GPU."""

from __future__ import annotations

from typing import Any

__all__ = ["load_results"]


def __getattr__(name: str) -> Any:
    """Import `load_results` (kd.reports.results) when it is asked for: it needs pandas."""
    if name == "load_results":
        from kd.reports.results import load_results

        return load_results
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
