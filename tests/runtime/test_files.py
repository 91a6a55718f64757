"""Files are written whole or not at all."""

import json
import os
import time
from pathlib import Path

import pytest
from saved_steps import full_disk, names

from kd.runtime.files import read_json, write_atomically, write_json
from kd.runtime.messages import disk_fault


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, error):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})

    def fail(stream):
        stream.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(file, fail)
    assert names(tmp_path) == ["a.json"]
    assert read_json(file) == {"old": 1}


@pytest.mark.parametrize("place", ["fsync", "replace"])
def test_a_disk_that_fails_late_leaves_the_old_file(tmp_path, monkeypatch, place):
    file = tmp_path / "a.json"
    write_json(file, {"old": 1})
    with monkeypatch.context() as patched:
        if place == "fsync":
            patched.setattr(os, "fsync", full_disk)
        else:
            patched.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space"):
            write_json(file, {"new": 2})
    assert names(tmp_path) == ["a.json"]
    assert read_json(file) == {"old": 1}


def test_the_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: (order.append(os.fstat(number).st_size), fsync(number))[1])
    monkeypatch.setattr(Path, "replace", lambda self, target: (order.append(target.name), rename(self, target))[1])
    write_atomically(tmp_path / "a", lambda stream: stream.write(b"12345"))
    assert order == [5, "a"]


def test_json_files_have_one_form(tmp_path):
    write_json(tmp_path / "a", {"b": [1, 0.1, None], "a": {"d": 1, "c": True}})
    write_json(tmp_path / "b", {"a": {"c": True, "d": 1}, "b": [1, 0.1, None]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    text = (tmp_path / "a").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == read_json(tmp_path / "a") == {"a": {"c": True, "d": 1}, "b": [1, 0.1, None]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a", {"a": float("nan")})
    assert (tmp_path / "a").read_text() == text
    assert names(tmp_path) == ["a", "b"]


def test_what_killed_writers_have_left_goes_with_the_next_write_an_hour_later(tmp_path):
    (tmp_path / ".a.json.1.tmp").write_bytes(b"of a dead one")
    (tmp_path / ".a.json.2.tmp").write_bytes(b"of one that may be alive")
    (tmp_path / ".b.json.1.tmp").write_bytes(b"of another file")
    for name in (".a.json.1.tmp", ".b.json.1.tmp"):
        os.utime(tmp_path / name, times=(time.time() - 3700,) * 2)
    write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == [".a.json.2.tmp", ".b.json.1.tmp", "a.json"]


def test_a_folder_in_a_files_place_is_named_itself(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(IsADirectoryError) as failed:
        write_json(tmp_path / "a.json", {})
    place = tmp_path / "a.json"
    assert disk_fault(failed.value) == f"{place}: Is a directory; a folder is in the place of a file; move it away"
    assert names(tmp_path) == ["a.json"]
