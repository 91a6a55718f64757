from pathlib import Path

from kd.data.prepare import prepare
from kd.integrations.jobs import job, source_of
from kd.settings.shapes import Dataset

with job(snakemake.log[0]):
    dataset = Dataset.from_prepared(snakemake.params.dataset)
    prepare(dataset, Path(snakemake.output[0]), source_of(snakemake))
