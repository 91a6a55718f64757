"""The page as a whole: its sections in their order, its style and script, and a policy that lets no request out."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kd.reports.page import answers, background, experiment
from kd.reports.page.markup import Html, anchor, joined, tag
from kd.reports.page.pictures import framed
from kd.reports.plan import PlannedFigure, plan_tables
from kd.runs.folder import Records
from kd.runtime.files import write_atomically
from kd.studies.claims import score_of
from kd.studies.study import Study

HERE = Path(__file__).parent
REPORT = "report.html"


@dataclass(frozen=True)
class Page:
    """What the page says of a study apart from its results."""

    name: str
    title: str
    experiments: dict[str, dict[str, Any]]
    claims: dict[str, dict[str, Any]]
    runs: int  # students that the study compares, finished or not
    command: str  # that makes the study


def page_of(study: Study) -> Page:
    """Return what the page says of a study."""
    command = command_of(study.settings)
    return Page(study.name, study.title, study.experiments, study.claims, len(study.students), command)


def command_of(settings: dict[str, Any]) -> str:
    """Return the command that makes a study, by its merged settings."""
    given = {"study": settings["study"]}
    given |= {"quick": "true"} if settings.get("quick") is True else {}
    given |= {"results": settings["results"]} if settings["results"] != "results" else {}
    return f"snakemake --cores all --config {' '.join(shlex.quote(f'{key}={value}') for key, value in given.items())}"


def write_page(page: Page, results: pd.DataFrame, figures: Iterable[PlannedFigure], root: Path, folder: Path) -> Path:
    """Write report.html into `folder`, where results.csv and the figures lie; equal runs give equal bytes.

    results: the frame of results.csv; root: the results folder, in which the runs lie.
    """
    known = Records(root)
    records = {path: known[path] for path in dict.fromkeys(results["path"]) if known[path]}
    drawn = {figure.name: _figure(figure, folder) for figure in figures}
    sections = [answers.summary(page.experiments, page.claims, results)]
    for name, entry in page.experiments.items():
        rows = results[results["experiment"] == name]
        if len(rows):
            sections.append(experiment.section(name, entry, rows, results, records, drawn.pop(name, None)))
    others = [shown for name, shown in drawn.items() if shown and name not in page.experiments]
    if others:
        sections.append(tag("section", tag("h2", "What the runs made and learned"), others, id="_figures"))
    tables = [file for table in plan_tables(page.experiments) for file in table.files]
    sections += [
        background.seconds(results),
        background.networks(results),
        background.environment(records, results),
        background.every_run(results, root, folder),
        background.files(folder, tables),
        background.rerun(page.command),
    ]
    main = tag("main", _header(page, results), sections, id="_top")
    whole = document(page.title, joined([_contents(page, results, bool(others)), main]))
    write_atomically(folder / REPORT, lambda file: file.write(whole.encode()))
    return folder / REPORT


def document(title: str, body: Html) -> str:
    """Return a page that needs no other file: the policy forbids every request, and every script but its own."""
    style, script = ((HERE / f"page.{ending}").read_text(encoding="utf-8") for ending in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", Html(style)),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', body, tag('script', Html(script))), lang='en')}\n"


def _figure(figure: PlannedFigure, folder: Path) -> Html | None:
    return framed(figure.name, figure.title, figure.caption, folder, drawing=figure.experiment is not None)


def _header(page: Page, results: pd.DataFrame) -> Html:
    done = results["path"].nunique()
    commits = ", ".join(sorted(set(results["commit"].dropna())))
    left = page.runs - done
    return tag(
        "header",
        tag("h1", page.title),
        tag("p", f"Study {page.name}: {done} of {page.runs} runs; code {commits}", class_="note"),
        tag("p", f"So far: {left} runs are not finished.", class_="warning") if left else None,
        background.teachers(results),
        tag("details", tag("summary", "How to read the numbers"), [tag("p", line) for line in _reading(results)]),
    )


def _reading(results: pd.DataFrame) -> list[str]:
    images = " and ".join(sorted(set(results["scored"].dropna())))
    score = {"agreement": "Agreement with the teacher", "mean IoU": "Mean IoU"}.get(score_of(results), "Accuracy")
    return [
        f"{score} is in % of the {images} images, after the last epoch; mean ± standard deviation over n seeds of the "
        "student.",
        "A difference is the mean over n pairs of runs with the same teacher, student, data scale and seed, in points "
        "of %; its 95 % interval and p are Student's. Where the interval holds 0, no difference is shown, which does "
        "not mean that there is none: with two seeds intervals are wide. p is not corrected for the number of "
        "comparisons.",
        "Seconds are computing time, without start-up and the teacher's training; runs made together share them.",
        "Point at a number, a ring or a point (or go there with the Tab key) for the values of its seeds. Heads of "
        "tables sort; boxes choose rows.",
    ]


def _contents(page: Page, results: pd.DataFrame, others: bool) -> Html:
    shown = set(results["experiment"])
    links = [("_answer", "The answer")]
    links += [(anchor(name), entry["title"]) for name, entry in page.experiments.items() if name in shown]
    links += [("_figures", "What the runs made and learned")] if others else []
    links += [("_seconds", "Where the time went"), ("_networks", "Networks"), ("_environment", "Machines and code")]
    links += [("_runs", "Every run"), ("_files", "Files"), ("_again", "Make it again")]
    items = [tag("li", tag("a", text, href=f"#{name}")) for name, text in links]
    skip = tag("a", "To the answer", href="#_answer", class_="skip")
    return joined([skip, tag("nav", tag("b", "Contents"), tag("ol", items), aria_label="Contents")])
