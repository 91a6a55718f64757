"""send to MLflow what it lacks: a study's runs and tables, or all runs"""

from __future__ import annotations

import argparse
from pathlib import Path

from kd.commands.arguments import add_results, add_study, study_of
from kd.runtime.yaml_files import read_yaml
from kd.studies.files import project


def add(parser: argparse.ArgumentParser) -> None:
    add_results(parser)
    add_study(parser, "all runs of --results")


def do(given: argparse.Namespace) -> int:
    from kd.integrations.jobs import close_study
    from kd.integrations.store import Store
    from kd.integrations.tracking import TRACKED, sync

    if given.study or given.config:
        if given.results != Path("results"):
            given.config.append(f"results={given.results}")
        sent = close_study(study_of(given), print)
    else:
        settings = read_yaml(project() / "config/config.yaml").get("tracking") or {"uri": None}
        folders = (file.parent for file in sorted(given.results.glob(f"**/{TRACKED}")))
        sent = sync(folders, Store(settings, given.results))
    print(f"{sent} runs sent")
    return 0
