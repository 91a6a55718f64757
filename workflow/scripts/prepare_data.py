from pathlib import Path

from kd.integrations.jobs import job, source_of
from kd.runs.prepared_data import prepare_step
from kd.settings.shapes import Dataset

with job(snakemake.log[0]) as say:
    dataset = Dataset.from_prepared(snakemake.params.dataset)
    prepare_step(dataset, Path(snakemake.output[0]), source_of(snakemake), say)
