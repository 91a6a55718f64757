# Searches of the study's `tune` section. Each trial is a job; all trials of a search share one Optuna journal.
rule trial:
    """Train with settings that Optuna suggests; score on the validation split."""
    input:
        trial_inputs,
    output:
        update(f"{FOLDER}/tune/{{tuning}}/trial{{number}}/{TRIAL}"),
    log:
        f"{ROOT}/logs/tune/{STUDY.name}/{{tuning}}/trial{{number}}.txt",
    conda:
        "../../environment.yml"
    threads: STUDY.compute.threads
    resources:
        gpu=STUDY.compute.gpus,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,
    params:
        tuning=lambda wildcards: tuning_at(wildcards).identity,
    script:
        "../scripts/trial.py"


rule best:
    """The best trial's settings, as overrides that an ablation may name."""
    input:
        trial_files,
    output:
        best=f"{FOLDER}/tune/{{tuning}}/best.yaml",
        trials=f"{FOLDER}/tune/{{tuning}}/trials.csv",
    log:
        f"{ROOT}/logs/tune/{STUDY.name}/{{tuning}}/best.txt",
    conda:
        "../../environment.yml"
    script:
        "../scripts/best.py"
