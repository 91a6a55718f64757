from pathlib import Path

import pandas as pd

from kd.integrations.jobs import job
from kd.reports.publish import write_tables

with job(snakemake.log[0]):
    params, folder = snakemake.params, Path(snakemake.output.table).parent
    write_tables(pd.read_csv(snakemake.input.results), params.title, params.experiments, params.claims, folder)
