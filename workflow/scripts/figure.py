from pathlib import Path

import pandas as pd

from kd.integrations.jobs import job, results_of
from kd.reports.plan import PlannedFigure
from kd.reports.publish import draw

with job(snakemake.log[0]):
    figure = PlannedFigure(**snakemake.params.figure)
    results = pd.read_csv(snakemake.input[0]) if figure.experiment else None
    draw(figure, results_of(snakemake), results, Path(snakemake.output.png))
