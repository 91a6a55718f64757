from pathlib import Path

from kd.integrations.jobs import job
from kd.reports.publish import correlations_figure

with job(snakemake.log[0]):
    files = dict(zip(snakemake.params.labels, map(Path, snakemake.input.distilled), strict=True))
    alone = {label: Path(file) for label, file in snakemake.params.alone.items()}
    correlations_figure(files, Path(snakemake.output.png), alone)
