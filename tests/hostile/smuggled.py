"""What somebody might put into a folder that several users share: pickles that run code, links of another user's."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

SOMEBODY = 12345  # the number of another user


class Code:
    """Makes a file, the canary, when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.canary),)


def is_alive(canary: Path) -> bool:
    """Whether the pickles of these tests would run code: else a canary that is missing would say nothing."""
    pickle.loads(pickle.dumps(Code(canary)))
    found = canary.is_dir()
    canary.rmdir()
    return found


def link_of_somebody(link: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make a link that is not this user's."""
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    if os.getuid() == 0:
        os.chown(link, SOMEBODY, -1, follow_symlinks=False)
    else:  # only root may give a file away: then this process is of another user
        monkeypatch.setattr(os, "getuid", lambda: SOMEBODY)
    return link
