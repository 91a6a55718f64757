import json
from pathlib import Path

from kd.integrations.jobs import job
from kd.reports.publish import write_tables
from kd.reports.tables import read_results

with job(snakemake.log[0]):
    folder = Path(snakemake.output.table).parent
    write_tables(read_results(snakemake.input.results), *json.loads(snakemake.params.study), folder)
