import json
from pathlib import Path

from kd.integrations.jobs import job, results_of
from kd.reports.plan import PlannedFigure
from kd.reports.publish import draw
from kd.reports.tables import read_results

with job(snakemake.log[0]):
    figure = PlannedFigure(**json.loads(snakemake.params.figure))
    results = read_results(snakemake.input[0]) if figure.experiment else None
    draw(figure, results_of(snakemake), results, Path(snakemake.output.png))
