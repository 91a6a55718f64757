# The study, read and checked once per start; lookups from paths to settings. No torch here: every job reads this file.
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kd.config import ConfigError, digest, run_of
from kd.files import read_json
from kd.provenance import data_code, run_code
from kd.script import close_study, open_study
from kd.study import load_study

HERE = Path(workflow.basedir)

try:
    STUDY = load_study(HERE / "config/config.yaml", HERE / "workflow/schemas", config)
except ConfigError as error:
    raise WorkflowError(str(error)) from None

config.update(STUDY.settings)  # for the scripts: what changes no number goes this way, not through params
ROOT = STUDY.root.as_posix()
RUNS = STUDY.runs  # path below ROOT -> Run
FOLDER = f"{ROOT}/studies/{STUDY.name}"  # the view that is this study
DATASETS = {run.data_path: run.dataset for run in RUNS.values()}


def run_at(wildcards):
    """The run that a rule's wildcard names."""
    try:
        return RUNS[f"runs/{wildcards.run}"]
    except KeyError:
        raise WorkflowError(f"runs/{wildcards.run} is no run of study {STUDY.name}; see {FOLDER}/runs.csv") from None


def code_of(run, folder):
    """Digest of a run's code; with compute.freeze_code the one that it was made with, once it is finished."""
    done = Path(folder) / "run.json"
    if STUDY.compute.freeze_code and done.exists():
        return read_json(done)["code"]
    return run_code(run)


def runtime(wildcards, attempt):
    """Minutes for SLURM: a job that ran out of time gets more on its retry, where it goes on from its checkpoint."""
    return STUDY.compute.runtime * attempt


# Not a rule: as an input of every run it would hide changes from Snakemake, whose `ancient` masks all that lies downstream.
onstart:
    open_study(STUDY, lambda text: print(text, file=sys.stderr))


onsuccess:
    close_study(STUDY, lambda text: print(text, file=sys.stderr))


onerror:
    close_study(STUDY, lambda text: print(text, file=sys.stderr))
