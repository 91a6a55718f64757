"""Many image files: decoded by several processes as by one."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from image_files import noise, write

from kd.data import decoding
from kd.runtime.messages import ConfigError


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Six hundred images, three parts of work, which are worth a second process; one has a name that is no text."""
    monkeypatch.setattr(decoding, "WORTH_A_PROCESS", 100)
    images = {f"{number:03}.png": noise(8, 8, 3, seed=number) for number in range(600)}
    root = write(tmp_path / "images", images)
    odd = root / os.fsdecode(b"0\xff.png")
    (root / "000.png").rename(odd)
    return [odd, *sorted(root.glob("[0-9][0-9][0-9].png"))]


def count_of_processes(monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **named: started.append(given) or popen(*given, **named))
    return started


def test_several_processes_give_the_same_images_in_the_same_order(files, monkeypatch):
    expected = np.stack([noise(8, 8, 3, seed=number) for number in range(600)])
    started = count_of_processes(monkeypatch)
    np.testing.assert_array_equal(decoding.decode(files, 8, cores=1), expected)
    assert not started
    np.testing.assert_array_equal(decoding.decode(files, 8, cores=2), expected)
    assert len(started) == 1
    assert decoding.decode(files[:199], 8, cores=2).shape == (199, 8, 8, 3)
    assert len(started) == 1, "few images are no reason to start one"


def test_the_first_broken_file_in_order_is_named(files):
    said = []
    for number in (590, 300):
        files[number].write_bytes(b"no image")
    for cores in (1, 3):
        with pytest.raises(ConfigError, match=r"300\.png is no PNG, JPEG") as caught:
            decoding.decode(files, 8, cores)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_processes_that_end_are_reported(files, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(RuntimeError, match="was killed"):
        decoding.decode(files, 8, cores=2)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_only_cores_that_this_process_may_use_are_counted():
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from kd.data.decoding import _usable_cores\nprint(_usable_cores())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


def test_a_script_without_a_guard_may_decode(files, tmp_path):
    """As the workflow's scripts: a process that imported its main file again would begin it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom kd.data import decoding\ndecoding.WORTH_A_PROCESS = 100\n"
        f"print(decoding.decode(sorted(Path({str(files[0].parent)!r}).iterdir()), 8, 2).shape)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("(600, 8, 8, 3)\n", "")
