from pathlib import Path

from kd.config import Dataset
from kd.data.prepare import prepare
from kd.script import job, source_of

with job(snakemake.log[0]):
    dataset = Dataset.from_prepared(snakemake.params.dataset)
    prepare(dataset, Path(snakemake.output[0]), source_of(snakemake))
