"""what a study would run, and what that costs"""

from __future__ import annotations

import argparse

import yaml

from kd.commands.arguments import add_study, path, study_of
from kd.runtime.messages import ConfigError, printable


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--write", type=path, metavar="FILE", help="write the runs still to do, for `run --settings`")
    add_study(parser)


def do(given: argparse.Namespace) -> int:
    from kd.studies.inputs import require_data, require_results_folder
    from kd.studies.status import plan, to_do

    study = study_of(given)
    if not given.write:  # a list of runs is for another machine, where the data may lie elsewhere
        require_results_folder(study.root)
        require_data(study)
    print(printable(plan(study)))
    if given.write:
        content = {"runs": [run.as_dict() for run in to_do(study)]}
        try:
            given.write.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--write: {given.write} cannot be written ({error})") from None
        print(f"{len(content['runs'])} runs written to {given.write}")
    return 0
