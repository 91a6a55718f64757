import json
from pathlib import Path

from kd.integrations.jobs import job, results_of
from kd.reports.page.document import Page, write_page
from kd.reports.plan import PlannedFigure
from kd.reports.tables import read_results

with job(snakemake.log[0]):
    figures = [PlannedFigure(**figure) for figure in json.loads(snakemake.params.figures)]
    results, folder = read_results(snakemake.input.results), Path(snakemake.output.page).parent
    write_page(Page(**json.loads(snakemake.params.page)), results, figures, results_of(snakemake), folder)
