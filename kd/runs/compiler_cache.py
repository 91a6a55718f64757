"""Where compiled kernels are kept for later runs. They are code, so only in a folder that nobody else can write to."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from kd.runtime.files import is_ours


def compiler_cache(results: Path) -> Path:
    """Return a folder for what torch's compiler makes: `cache` in the results folder where that is ours alone.

    Where others can write there, it is `kd` in the user's own folder of caches; where that cannot be written or is
    open to others, too, a new folder that goes with this process.
    """
    if is_ours(results / "cache"):
        return results / "cache"
    with contextlib.suppress(OSError, RuntimeError):  # no home folder, or one that cannot be written
        own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kd"
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        if is_ours(own, above=False) and os.access(own, os.W_OK):
            return own
    return _of_this_process()


@cache
def _of_this_process() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="kd-cache-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
