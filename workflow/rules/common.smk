# Read and check the study once per start; look settings up by path. No torch here: every job reads this file.
import gc
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from kd.integrations.jobs import close_study, open_study, search_lines, searches_of, without_secret
from kd.reports.plan import outdated_report, plan_figures, plan_tables, text_of
from kd.runs import gpu_slots
from kd.runs.folder import METRICS, RECORD, Records, files_of, inputs_of
from kd.runs.provenance import report_code
from kd.runtime.messages import ConfigError
from kd.runtime.progress import inform
from kd.settings.merging import run_of
from kd.studies.command_line import asks_for_search, require_one_config, require_searches
from kd.studies.inputs import require_data, require_results_folder
from kd.studies.status import again_hints, data_hints, needs_preparing, outdated_best, search_is_done, states
from kd.studies.study import load_study

HERE = Path(workflow.basedir)
# Of a job that failed, Snakemake says for each file that there was no earlier one to restore.
logger.addFilter(lambda record: not str(record.msg).startswith("Cannot restore "))
# A large DAG stays alive as a whole: searching it for garbage again and again took a tenth of a dry run.
gc.set_threshold(200_000, 20, 100)

try:
    if workflow.is_main_process:
        require_one_config(sys.argv)
    SEARCHING = asks_for_search(sys.argv) or not workflow.is_main_process
    STUDY = load_study(HERE / "config/config.yaml", HERE / "workflow/schemas", config, SEARCHING)
    if workflow.is_main_process:
        require_searches(STUDY, sys.argv)
    FIGURES = {figure.name: figure for figure in plan_figures(STUDY)}
    if workflow.is_main_process and not {"--unlock", "--report"} & set(sys.argv):
        require_results_folder(STUDY.root)
        require_data(STUDY)
except ConfigError as error:
    sys.exit(f"error: {error}")  # only the readable line; an exception would add where in this file it was raised

config.update(STUDY.settings)  # for the scripts: what changes no number is passed this way, not through params
config.update(
    roots=STUDY.roots, study_name=STUDY.name, tracking=without_secret(STUDY.tracking), searches=searches_of(STUDY)
)
ROOT = STUDY.root.as_posix()
RUNS = STUDY.runs  # path below ROOT -> Run
FOLDER = f"{ROOT}/studies/{STUDY.name}"  # the view that is this study
DATASETS = STUDY.datasets  # path below ROOT -> Dataset

# kd decides what is made again, by content (kd.runs.provenance.outdated). Snakemake's time stamps and metadata get lost.
RECORDS = Records(STUDY.root)
# A job's own process only makes its job.
STATES = states(STUDY, RECORDS, with_searches=True) if workflow.is_main_process else {}
for hint in (*again_hints(STATES), *data_hints(STUDY)) if STATES else ():
    inform(hint)
DRAW_AGAIN = workflow.is_main_process and outdated_report(STUDY, RECORDS)
SEARCHES_DONE = {name for name, tuning in STUDY.tunings.items() if STATES and search_is_done(STUDY, tuning)}


def job_inputs(run, done, *outputs):
    """Return the data and teachers of a run's job: where the run is done, as inputs that decide nothing.

    outputs: the job's own file, and the one that is made of it.
    """
    ignore_marks_of_runs()
    data, teachers = inputs_of(run, STUDY.root)
    if done:
        return [ancient(file.as_posix()) for file in (data, *teachers) if file.exists()]
    make_again(*outputs)
    return [file.as_posix() for file in (data, *teachers)]


@cache
def ignore_marks_of_runs():
    """Let Snakemake's marks of jobs that it lost count for no run: kd knows whether a run's files are whole."""
    marked = workflow.persistence.incomplete

    async def of_others(job):
        return [] if job.rule.name in {*RUN_KIND, "worker"} else await marked(job)

    workflow.persistence.incomplete = of_others


def make_again(output, above=None):
    """Let the job that makes `output` run although that file or the one `above` it is there.

    Snakemake has no public way to say so. By itself it makes no missing file whose own product is there.
    """
    if workflow.is_main_process and any(Path(file).exists() for file in filter(None, (output, above))):
        workflow.dag.forcefiles.add(output)


def run_at(wildcards):
    """Return the run that a rule's wildcard names."""
    try:
        return RUNS[f"runs/{wildcards.run}"]
    except KeyError:
        raise WorkflowError(f"runs/{wildcards.run} is no run of study {STUDY.name}; see {FOLDER}/runs.csv") from None


def runtime(wildcards, attempt):
    """Return minutes for SLURM: each retry gets more, and goes on from the run's checkpoint."""
    return STUDY.compute.runtime * attempt


def dataset_settings(wildcards):
    return DATASETS[f"data/{wildcards.data}.pt"].prepared


def dataset_inputs(wildcards):
    """Return nothing: what is read is not Snakemake's business. Only other code prepares a data set again."""
    path = f"data/{wildcards.data}.pt"
    if needs_preparing(STUDY, path, DATASETS[path]):
        make_again(f"{ROOT}/{path}")
    return []


def run_inputs(wildcards):
    path = f"runs/{wildcards.run}"
    done = path in STATES and STATES[path].name == "done"
    return job_inputs(run_at(wildcards), done, f"{ROOT}/{path}/{RECORD}", f"{FOLDER}/results.csv")


def run_settings(wildcards):
    """Return what changes the numbers of a run; of a teacher of the user's also where its file lies."""
    run = run_at(wildcards)
    return run.as_dict() if run.weights else run.identity


def report_files():
    """Return the files that the study ends with."""
    return [f"{FOLDER}/{name}" for name in ("table.md", "results.csv", *(f"figures/{name}.png" for name in FIGURES))]


def collect_inputs(wildcards):
    if DRAW_AGAIN:
        make_again(f"{FOLDER}/results.csv")
    return [f"{ROOT}/{path}/{name}" for name in (METRICS, RECORD) for path in STUDY.students]


def figure_inputs(wildcards):
    figure = FIGURES[wildcards.figure]
    if DRAW_AGAIN:
        make_again(f"{FOLDER}/figures/{figure.name}.png")
    return [f"{FOLDER}/results.csv"] if figure.experiment else [f"{ROOT}/{file}" for file in figure.inputs]


def files_of_run(kind):
    """Return the output files of a run of this kind. Snakemake keeps them until others are there (`update`)."""
    return [update(f"{ROOT}/runs/{{run}}/{name}") for name in files_of(kind)]


def tuning_at(wildcards):
    """Return the search that a rule's wildcard names."""
    try:
        return STUDY.tunings[wildcards.tuning]
    except KeyError:
        raise WorkflowError(f"{wildcards.tuning} is no search of study {STUDY.name}; see its `tune:`") from None


def worker_files(wildcards):
    tuning, folder = tuning_at(wildcards), f"{FOLDER}/tune/{wildcards.tuning}"
    if workflow.is_main_process and outdated_best(STUDY, tuning):
        make_again(f"{folder}/best.yaml")
    return [f"{folder}/workers/{number}.json" for number in range(tuning.workers)]


def worker_inputs(wildcards):
    """Return the data and the teacher, if the method has one; neither depends on what is searched."""
    tuning, folder = tuning_at(wildcards), f"{FOLDER}/tune/{wildcards.tuning}"
    outputs = f"{folder}/workers/{wildcards.worker}.json", f"{folder}/best.yaml"
    return job_inputs(run_of(tuning.settings, tuning.seed), tuning.name in SEARCHES_DONE, *outputs)


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
    for line in search_lines(STUDY) if asks_for_search(sys.argv) else ():
        inform(line)


onerror:
    close_study(STUDY, inform)
