from pathlib import Path

import pandas as pd

from kd.figures import figure, save
from kd.report import summarise
from kd.script import job

with job(snakemake.log[0]):
    results = pd.read_csv(snakemake.input.results)
    results = results[results["experiment"] == snakemake.wildcards.experiment]
    experiment = snakemake.params.experiment
    save(figure(experiment["view"], summarise(results), results, experiment["title"]), Path(snakemake.output.png))
