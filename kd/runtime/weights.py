"""Files of weights: state dicts, with a word about what is wrong where one cannot be used."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kd.runtime.files import file_digest
from kd.runtime.messages import escaped

SAVE = "save only model.state_dict()"
PLAIN = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8}
PLAIN |= {torch.uint8, torch.bool}
WRAPPED = ("module.", "_orig_mod.")  # before every name: of torch.nn.DataParallel, of torch.compile
KEYS = ("state_dict", "model_state_dict", "model", "net", "network")  # under which checkpoints hold a state dict


def read_state(file: Path, digest: str | None = None) -> dict[str, Tensor]:
    """Return the state dict in a file, on the CPU, with plain names if it was made by DataParallel or torch.compile.

    The file is one of torch.save, with a state dict or a checkpoint that holds one under a key of KEYS, or one of
    safetensors. digest: what `file_digest` must say. Raises ValueError, with what the file is, where it holds no finite
    state dict.
    """
    if what := _other_than_weights(file):
        raise ValueError(what)
    if digest is not None and file_digest(file) != digest:
        raise ValueError("its checksum differs")
    state = _unwrapped(_safetensors(file) if file.suffix == ".safetensors" else _torch(file))
    if not isinstance(state, dict) or {type(name) for name in state} != {str} or not _all_tensors(state):
        held = (
            f"holds {', '.join(map(str, state)) or 'nothing'}"
            if isinstance(state, dict)
            else f"is a {type(state).__name__}"
        )
        raise ValueError(f"it {held}; {SAVE}")
    if odd := [name for name, value in state.items() if value.layout != torch.strided or value.dtype not in PLAIN]:
        value = state[odd[0]]
        raise ValueError(f"{escaped(odd[0])} is {value.dtype}, {value.layout}, on {value.device}; {SAVE} in float32")
    if any(value.is_meta for value in state.values()):
        raise ValueError(f"its tensors hold no numbers (meta); {SAVE}")
    if name := not_finite(state):
        raise ValueError(f"its numbers are not finite (first: {name})")
    for prefix in WRAPPED:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _torch(file: Path) -> Any:
    try:
        return torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, MemoryError):
        raise
    except Exception as error:  # torch names neither the file nor what is wrong with it
        whole = zipfile.is_zipfile(file)
        raise ValueError(f"it holds more than tensors; {SAVE}" if whole else "it is truncated or damaged") from error


def _safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise ValueError("safetensors is not installed; pip install safetensors") from None
    try:
        return load_file(file)
    except Exception as error:  # its own error says nothing of the file
        raise ValueError("it is truncated or damaged") from error


def _unwrapped(content: Any) -> Any:
    """Return the state dict that a checkpoint holds under one of the usual keys; anything else as it is."""
    if isinstance(content, dict) and not _all_tensors(content):
        for key in KEYS:
            if isinstance(content.get(key), dict):
                return content[key]
    return content


def fill(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a state dict into a network. Raises ValueError, with the first names and shapes, where it does not fit."""
    own = network.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name}: {list(state[name].shape)}, not {list(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = [
        f"{name}: {state[name].dtype}, not {value.dtype}"
        for name, value in own.items()
        if name in state and state[name].is_floating_point() != value.is_floating_point()
    ]
    faults = (("missing", missing), ("unknown", unknown), ("of another shape", shapes), ("of another kind", kinds))
    if found := [f"{len(names)} {fault} ({_few(names)})" for fault, names in faults if names]:
        raise ValueError(f"it does not fit the network, of {len(own)} tensors: {', '.join(found)}")
    network.load_state_dict(state)


def not_finite(state: dict[str, Tensor]) -> str:
    """Return the first name whose numbers are not all finite; empty where all are."""
    return next((name for name, value in state.items() if not value.isfinite().all()), "")


def _all_tensors(state: dict[str, Any]) -> bool:
    return all(isinstance(value, Tensor) for value in state.values())


def _few(names: Iterable[Any]) -> str:
    first, *others = [escaped(str(name)) for name in names]
    return f"first: {first}" if others else first


def _other_than_weights(file: Path) -> str:
    """Say what a file is by how it begins; empty where it may be weights."""
    with file.open("rb") as opened:
        start = opened.read(512)
    if not start:
        return "it is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs; `git lfs pull` brings the file itself"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; download the file itself"
    if start.isascii() and start.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable():
        return "it is text"
    return ""
