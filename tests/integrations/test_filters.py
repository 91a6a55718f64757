"""`kd compare` with filters of MLflow's: what they find, how it is paired, and what is refused."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from conftest import PAIR
from fake_results import fake_finished, loaded
from mlflow_store import AWAY

from kd.__main__ import main
from kd.integrations.store import Store, quiet
from kd.studies.study import Study

SCALES = {"free": {"scales": [0.3, 0.6], "seeds": [0, 1, 2]}, "extra": {"scales": [0.3]}}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three seeds of SSD-KD at two scales, with files made by hand, and runs in MLflow that name their folders."""
    study = loaded(tmp_path_factory.mktemp("study"), experiments=SCALES)
    store = Store({"uri": None}, study.root)
    with quiet():
        client = store.client()
        number = store.experiment(client, study.name)
        for path, run in study.runs.items():
            folder = fake_finished(study, run, device="cpu")
            gain = run.seed**2 if run.scale == 0.6 else 0
            (folder / "metrics.json").write_text(json.dumps({"accuracy": 60 + run.seed + gain, "scored": "test"}))
            tags = {"path": path, "scale": str(run.scale), "kind": run.kind}
            client.create_run(number, run_name=path, tags=tags)
        client.create_run(number, tags={"kind": "study"})
    return study


def ask(study: Study, *arguments: str) -> int:
    file = study.root.parent / "watched.yaml"
    return main(["compare", *arguments, "--study", str(file), "--config", f"results={study.root}"])


def numbers(text: str) -> list[dict[str, str]]:
    """The rows of a comparison without its labels."""
    return [
        {key: value for key, value in row.items() if key not in ("of", "to")}
        for row in csv.DictReader(io.StringIO(text))
    ]


def test_sides_may_be_filters(study: Study, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    small, large = (f"mlflow:tags.kind = 'datafree' and tags.scale = '{scale}'" for scale in (0.3, 0.6))
    assert ask(study, large, f"{small} and tags.path LIKE '%'", "--format", "csv") == 1, "Fast's run lies there, too"
    assert "several runs for one on the other side; say which: " in capsys.readouterr().err
    assert ask(study, "ssdkd,scale=0.6", "ssdkd,scale=0.3", "--format", "csv") == 0
    [named] = numbers(capsys.readouterr().out)
    paths = [row.path for row in study.table.itertuples() if row.method == "ssdkd" and row.scale == 0.3]
    variant = paths[0].split("/")[-2]
    assert ask(study, large, f"mlflow:tags.path LIKE '%/{variant}/%'", "--format", "csv") == 0
    assert numbers(capsys.readouterr().out) == [named]
    assert (named["teacher"], named["student"], named["n"]) == (*PAIR, "3")
    assert float(named["of_mean"]) == pytest.approx((60 + 62 + 66) / 3)

    for wanted, message in (
        ("tags.scale = 0.6", "MLflow refuses this filter: "),
        ("tags.scale = '7'", "no run in MLflow fits"),
    ):
        assert ask(study, f"mlflow:{wanted}", "kd") == 1
        assert message in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", AWAY)
    assert ask(study, large, "kd") == 1
    assert AWAY in capsys.readouterr().err


def test_a_study_that_mlflow_does_not_have_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, study: Study
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{study.root}/mlflow.db")
    other = loaded(tmp_path)
    (tmp_path / "watched.yaml").rename(tmp_path / "other.yaml")
    said = ["compare", "mlflow:", "kd", "--study", str(tmp_path / "other.yaml"), "--config", f"results={other.root}"]
    assert main(said) == 1
    assert "has no experiment other; `python -m kd sync " in capsys.readouterr().err
