# The study, read and checked once per start; lookups from paths to settings. No torch here: every job reads this file.
import gc
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

from kd.runs import gpu_slots as slots
from kd.settings.run import run_of
from kd.runtime.messages import ConfigError
from kd.runtime.files import read_json
from kd.runs.provenance import data_code, report_code, run_code
from kd.integrations.jobs import close_study, open_study
from kd.studies.study import load_study

HERE = Path(workflow.basedir)
# All of a large DAG stays alive: to look through it for garbage again and again took a tenth of a dry run.
gc.set_threshold(200_000, 20, 100)

try:
    STUDY = load_study(HERE / "config/config.yaml", HERE / "workflow/schemas", config)
except ConfigError as error:
    sys.exit(f"error: {error}")  # the readable line alone; an exception would add where in this file it was raised

config.update(STUDY.settings)  # for the scripts: what changes no number goes this way, not through params
config.update(roots=STUDY.roots, study_name=STUDY.name)
ROOT = STUDY.root.as_posix()
RUNS = STUDY.runs  # path below ROOT -> Run
FOLDER = f"{ROOT}/studies/{STUDY.name}"  # the view that is this study
DATASETS = STUDY.datasets  # path below ROOT -> Dataset


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


def dataset_settings(wildcards):
    return DATASETS[f"data/{wildcards.data}.pt"].prepared


def data_file(wildcards):
    return f"{ROOT}/{run_at(wildcards).data_path}"


def teacher_weights(wildcards):
    return [f"{ROOT}/{teacher.path}/weights.pt" for teacher in run_at(wildcards).teachers]


def run_settings(wildcards):
    return run_at(wildcards).as_dict()


def run_digest(wildcards):
    return code_of(run_at(wildcards), f"{ROOT}/runs/{wildcards.run}")


def report_files():
    """What the study ends with."""
    names = [f"figures/{name}.png" for name in STUDY.experiments]
    if STUDY.examples("distill"):
        names.append("figures/correlations.png")
    if STUDY.examples("datafree"):
        names += [f"figures/synthetic-{name}.png" for name in ("images", "histograms", "course")]
    return [f"{FOLDER}/{name}" for name in ("table.md", "results.csv", *names)]


def by_pair():
    """Experiments whose view is the papers' table, methods by pairs; and, where there are several, all of them."""
    names = [name for name, experiment in STUDY.experiments.items() if experiment["view"] == "pairs"]
    return names + ["_all"] * (len(names) > 1)


def alone():
    """The student without a teacher beside the first one of the figure of correlations."""
    return STUDY.alone(next(iter(STUDY.examples("distill").values()), ""))


def run_outputs(name):
    return [f"{ROOT}/{path}/{name}" for path in STUDY.students]


def tuning_folder(name):
    return f"{FOLDER}/tune/{STUDY.tunings[name].folder}"


def tuning_at(wildcards):
    name = wildcards.tuning.rsplit("-", 1)[0]
    return STUDY.tunings[name]


def trial_files(wildcards):
    return [
        f"{FOLDER}/tune/{wildcards.tuning}/trial{number}/trial.json" for number in range(tuning_at(wildcards).trials)
    ]


def trial_inputs(wildcards):
    """The data and, where the method has one, the teacher; neither depends on what is searched."""
    run = run_of(tuning_at(wildcards).settings, tuning_at(wildcards).seed)
    teachers = [f"{ROOT}/{teacher.path}/weights.pt" for teacher in run.teachers or ()]
    return {"data": f"{ROOT}/{run.data_path}", "teachers": teachers}


def check_gpus():
    """Before the first job on this machine: no more slots than it has."""
    limit = workflow.global_resources.get("gpu")
    try:
        if hint := slots.check(STUDY.compute, None if limit is None else limit.value):
            print(hint, file=sys.stderr)
    except ConfigError as error:
        sys.exit(f"error: {error}")


# Not a rule: as an input of every run it would hide changes from Snakemake, whose `ancient` masks all that lies downstream.
onstart:
    if workflow.local_exec:
        check_gpus()
    open_study(STUDY, lambda text: print(text, file=sys.stderr))


onsuccess:
    close_study(STUDY, lambda text: print(text, file=sys.stderr))


onerror:
    close_study(STUDY, lambda text: print(text, file=sys.stderr))
