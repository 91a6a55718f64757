from pathlib import Path

import pandas as pd

from kd.report import figure, save, summarise
from kd.script import job

with job(snakemake.log[0]):
    results = pd.read_csv(snakemake.input.results)
    results = results[results["experiment"] == snakemake.wildcards.experiment]
    experiment = snakemake.params.experiment
    save(figure(experiment["view"], summarise(results), results, experiment["title"]), Path(snakemake.output.png))
