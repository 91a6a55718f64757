"""docs/tuning.md: its pieces of a study make one, and its tables name what there is."""

from __future__ import annotations

import re

import pytest
import yaml
from conftest import ROOT
from own_studies import experiment, loader

from kd.studies.search import Tuning

PAGE = (ROOT / "docs/tuning.md").read_text("utf-8")


def test_the_pieces_of_the_page_are_a_study(tmp_path, monkeypatch):
    tune, winner = (yaml.safe_load(text) for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
    load = loader(tmp_path, monkeypatch)
    small = load({"quick": True}, name="tune-ssdkd", for_search=True, **STUDY)
    content = {key: value for key, value in STUDY.items() if key not in ("quick", "claims")}
    study = load(**content | tune | winner | {"experiments": {"a": experiment(methods=["mine"])}}, for_search=True)
    assert study.tunings["ssdkd"].options["trials"] == small.tunings["ssdkd"].options["trials"] == 24
    assert study.tunings["ssdkd"].pruner == {"name": "median"}


STUDY = yaml.safe_load((ROOT / "config/studies/tune-ssdkd.yaml").read_text("utf-8"))


@pytest.mark.parametrize("key", [*Tuning("s", {}, {}, 0).options, "validation", "space", "storage", "settings"])
def test_every_key_of_a_search_stands_on_the_page(key):
    assert f"| `{key}` |" in PAGE
