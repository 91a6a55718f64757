# One rule per kind of run. They differ in their inputs and outputs; kd.runs.run.run_step does the work.
RUN_KIND = {
    "given": r"[^/]+/[^/]+/given-[0-9a-f]{10}/seed[0-9]+",
    "train": r"[^/]+/[^/]+/train-[0-9a-f]{10}/seed[0-9]+",
    "distill": r"[^/]+/[^/]+--[^/]+/(?!datafree-)[^/]+-[0-9a-f]{10}/seed[0-9]+",
    "datafree": r"[^/]+/[^/]+--[^/]+/datafree-[0-9a-f]{10}/seed[0-9]+",
}

# How they are computed: the steps of some may be shared by several GPUs.
SHARED, SINGLE = STUDY.compute.for_kind("train"), STUDY.compute.for_kind("datafree")


rule train:
    """Train on labels only: a teacher, or a student from scratch."""
    input:
        run_inputs,
    output:
        files_of_run("train"),
    log:
        f"{ROOT}/logs/runs/{{run}}.txt",
    wildcard_constraints:
        run=RUN_KIND["train"],
    conda:
        "../../environment.yml"
    threads: lambda wildcards: cores_of(run_at(wildcards))
    resources:
        gpu=SHARED.gpus,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,
    params:
        settings=run_settings,
    script:
        "../scripts/run.py"


use rule train as distill with:
    output:
        files_of_run("distill"),
    wildcard_constraints:
        run=RUN_KIND["distill"],


use rule distill as datafree with:
    output:
        files_of_run("datafree"),
    wildcard_constraints:
        run=RUN_KIND["datafree"],
    resources:
        gpu=SINGLE.gpus,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,


use rule train as given with:
    output:
        files_of_run("given"),
    wildcard_constraints:
        run=RUN_KIND["given"],
    resources:
        gpu=SINGLE.gpus,
        mem_mb=STUDY.compute.mem_mb,
        runtime=runtime,
