# Searches of the study's `tune` section. Trials are jobs of their own and share one Optuna journal.
def tuning_folder(name):
    """A search with another space, method or number of trials is another search."""
    tuning = STUDY.tunings[name]
    identity = digest({"settings": tuning.settings, "space": tuning.space, "seed": tuning.seed})
    return f"{FOLDER}/tune/{name}-{identity}"


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
    teacher = {} if run.teacher is None else {"teacher": f"{ROOT}/{run.teacher.path}/weights.pt"}
    return {"data": f"{ROOT}/{run.data_path}", **teacher}


rule trial:
    """Train with settings that Optuna suggests; score on the validation split."""
    input:
        unpack(trial_inputs),
    output:
        f"{FOLDER}/tune/{{tuning}}/trial{{number}}/trial.json",
    log:
        f"{ROOT}/logs/tune/{STUDY.name}/{{tuning}}/trial{{number}}.txt",
    threads: STUDY.compute.threads
    resources:
        gpu=STUDY.compute.gpu,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,
    params:
        tuning=lambda wildcards: asdict(tuning_at(wildcards)),
        code=lambda wildcards: run_code(run_of(tuning_at(wildcards).settings, tuning_at(wildcards).seed)),
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
    script:
        "../scripts/best.py"
