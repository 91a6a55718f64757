"""The table that a study ends with on the terminal, and what it names to look at next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_results import loaded
from test_tables import frame

from kd.reports import closing as module
from kd.reports.closing import closing, links, obvious_question
from kd.runtime.messages import ConfigError
from kd.studies.claims import interval
from kd.studies.study import Study

ACCURACY = {
    ("fast", "full", 0.5): [70.0, 71.0, 75.0],
    ("ssdkd", "full", 0.5): [72.0, 74.0, 74.5],
    ("ssdkd", "no-priority", 0.5): [60.0],
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path, claims=CLAIMS)


CLAIMS = {
    "ssdkd-is-better": {
        "says": "SSD-KD is above Fast.",
        "tests": [{"of": {"method": "ssdkd"}, "to": {"method": "fast"}, "above": 0}],
    }
}


def shown(monkeypatch: pytest.MonkeyPatch, study: Study, results: pd.DataFrame, width: int = 80) -> list[str]:
    monkeypatch.setattr(module, "finished", lambda _: results)
    return closing(study, width).splitlines()


def made(experiment: str = "extra", accuracy: dict = ACCURACY, **columns: Any) -> pd.DataFrame:
    return frame(accuracy).assign(experiment=experiment, computed="cpu", **columns)


def test_a_row_has_mean_std_n_difference_with_interval_and_seconds(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = shown(monkeypatch, study, made())
    found = interval(pd.Series([2.0, 3.0, -0.5]))
    difference = f"{found.mean:+.2f} ({found.low:+.2f} to {found.high:+.2f})"
    head, title, *rows = lines[:5]
    assert head.split() == ["accuracy", "%", "n", "difference,", "95", "%", "interval", "seconds"]
    assert title == "extra"
    assert [" ".join(row.split()) for row in rows] == [
        "fast 72.00 ± 2.65 3 6.0",
        f"ssdkd 73.50 ± 1.32 3 {difference} 6.0",
        "ssdkd, no-priority 60.00 1 -10.00 5.0",
    ]
    assert {len(line) for line in [head, *rows]} == {len(head)}, "seconds stand below each other"
    assert "claims: ssdkd-is-better: not decided" in lines


def test_no_line_is_wider_than_asked_and_no_row_is_lost_unsaid(
    study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = {(f"a-method-with-a-name-that-goes-on-and-on-{number}", "full", 1.0): [50.0, 100.0] for number in range(70)}
    lines = shown(monkeypatch, study, made(accuracy=long))
    table = lines[: lines.index("")]
    assert max(map(len, table)) <= 80
    assert sum("a-method" in line for line in table) == module.MOST_ROWS
    assert "  and 10 rows more, in table.md" in table
    assert max(map(len, shown(monkeypatch, study, made(), 60)[:5])) <= 60 + 13, "numbers are never cut"


def test_where_nothing_is_compared_there_is_no_such_column(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, study, made(accuracy={("ssdkd", "full", 0.5): [50.0], ("ssdkd", "full", 1.0): [60.0]}))
    assert lines[0].split() == ["accuracy", "%", "n", "seconds"]
    assert [line.split()[:3] for line in lines[2:4]] == [["ssdkd,", "50", "%"], ["ssdkd,", "100", "%"]]
    assert "mean ± std over n seeds" in lines


def test_agreement_is_not_called_accuracy(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "agreement %" in shown(monkeypatch, study, made(scored="synthetic"))[0]


def test_the_obvious_question_is_one_that_kd_compare_answers(study: Study) -> None:
    asked = shlex.split(obvious_question(study, made()))
    assert asked[:6] == ["python", "-m", "kd", "compare", "ssdkd", "fast"]
    assert asked[6:] == ["--study", study.settings["study"], "--config", f"results={study.root}"]
    ablations = made(accuracy={key: value for key, value in ACCURACY.items() if key[0] == "ssdkd"})
    assert "compare ssdkd ssdkd,no-priority " in obvious_question(study, ablations)
    two_scales = {("kd", "full", 0.5): [1.0], ("fast", "full", 1.0): [2.0]}
    assert obvious_question(study, made(accuracy=two_scales)) == "", "nothing is paired"


def test_links_name_what_is_there(study: Study) -> None:
    folder = study.root / "studies/watched"
    folder.mkdir(parents=True)
    assert [line.split()[0] for line in links(study, made())] == ["compare"]
    (folder / "table.md").touch()
    (folder / "report.html").touch()
    found = dict(line.split(maxsplit=1) for line in links(study, made()))
    assert found["table"] == str(folder / "table.md")
    assert list(found) == ["table", "report", "compare"]


def test_without_a_finished_run_it_says_so(study: Study) -> None:
    with pytest.raises(ConfigError, match="no run is finished"):
        closing(study)
