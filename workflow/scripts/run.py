from pathlib import Path

from kd.integrations.jobs import compute_of, job, tracker_of
from kd.runs.run import run_step
from kd.settings.run import Run

with job(snakemake.log[0]) as say:
    run = Run.from_dict(snakemake.params.settings)
    folder = Path(snakemake.output[0]).parent
    run_step(
        run,
        folder,
        data_file=Path(snakemake.input.data),
        teacher_weights=[Path(weights) for weights in snakemake.input.get("teachers", [])],
        compute=compute_of(snakemake),
        tracker=tracker_of(snakemake, run, folder, say),
        log=Path(snakemake.log[0]),
    )
