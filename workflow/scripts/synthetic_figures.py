from pathlib import Path

import numpy as np

from kd.files import read_json
from kd.report import histograms, image_grid, save
from kd.script import job

with job(snakemake.log[0]):
    arrays = [dict(np.load(path)) for path in snakemake.input.synthetic]
    sets = dict(zip(snakemake.params.labels, arrays, strict=True))
    save(image_grid(sets), Path(snakemake.output.images))
    classes = read_json(Path(snakemake.input.records[0]))["classes"]
    save(histograms(sets, classes), Path(snakemake.output.histograms))
