from pathlib import Path

from kd.integrations.jobs import job
from kd.integrations.tuning import best

with job(snakemake.log[0]) as say:
    winner = best([Path(path) for path in snakemake.input], Path(snakemake.output.best), Path(snakemake.output.trials))
    say(f"best trial {winner['number']}: validation accuracy {winner['accuracy']:.2f} %, {winner['params']}")
