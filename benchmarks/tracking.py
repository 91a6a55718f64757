"""What sending to MLflow costs a run: its CPU seconds with and without, in processes of their own, in turn.

    python benchmarks/tracking.py [--rounds 3] [--epochs 330]

A run of the digits, long enough to be sent while it goes on (kd.integrations.tracking.OPEN_AFTER_SECONDS), to an SQLite
file. Each process does what a job of the workflow does, the import of MLflow included. Prints the median of the paired
ratios; the bar is 3 %.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BAR = 3.0  # %
STUDY = {
    "title": "Tracking",
    "settings": {
        "dataset": {"name": "digits", "image_size": 12, "pad": 1, "flip": False},
        "training": {"milestones": []},
        "compute": {"device": "cpu"},
    },
    "experiments": {"all": {"pairs": [["wrn_16_1", "wrn_10_1"]], "methods": ["scratch"], "seeds": [0]}},
}
MAKE_READY = """import pathlib, sys
from kd.integrations.store import Store
Store({"uri": None}, pathlib.Path(sys.argv[1])).make_ready("tracking")"""


def make(place: Path, epochs: int, tracked: bool, number: int) -> None:
    """Make the run once and print its seconds; to be called in a process of its own."""
    import pandas as pd
    import yaml

    from kd.data.prepare import prepare
    from kd.data.raw import Source
    from kd.integrations.jobs import tracker_of
    from kd.integrations.tracking import TRACKED
    from kd.runs.run import run_step
    from kd.studies.study import asked_study

    file, results = place / "tracking.yaml", place / f"results{number}"
    file.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    study = asked_study(str(file), {"results": str(results), "training": {"epochs": epochs}})
    [run] = study.runs.values()
    (results / "studies/tracking").mkdir(parents=True)
    study.table.to_csv(results / "studies/tracking/runs.csv", index=False)
    data = results / run.data_path
    data.parent.mkdir()
    prepare(run.dataset, data, Source(None, results, download=False))
    if tracked:  # as the workflow does before the first job, in another process
        subprocess.run([sys.executable, "-c", MAKE_READY, str(results)], cwd=ROOT, check=True)
    given = {"tracking": study.tracking, "results": str(results), "study_name": "tracking", **study.settings}
    folder = results / run.path
    cpu, wall = time.process_time(), time.perf_counter()
    tracker = tracker_of(SimpleNamespace(config=given), run, folder, print) if tracked else nullcontext()
    run_step(run, folder, data, [], study.compute, tracker, place / "log.txt")
    seconds = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    if tracked:
        [sent] = json.loads((folder / TRACKED).read_text("utf-8"))["sent"].values()
        if not sent["complete"] or sent["rows"] != len(pd.read_csv(folder / "history.csv")):
            raise SystemExit(f"not all was sent by the run itself ({sent}): nothing is measured; raise --epochs")
    print(json.dumps(seconds))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=330, help="of the run: about 120 s of one CPU core")
    parser.add_argument("--child", nargs=3, metavar=("PLACE", "TRACKED", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        make(Path(options.child[0]), options.epochs, options.child[1] == "on", int(options.child[2]))
        return 0
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(options.rounds):
            found = {}
            for tracked in ("on", "off")[:: -1 if number % 2 else 1]:
                child = ["--child", place, tracked, str(2 * number + (tracked == "on"))]
                command = [sys.executable, __file__, "--epochs", str(options.epochs), *child]
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
                if done.returncode:
                    raise SystemExit(done.stderr)
                found[tracked] = json.loads(done.stdout.splitlines()[-1])
            rounds.append(found)
            told = [f"{name} {each['cpu']:.1f} s CPU, {each['wall']:.1f} s" for name, each in sorted(found.items())]
            print("; ".join(told), flush=True)
    costs = {kind: [100 * (each["on"][kind] / each["off"][kind] - 1) for each in rounds] for kind in ("cpu", "wall")}
    for kind, values in costs.items():
        spread = f"{min(values):+.1f} to {max(values):+.1f}"
        print(f"{kind}: {statistics.median(values):+.1f} % ({spread}), n {len(values)}")
    met = statistics.median(costs["cpu"]) <= BAR
    print(f"bar: at most {BAR:.0f} % of CPU: {'met' if met else 'MISSED'}")
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
