# Read and check the study once per start; look settings up by path. No torch here: every job reads this file.
import gc
import json
import os
import sys
from dataclasses import asdict
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from kd.integrations.jobs import close_study, open_study, search_lines, searches_of, seen_in_mlflow, without_secret
from kd.integrations.stopped_jobs import LINES_OF_STUDY
from kd.integrations.terminal import attach
from kd.reports.closing import closing
from kd.reports.page.document import REPORT, page_of
from kd.reports.plan import ANSWERS, outdated_report, plan_figures, plan_tables, text_of
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
    FIGURES = plan_figures(STUDY)
    TABLES = plan_tables(STUDY.experiments)
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


def cores_of(run):
    """Return the CPU cores that a run's job asks for."""
    return STUDY.compute.for_kind(run.kind).cores(run.dataset.stream)


def slots():
    """Return how many runs may be made at the same time; cores and jobs are known when the DAG is."""
    if not workflow.local_exec:
        return min(workflow.nodes or 1, len(RUNS))
    cores, limit = workflow.cores or 1, workflow.global_resources.get("gpu")
    most = [cores // min(min(map(cores_of, RUNS.values())), cores), len(RUNS)]
    if limit is not None and limit.value and STUDY.compute.gpus:
        most.append(limit.value // min(STUDY.compute.for_kind(run.kind).gpus for run in RUNS.values()))
    return max(min(most), 1)


def runs_to_do():
    """Return the paths of the runs for which there will be a job."""
    return [f"runs/{job.wildcards.run}" for job in workflow.dag.needrun_jobs() if job.rule.name in RUN_KIND]


# kd decides what is made again, by content (kd.runs.provenance.outdated). Snakemake's time stamps and metadata get lost.
RECORDS = Records(STUDY.root)
# A job's own process only makes its job.
STATES = states(STUDY, RECORDS, with_searches=True) if workflow.is_main_process else {}
# What is shown on the terminal, unless --verbose or --quiet ask for Snakemake's own output.
TERMINAL = attach(logger, workflow.output_settings, STUDY, STATES, RECORDS, slots, runs_to_do) if STATES else None
say = TERMINAL.lines.wrapped if TERMINAL else inform
for hint in (*(() if TERMINAL else again_hints(STATES)), *data_hints(STUDY)) if STATES else ():
    inform(hint)
DRAW_AGAIN = workflow.is_main_process and outdated_report(STUDY, RECORDS)
SEARCHES_DONE = {name for name, tuning in STUDY.tunings.items() if STATES and search_is_done(STUDY, tuning)}


def job_inputs(run, done, *outputs):
    """Return the data and teachers of a run's job: where the run is done, as inputs that decide nothing.

    outputs: the job's own file, and the one that is made of it.
    """
    ignore_marks_of_runs()
    go_on_in_a_job()
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


@cache
def go_on_in_a_job():
    """Let a job that is several runs (--groups) go on with the others when one fails: it is not told --keep-going."""
    if not workflow.is_main_process:
        workflow.execution_settings.keep_going = True


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
    figures = (f"figures/{figure.name}.png" for figure in FIGURES)
    return [f"{FOLDER}/{name}" for name in ("table.md", "results.csv", *figures, REPORT)]


def in_params(value):
    """Return a value with text of the user's as JSON: Snakemake's report writes params into a script of its page."""
    return json.dumps(value).replace("<", "\\u003c")


def in_report(title):
    """Return a user's title as a label in Snakemake's report, which would fill in what stands in braces."""
    return title.replace("{", "{\u2060").replace("<", "<\u2060")


def collect_inputs(wildcards):
    if DRAW_AGAIN:
        make_again(f"{FOLDER}/results.csv")
    return [f"{ROOT}/{path}/{name}" for name in (METRICS, RECORD) for path in STUDY.students]


def figure_inputs(wildcards):
    if DRAW_AGAIN:
        make_again(f"{FOLDER}/figures/{FIGURES[0].name}.png")
    return [f"{ROOT}/{file}" for figure in FIGURES for file in figure.inputs]


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


def compute_of_search(wildcards):
    """Return how the trials of a search are computed: by the kind of run that they are."""
    return STUDY.compute.for_kind(tuning_at(wildcards).settings["kind"])


def cores_of_search(wildcards):
    """Return the CPU cores that a worker of a search asks for."""
    return compute_of_search(wildcards).cores(tuning_at(wildcards).settings["dataset"].get("stream", False))


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
            say(hint)
    except ConfigError as error:
        sys.exit(f"error: {error}")


def show_results():
    """Show the study's table, where it has finished runs."""
    try:
        print_lines, width = (TERMINAL.lines.say, TERMINAL.lines.width) if TERMINAL else (inform, 80)
        print_lines(closing(STUDY, width).rstrip())
    except ConfigError as error:
        say(str(error))


def show_again():
    """Show what the study has ended with, where nothing is to be done."""
    show_results()
    if where := seen_in_mlflow(STUDY):
        say(where)


if TERMINAL:
    TERMINAL.when_nothing_is_to_be_done = show_again


# No rule: a file that every run needs as `ancient` input would hide changes of whatever that file depends on.
onstart:
    if workflow.local_exec:
        check_gpus()
        if TERMINAL:
            os.environ[LINES_OF_STUDY] = "1"
    try:
        open_study(STUDY, say)
    except ConfigError as error:
        sys.exit(f"error: {error}")


onsuccess:
    if TERMINAL.drawn() if TERMINAL else not workflow.output_settings.quiet:
        show_results()
    for line in search_lines(STUDY) if asks_for_search(sys.argv) else ():
        say(line)
    close_study(STUDY, say)  # takes a while, with networks to log: the table comes first


onerror:
    close_study(STUDY, say)
    if TERMINAL:
        TERMINAL.broke_off()
