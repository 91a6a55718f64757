"""Imported first by what a job imports: Ctrl-C while it still loads torch is no error, and needs no traceback."""

from __future__ import annotations

import os
import sys
from types import TracebackType

LINES_OF_STUDY = "KD_LINES_OF_STUDY"  # in the environment of jobs on this machine, where kd.integrations.terminal shows


def _silent_if_stopped(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


if os.environ.get(LINES_OF_STUDY):
    sys.excepthook = _silent_if_stopped
