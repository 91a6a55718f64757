"""A run's network as an MLflow model: its logits are the run's, also where two runs share a trace."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from conftest import tiny_run
from docs_project import blocks
from mlflow_store import Flaky, Said, Store, finished

from kd.integrations.jobs import description
from kd.integrations.networks import Networks
from kd.integrations.tracking import note
from kd.runs.export import read_run
from kd.runs.folder import sealed
from kd.runtime.files import read_json, write_json
from kd.settings.run import Run

NO_ROWS = pd.DataFrame(columns=["path", "dataset", "teacher", "student"])


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # mlflow.set_tracking_uri sets it, which ends with the test
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture
def folders(store: Path, tmp_path: Path) -> list[Path]:
    """The folders of a finished run and of one that has other weights and is equal to it otherwise."""
    run = tiny_run("kd").teacher
    folder, other = tmp_path / run.path, tmp_path / run.with_seed(1).path
    for place in (folder, other):
        shutil.copytree(store / run.path, place)
    (tmp_path / run.data_path).parent.mkdir(parents=True)
    shutil.copy(store / run.data_path, tmp_path / run.data_path)
    weights = torch.load(other / "weights.pt")
    torch.save(
        {name: value + 0.3 if value.dim() > 1 else value for name, value in weights.items()}, other / "weights.pt"
    )
    record = read_json(other / "run.json")
    del record["files"]
    write_json(other / "run.json", sealed(other, {**record, "settings": {**record["settings"], "seed": 1}}))
    return [folder, other]


def test_alike_networks_are_traced_once_and_have_their_own_logits(folders, tmp_path):
    import mlflow.pytorch

    networks, logits = Networks(), []
    for number, folder in enumerate(folders):
        networks.save(folder, tmp_path / f"model{number}")
        found = read_run(folder)
        stored = mlflow.pytorch.load_model(str(tmp_path / f"model{number}"))
        torch.testing.assert_close(stored(found.images), found.logits, rtol=1e-4, atol=1e-4)
        assert stored(found.images[:1]).shape == stored(found.images[:3])[:1].shape, "any number of images"
        logits.append(found.logits)
    assert len(networks._traced) == 1
    assert not torch.allclose(*logits, rtol=1e-2)


def test_a_model_is_sent_once_with_its_accuracy_and_loads_as_the_page_says(folders, tmp_path, capsys):
    import mlflow

    store, said = Store(tmp_path), Said()
    for folder in folders:
        run = Run.from_dict(read_json(folder / "run.json")["settings"])
        note(folder, {**description("networks", NO_ROWS, run, run.path), "sent": {}}, said)
    (folders[1] / "weights.pt").write_bytes(b"torn")
    assert (store.sync(tmp_path, said), store.sync(tmp_path, said)) == (2, 0)
    [line] = said
    assert line.startswith("networks in MLflow as weights.pt, not as models: 1; the first: ")
    assert str(folders[1]) in line
    by_seed = {run.data.tags["seed"]: run for run in store.runs("networks")}
    for seed, more in (("0", []), ("1", ["weights.pt"])):
        files = {file.path for file in store.client.list_artifacts(by_seed[seed].info.run_id)}
        assert files == {"metrics.json", "run.json", "history.csv", *more}
    assert by_seed["0"].info.run_name == "teacher resnet8, seed 0"
    [block] = blocks("mlflow.md", "python")
    here = {"results/mlflow.db": f"{tmp_path}/mlflow.db", "demo": "networks"}
    here["tags.setting LIKE 'data-free:%'"] = "tags.seed = '0'"
    for word, own in here.items():
        assert word in block
        block = block.replace(word, own)
    names: dict[str, Any] = {}
    before = mlflow.get_tracking_uri()
    try:
        exec(block, names)
    finally:
        mlflow.set_tracking_uri(before)
    found = read_run(folders[0])
    torch.testing.assert_close(names["student"](found.images), found.logits, rtol=1e-4, atol=1e-4)
    assert "teacher" in capsys.readouterr().out
    assert [len(store.curve(run, "accuracy")) for run in by_seed.values()] == [1, 1], "the run's own"
    [metric] = store.client.get_logged_model(names["model"]).metrics
    assert (metric.key, metric.value) == ("accuracy", read_json(folders[0] / "metrics.json")["accuracy"])


def test_a_network_is_there_once_whatever_answer_is_lost(folders, tmp_path):
    store, networks = Store(tmp_path), Networks()
    finished(store, tmp_path / "x", "lost")
    run = store.the_run("lost")
    for method in ("create_logged_model", "log_model_artifacts", "log_outputs", "log_batch", "finalize_logged_model"):
        with pytest.raises(ConnectionError):
            networks.log_weights(Flaky(store.client, method, 1, "before"), run.info.run_id, folders[0])
    number, reason = networks.log_weights(store.client, run.info.run_id, folders[0])
    assert reason == ""
    [model] = store.client.search_logged_models([run.info.experiment_id])
    assert (model.model_id, model.status.value, len(model.metrics)) == (number, "READY", 1)
    run = store.the_run("lost")
    assert [output.model_id for output in run.outputs.model_outputs] == [number]
    assert len(store.client.get_metric_history(run.info.run_id, "accuracy")) == 2, "a row's, and the run's own"
