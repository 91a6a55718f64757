from pathlib import Path

import pandas as pd

from kd.integrations.jobs import job, results_of
from kd.reports.plan import MADE_OF, made_of
from kd.reports.tables import collect
from kd.runs.folder import with_results
from kd.runtime.files import write_atomically, write_json

with job(snakemake.log[0]):
    results = collect(pd.DataFrame(snakemake.params.table), results_of(snakemake))
    output = Path(snakemake.output.results)
    write_atomically(output, lambda file: results.to_csv(file, index=False))
    records = [with_results(results_of(snakemake) / path) for path in dict.fromkeys(snakemake.params.table["path"])]
    write_json(output.with_name(MADE_OF), made_of(snakemake.params.text, records))
