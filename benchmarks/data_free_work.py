"""What data-free methods cost, and how much of each fits into the same time: python benchmarks/data_free_work.py STUDY

STUDY is the folder of a finished study in which methods have the same student steps, for example
results/studies/dfkd-baselines-cifar100-quick. All numbers are means of its runs. Printed are

- seconds per step of the inversion and of the student;
- seconds with the steps per batch of the study without `-quick`: extrapolated from seconds per step, nothing is run;
- the epochs that take as long as the method --like (default: fast) takes, and these as settings of an experiment.

Seconds are those of inversion and distillation; what is left of a run's is scoring. They compare only between runs that
were made in the same way, one after the other or as many at a time.
"""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("kd") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pandas as pd

from kd.reports.tables import read_results
from kd.runtime.files import read_json
from kd.runtime.messages import ConfigError
from kd.settings.run import Run
from kd.studies.study import load_study

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("study", type=Path, help="folder of a finished study")
    parser.add_argument("--experiment", default="equal-steps", help="whose runs are taken")
    parser.add_argument("--like", default="fast", help="the method whose seconds the others get")
    given = parser.parse_args()
    results = read_results(given.study / "results.csv")
    rows = results[(results["experiment"] == given.experiment) & results["seconds_distillation"].notna()]
    if given.like not in set(rows["method"]):
        sys.exit(f"{given.study}: experiment {given.experiment} has no finished data-free run of {given.like}")
    root, published = given.study.resolve().parents[1], published_steps(given.study.name.removesuffix("-quick"))
    methods = [Method(group, root) for _, group in rows.groupby("method", sort=False)]
    goal = next(method.seconds for method in methods if method.name == given.like)
    print(f"Devices: {', '.join(sorted(set(rows['computed'])))}. Every method as long as {given.like}: {goal:.1f} s.\n")
    work = ["ms per inversion step", "ms per student step", "seconds", "steps per batch", "as published"]
    head = ["method", "n", *work, "seconds then, extrapolated", "epochs in the same time"]
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for method in methods:
        steps = published.get(method.name, method.steps)
        slower = method.seconds + method.inversion * (steps / method.steps - 1) if method.steps else None
        cells = [
            *(method.name, method.n, ms(method.inversion, method.inversion_steps)),
            *(ms(method.distillation, method.student_steps), f"{method.seconds:.1f}", method.steps or "", steps or ""),
            *("" if steps == method.steps else f"{slower:,.0f}", f"{method.epochs} -> {method.epochs_in(goal)}"),
        ]
        print(f"| {' | '.join(map(str, cells))} |")
    print("\nsettings:\n  methods:")
    for method in methods:
        print(f"    {method.name}: {{distillation: {{training: {{epochs: {method.epochs_in(goal)}}}}}}}")


class Method:
    """Means over the runs of one method."""

    def __init__(self, rows: pd.DataFrame, root: Path):
        run = Run.from_dict(read_json(root / rows["path"].iloc[0] / "run.json")["settings"])
        made, mean = run.inversion.settings, rows.mean(numeric_only=True).fillna(0.0)
        self.name, self.n, self.epochs = rows["method"].iloc[0], len(rows), run.distillation.training.epochs
        self.steps, self.warmup = made.get("steps"), made.get("warmup", 0)
        self.inversion, self.inversion_steps = mean["seconds_inversion"], mean["generator_steps"]
        self.distillation, self.student_steps = mean["seconds_distillation"], mean["student_steps"]
        self.seconds = self.inversion + self.distillation

    def epochs_in(self, seconds: float) -> int:
        """Return the epochs of the student, at least one, whose seconds with warm-up come closest to these."""
        per_batch = self.inversion / (self.warmup + self.epochs)
        return max(1, round((seconds - self.warmup * per_batch) / (per_batch + self.distillation / self.epochs)))


def published_steps(name: str) -> dict[str, int]:
    """Return the steps per batch of the methods of a study of the project, as the first experiment has them."""
    try:
        study = load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", {"study": name})
    except ConfigError:
        return {}
    rows = study.table[study.table["kind"] == "datafree"].drop_duplicates("method")
    steps = {row.method: study.runs[row.path].inversion.settings.get("steps") for row in rows.itertuples()}
    return {method: number for method, number in steps.items() if number}


def ms(seconds: float, steps: float) -> str:
    return f"{1000 * seconds / steps:.1f}" if steps else ""


if __name__ == "__main__":
    main()
