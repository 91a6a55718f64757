from pathlib import Path

from kd.integrations.jobs import job, tuning_of_job
from kd.integrations.tuning import best

with job(snakemake.log[0]) as say:
    tuning, output = tuning_of_job(snakemake), Path(snakemake.output.best)
    winner = best(output.parent, tuning)
    say(f"best trial {winner['number']}: {tuning.measured} {winner['value']:.2f} %, {winner['params']}; see {output}")
