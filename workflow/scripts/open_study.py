from pathlib import Path

import pandas as pd

from kd.files import write_atomically
from kd.script import job, results_of

with job(snakemake.log[0]) as say:
    table, tracking = pd.DataFrame(snakemake.params.table), snakemake.config["tracking"]
    write_atomically(Path(snakemake.output.runs), lambda file: table.to_csv(file, index=False))
    if tracking["enabled"]:
        from kd.tracking import create_store, store_uri

        uri = store_uri(tracking, results_of(snakemake))
        try:
            create_store(uri, Path(snakemake.output.runs).parent.name, results_of(snakemake))
        except Exception as error:  # tracking is a view: the study goes on without it, and says so
            say(f"MLflow store {uri} is away ({type(error).__name__}); runs are kept for `python -m kd sync`")
