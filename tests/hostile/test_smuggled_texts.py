"""What others write into the files of runs is shown as text: no terminal, spreadsheet or browser obeys it."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_results import fake_finished, find, loaded

from kd.__main__ import main
from kd.reports.page.document import page_of, write_page
from kd.reports.publish import publish
from kd.reports.tables import read_results
from kd.runs.folder import ended, with_results
from kd.runtime.files import read_json, write_json
from kd.runtime.lines import RED, Lines
from kd.runtime.messages import printable
from kd.runtime.progress import Progress, inform
from kd.studies.status import status
from kd.studies.study import Study

OBEYED = "\033[2J\033]0;title\007\rdone: accuracy 99.99 %"  # clears a terminal, names its window, writes over a line
FORMULA = '=HYPERLINK("http://example.org")'
MARKUP = "<img src=x onerror=alert(1)>[a](javascript:alert(1))</script>"


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_a_terminal_obeys_is_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream, log = Tty(), tmp_path / "log.txt"
    lines = Lines(stream)
    for write in (lines.say, lines.wrapped, lines.change, lambda text: lines.entry("name", text)):
        write(f"a{OBEYED}")
    lines.say(f"b{OBEYED}", RED)
    inform(f"c{OBEYED}", stream)
    Progress("run", None, stream).say(OBEYED)
    progress = Progress("run", log, None)
    progress.say(f"{OBEYED}\nsecond line")
    progress.close()
    said = stream.getvalue()
    assert "\033[2J" not in said + log.read_text()
    assert "\007" not in said + log.read_text()
    assert said.count("\\x1b[2J") == 7
    assert "\033[31mb\\x1b[2J" in said  # kd's own colour is there
    assert "\nsecond line\n" in log.read_text()
    assert printable("a\tb\nc\rd") == "a\tb\nc\\rd"


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return loaded(tmp_path)


ODD: list[Any] = [5, OBEYED, None, [], {}, ["a"], True, -1, 10**400]


@pytest.mark.parametrize("name", ["ended.json", "lock.1.json"])
def test_status_shows_the_notes_of_others_whatever_they_hold(
    tmp_path: Path, study: Study, capsys: pytest.CaptureFixture, name: str
) -> None:
    folder = study.root / find(study, "kd").path
    folder.mkdir(parents=True)
    good = {"error": OBEYED, "host": OBEYED, "pid": 1, "process": 1, "slurm_job": OBEYED, "beat": 1}
    good |= {"done": 1, "total": 2, "seconds": 3.0}
    for key in good:
        for odd in ODD:
            (folder / name).write_text(json.dumps(good | {key: odd}))
            status(study)
            note = ended(folder)
            assert note is None or isinstance(note["error"], str | None)
    write_json(folder / name, good)
    given = ["--config", f"results={study.root}"]
    assert main(["status", str(tmp_path / "watched.yaml"), *given]) == 0
    said = capsys.readouterr().out
    assert "\\x1b[2J" in said
    assert printable(said) == said


RECORD = {"device": "cpu", "computed": {"together": 1}, "git": {"commit": "abc", "diff": ""}, "peak_memory_mb": 1.0}
RECORD |= {"counts": {"student_steps": 5}}


@pytest.mark.parametrize("key", ["seconds", "counts", "git", "git.commit", "device", "computed", "computed.together"])
@pytest.mark.parametrize("odd", ["text", 5, ["a"], {"together": []}], ids=str)
def test_a_record_of_another_shape_is_none(study: Study, key: str, odd: Any) -> None:
    run = find(study, "kd")
    folder = fake_finished(study, run, **RECORD)
    record = with_results(folder)
    place, *below = key.split(".")
    changed = {**record[place], below[0]: odd} if below else odd
    if (key, odd) in (("device", "text"), ("git.commit", "text"), ("computed.together", 5)):
        assert record is not None
        return
    write_json(folder / "run.json", record | {place: changed})
    assert with_results(folder) is None


def numbers(**changes: Any) -> dict[str, Any]:
    return {"accuracy": 50.0, "parameters": 9, "scored": "test", **changes}


@pytest.mark.parametrize("changes", [{"accuracy": "99"}, {"accuracy": []}, {"scored": 5}, {"scored": []}], ids=str)
def test_numbers_of_another_kind_are_none(study: Study, changes: dict) -> None:
    folder = fake_finished(study, find(study, "kd"), **RECORD)
    write_json(folder / "metrics.json", numbers(**changes))
    assert with_results(folder) is None


class Elements(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.found: list[tuple[str, dict]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.found.append((tag, dict(attrs)))


def test_tables_and_the_report_show_texts_of_runs_as_texts(study: Study) -> None:
    for run in study.runs.values():
        folder = fake_finished(study, run, **RECORD | {"device": f"{FORMULA}{MARKUP}{OBEYED}|"})
        record = read_json(folder / "run.json")
        write_json(
            folder / "run.json", record | {"git": {"commit": "=1+1", "diff": ""}, "environment": {MARKUP: MARKUP}}
        )
        metrics = read_json(folder / "metrics.json")
        write_json(folder / "metrics.json", metrics | numbers(scored="test", method=1.0, path=2.0) | {FORMULA: 1.0})
    folder = study.root / "studies/watched"
    publish(study, folder, figures=False)
    results = read_results(folder / "results.csv")
    write_page(page_of(study), results, [], study.root, folder)
    assert not any(name.startswith("=") for name in results)
    assert len(set(results.columns)) == len(results.columns)
    assert set(results["method"]) == {"scratch", "kd", "ssdkd", "fast"}
    texts = [text for name in results for text in results[name] if isinstance(text, str)]
    assert any(FORMULA in text for text in texts)
    assert not [text for text in texts if text.startswith(("=", "+", "-", "@")) or not text.isprintable()]
    table = (folder / "table.md").read_text("utf-8")
    assert "\\<img src=x onerror=alert(1)>\\[a](" in table
    assert "\033" not in table
    for file in [folder / "report.html", *(folder / "tables").glob("*.html"), folder / "answers.html"]:
        found = Elements(file.read_text("utf-8")).found
        assert not [tag for tag, _ in found if tag in ("img", "iframe", "object", "base")], file
        assert [tag for tag, _ in found].count("script") == 1
        assert not [name for _, given in found for name in given if name.startswith("on")]
        assert not [value for _, given in found for value in given.values() if str(value).startswith("javascript")]
