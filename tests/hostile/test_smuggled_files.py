"""Links, pipes, names and locks that others leave in a shared folder lead nowhere else (docs/security.md)."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import pytest
from conftest import COMPUTE, tiny_run
from mlflow_store import described, write_files
from PIL import Image
from smuggled import link_of_somebody
from watched_study import finish_all, study_of

from kd.data.decoding import decode
from kd.integrations.jobs import job
from kd.integrations.optuna_journal import open_journal
from kd.integrations.store import Store
from kd.integrations.study_view import log_study, note_study, read_titles
from kd.integrations.tracking import read_state, sync
from kd.integrations.tuning import begin
from kd.reports.figures.drawing import panels, save
from kd.reports.publish import publish
from kd.runs.folder import OF_ALL, with_results
from kd.runs.run import run_step
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.progress import Progress
from kd.runtime.run_lock import _machine, peek
from kd.runtime.weight_names import names_in
from kd.studies.search import Tuning, folder_of

OF_SOMEBODY = "is a link that another user has made; look where it leads, and remove it"


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder of this user's, with files that nobody else should change or see."""
    folder = tmp_path / "mine"
    (folder / "thesis").mkdir(parents=True)
    (folder / "notes.txt").write_text("precious\n")
    (folder / "thesis/chapter.tex").write_text("precious\n")
    return folder


def assert_unchanged(mine: Path) -> None:
    files = {path.relative_to(mine).as_posix(): path.read_text() for path in mine.rglob("*") if path.is_file()}
    assert files == {"notes.txt": "precious\n", "thesis/chapter.tex": "precious\n"}


def test_a_file_is_not_written_through_a_link_at_its_temporary_name(tmp_path: Path, mine: Path) -> None:
    (tmp_path / f".run.json.{os.getpid()}.tmp").symlink_to(mine / "notes.txt")
    (tmp_path / "run.json").symlink_to(mine / "notes.txt")
    write_json(tmp_path / "run.json", {"a": 1})
    assert read_json(tmp_path / "run.json") == {"a": 1}
    assert not (tmp_path / "run.json").is_symlink()
    assert_unchanged(mine)


def test_logs_are_not_written_through_a_link(tmp_path: Path, mine: Path, capsys: pytest.CaptureFixture) -> None:
    log = tmp_path / "log.txt"
    log.symlink_to(mine / "notes.txt")
    progress = Progress("a run", log, terminal=None)
    progress.say("once")
    progress.close()
    with job(str(log)) as say:
        say("twice")
    with pytest.raises(SystemExit), job(str(log)):
        raise ConfigError("a mistake")
    assert "error: a mistake" in capsys.readouterr().err
    assert_unchanged(mine)


@pytest.mark.parametrize("place", ["", "..", "../../.."])
def test_no_run_is_made_in_a_folder_that_is_a_link_of_somebody(
    store: Path, tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    run = tiny_run("scratch")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/data").symlink_to(store / "data")
    folder = tmp_path / "results" / run.path
    link = link_of_somebody(Path(os.path.normpath(folder / place)), mine, monkeypatch)
    with pytest.raises(ConfigError) as refused:
        run_step(run, folder, tmp_path / "results" / run.data_path, [], COMPUTE)
    assert str(refused.value) == f"{link}: {OF_SOMEBODY}"
    assert_unchanged(mine)


def test_a_link_of_ones_own_is_followed(store: Path, tmp_path: Path) -> None:
    """Such as one to a larger disk."""
    teacher = tiny_run("kd").teacher
    (tmp_path / "results/runs").mkdir(parents=True)
    for part in (Path(teacher.path).parts[1], "../data"):
        (tmp_path / "results/runs" / part).symlink_to(store / "runs" / part)
    folder = tmp_path / "results" / teacher.path
    assert run_step(teacher, folder, tmp_path / "results" / teacher.data_path, [], COMPUTE) == read_json(
        folder / "metrics.json"
    )


def test_a_search_removes_and_moves_nothing_outside_of_its_folder(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tuning, said = Tuning("t", {}, {}, 0), []
    folder = folder_of(tmp_path / "results", "s", "t")
    (folder.with_name("t.aside") / tuning.digest).mkdir(parents=True)
    link = link_of_somebody(folder, mine / "thesis", monkeypatch)
    with pytest.raises(ConfigError) as refused:
        begin(folder, tuning, said.append)
    assert str(refused.value) == f"{link}: {OF_SOMEBODY}"
    assert_unchanged(mine)
    # nor by the name under which another search is put aside
    other = folder_of(tmp_path / "results", "other", "t")
    (other / "trial0").mkdir(parents=True)
    for digest in (str(mine / "autostart"), "../../../../mine/autostart"):
        write_json(other / "search.json", {"digest": digest})
        begin(other, tuning, said.append)
        (other / "trial0").mkdir()
    assert_unchanged(mine)
    assert {path.name.split("-")[0] for path in other.with_name("t.aside").iterdir()} == {"unknown"}


def test_tables_and_figures_are_not_written_through_links(tmp_path: Path, mine: Path) -> None:
    study = study_of(tmp_path)
    finish_all(study)
    folder = study.root / "studies/watched"
    written = ["table.md", "results.csv", "tables/modules.csv", "tables/modules.html", "figure.png", "figure.svg"]
    for file in (folder / name for name in written):
        file.unlink(missing_ok=True)
        file.symlink_to(mine / "notes.txt")
    publish(study, folder, figures=False)
    figure, _ = panels(1, 1.0, 1.0)
    save(figure, folder / "figure.png")
    assert not [name for name in written if (folder / name).is_symlink()]
    assert_unchanged(mine)


def test_a_journal_that_is_a_link_of_somebody_is_not_copied(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is damaged in a journal is kept next to it, where everybody could read it."""
    link = link_of_somebody(tmp_path / "shared/optuna.log", mine / "notes.txt", monkeypatch)
    with pytest.raises(ConfigError) as refused:
        open_journal(link, print)
    assert str(refused.value) == f"{link}: {OF_SOMEBODY}"
    assert [path.name for path in link.parent.iterdir()] == ["optuna.log"]
    assert_unchanged(mine)


# ------------------------------------------------------------------------------------------------------------- MLflow


@pytest.mark.parametrize("name", OF_ALL)
def test_what_a_link_of_somebody_in_a_run_leads_to_is_not_sent(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder, said = tmp_path / "results/runs/a", []
    write_files(folder)
    write_json(folder / "mlflow.json", {**described("a run", "good"), "sent": {}})
    (folder / name).rename(tmp_path / "as-it-was")
    link = link_of_somebody(folder / name, tmp_path / "as-it-was", monkeypatch)
    assert sync([folder], Store({"uri": None}, tmp_path / "results"), said.append) == 0
    assert said == [f"{folder}: not sent to MLflow, its files are not whole (ConfigError: {link}: {OF_SOMEBODY})"]


@pytest.mark.parametrize("name", ["table.md", "tables/a.csv", "figures/a.png", "figures"])
def test_what_a_link_of_somebody_in_a_study_leads_to_is_not_sent(
    tmp_path: Path, mine: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    note_study(tmp_path, "s", "t", {})
    link = link_of_somebody(tmp_path / name, mine, monkeypatch)
    with pytest.raises(ConfigError) as refused:
        log_study(Store({"uri": None}, tmp_path), tmp_path, tmp_path)
    assert str(refused.value) == f"{link}: {OF_SOMEBODY}"


@pytest.mark.parametrize("name", ["good-1_a", "../../mine/a", "/mine/b", "..", "", "a\nb", ["a"], None])
def test_the_name_of_an_experiment_is_no_path(tmp_path: Path, name: Any) -> None:
    """MLflow would make a folder of this name for the files that are sent."""
    write_json(tmp_path / "mlflow.json", {**described("a run", name), "sent": {}})
    note_study(tmp_path, name, "t", {})
    assert bool(read_state(tmp_path)) == bool(read_titles(tmp_path)) == (name == "good-1_a")


# ------------------------------------------------------------------------------------------- what would take for ever


def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    for name in ("run.json", "metrics.json", "lock.1.json"):
        os.mkfifo(tmp_path / name)
    assert with_results(tmp_path) is None
    assert peek(tmp_path)[0]["host"] == "an unknown machine"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "NaN", '{"a": Infinity}', "9" * 5000, "\0", ""])
def test_json_that_nobody_can_use_is_as_none(tmp_path: Path, text: str) -> None:
    for name in ("run.json", "metrics.json"):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError):  # noqa: PT011 (of json, or of kd)
            read_json(tmp_path / name)
    assert with_results(tmp_path) is None


def test_a_process_in_a_lock_is_a_number(tmp_path: Path) -> None:
    """It is looked up as a file of /proc."""
    (tmp_path / "proc").mkdir()
    os.mkfifo(tmp_path / "proc/stat")
    lock = {"host": "h", "pid": f"..{tmp_path}/proc", "process": 1, "machine": _machine()}
    write_json(tmp_path / "lock.1.json", lock)
    assert peek(tmp_path)[0]["pid"] == "?"


def test_a_file_of_weights_that_unfolds_without_end_is_not_read_by_a_plan(tmp_path: Path) -> None:
    for size, found in ((1000, True), (2**27 + 1, False)):
        with zipfile.ZipFile(tmp_path / "weights.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            archive.writestr("archive/data.pkl", bytes(size))
        assert (names_in(tmp_path / "weights.pt") is not None) == found


def test_an_image_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "bomb.png"
    Image.new("1", (1, 1)).save(file)
    content = bytearray(file.read_bytes())
    content[16:24] = (30_000).to_bytes(4, "big") * 2  # width and height
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot be decoded .*exceeds limit.*; mend or remove it"):
        decode([file], 8)
