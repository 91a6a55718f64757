# Read and check the study once per start; look settings up by path. No torch here: every job reads this file.
import gc
import sys
from dataclasses import asdict
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kd.integrations.jobs import close_study, open_study
from kd.reports.plan import plan_figures, plan_tables
from kd.runs import gpu_slots
from kd.runs.folder import METRICS, RECORD, TRIAL, WEIGHTS, files_of, finished
from kd.runs.provenance import data_code, report_code, run_code
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.settings.merging import run_of
from kd.studies.command_line import require_one_config
from kd.studies.inputs import require_data, require_results_folder
from kd.studies.study import load_study

HERE = Path(workflow.basedir)
# A large DAG stays alive as a whole: searching it for garbage again and again took a tenth of a dry run.
gc.set_threshold(200_000, 20, 100)

try:
    if workflow.is_main_process:
        require_one_config(sys.argv)
    STUDY = load_study(HERE / "config/config.yaml", HERE / "workflow/schemas", config)
    FIGURES = {figure.name: figure for figure in plan_figures(STUDY)}
    if workflow.is_main_process and not {"--unlock", "--report"} & set(sys.argv):
        require_results_folder(STUDY.root)
        require_data(STUDY)
except ConfigError as error:
    sys.exit(f"error: {error}")  # only the readable line; an exception would add where in this file it was raised

config.update(STUDY.settings)  # for the scripts: what changes no number is passed this way, not through params
config.update(roots=STUDY.roots, study_name=STUDY.name)
ROOT = STUDY.root.as_posix()
RUNS = STUDY.runs  # path below ROOT -> Run
FOLDER = f"{ROOT}/studies/{STUDY.name}"  # the view that is this study
DATASETS = STUDY.datasets  # path below ROOT -> Dataset


def run_at(wildcards):
    """Return the run that a rule's wildcard names."""
    try:
        return RUNS[f"runs/{wildcards.run}"]
    except KeyError:
        raise WorkflowError(f"runs/{wildcards.run} is no run of study {STUDY.name}; see {FOLDER}/runs.csv") from None


def code_of(run, folder):
    """Return the digest of a run's code; of a finished run under compute.freeze_code, the digest that it was made with."""
    record = finished(Path(folder)) if STUDY.compute.freeze_code else None
    return record["code"] if record else run_code(run)


def runtime(wildcards, attempt):
    """Return minutes for SLURM: each retry gets more, and goes on from the run's checkpoint."""
    return STUDY.compute.runtime * attempt


def dataset_settings(wildcards):
    return DATASETS[f"data/{wildcards.data}.pt"].prepared


def data_file(wildcards):
    return f"{ROOT}/{run_at(wildcards).data_path}"


def teacher_weights(wildcards):
    return [f"{ROOT}/{teacher.path}/{WEIGHTS}" for teacher in run_at(wildcards).teachers]


def run_settings(wildcards):
    return run_at(wildcards).identity


def run_code_digest(wildcards):
    return code_of(run_at(wildcards), f"{ROOT}/runs/{wildcards.run}")


def report_files():
    """Return the files that the study ends with."""
    return [f"{FOLDER}/{name}" for name in ("table.md", "results.csv", *(f"figures/{name}.png" for name in FIGURES))]


def figure_inputs(wildcards):
    figure = FIGURES[wildcards.figure]
    return [f"{FOLDER}/results.csv"] if figure.experiment else [f"{ROOT}/{file}" for file in figure.inputs]


def files_of_run(kind):
    """Return the output files of a run of this kind."""
    return [f"{ROOT}/runs/{{run}}/{name}" for name in files_of(kind)]


def run_outputs(name):
    return [f"{ROOT}/{path}/{name}" for path in STUDY.students]


def tuning_folder(name):
    return f"{FOLDER}/tune/{STUDY.tunings[name].folder}"


def tuning_at(wildcards):
    name = wildcards.tuning.rsplit("-", 1)[0]
    return STUDY.tunings[name]


def trial_files(wildcards):
    return [f"{FOLDER}/tune/{wildcards.tuning}/trial{number}/{TRIAL}" for number in range(tuning_at(wildcards).trials)]


def trial_inputs(wildcards):
    """Return the data and the teacher, if the method has one; neither depends on what is searched."""
    run = run_of(tuning_at(wildcards).settings, tuning_at(wildcards).seed)
    teachers = [f"{ROOT}/{teacher.path}/{WEIGHTS}" for teacher in run.teachers or ()]
    return {"data": f"{ROOT}/{run.data_path}", "teachers": teachers}


def check_gpus():
    """Refuse --resources gpu=N above the number of this machine's slots."""
    limit = workflow.global_resources.get("gpu")
    try:
        if hint := gpu_slots.check(STUDY.compute, None if limit is None else limit.value):
            inform(hint)
    except ConfigError as error:
        sys.exit(f"error: {error}")


# No rule: a file that every run needs as `ancient` input would hide changes of whatever that file depends on.
onstart:
    if workflow.local_exec:
        check_gpus()
    try:
        open_study(STUDY, inform)
    except ConfigError as error:
        sys.exit(f"error: {error}")


onsuccess:
    close_study(STUDY, inform)


onerror:
    close_study(STUDY, inform)
