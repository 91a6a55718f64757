from pathlib import Path

import numpy as np
import pandas as pd

from kd.files import read_json
from kd.report import course, histograms, image_grid, save
from kd.script import job

with job(snakemake.log[0]):
    labels = snakemake.params.labels
    sets = {name: dict(np.load(path)) for name, path in zip(labels, snakemake.input.synthetic, strict=True)}
    histories = {name: pd.read_csv(path) for name, path in zip(labels, snakemake.input.histories, strict=True)}
    save(image_grid(sets), Path(snakemake.output.images))
    classes = read_json(Path(snakemake.input.records[0]))["classes"]
    save(histograms(sets, classes), Path(snakemake.output.histograms))
    save(course(sets, histories), Path(snakemake.output.course))
