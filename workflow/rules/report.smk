# From runs to tables and figures. An experiment's `view` says which figure it gets.
CAPTIONS = "../report"


rule collect:
    """One tidy table of all runs."""
    input:
        run_outputs("metrics.json"),
        run_outputs("run.json"),
    output:
        results=report(f"{FOLDER}/results.csv", caption=f"{CAPTIONS}/results.rst", category="Tables"),
    log:
        f"{ROOT}/logs/report/{STUDY.name}-collect.txt",
    conda:
        "../../environment.yml"
    params:
        table=STUDY.table.to_dict("list"),
        code=report_code(),
    script:
        "../scripts/collect.py"


rule tables:
    """Mean ± std per method, scale and ablation; verdicts on the study's claims."""
    input:
        results=f"{FOLDER}/results.csv",
    output:
        table=report(f"{FOLDER}/table.md", caption=f"{CAPTIONS}/table.rst", category="Tables"),
        claims=[f"{FOLDER}/claims.csv"] if STUDY.claims else [],
        csv=[f"{FOLDER}/tables/{name}.csv" for name in STUDY.experiments],
        paper=[f"{FOLDER}/tables/{name}-by-pair.{ending}" for name in by_pair() for ending in ("csv", "tex")],
    log:
        f"{ROOT}/logs/report/{STUDY.name}-tables.txt",
    conda:
        "../../environment.yml"
    params:
        code=report_code(),
        # text of the user: functions keep Snakemake from formatting its braces
        title=lambda wildcards: STUDY.title,
        experiments=lambda wildcards: STUDY.experiments,
        claims=lambda wildcards: STUDY.claims,
    script:
        "../scripts/tables.py"


rule figure:
    """One experiment's figure."""
    input:
        results=f"{FOLDER}/results.csv",
    output:
        png=report(f"{FOLDER}/figures/{{experiment}}.png", caption=f"{CAPTIONS}/experiment.rst", category="Figures"),
        svg=f"{FOLDER}/figures/{{experiment}}.svg",
    log:
        f"{ROOT}/logs/report/{STUDY.name}-{{experiment}}.txt",
    wildcard_constraints:
        experiment="|".join(STUDY.experiments),
    conda:
        "../../environment.yml"
    params:
        experiment=lambda wildcards: STUDY.experiments[wildcards.experiment],
        code=report_code(),
    script:
        "../scripts/figure.py"


rule correlations_figure:
    """Where students' logits correlate otherwise than their teachers'."""
    input:
        distilled=[f"{ROOT}/{path}/correlations.npz" for path in STUDY.examples("distill").values()],
        alone=[f"{ROOT}/{path}/run.json" for path in alone().values()],  # all that every such run has
    output:
        png=report(f"{FOLDER}/figures/correlations.png", caption=f"{CAPTIONS}/correlations.rst", category="Figures"),
        svg=f"{FOLDER}/figures/correlations.svg",
    log:
        f"{ROOT}/logs/report/{STUDY.name}-correlations.txt",
    conda:
        "../../environment.yml"
    params:
        labels=list(STUDY.examples("distill")),
        alone={label: f"{ROOT}/{path}/correlations.npz" for label, path in alone().items()},
        code=report_code(),
    script:
        "../scripts/correlations_figure.py"


rule synthetic_figures:
    """What the generators made: images, classes, the teacher's confidence."""
    input:
        synthetic=[f"{ROOT}/{path}/synthetic.npz" for path in STUDY.examples("datafree").values()],
        records=[f"{ROOT}/{path}/run.json" for path in STUDY.examples("datafree").values()],
        histories=[f"{ROOT}/{path}/history.csv" for path in STUDY.examples("datafree").values()],
    output:
        images=report(f"{FOLDER}/figures/synthetic-images.png", caption=f"{CAPTIONS}/images.rst", category="Figures"),
        histograms=report(
            f"{FOLDER}/figures/synthetic-histograms.png", caption=f"{CAPTIONS}/histograms.rst", category="Figures"
        ),
        course=report(f"{FOLDER}/figures/synthetic-course.png", caption=f"{CAPTIONS}/course.rst", category="Figures"),
        svg=[f"{FOLDER}/figures/synthetic-{name}.svg" for name in ("images", "histograms", "course")],
    log:
        f"{ROOT}/logs/report/{STUDY.name}-synthetic.txt",
    conda:
        "../../environment.yml"
    params:
        labels=list(STUDY.examples("datafree")),
        code=report_code(),
    script:
        "../scripts/synthetic_figures.py"
