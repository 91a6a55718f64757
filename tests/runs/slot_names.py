"""Devices that no other test knows, for the tests of GPU slots."""

from __future__ import annotations

import uuid


def fresh(count: int) -> list[str]:
    """Names of devices that no other test knows: slots are common to the whole machine."""
    return [f"test-{uuid.uuid4()}" for _ in range(count)]


def unheard(text: str) -> None:
    raise AssertionError(f"said, though nothing had to be waited for: {text}")
