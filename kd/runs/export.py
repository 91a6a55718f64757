"""A finished run's network in one file, ready to use: for torch alone, for ONNX runtimes, or to go on training in kd.

Every exported network takes images [B, C, S, S] with values in [0, 1] and normalises them itself. Before a file is
written it is read back, and its logits are compared with those of the run's network.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.batch import LossContext
from kd.data import views
from kd.data.augment import Augment
from kd.data.crops import MARGIN
from kd.data.dataset import Data
from kd.losses.objective import Objective
from kd.models.build import build
from kd.models.classifier import LogitsOnly, Reusing, evaluating
from kd.runs.folder import RECORD, WEIGHTS, finished, metrics, refuse_code_of_results
from kd.runs.prepared_data import reading
from kd.runtime.files import write_atomically
from kd.runtime.messages import ConfigError
from kd.runtime.weights import fill, read_state
from kd.settings.run import Run
from kd.training.networks import network

CARD = "card.json"  # the name of the description in a file for torch, and of its property in one for ONNX
COMPARED = 8  # images whose logits are compared
LARGEST_DIFFERENCE = 1e-4  # of the largest logit
ONNX = ("onnx", "onnxscript", "onnxruntime")


class Ready(nn.Module):
    """A network behind its normalisation: images [B, C, S, S] in [0, 1] -> logits [B, K]. `mean`, `std`: [C]."""

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.logits = LogitsOnly(network)
        self.register_buffer("mean", mean.view(-1, 1, 1).clone())
        self.register_buffer("std", std.view(-1, 1, 1).clone())

    def forward(self, images: Tensor) -> Tensor:
        return self.logits((images - self.mean) / self.std)

    @property
    def network(self) -> nn.Module:
        """Return the network without its normalisation."""
        return self.logits.model


@dataclass(frozen=True)
class Network:
    """A finished run's network in eval mode, its description, images in [0, 1] to compare with, [N, C, S, S], and the
    logits [N, K] that the network has given for them where a run scores it, outside of `ready`.
    """

    ready: Ready
    card: dict[str, Any]
    images: Tensor
    logits: Tensor


def read_run(folder: Path) -> Network:
    """Return the network of a finished run's folder. Raises ConfigError where that, or its data file, is not there."""
    record = finished(folder, thorough=True)
    if record is None:
        hint = f"name a folder with {RECORD} and {WEIGHTS} in it"
        raise ConfigError(f"{folder}: no finished run, or one whose files are damaged; {hint}")
    run, place = Run.from_dict(record["settings"]), folder.resolve()
    root = Path(*place.parts[: -len(Path(run.path).parts)] or ["/"])
    data_file = root / run.data_path
    if not data_file.exists():
        raise ConfigError(
            f"{folder}: mean, std and classes are in {data_file}, which is not there; bring it, or make it again: "
            f"python -m kd run --settings {folder / RECORD} --results {root}"
        )
    refuse_code_of_results(run, root, folder / RECORD)
    with reading(run.dataset, data_file, torch.device("cpu")) as data:
        return _network(folder, record, run, data)


def _network(folder: Path, record: dict[str, Any], run: Run, data: Data) -> Network:
    built = network(run, data, torch.device("cpu"))
    try:
        state = read_state(folder / WEIGHTS)
        if set(state) != set(built.state_dict()) and run.teachers:  # SimKD's student has a part of its teacher
            built = _adopted(run, built, network(run.teachers[0], data, torch.device("cpu")), data.train.labels)
        fill(built, state)
    except ValueError as error:
        raise ConfigError(f"{folder / WEIGHTS}: {error}") from None
    numbers = metrics(folder)
    card = {
        "model": run.model,
        "classes": list(data.classes),
        "channels": data.channels,
        "image_size": data.image_size,
        "view": run.view,
        "mean": data.augment.mean.tolist(),
        "std": data.augment.std.tolist(),
        "input": _input(data.channels, data.image_size, run.dataset.stream),
        "output": _output(len(data.classes), data.image_size if built.dense else 0),
        "parameters": sum(parameter.numel() for parameter in built.parameters()),
        "metrics": numbers,
        "run": run.path,
        "commit": record["git"]["commit"],
    }
    images = torch.cat([*data.score.images[:COMPARED].split(COMPARED)])
    if not len(images):  # as for data that is described only
        shape, generator = (COMPARED, data.channels, data.image_size, data.image_size), torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    with evaluating(built):
        logits = built(data.augment.normalise(images)).logits
    ready = Ready(built, data.augment.mean, data.augment.std).to(memory_format=torch.contiguous_format)
    return Network(ready.eval().requires_grad_(False), card, images.float() / 255, logits)


def _adopted(run: Run, student: nn.Module, teacher: nn.Module, labels: Tensor) -> nn.Module:
    """Return the network that a run's losses make of its student in the end, with weights still to be filled in."""
    context = LossContext(
        student_dim=student.feature_dim,
        teacher_dim=teacher.feature_dim,
        labels=labels,
        num_classes=student.num_classes,
        generator=torch.Generator(),
        student_maps=student.map_shapes(),
        teacher_maps=teacher.map_shapes(),
        teacher=teacher,
    )
    return Objective(run.objective, context).adopt(student, teacher)


def _output(classes: int, size: int) -> str:
    each = f", {size}, {size}" if size else ""
    return f"logits [B, {classes}{each}], float32; softmax over the classes gives probabilities, in their order"


def _input(channels: int, size: int, stream: bool) -> str:
    colours = "RGB" if channels == 3 else "grey" if channels == 1 else f"{channels} channels"
    part = f"its largest centred square, resized to {size}x{size}"
    if stream:
        part = f"the middle {size}x{size}, once its shorter side is resized to {round(size * MARGIN)}"
    return (
        f"images [B, {channels}, {size}, {size}], float32, {colours}, values in [0, 1] (bytes divided by 255), which "
        f"the network normalises itself; of a picture {part} (bilinear)"
    )


def export(found: Network, folder: Path, formats: list[str]) -> dict[Path, float]:
    """Write a network into a folder in each of the formats; return the files, and by how much their logits differ.

    That is the largest difference to the logits of the run's network, as a share of the largest of these. Raises
    ConfigError for a format whose packages are not installed, which cannot hold the network, or gives other logits.
    """
    for name in formats:
        FORMATS[name].require()
    written = {}
    for name in formats:
        form, file = FORMATS[name], folder / FORMATS[name].file
        try:
            content = form.make(found)
            again = form.read(content)
            with torch.no_grad():
                logits = torch.cat([again(found.images[:1]), again(found.images[1:])])  # two sizes of batch
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ConfigError(f"--to {name}: {found.card['model']} cannot be exported: {reason}") from error
        difference = ((logits - found.logits).abs().max() / found.logits.abs().max()).item()
        if not difference < LARGEST_DIFFERENCE:
            raise ConfigError(
                f"--to {name}: the logits differ from those of the run's network by {difference:.1g} of the largest; "
                f"{file} is not written"
            )
        write_atomically(file, lambda opened, content=content: opened.write(content))
        written[file] = difference
    return written


def read_bundle(file: Path | io.BytesIO) -> tuple[Ready, dict[str, Any]]:
    """Return the network of a bundle, in eval mode, and its card. Raises ValueError where the weights do not fit."""
    content = torch.load(file, weights_only=True)
    card = json.loads(content["card"])
    mean, std = torch.tensor(card["mean"]), torch.tensor(card["std"])
    channels = views.channels(card["view"], card["channels"])
    built = build(card["model"], num_classes=len(card["classes"]), in_channels=channels, image_size=card["image_size"])
    fill(built, content["state_dict"])
    if channels != card["channels"]:
        views.look_through(card["view"], built, Augment(mean, std, 0, False))
    return Ready(built, mean, std).eval(), card


def _bundle(found: Network) -> bytes:
    if isinstance(found.ready.network, Reusing):
        raise ValueError(
            "a student of simkd ends in its teacher's head, which a bundle does not hold; take torch or onnx"
        )
    state = found.ready.network.state_dict()
    return _saved(lambda file: torch.save({"state_dict": state, "card": json.dumps(found.card)}, file))


def _program(found: Network) -> bytes:
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    with _quiet():
        program = torch.export.export(found.ready, (found.images[:2],), dynamic_shapes=batch)
        return _saved(lambda file: torch.export.save(program, file, extra_files={CARD: json.dumps(found.card)}))


def _read_program(content: bytes) -> Callable[[Tensor], Tensor]:
    return torch.export.load(io.BytesIO(content)).module()


def _onnx(found: Network) -> bytes:
    batch = {"images": {0: torch.export.Dim("batch", min=1)}}
    with _quiet():
        made = torch.onnx.export(
            found.ready,
            (found.images[:2],),
            dynamo=True,
            dynamic_shapes=batch,
            input_names=["images"],
            output_names=["logits"],
            verbose=False,
        ).model_proto
    made.metadata_props.add(key=CARD, value=json.dumps(found.card))
    return made.SerializeToString()


def _read_onnx(content: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@dataclass(frozen=True)
class Format:
    """A file's name, how it is made and read back, and the packages that this needs."""

    file: str
    make: Callable[[Network], bytes]
    read: Callable[[bytes], Callable[[Tensor], Tensor]]
    packages: tuple[str, ...] = ()

    def require(self) -> None:
        """Raise ConfigError where a package is not installed."""
        if missing := [name for name in self.packages if importlib.util.find_spec(name) is None]:
            raise ConfigError(f"--to onnx: {', '.join(missing)} not installed; run: pip install {' '.join(missing)}")


FORMATS = {
    "torch": Format("network.pt2", _program, _read_program),
    "onnx": Format("network.onnx", _onnx, _read_onnx, ONNX),
    "bundle": Format("network.pt", _bundle, lambda content: read_bundle(io.BytesIO(content))[0]),
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch's exporters say of their own inner life from the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _saved(save: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    save(buffer)
    return buffer.getvalue()
