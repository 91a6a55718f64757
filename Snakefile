# kd: knowledge-distillation studies as one command. README.md says how to use it, config/README.md what can be set.
#
#   snakemake --cores all --resources gpu=4                         the default study, `demo`
#   snakemake --cores all --config study=NAME                      another study, or the path of your own
#   snakemake --cores all tune --config study=tune-ssdkd            search settings with Optuna
from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"  # reads and checks the study: STUDY, RUNS and the lookups
include: "workflow/rules/data.smk"  # data sets as tensor files
include: "workflow/rules/train.smk"  # one rule per kind of run: train, distill, datafree
include: "workflow/rules/report.smk"  # runs -> tables and figures
include: "workflow/rules/tune.smk"  # trials -> best settings


rule all:
    default_target: True
    input:
        report_files(),


rule tune:
    input:
        [f"{FOLDER}/tune/{name}/best.yaml" for name in STUDY.tunings],


localrules:  # of a cluster: seconds of work on the machine that submits
    all,
    collect,
    tables,
    figures,
    page,
    tune,
    best,
