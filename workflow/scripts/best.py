from pathlib import Path

from kd.integrations.jobs import job, tuning_of_job
from kd.integrations.tuning import best
from kd.reports.figures.search import draw

with job(snakemake.log[0]) as say:
    tuning, output = tuning_of_job(snakemake), Path(snakemake.output.best)
    winner, trials, importances = best(output.parent, tuning)
    draw(output.parent / "figures", trials, tuning, importances)
    say(f"best trial {winner['number']}: {tuning.measured} {winner['value']:.2f} %; see {output}")
