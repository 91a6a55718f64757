from pathlib import Path

import pandas as pd

from kd.report import markdown, study_markdown, summarise
from kd.script import job

with job(snakemake.log[0]):
    results = pd.read_csv(snakemake.input.results)
    parts = []
    for (name, experiment), path in zip(snakemake.params.experiments.items(), snakemake.output.csv, strict=True):
        summary = summarise(results[results["experiment"] == name])
        summary.to_csv(path, index=False)
        parts.append(markdown(summary, experiment["title"]))
    Path(snakemake.output.table).write_text(study_markdown(snakemake.params.title, parts, results))
