"""send to MLflow what it lacks: a study's runs and tables, or all runs"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kd.commands.arguments import add_results, add_study, study_of
from kd.runtime.progress import inform
from kd.runtime.yaml_files import read_yaml
from kd.studies.files import project


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--to", metavar="URI", help="another store than tracking.uri, $MLFLOW_TRACKING_URI or the file")
    add_results(parser)
    add_study(parser, "all runs of --results")


def do(given: argparse.Namespace) -> int:
    from kd.integrations.jobs import close_study, sync_all

    def say(text: str) -> None:
        inform(text, sys.stdout)

    if given.study or given.config:
        if given.results != Path("results"):
            given.config.append(f"results={given.results}")
        sent = close_study(study_of(given), say, given.to)
    else:
        settings = read_yaml(project() / "config/config.yaml").get("tracking") or {"uri": None}
        sent = sync_all(given.results, settings, say, given.to)
    print(f"{sent} runs sent")
    return 0
