from pathlib import Path

import numpy as np

from kd.report import correlations, save
from kd.script import job

with job(snakemake.log[0]):
    files = zip(snakemake.params.labels, snakemake.input, strict=True)
    matrices = {label: np.load(path)["difference"].astype(float) for label, path in files}
    save(correlations(matrices), Path(snakemake.output.png))
