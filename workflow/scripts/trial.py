from pathlib import Path

from kd.integrations.jobs import compute_of, job, tracker_of
from kd.integrations.tuning import trial
from kd.runs.run import run_step
from kd.studies.search import Tuning

with job(snakemake.log[0]) as say:
    tuning, folder = Tuning(**snakemake.params.tuning, trials=0), Path(snakemake.output[0]).parent
    data, teachers = Path(snakemake.input.data), [Path(weights) for weights in snakemake.input.get("teachers", [])]

    def objective(suggestion):
        run, where = tuning.run(suggestion), folder / "run"
        tracker = tracker_of(snakemake, run, where, say)
        log = Path(snakemake.log[0])
        return run_step(run, where, data, teachers, compute_of(snakemake), tracker, log)["accuracy"]

    journal, number = folder.parent / "optuna.log", int(snakemake.wildcards.number)
    trial(journal, tuning.name, tuning.space, number, folder, objective, say)
