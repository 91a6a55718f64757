"""torchvision can be imported with any torch; where it needs no help, it is not touched."""

import importlib
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from kd.runtime import torchvision_compat


class Recorder:
    """Stand-in for torch.library.Library."""

    made: list

    def __init__(self, namespace, kind):
        self.namespace, self.kind, self.schemas = namespace, kind, []
        Recorder.made.append(self)

    def define(self, schema):
        self.schemas.append(schema)


@pytest.fixture
def untouched(monkeypatch):
    """Restore the state before the first import; the import itself returns a stand-in."""
    Recorder.made = []
    monkeypatch.setattr(torchvision_compat, "_operators", None)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(torch.library, "Library", Recorder)
    monkeypatch.setattr(
        torchvision_compat.importlib, "import_module", lambda name: SimpleNamespace(__name__=name, pickle=None)
    )
    return monkeypatch


def test_torchvision_works():
    torchvision = torchvision_compat.import_torchvision()
    assert torchvision.__name__ == "torchvision"
    assert torchvision_compat.import_torchvision() is torchvision
    images = torch.rand(2, 3, 40, 40)
    assert importlib.import_module("torchvision.transforms.v2").functional.horizontal_flip(images).equal(images.flip(3))


def test_a_fresh_process_can_import_it():
    code = (
        "from kd.runtime.torchvision_compat import import_torchvision as t; t(); "
        "import torchvision; print(t() is torchvision)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr


def test_nothing_is_declared_where_the_operators_load(untouched):
    untouched.setattr(torchvision_compat, "_operators_load", lambda folder: True)
    assert torchvision_compat.import_torchvision().__name__ == "torchvision"
    assert Recorder.made == []
    assert torchvision_compat._operators is None


def test_two_operators_are_declared_and_kept_where_they_do_not(untouched):
    untouched.setattr(torchvision_compat, "_operators_load", lambda folder: False)
    for _ in range(2):  # done once, however often it is asked for
        assert torchvision_compat.import_torchvision().__name__ == "torchvision"
    (library,) = Recorder.made
    assert torchvision_compat._operators is library
    assert (library.namespace, library.kind) == ("torchvision", "FRAGMENT")
    assert [schema.split("(")[0] for schema in library.schemas] == ["nms", "qnms"]


def test_missing_torchvision_is_named(untouched):
    untouched.setattr(torchvision_compat.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install torchvision"):
        torchvision_compat.import_torchvision()


def test_whether_operators_load(tmp_path, monkeypatch):
    assert not torchvision_compat._operators_load(tmp_path)
    (tmp_path / "_C.so").write_bytes(b"not a library")
    assert not torchvision_compat._operators_load(tmp_path)
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert torchvision_compat._operators_load(tmp_path)
    assert loaded == [tmp_path / "_C.so"]
