"""A run's network as a model in an MLflow store, which torch and MLflow load without kd. Imports torch when used."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kd.integrations.store import quiet
from kd.runs.folder import WEIGHTS
from kd.runtime.messages import ConfigError

TOLERANCE = 1e-4  # of the largest logit
PROGRAM = "data/model.pt2"  # in MLflow's folder of a network


class Networks:
    """Stores weights of finished runs. Tracing a network takes a second: those that differ in weights only share it."""

    def __init__(self) -> None:
        self._place = tempfile.TemporaryDirectory()
        self._traced: dict[str, Path] = {}  # what a network is, without its weights -> MLflow's folder of the first one

    def log_weights(self, client: Any, run_id: str, folder: Path) -> tuple[str, str]:
        """Store a run's weights in its MLflow run, as a model or, where that cannot be, as the file weights.pt.

        Returns the model's id, or the file's name and why it is no model. Raises what MLflow's client raises.
        """
        with tempfile.TemporaryDirectory() as place:
            try:
                card = self.save(folder, Path(place) / "model")
            except Exception as error:  # of torch.export, for a network that it cannot take
                text = " ".join(str(error).split())
                reason = text if isinstance(error, ConfigError) else f"{folder}: {type(error).__name__}: {text[:200]}"
            else:
                return _log_model(client, run_id, Path(place) / "model", card), ""
        if (folder / WEIGHTS).exists():
            client.log_artifact(run_id, str(folder / WEIGHTS))
        return WEIGHTS, reason

    def save(self, folder: Path, place: Path) -> dict[str, Any]:
        """Write MLflow's folder of a finished run's network to `place` and return the network's description.

        It holds a torch program: images [B, C, S, S] with values in [0, 1] -> logits [B, K]. What was written is read
        back; raises ValueError where its logits are not the run's, ConfigError where the run's files make no network.
        """
        from kd.runs.export import read_run

        found = read_run(folder)
        shapes = {name: tuple(value.shape) for name, value in found.ready.state_dict().items()}
        key = repr((found.card["model"], found.card["view"], found.card["input"], shapes))
        with quiet(), _without_warnings():
            if key in self._traced:
                _copy_with_weights(self._traced[key], place, found.ready.state_dict())
            else:
                _trace(found, place)
            difference = _difference(found, place)
            if not difference <= TOLERANCE and key in self._traced:  # they differ in more than weights after all
                shutil.rmtree(place)
                _trace(found, place)
                difference = _difference(found, place)
        if not difference <= TOLERANCE:
            raise ValueError(f"the model's logits differ from the run's by {difference:.1g} of the largest")
        if key not in self._traced:
            self._traced[key] = shutil.copytree(place, Path(self._place.name) / str(len(self._traced)))
        return found.card


def _trace(found: Any, place: Path) -> None:
    import mlflow.pytorch
    import torch

    mlflow.pytorch.save_model(
        found.ready,
        place,
        input_example=found.images[:2].numpy(),
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        serialization_format="pt2",
    )


def _copy_with_weights(traced: Path, place: Path, weights: dict[str, Any]) -> None:
    import torch

    shutil.copytree(traced, place)
    program = torch.export.load(traced / PROGRAM)
    if set(program.state_dict) == set(weights):  # else the logits will tell
        with torch.no_grad():
            for name, value in weights.items():
                program.state_dict[name].copy_(value)
        torch.export.save(program, place / PROGRAM)


def _difference(found: Any, place: Path) -> float:
    """Return how far a written network's logits are from the run's, in parts of the largest logit."""
    import mlflow.pytorch
    import torch

    with torch.no_grad():
        logits = mlflow.pytorch.load_model(str(place))(found.images)
    return ((logits - found.logits).abs().max() / found.logits.abs().max()).item()


def _log_model(client: Any, run_id: str, place: Path, card: dict[str, Any]) -> str:
    """Store MLflow's folder of a network as a logged model that the run has made, with its accuracy; return its id."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.models import Model

    run = client.get_run(run_id)
    about = {key: str(card[key]) for key in ("model", "input", "output", "run", "commit")}
    name = "student" if run.data.tags.get("teacher") else "network"
    # One that an earlier try has left is gone on with: nobody can use it before it is ready.
    left = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run_id}'")
    number = (
        left[0].model_id
        if left
        else client.create_logged_model(run.info.experiment_id, name, run_id, params=about).model_id
    )
    described = Model.load(str(place))
    described.model_id, described.run_id, described.model_uuid = number, run_id, uuid.uuid4().hex
    described.save(str(place / "MLmodel"))
    client.log_model_artifacts(number, str(place))
    made = run.outputs.model_outputs if run.outputs else []
    if number not in {each.model_id for each in made}:
        client.log_outputs(run_id, [LoggedModelOutput(number, 0)])
    for last in client.get_metric_history(run_id, "accuracy")[-1:]:  # the run's own point, which it has once
        accuracy = Metric("accuracy", last.value, last.timestamp, last.step, number, run_id=run_id)
        client.log_batch(run_id, metrics=[accuracy])
    client.finalize_logged_model(number, "READY")
    return number


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
