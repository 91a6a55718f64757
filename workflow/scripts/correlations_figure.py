from pathlib import Path

from kd.publish import correlations_figure
from kd.script import job

with job(snakemake.log[0]):
    files = dict(zip(snakemake.params.labels, map(Path, snakemake.input.distilled), strict=True))
    alone = {label: Path(file) for label, file in snakemake.params.alone.items()}
    correlations_figure(files, Path(snakemake.output.png), alone)
