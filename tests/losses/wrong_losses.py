"""A pytest plugin that makes every loss slightly wrong, and notes which of the tests marked `formula` notice.

Writes {loss: {test: outcome}} to the file $OUTCOMES.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections import defaultdict
from pathlib import Path

import pytest

from kd.registry.losses import LOSSES

WRONG = 1.001
outcomes: dict[str, dict[str, str]] = defaultdict(dict)


def wrong(function):
    @functools.wraps(function)
    def wrapped(*arguments, **settings):
        return WRONG * function(*arguments, **settings)

    return wrapped


def pytest_configure() -> None:
    """Before tests import the losses. A loss built on another one is wrong once: modules hold the right functions."""
    modules = {name: importlib.import_module(entry.code.split(":")[0]) for name, entry in LOSSES.items()}
    for name, entry in LOSSES.items():
        attribute = entry.code.split(":")[1]
        loss = getattr(modules[name], attribute)
        if not isinstance(loss, type):
            setattr(modules[name], attribute, wrong(loss))
        for method in {"forward", "first_stage"} & vars(loss).keys() if isinstance(loss, type) else ():
            setattr(loss, method, wrong(vars(loss)[method]))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.when == "call":
        for mark in item.iter_markers("formula"):
            outcomes[mark.args[0]][item.nodeid] = report.outcome
    return report


def pytest_sessionfinish() -> None:
    Path(os.environ["OUTCOMES"]).write_text(json.dumps(outcomes))
