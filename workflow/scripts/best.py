from pathlib import Path

from kd.script import job
from kd.tuning import best

with job(snakemake.log[0]) as say:
    winner = best([Path(path) for path in snakemake.input], Path(snakemake.output.best), Path(snakemake.output.trials))
    say(f"best trial {winner['number']}: validation accuracy {winner['accuracy']:.2f} %, {winner['params']}")
