from pathlib import Path

import pandas as pd

from kd.integrations.jobs import job, results_of
from kd.reports.tables import collect
from kd.runtime.files import write_atomically

with job(snakemake.log[0]):
    results = collect(pd.DataFrame(snakemake.params.table), results_of(snakemake))
    write_atomically(Path(snakemake.output.results), lambda file: results.to_csv(file, index=False))
