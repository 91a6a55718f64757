"""where a study stands, from its files only"""

from __future__ import annotations

import argparse

from kd.commands.arguments import add_study, study_of
from kd.runtime.messages import printable


def add(parser: argparse.ArgumentParser) -> None:
    add_study(parser)


def do(given: argparse.Namespace) -> int:
    from kd.studies.status import status

    print(printable(status(study_of(given))))
    return 0
