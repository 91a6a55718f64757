from pathlib import Path

from kd.integrations.jobs import job
from kd.reports.publish import synthetic_figures

with job(snakemake.log[0]):
    folders = [Path(file).parent for file in snakemake.input.synthetic]
    synthetic_figures(dict(zip(snakemake.params.labels, folders, strict=True)), Path(snakemake.output.images).parent)
