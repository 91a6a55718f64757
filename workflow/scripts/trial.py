from pathlib import Path

from kd.integrations.jobs import compute_of, job, results_of, tracker_of
from kd.integrations.tuning import trial
from kd.runs.folder import inputs_of
from kd.runs.provenance import run_code
from kd.runs.run import run_step
from kd.studies.search import Tuning

with job(snakemake.log[0]) as say:
    tuning, folder = Tuning(**snakemake.params.tuning, trials=0), Path(snakemake.output[0]).parent

    def objective(suggestion):
        run, where, log = tuning.run(suggestion), folder / "run", Path(snakemake.log[0])
        inputs, tracker = inputs_of(run, results_of(snakemake)), tracker_of(snakemake, run, where, say)
        return run_step(run, where, *inputs, compute_of(snakemake), tracker, log)["accuracy"]

    def code(suggestion):
        return run_code(tuning.run(suggestion))

    journal, number = folder.parent / "optuna.log", int(snakemake.wildcards.number)
    trial(journal, tuning.name, tuning.space, number, folder, objective, say, code)
