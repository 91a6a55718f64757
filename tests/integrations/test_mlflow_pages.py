"""MLflow's own pages in a browser: a finished study's runs, with accuracy, after one click at most."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium
from mlflow_store import Said
from watched_study import ACCURACY, SEEDS, finish_all, study_of

from kd.integrations.jobs import close_study
from kd.integrations.store import PAGES


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as opened:
        opened.set_window_size(1600, 1600)  # rows below the edge are not drawn
        yield opened


@pytest.fixture(scope="module")
def link(driver: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address that a study says at its end, of MLflow's pages as they are started by the command next to it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.delenv("MLFLOW_TRACKING_URI", raising=False)
        study, said = study_of(tmp_path_factory.mktemp("pages")), Said()
        finish_all(study)
        close_study(study, said)
    [address, command] = re.search(r"MLflow: (\S+)\n  after `(.*)`", said[-1]).groups()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [*command.split(), "--port", str(port), "--workers", "1"]
    program = str(Path(sys.executable).with_name(arguments[0]))
    server = subprocess.Popen([program, *arguments[1:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        pages = f"http://127.0.0.1:{port}"
        _until(lambda: urllib.request.urlopen(f"{pages}/health").status == 200, 120)
        yield address.replace(PAGES, pages)
    finally:
        server.terminate()
        server.wait()


def _until(true: Any, seconds: float) -> None:
    """Wait until something is true; errors count as not yet."""
    end = time.monotonic() + seconds
    while True:
        try:
            if true():
                return
        except Exception:
            if time.monotonic() > end:
                raise
        assert time.monotonic() < end, true
        time.sleep(0.2)


def text_of(driver: Any) -> str:
    return driver.execute_script("return document.body.innerText")


def table_of(driver: Any) -> list[list[str]]:
    """The rows of the table of runs, each with its columns' texts."""
    script = """
    const rows = {};
    for (const cell of document.querySelectorAll('.ag-row .ag-cell')) {
      const row = cell.closest('.ag-row').getAttribute('row-index');
      (rows[row] = rows[row] || {})[cell.getAttribute('col-id')] = cell.innerText.trim().split('\\n').pop();
    }
    return Object.keys(rows).sort((a, b) => a - b).map(row => rows[row]);"""
    return driver.execute_script(script)


def shows_the_rows(driver: Any) -> bool:
    rows = {row.get("attributes.`Run Name`"): row for row in table_of(driver)}
    for method in ("fast", "ssdkd"):
        for seed in SEEDS:
            row = rows[f"{method} (full), 50 %, seed {seed}"]
            assert float(row["metrics.`accuracy`"]) == ACCURACY[method][seed]
            assert (row["tags.`method`"], row["tags.`scale`"], row["tags.`seed`"]) == (method, "0.5", str(seed))
            assert float(row["metrics.`seconds`"]) == {"fast": 20.0, "ssdkd": 12.0}[method]
    return rows["free: SSD-KD and Fast"]["tags.`compared`"].startswith("ssdkd - fast: +2.33 (")


def test_the_link_opens_the_runs_with_their_columns(driver, link):
    driver.get(link)
    _until(lambda: shows_the_rows(driver), 60)


def test_the_experiment_is_one_click_away_from_its_runs(driver, link):
    """A new browser opens an experiment on its page about chat traces; the description there leads to the runs."""
    driver.get("about:blank")
    driver.get(link.partition("/runs?")[0])
    find = "return [...document.querySelectorAll('a')].find(a => a.innerText.startsWith('runs, with accuracy'))"
    _until(lambda: driver.execute_script(find), 60)
    driver.execute_script(f"({find.removeprefix('return ')}).click()")
    _until(lambda: len(driver.window_handles) == 2, 10)
    driver.switch_to.window(driver.window_handles[-1])
    _until(lambda: shows_the_rows(driver), 60)


def test_an_experiments_page_answers_which_is_better(driver, link):
    driver.get("about:blank")
    driver.get(link)
    find = "return [...document.querySelectorAll('a')].find(a => a.innerText.startsWith('free: SSD-KD'))"
    _until(lambda: driver.execute_script(find), 60)
    driver.get(driver.execute_script(find).get_attribute("href"))
    answer = r"difference to fast \(95 % interval\)(.|\n)*ssdkd\s+91.33 ± 1.53\s+3\s+\+2.33 \(-1.46 to \+6.13\)"
    _until(lambda: re.search(answer, text_of(driver)), 60)
