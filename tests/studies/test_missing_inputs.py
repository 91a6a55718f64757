"""Data that is missing and results folders that cannot be used get one line, before a run if possible."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run
from fake_results import fake_finished
from forked_dry_runs import DryRuns
from one_run import loaded, said_by, written

from kd.__main__ import main
from kd.data.raw import Source
from kd.integrations.jobs import job, open_study
from kd.runs import worker
from kd.runtime.files import write_json
from kd.runtime.messages import ConfigError, disk_fault
from kd.settings.shapes import Compute
from kd.studies.inputs import require_data


def dataset(**values: Any) -> dict[str, Any]:
    return {"settings": {"dataset": {"image_size": 8, "flip": True, **values}}}


def tree(root: Path, *parts: str) -> Path:
    for part in parts:
        (root / part).mkdir(parents=True)
    return root


def test_a_missing_folder_of_images_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = tmp_path / "images"
    file = written(tmp_path, **dataset(name="folder", root=str(root)))
    chosen = ("plan", file, "--config", f"results={tmp_path / 'results'}")
    line = said_by(capsys, *chosen)
    assert f"dataset.root: got {str(root)!r}, which is not there; needed: a folder with train/ and test/" in line
    tree(root, "train")
    assert "which lacks train/ and test/" in said_by(capsys, *chosen)
    tree(root, "test")
    assert main([str(item) for item in chosen]) == 0
    shutil.rmtree(root)
    assert main([str(item) for item in chosen] + ["--write", str(tmp_path / "runs.yaml")]) == 0, "for another machine"
    assert main(["status", *map(str, chosen[1:])]) == 0


def test_images_that_stay_in_their_files_are_missed_until_all_is_done(tmp_path: Path) -> None:
    root, normalised = tree(tmp_path / "images", "train", "test"), {"mean": [0.5] * 3, "std": [0.5] * 3}
    file = written(tmp_path, **dataset(name="folder", root=str(root), stream=True, **normalised))
    study = loaded(tmp_path, file)
    [data] = study.datasets
    (study.root / data).parent.mkdir(parents=True)
    (study.root / data).write_bytes(b"the list of its files")
    require_data(study)
    shutil.rmtree(root)
    with pytest.raises(ConfigError, match=r"which is not there; needed: .* \(docs/imagenet\.md: [^\n]*\Z"):
        require_data(study)
    for run in study.runs.values():
        fake_finished(study, run)
    require_data(study)


def test_the_home_folder_of_nobody_is_missing_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = written(tmp_path, **dataset(name="folder", root="~nobody-here/images"))
    line = said_by(capsys, "plan", file, "--config", f"results={tmp_path / 'results'}")
    assert "dataset.root: got '~nobody-here/images'; no home folder '~nobody-here' here" in line


def test_the_dry_run_of_snakemake_refuses_missing_data_and_a_second_config(project: Path) -> None:
    root = project / "images"
    file = written(project, **dataset(name="folder", root=str(root)))
    with DryRuns(project) as snakemake:
        missing, twice = snakemake(
            ["-n", "-q", "--config", f"study={file.name}"],
            ["-n", "-q", "--config", f"study={file.name}", "--config", "quick=true"],
        )
        tree(root, "train", "test")
        [there] = snakemake(["-n", "-q", "--config", f"study={file.name}"])
    for code, said in (missing, twice):
        assert code != 0
        assert "Traceback" not in said
    assert [line for line in missing[1].splitlines() if line.startswith("error: ")] == [missing[1].splitlines()[-1]]
    assert "which is not there" in missing[1]
    assert "'study=mine.yaml' would be forgotten" in twice[1]
    assert there[0] == 0, there[1]


@pytest.mark.parametrize(
    ("name", "files", "lacking"),
    [
        ("cifar10", ["cifar-10-batches-py"], "train/ and test/ or cifar-10-batches-py/"),
        ("cifar10", ["train", "test"], "train/ and test/ or cifar-10-batches-py/"),
        ("cifar100", ["cifar-100-python"], "train/ and test/ or cifar-100-python/"),
    ],
)
def test_without_a_download_the_files_must_be_there(tmp_path: Path, name: str, files: list[str], lacking: str) -> None:
    root = tree(tmp_path / "data", ".")
    file = written(tmp_path, **dataset(name=name, root=str(root)))
    require_data(loaded(tmp_path, file))  # they may be downloaded
    offline = {"compute": {"download": False}}
    with pytest.raises(ConfigError) as caught:
        require_data(loaded(tmp_path, file, **offline))
    assert f"which lacks {lacking};" in str(caught.value)
    assert "compute.download: true" in str(caught.value)
    tree(root, *files)
    require_data(loaded(tmp_path, file, **offline))


def test_data_that_is_prepared_or_not_needed_any_more_may_be_gone(tmp_path: Path) -> None:
    file = written(tmp_path, **dataset(name="folder", root=str(tmp_path / "gone")))
    study = loaded(tmp_path, file)
    with pytest.raises(ConfigError):
        require_data(study)
    [run], [data] = study.runs.values(), study.datasets
    folder = fake_finished(study, run)
    require_data(study)
    (folder / "metrics.json").unlink()
    (study.root / data).parent.mkdir(parents=True)
    (study.root / data).touch()
    require_data(study)


def test_data_that_is_made_on_the_spot_needs_no_files(tmp_path: Path) -> None:
    require_data(loaded(tmp_path, written(tmp_path)))


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ENOENT, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_ends_a_job_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture, number: int) -> None:
    with pytest.raises(SystemExit), job(str(tmp_path / "logs/job.txt")):
        raise OSError(number, os.strerror(number), "results/runs/x")
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: results/runs/x: {os.strerror(number)}; ")
    assert (tmp_path / "logs/job.txt").read_text() == line + "\n"


def test_a_job_whose_log_cannot_be_written_still_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "logs").touch()  # a file in the place of the folder
    with pytest.raises(SystemExit), job(str(tmp_path / "logs/job.txt")):
        write_json(tmp_path / "logs/run.json", {})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert "a file is in the place of a folder" in line


def test_other_errors_keep_their_traceback() -> None:
    for error in (ValueError("x"), KeyError("x"), OSError("x"), OSError(errno.ECONNREFUSED, "refused")):
        assert disk_fault(error) == ""


def test_a_file_in_the_place_of_the_results_folder_is_named(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture
) -> None:
    file, results = written(project), project / "afile"
    results.touch()
    chosen = (file, "--config", f"results={results}")
    assert f"{results} is a file; set `results` to a folder" in said_by(capsys, "plan", *chosen)
    assert main(["plan", *map(str, chosen), "--write", str(project / "runs.yaml")]) == 0
    capsys.readouterr()
    line = said_by(capsys, "run", "--settings", project / "runs.yaml", "--results", results)
    assert "a file is in the place of a folder" in line
    with DryRuns(project) as snakemake:
        [(code, said)] = snakemake(["-n", "-q", "--config", f"study={file.name}", "results=afile"])
    assert (code, said.splitlines()[-1]) == (
        1,
        "error: results: got 'afile'; afile is a file; set `results` to a folder",
    )
    assert "Traceback" not in said


def test_a_results_folder_that_cannot_be_written_stops_a_study_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = loaded(tmp_path, written(tmp_path))

    def read_only(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(ConfigError, match=r"results: got .*Read-only file system; set `results` to a folder that can"):
        open_study(study, print)


def test_a_results_folder_that_is_deleted_meanwhile_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted when the training is over and the files are to be written."""
    run, results = tiny_run("scratch"), tmp_path / "results"
    record = worker.run_step.__globals__["write_atomically"]

    def deleted(path: Path, write: Any) -> None:
        shutil.rmtree(results, ignore_errors=True)
        record(path, write)

    monkeypatch.setitem(worker.run_step.__globals__, "write_atomically", deleted)
    source = Source(None, results / "data/downloads", download=False)
    failed = worker.work_through([run], results, Compute.by_hand(device="cpu", checkpoint_seconds=3600.0), source)
    [message] = failed.values()
    assert "No such file or directory; a folder or file was removed" in message
    assert "\n" not in message
