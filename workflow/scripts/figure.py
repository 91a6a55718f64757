from pathlib import Path

import pandas as pd

from kd.integrations.jobs import job
from kd.reports.figures import figure, save
from kd.reports.tables import summarise

with job(snakemake.log[0]):
    results = pd.read_csv(snakemake.input.results)
    results = results[results["experiment"] == snakemake.wildcards.experiment]
    experiment = snakemake.params.experiment
    save(figure(experiment["view"], summarise(results), results, experiment["title"]), Path(snakemake.output.png))
