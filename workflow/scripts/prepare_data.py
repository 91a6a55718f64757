from pathlib import Path

from kd.config import Dataset
from kd.data.prepare import prepare
from kd.script import job

with job(snakemake.log[0]):
    prepare(Dataset(**snakemake.params.dataset, validation=0.0, pad=0, flip=False), Path(snakemake.output[0]))
