"""what methods differ by: accuracy, paired difference, seconds"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from kd.commands.arguments import add_config
from kd.runtime.messages import ConfigError, printable

if TYPE_CHECKING:
    from kd.reports.compare import Side

FILTER = "mlflow:"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="RUNS",
        help="METHOD[,ABLATION][,KEY=VALUE ...], at least two: ssdkd fast, or ssdkd ssdkd,none,scale=0.1; or "
        "mlflow:FILTER, as in MLflow's search field; the first is compared with each of the others",
    )
    parser.add_argument(
        "--study", nargs="+", default=[], help="names or paths, several too; default: as config.yaml says"
    )
    parser.add_argument("--measure", default="accuracy", help="a column of the results (docs/results.md)")
    parser.add_argument("--format", choices=("text", "markdown", "latex", "csv"), default="text")
    parser.add_argument(
        "--above",
        type=float,
        metavar="X",
        help="exit with 0 if all intervals lie above X, with 4 if one lies below, else with 3",
    )
    add_config(parser)


def do(given: argparse.Namespace) -> int:
    import pandas as pd

    from kd.reports.compare import FORMATS, compare, side, verdict
    from kd.reports.results import load_results
    from kd.studies.claims import score_of
    from kd.studies.command_line import settings_from

    chosen = settings_from(given.config)
    if len(given.sides) < 2:
        raise ConfigError(f"compare: got one group of runs, {given.sides[0]!r}; name what it is compared with, too")
    sides = [_found(text, given.study, chosen) if text.startswith(FILTER) else side(text) for text in given.sides]
    results = pd.concat([load_results(study, **chosen) for study in given.study or [None]], ignore_index=True)
    compared = compare(results, sides, given.measure)
    for_people = given.measure == "accuracy" and given.format != "csv"
    name = score_of(results) if for_people else given.measure
    print(printable(FORMATS[given.format](compared, name)), end="")
    holds = True if given.above is None else verdict(compared, given.above)
    return {True: 0, None: 3, False: 4}[holds]


def _found(text: str, studies: list[str], chosen: dict[str, Any]) -> Side:
    """Return the runs that a filter of MLflow's finds in the studies. Raises ConfigError."""
    from kd.integrations.filters import paths_of
    from kd.reports.compare import Side
    from kd.studies.study import asked_study

    found = paths_of(text.removeprefix(FILTER), [asked_study(study, chosen) for study in studies or [None]])
    return Side(text, {}, found)
