"""Pickles of arrays that libraries read from files which anybody may have written: no code in them is run."""

from __future__ import annotations

import io
import pickle
from types import ModuleType, SimpleNamespace
from typing import Any, BinaryIO

ARRAYS = {("numpy", "dtype"), ("numpy", "ndarray")} | {
    (f"numpy.{core}.multiarray", name) for core in ("core", "_core") for name in ("_reconstruct", "scalar")
}


def read_plain_pickles(module: ModuleType, *classes: tuple[str, str]) -> None:
    """Let a library's module that calls `pickle` read numbers, texts and arrays only, and some classes by module, name.

    Its reading raises pickle.UnpicklingError for anything else. Raises AttributeError where the module has no `pickle`.
    """
    allowed = ARRAYS | {*classes}

    class Plain(pickle.Unpickler):
        def find_class(self, where: str, name: str) -> Any:
            if (where, name) not in allowed:
                raise pickle.UnpicklingError(f"it holds {where}.{name}, which is no number, text or array")
            return super().find_class(where, name)

    def load(file: BinaryIO, **how: Any) -> Any:
        return Plain(file, **how).load()

    module.pickle  # noqa: B018  (a library that reads in another way from now on must not go unnoticed)
    module.pickle = SimpleNamespace(load=load, loads=lambda data: load(io.BytesIO(data)), dumps=pickle.dumps)
