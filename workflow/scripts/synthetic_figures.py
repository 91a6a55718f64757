from pathlib import Path

from kd.publish import synthetic_figures
from kd.script import job

with job(snakemake.log[0]):
    folders = [Path(file).parent for file in snakemake.input.synthetic]
    synthetic_figures(dict(zip(snakemake.params.labels, folders, strict=True)), Path(snakemake.output.images).parent)
