# From runs to tables and figures. kd.reports.plan says which there are.


rule collect:
    """One tidy table of all runs."""
    input:
        collect_inputs,
    output:
        results=report(f"{FOLDER}/results.csv", caption="../report/results.rst", category="Tables"),
    log:
        f"{ROOT}/logs/report/{STUDY.name}-collect.txt",
    conda:
        "../../environment.yml"
    params:
        table=STUDY.table.to_dict("list"),
        text=text_of(STUDY),
    script:
        "../scripts/collect.py"


rule tables:
    """Mean ± std per method, scale and ablation; verdicts on the study's claims."""
    input:
        results=f"{FOLDER}/results.csv",
    output:
        table=report(f"{FOLDER}/table.md", caption="../report/table.rst", category="Tables"),
        claims=[f"{FOLDER}/claims.csv"] if STUDY.claims else [],
        tables=[f"{FOLDER}/tables/{file}" for table in plan_tables(STUDY.experiments) for file in table.files],
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
    """A planned figure, of an experiment's results or of the files of some runs."""
    input:
        figure_inputs,
    output:
        png=report(f"{FOLDER}/figures/{{figure}}.png", caption="../report/figure.rst", category="Figures"),
        svg=f"{FOLDER}/figures/{{figure}}.svg",
    log:
        f"{ROOT}/logs/report/{STUDY.name}-{{figure}}.txt",
    wildcard_constraints:
        figure="|".join(FIGURES),
    conda:
        "../../environment.yml"
    params:
        figure=lambda wildcards: asdict(FIGURES[wildcards.figure]),
        caption=lambda wildcards: FIGURES[wildcards.figure].restructured,
        code=report_code(),
    script:
        "../scripts/figure.py"
