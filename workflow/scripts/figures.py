import json
from pathlib import Path

from kd.integrations.jobs import job, results_of
from kd.reports.plan import PlannedFigure
from kd.reports.publish import draw
from kd.reports.tables import read_results

with job(snakemake.log[0]):
    results = read_results(snakemake.input.results)
    for planned, png in zip(json.loads(snakemake.params.figures), snakemake.output.png, strict=True):
        draw(PlannedFigure(**planned), results_of(snakemake), results, Path(png))
