# From runs to tables, figures and the page that shows them. kd.reports.plan says which there are.


rule collect:
    """One tidy table of all runs."""
    input:
        collect_inputs,
    output:
        results=report(
            f"{FOLDER}/results.csv",
            caption="../report/results.rst",
            category="Tables",
            labels={"table": "All runs, to download"},
        ),
    log:
        f"{ROOT}/logs/report/{STUDY.name}-collect.txt",
    conda:
        "../../environment.yml"
    params:
        table=STUDY.table.to_dict("list"),
        text=lambda wildcards: text_of(STUDY),
    script:
        "../scripts/collect.py"


rule tables:
    """Mean ± std per method, scale and ablation; verdicts on the study's claims."""
    input:
        results=f"{FOLDER}/results.csv",
    output:
        table=f"{FOLDER}/table.md",
        claims=[f"{FOLDER}/claims.csv"] if STUDY.claims else [],
        answers=report(
            f"{FOLDER}/{ANSWERS}",
            caption="../report/answers.rst",
            category="Answers",
            labels={"what": "The answer"},
        ),
        shown=[
            report(
                f"{FOLDER}/tables/{table.shown}",
                caption="../report/table.rst",
                category="Tables",
                labels={"table": in_report(table.heading)},
            )
            for table in TABLES
        ],
        tables=[f"{FOLDER}/tables/{file}" for table in TABLES for file in table.files if file != table.shown],
    log:
        f"{ROOT}/logs/report/{STUDY.name}-tables.txt",
    conda:
        "../../environment.yml"
    params:
        code=lambda wildcards: report_code(),  # asked where it is needed: each job of a cluster reads these rules
        # text of the user: functions keep Snakemake from formatting its braces
        study=lambda wildcards: in_params([STUDY.title, STUDY.experiments, STUDY.claims]),
    script:
        "../scripts/tables.py"


rule figures:
    """All planned figures: of experiments' results, and of the files of some runs."""
    input:
        figure_inputs,
        results=f"{FOLDER}/results.csv",
    output:
        png=[
            report(
                f"{FOLDER}/figures/{figure.name}.png",
                category="Figures",
                labels={"figure": in_report(figure.title), "what it shows": in_report(figure.caption)},
            )
            for figure in FIGURES
        ],
        svg=[f"{FOLDER}/figures/{figure.name}.svg" for figure in FIGURES],
    log:
        f"{ROOT}/logs/report/{STUDY.name}-figures.txt",
    conda:
        "../../environment.yml"
    params:
        figures=lambda wildcards: in_params([asdict(figure) for figure in FIGURES]),
        code=lambda wildcards: report_code(),
    script:
        "../scripts/figures.py"


rule page:
    """The study's answer, tables and figures in one page for a browser."""
    input:
        results=f"{FOLDER}/results.csv",
        tables=f"{FOLDER}/table.md",
        figures=[f"{FOLDER}/figures/{figure.name}.svg" for figure in FIGURES],
    output:
        page=f"{FOLDER}/{REPORT}",
    log:
        f"{ROOT}/logs/report/{STUDY.name}-page.txt",
    conda:
        "../../environment.yml"
    params:
        page=lambda wildcards: in_params(asdict(page_of(STUDY))),
        figures=lambda wildcards: in_params([asdict(figure) for figure in FIGURES]),
        code=lambda wildcards: report_code(),
    script:
        "../scripts/page.py"
