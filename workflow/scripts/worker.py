from pathlib import Path

from kd.integrations.jobs import compute_of, job, results_of, tracker_of, tuning_of_job
from kd.integrations.searching import search
from kd.runtime.files import write_json

with job(snakemake.log[0]) as say:
    output, log = Path(snakemake.output[0]), Path(snakemake.log[0])

    def tracker(run, folder):
        return tracker_of(snakemake, run, folder, say)

    given = (snakemake.config["study_name"], results_of(snakemake), compute_of(snakemake))
    numbers = search(tuning_of_job(snakemake), *given, tracker, log, say)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_json(output, {"trials": numbers})
