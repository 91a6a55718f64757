"""Broken and odd study files are accepted safely or refused readably, at once."""

from __future__ import annotations

import copy
import datetime
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT
from hostile import CONFIG, SCHEMAS, Dumper, assert_readable, dry_runs, listing, load, told
from mutations import bases, mutations, outcomes
from odd_values import ODD, ODD_YAML

from kd.settings.merging import merge

MUTATIONS = 660


@pytest.mark.usefixtures("parsed_once")
def test_mutated_studies_are_accepted_safely_or_refused_readably(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"

    def attempt(content: bytes) -> object:
        file.write_bytes(content)
        return load(file)

    accepted, refused, wrong = outcomes(mutations(MUTATIONS, bases()), attempt)
    assert not wrong, f"{len(wrong)} of {MUTATIONS}:\n" + "\n".join(wrong)
    assert accepted >= 60
    assert refused >= 300
    assert listing(tmp_path) == {"mine.yaml"}


SPOTS = {
    "a number": ("settings", "training", "lr"),
    "a number or null": ("settings", "inversion", "reset_epoch"),
    "an integer": ("settings", "training", "epochs"),
    "a number of a loss": ("methods", "soft", "objective", "kd", "temperature"),
    "a switch": ("settings", "dataset", "flip"),
    "a word": ("settings", "training", "schedule"),
    "a list": ("settings", "training", "milestones"),
    "a section": ("settings", "training"),
    "all settings": ("settings",),
    "a method": ("methods", "soft"),
    "an ablation": ("ablations", "flat"),
    "an experiment": ("experiments", "a"),
    "seeds": ("experiments", "a", "seeds"),
    "a seed": ("experiments", "a", "seeds", 0),
    "a scale": ("experiments", "a", "scales", 0),
    "a pair": ("experiments", "a", "pairs", 0),
    "a model": ("experiments", "a", "pairs", 0, 1),
    "a title": ("title",),
    "classes": ("settings", "dataset", "classes"),
    "results": ("settings", "results"),
    "the teacher's seed": ("settings", "teacher", "seed"),
    "a limit of a search": ("tune", "t", "space", "replay.alpha", "high"),
    "a space of a search": ("tune", "t", "space"),
}


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("spot", SPOTS)
def test_every_odd_value_at_every_kind_of_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spot: str) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mine.yaml"
    *parents, key = SPOTS[spot]
    wrong = []
    words = [*ODD, *(ODD_YAML if spot in ("a number", "a method", "a title") else [])]
    for word in words:
        content = copy.deepcopy(bases()[0])
        content["methods"]["soft"] |= {"kind": "distill"}
        content["experiments"]["a"]["methods"] = ["ssdkd", "soft"]
        box = content
        for part in parents:
            box = box[part]
        box[key] = copy.deepcopy(ODD[word]) if word in ODD else "PLACE"
        text = yaml.dump(content, Dumper=Dumper, sort_keys=False)
        file.write_text(text if word in ODD else text.replace("PLACE", word))
        try:
            load(file)
        except Exception as error:
            wrong.append(told(ascii(word), error))
    assert not wrong, f"{len(wrong)} of {len(words)}:\n" + "\n".join(wrong)
    assert listing(tmp_path) == {"mine.yaml"}


SPACE = {"low": 0.0, "high": 1.0}


@pytest.mark.usefixtures("parsed_once")
@pytest.mark.parametrize("key", [1, None, True, datetime.date(2020, 1, 1), "\ud800"], ids=ascii)
@pytest.mark.parametrize(
    "change",
    [
        lambda key: {key: 1},
        lambda key: {"settings": {key: 1, "x": 2}},
        lambda key: {"settings": {"training": {key: 1, "x": 2}}},
        lambda key: {"settings": {"objective": {key: {"weight": 1.0}, "x": {}}}},
        lambda key: {"settings": {"objective": {"ce": {key: 1.0, "x": 2}}}},
        lambda key: {"methods": {key: {"kind": "train"}}},
        lambda key: {"methods": {"soft": {key: {}, "x": 1}}},
        lambda key: {"ablations": {key: {}}},
        lambda key: {"ablations": {"flat": {"replay": {key: 1, "x": 2}}}},
        lambda key: {"experiments": {key: {}}},
        lambda key: {"experiments": {"a": {key: 1, "x": 2}}},
        lambda key: {"experiments": {"a": {"settings": {key: 1, "x": 2}}}},
        lambda key: {"tune": {key: {}}},
        lambda key: {"tune": {"t": {key: 1, "x": 2}}},
        lambda key: {"tune": {"t": {"space": {key: SPACE}}}},
        lambda key: {"tune": {"t": {"space": {"replay.alpha": {key: 1.0, "x": 2}}}}},
    ],
    ids=[
        *("top", "settings", "section", "objective", "loss", "methods", "method", "ablations", "ablation"),
        *("experiments", "experiment", "settings of an experiment", "tune", "search", "space", "range"),
    ],
)
def test_a_key_that_is_no_name_is_refused(tmp_path: Path, change: Callable[[Any], dict], key: Any) -> None:
    content = bases()[0]
    content["experiments"]["a"]["methods"] = ["ssdkd", "soft"]
    file = tmp_path / "mine.yaml"
    text = yaml.safe_dump(merge(content, change(key)), sort_keys=False)
    file.write_text(text)
    assert load(file) is None


@pytest.mark.usefixtures("parsed_once")
def test_accepted_mutations_dry_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind of accepted mutation once or twice, until there are twenty."""
    monkeypatch.chdir(project)
    cases, seen = {}, {}
    for name, content in mutations(MUTATIONS, bases()):
        kind = name.split()[1]
        if seen.get(kind, 0) == 4:
            continue
        file = project / f"case{len(cases)}.yaml"
        file.write_bytes(content)
        try:
            accepted = load(file) is not None
        except Exception:  # the test above tells
            accepted = False
        if not accepted:
            file.unlink()
            continue
        seen[kind] = seen.get(kind, 0) + 1
        cases[name] = [f"study={file.name}"]
        if len(cases) == 20:
            break
    assert len(cases) == 20
    dry_runs(project, cases)


# ----------------------------------------------------------------------------------------------------- bombs, depths

ALONE = """
import resource, sys, time
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (12, 12))
from kd.runtime.messages import ConfigError
from kd.studies.study import load_study
before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
try:
    load_study(Path(sys.argv[1]), Path(sys.argv[2]), {"study": sys.argv[3]})
    print("accepted")
except ConfigError as error:
    print(f"refused {error}")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(time.process_time() - start, (after - before) / 1024)
"""


def bomb(levels: int = 9, width: int = 9) -> str:
    """A list of lists of lists ..., each of which names the one before so many times: width ** levels values."""
    lines = [f"a0: &a0 [{', '.join(['x'] * width)}]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(f"      {line}" for line in lines)


def merge_bomb(levels: int = 9, width: int = 9) -> str:
    """The same with merge keys: mappings whose keys come `width` times from the one before."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join(f"      {line}" for line in lines)


def minimal(*more: str) -> str:
    run = "experiments:\n  a: {pairs: [[resnet8, wrn_10_1]], methods: [scratch], seeds: [0]}"
    return "\n".join(["title: Small", run, *more]) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        minimal("more:", bomb()),
        minimal("settings:", "  dataset:", bomb()),
        minimal("methods:", "  bomb:", bomb()),  # a method that no experiment uses may hold anything
        minimal("ablations:", "  bomb:", bomb()),
        minimal("methods:", "  bomb:", merge_bomb()),
        minimal("methods:", "  bomb:", bomb(440, 1)),  # few values, but many levels
        minimal("methods:", "  bomb:", bomb(440, 1).replace("[", "{x: ").replace("]", "}")),
        minimal("methods:", "  bomb:", "      a: &a [1, *a]"),
        minimal("methods:", "  bomb: &a", "      a: *a"),
        minimal("settings:", "  dataset: &a", "      name: *a"),
        minimal(f"methods: {{deep: {{a: {'[' * 100_000}{']' * 100_000}}}}}"),
        minimal(f"methods: {{deep: {'{a: ' * 100_000}1{'}' * 100_000}}}"),
    ],
    ids=[
        *("unknown", "settings", "method", "ablation", "merge keys", "chain", "chain of mappings"),
        *("itself in a list", "itself", "its name", "[", "{"),
    ],
)
def test_a_file_that_unfolds_without_end_is_handled_at_once(tmp_path: Path, text: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    command = [sys.executable, "-c", ALONE, str(CONFIG), str(SCHEMAS), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, f"exit code {done.returncode}: {done.stderr[-300:]}"
    said, numbers = done.stdout.strip().rsplit("\n", 1)
    seconds, megabytes = map(float, numbers.split())
    assert seconds < 10
    assert megabytes < 200
    if said != "accepted":
        assert_readable(said.removeprefix("refused "), file)
