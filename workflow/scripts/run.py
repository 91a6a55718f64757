from pathlib import Path

from kd.integrations.jobs import compute_of, job, results_of, tracker_of
from kd.runs.folder import inputs_of
from kd.runs.run import run_step
from kd.settings.run import Run

with job(snakemake.log[0]) as say:
    run = Run.from_dict(snakemake.params.settings)
    folder, log = Path(snakemake.output[0]).parent, Path(snakemake.log[0])
    inputs, tracker = inputs_of(run, results_of(snakemake)), tracker_of(snakemake, run, folder, say)
    run_step(run, folder, *inputs, compute_of(snakemake), tracker, log)
