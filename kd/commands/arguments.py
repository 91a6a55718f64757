"""What several commands ask for in the same way."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from kd.runtime.files import whole_path
from kd.runtime.messages import ConfigError


def path(text: str) -> Path:
    """Return an argument as a path. Raises argparse's error for one that no file can have."""
    try:
        return Path(whole_path(text))
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def device(text: str) -> str:
    """Return the name of a device. Raises argparse's error for any other text."""
    if not re.fullmatch(r"auto|cpu|cuda|cuda:[0-9]+", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: auto, cpu, cuda, cuda:0, cuda:1, ...")
    return text


def positive(text: str) -> int:
    """Return a whole number of 1 or more. Raises argparse's error for any other text."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 or more")
    return int(text)


def add_config(parser: argparse.ArgumentParser) -> None:
    """Add --config KEY=VALUE."""
    parser.add_argument(
        "--config", nargs="*", action="extend", default=[], metavar="KEY=VALUE", help="as Snakemake's --config"
    )


def add_study(parser: argparse.ArgumentParser, default: str = "as config.yaml says") -> None:
    """Add a study's name or path, and --config."""
    parser.add_argument("study", nargs="?", help=f"name or path, as --config study=...; default: {default}")
    add_config(parser)


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add --results FOLDER."""
    parser.add_argument("--results", type=path, default=Path("results"), help="results folder (default: results)")


def add_threads(parser: argparse.ArgumentParser, what: str = "CPU threads") -> None:
    """Add --threads N."""
    parser.add_argument("--threads", type=positive, default=1, help=f"{what} (default: 1)")


def study_of(given: argparse.Namespace) -> Any:
    """Return the study that `add_study` asked for. Raises ConfigError."""
    from kd.studies.command_line import settings_from
    from kd.studies.study import asked_study

    return asked_study(given.study, settings_from(given.config))
