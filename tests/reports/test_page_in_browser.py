"""report.html in Chromium: nothing leaves the file, tables sort and narrow, values show, small and dark screens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import chromium, console_errors
from conftest import PAIR
from fake_results import loaded
from made_up import finish
from test_page import HOSTILE

from kd.reports.publish import publish

SECOND = ["resnet8", "wrn_16_1"]
METHODS = {"kd": [90.0, 90.1], "scratch": [80.0, 80.0], "sp": [95.0, 85.0], "at": [100.0, 100.0]}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a study with data, whose experiment has figures that stay drawings and one that is a picture."""
    experiments = {
        name: {"title": f"{name} {HOSTILE}", "pairs": [PAIR], "methods": [*METHODS], "seeds": [0, 1], "view": view}
        for name, view in (("data", "methods"), ("free", "pairs"), ("extra", "pairs"))
    }
    experiments["free"]["pairs"] = [PAIR, SECOND]
    study = loaded(tmp_path_factory.mktemp("browser"), title=HOSTILE, experiments=experiments)
    finish(study, [HOSTILE, *"bcd"], METHODS)
    publish(study, study.root)
    return study.root / "report.html"


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture
def opened(driver: Any, page: Path) -> Any:
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    driver.get(page.as_uri())
    return driver


def column(driver: Any, head: int) -> list[str]:
    """The texts of a column of the first table of the experiment `data`, of rows that are shown."""
    rows = driver.find_elements("css selector", "#data table:first-of-type tbody tr")
    rows = [row for row in rows if row.is_displayed() and row.get_attribute("data-method")]
    return [row.find_elements("css selector", "th, td")[head].text for row in rows]


def heads_of(driver: Any) -> dict[str, Any]:
    found = driver.find_elements("css selector", "#data table:first-of-type")[0].find_elements(
        "css selector", "thead th"
    )
    return {head.text: head for head in found}


def test_nothing_leaves_the_file_and_no_error_is_said(opened: Any) -> None:
    assert opened.title == " ".join(HOSTILE.split())
    assert opened.execute_script("return window.hacked") is None
    assert opened.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)") == []
    images = "return [...document.images].map((image) => image.naturalWidth)"
    assert all(opened.execute_script(images))
    assert console_errors(opened) == []
    refused = """
        const done = arguments[0];
        document.addEventListener("securitypolicyviolation", (event) => done(event.violatedDirective));
        const image = new Image();
        image.src = "http://127.0.0.1:9/pixel.png";
        setTimeout(() => done("nothing"), 3000);
    """
    assert opened.execute_async_script(refused) == "img-src", "a request would be refused"
    opened.execute_script(
        "const s = document.createElement('script'); s.text = 'window.hacked = 1'; document.body.append(s)"
    )
    assert opened.execute_script("return window.hacked") is None, "so would a script that is not the page's"
    assert console_errors(opened)


def test_a_head_sorts_its_column_up_and_down(opened: Any) -> None:
    assert column(opened, 0) == ["kd", "scratch", "sp", "at"]
    head = heads_of(opened)["accuracy %"]
    head.find_element("tag name", "button").click()
    assert column(opened, 0) == ["scratch", "sp", "kd", "at"], "by number: 100 is above 90"
    assert head.get_attribute("aria-sort") == "ascending"
    head.find_element("tag name", "button").send_keys("\n")
    assert column(opened, 0) == ["at", "kd", "sp", "scratch"], "with the keyboard, too"
    for _ in range(2):
        heads_of(opened)["difference to kd"].find_element("tag name", "button").click()
        assert column(opened, 0)[-1] == "kd", "what is missing stays last"


def test_ticks_choose_the_rows_of_the_experiments_tables(opened: Any) -> None:
    box = opened.find_element("css selector", "#data .filters input[value=scratch]")
    box.click()
    assert column(opened, 0) == ["kd", "sp", "at"]
    assert len(opened.find_elements("css selector", "#free tr[data-method=scratch]:not([hidden])")) == 3, (
        "not elsewhere"
    )
    opened.find_element("css selector", "#free .filters input[value=scratch]").click()
    assert opened.find_elements("css selector", "#free tr[data-method=scratch]:not([hidden])") == [], "by pairs, too"
    pairs = [" → ".join(pair) for pair in (PAIR, SECOND)]
    opened.find_element("css selector", f"#free .filters input[value='{pairs[0]}']").click()
    grid = opened.find_element("css selector", "#free table")
    heads = grid.find_elements("css selector", "th[data-pair]")
    assert [head.text for head in heads if head.is_displayed()] == pairs[1:]
    row = grid.find_element("css selector", "tr[data-method=kd]")
    assert [cell.is_displayed() for cell in row.find_elements("css selector", "td")] == [False, True]
    none, every = (opened.find_element("css selector", f"#data button[data-all={word}]") for word in ("none", "all"))
    none.click()
    assert column(opened, 0) == []
    every.click()
    assert column(opened, 0) == ["kd", "scratch", "sp", "at"]


def test_values_are_said_to_mouse_and_keyboard(opened: Any) -> None:
    from selenium.webdriver import ActionChains

    tip = opened.find_element("id", "_tip")
    assert not tip.is_displayed()
    opened.execute_script("document.querySelector('#data tr[data-method=sp] span[data-tip]').focus()")
    assert tip.text == "seed 0: 95.00 %; seed 1: 85.00 %"
    for place, said in (
        ("tr[data-method=sp] circle", "seed 0: 95.00 %"),
        ("figure [data-tip^=scratch]", "scratch; accuracy 80.00 %"),
    ):
        element = opened.find_element("css selector", f"#data {place}")
        opened.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", element)
        ActionChains(opened).move_to_element(element).perform()
        assert tip.text == said


def test_small_dark_and_printed(opened: Any) -> None:
    screen = {"width": 360, "height": 700, "deviceScaleFactor": 1, "mobile": True}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    assert opened.execute_script("return document.documentElement.scrollWidth") == 360, "only tables and figures scroll"
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    colours = "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    light = opened.execute_script(colours)
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    assert [sum(map(int, colour[4:-1].split(","))) > 382 for colour in light] == [False, True]
    assert [sum(map(int, colour[4:-1].split(","))) > 382 for colour in opened.execute_script(colours)] == [True, False]
    closed = "return document.querySelectorAll('details:not([open])').length"
    before = opened.execute_script(closed)
    opened.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    assert before > 0
    assert opened.execute_script(closed) == 0
    opened.execute_script("window.dispatchEvent(new Event('afterprint'))")
    assert opened.execute_script(closed) == before
