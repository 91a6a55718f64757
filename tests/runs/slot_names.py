"""Names of devices that no other test uses, for the tests of GPU slots."""

from __future__ import annotations

import uuid


def fresh(count: int) -> list[str]:
    """Return names of devices that no other test uses: the whole machine shares its slots."""
    return [f"test-{uuid.uuid4()}" for _ in range(count)]


def unheard(text: str) -> None:
    """Fail: what has to wait for nothing says nothing."""
    raise AssertionError(f"said, though nothing had to be waited for: {text}")
