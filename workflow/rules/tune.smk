# Searches of the study's `tune` section. Its workers are jobs; they share the search's trials, one folder each.
rule worker:
    """Run trials with settings that Optuna suggests, until the budget is used; score on held-out data."""
    input:
        worker_inputs,
    output:
        update(f"{FOLDER}/tune/{{tuning}}/workers/{{worker}}.json"),
    log:
        f"{ROOT}/logs/tune/{STUDY.name}/{{tuning}}/worker{{worker}}.txt",
    wildcard_constraints:
        worker="[0-9]+",
    retries: 2  # the trial of a worker that died goes on from its checkpoint
    conda:
        "../../environment.yml"
    threads: lambda wildcards: cores_of_search(wildcards)
    resources:
        gpu=lambda wildcards: compute_of_search(wildcards).gpus,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,
    params:
        tuning=lambda wildcards: tuning_at(wildcards).identity,
    script:
        "../scripts/worker.py"


rule best:
    """The best trial's settings, as overrides that a study may name; all trials as a table and as figures."""
    input:
        worker_files,
    output:
        best=f"{FOLDER}/tune/{{tuning}}/best.yaml",
        trials=f"{FOLDER}/tune/{{tuning}}/trials.csv",
    log:
        f"{ROOT}/logs/tune/{STUDY.name}/{{tuning}}/best.txt",
    conda:
        "../../environment.yml"
    params:
        tuning=lambda wildcards: tuning_at(wildcards).identity,
    script:
        "../scripts/best.py"
