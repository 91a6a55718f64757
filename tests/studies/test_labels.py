"""What runs are called: by what tells them apart within their study."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import PAIR
from fake_results import find, loaded

from kd.studies.labels import fitted, run_labels, widest


def test_a_run_is_called_by_what_differs_in_its_study(tmp_path: Path) -> None:
    study = loaded(tmp_path)
    labels = run_labels(study)
    assert labels[find(study, "teacher").path] == f"teacher {PAIR[0]}"
    assert labels[find(study, "scratch").path] == "scratch, 100 %"
    assert labels[find(study, "ssdkd", 1).path] == "ssdkd, 50 %"
    pairs = {"data": {"pairs": [PAIR, ["wrn_16_1", "resnet8"]]}}
    study = loaded(tmp_path, experiments=pairs)
    assert run_labels(study)[find(study, "kd").path] == "kd, resnet8 → wrn_10_1, 100 %"


def test_a_run_of_several_rows_has_their_names(tmp_path: Path) -> None:
    nothing = {"modulation": {"diversity": 0.0, "gamma": 0.0}, "replay": {"alpha": 0.0, "beta": 0.0}}
    free = {"ablations": ["full", "neither"], "methods": ["fast", "ssdkd"], "seeds": [1]}
    study = loaded(tmp_path, ablations={"neither": nothing}, experiments={"free": free})
    assert run_labels(study)[find(study, "fast", 1).path] == "fast, 50 % (= fast, neither; ssdkd, neither)"


@pytest.mark.parametrize(
    ("label", "most", "shown"),
    [
        ("fast 10 % (= ssdkd neither)", 27, "fast 10 % (= ssdkd neither)"),
        ("fast 10 % (= ssdkd neither)", 26, "fast 10 %"),
        ("ssdkd only-difficulty 10 %", 15, "ssdkd o…ty 10 %"),
        ("anything", 1, "…"),
        ("anything", 0, ""),
    ],
)
def test_what_does_not_fit_is_shortened(label: str, most: int, shown: str) -> None:
    assert fitted(label, most) == shown
    assert widest([label, ""], most) == len(shown)
