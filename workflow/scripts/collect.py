from pathlib import Path

import pandas as pd

from kd.files import write_atomically
from kd.report import collect
from kd.script import job, results_of

with job(snakemake.log[0]):
    results = collect(pd.DataFrame(snakemake.params.table), results_of(snakemake))
    write_atomically(Path(snakemake.output.results), lambda file: results.to_csv(file, index=False))
