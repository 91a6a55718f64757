"""Each loss's entry agrees with its code, and is read without torch."""

import importlib
import inspect
import subprocess
import sys

import pytest

from kd.registry.losses import LOSSES, loss_defaults, loss_settings, require_settings, setting_faults


def arguments(name):
    module, attribute = LOSSES[name].code.split(":")
    parameters = inspect.signature(getattr(importlib.import_module(module), attribute)).parameters.values()
    return {item.name: item.default for item in parameters if item.kind is item.KEYWORD_ONLY}


@pytest.mark.parametrize("name", LOSSES)
def test_an_entry_describes_each_keyword_argument_of_its_loss(name):
    assert list(LOSSES[name].settings) == list(arguments(name)), "the same, and in the same order"
    assert loss_defaults(name) == arguments(name)
    assert {rule.key for rule in LOSSES[name].rules} <= set(LOSSES[name].settings)


@pytest.mark.parametrize("name", LOSSES)
def test_defaults_are_in_range_and_every_number_has_one(name):
    assert not list(setting_faults(name, {}))
    numbers = {key for key, annotation in loss_settings(name).items() if annotation in ("int", "float")}
    bounded = {key for key, setting in LOSSES[name].settings.items() if setting.bounds}
    assert numbers <= bounded | {rule.key for rule in LOSSES[name].rules}


def test_a_fault_names_the_loss_the_setting_and_what_is_allowed():
    for settings, message in (
        ({"momentum": 1.0}, "crd: momentum must be at least 0 and below 1; got 1.0"),
        ({"memory": "disk"}, "crd: memory must be one of bank, queue; got 'disk'"),
        ({"memory": "queue", "positive": "relax"}, "crd: positive must be exact when memory is queue; got 'relax'"),
    ):
        with pytest.raises(ValueError, match=f"^{message}$"):
            require_settings("crd", **settings)
    assert list(setting_faults("vid", {"eps": 9.0})) == [("init_pred_var", 5.0, "above eps")], (
        "a default may be at fault"
    )


def test_the_entries_need_no_torch():
    code = (
        "import sys; from kd.registry.losses import *; [*map(loss_defaults, LOSSES)]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
