from pathlib import Path

import pandas as pd

from kd import paper
from kd.claims import claims_markdown, judge
from kd.report import markdown, study_markdown, summarise
from kd.script import job

with job(snakemake.log[0]):
    results = pd.read_csv(snakemake.input.results)
    parts = []
    for (name, experiment), path in zip(snakemake.params.experiments.items(), snakemake.output.csv, strict=True):
        summary = summarise(results[results["experiment"] == name])
        summary.to_csv(path, index=False)
        parts.append(markdown(summary, experiment["title"]))
        if experiment["view"] == "pairs":
            table = paper.by_pair(results[results["experiment"] == name])
            parts.append(paper.markdown(table, experiment["title"]))
            base = Path(path).with_name(f"{name}-by-pair")
            table.to_csv(base.with_suffix(".csv"), index=False)
            base.with_suffix(".tex").write_text(paper.latex(table))
    if snakemake.params.claims:
        judged = judge(snakemake.params.claims, results)
        judged.to_csv(snakemake.output.claims[0], index=False)
        parts.append(claims_markdown(judged))
    Path(snakemake.output.table).write_text(study_markdown(snakemake.params.title, parts, results))
