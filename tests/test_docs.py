"""What the documentation says, done to the letter in a copy of the project and run as a tiny study."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import PAIR, ROOT, TINY, tiny_run
from docs_project import Project, blocks
from PIL import Image

from kd.settings.run import Run


@pytest.fixture(scope="module")
def earlier() -> list[Run]:
    """Runs of every kind, as if made before anything was added."""
    return [tiny_run(method) for method in ("scratch", "kd", "crd", "at", "ssdkd")]


@pytest.fixture
def copy(tmp_path: Path) -> Project:
    return Project(tmp_path)


def distilling(*pairs: list[str], layer: int = 1, **settings: Any) -> dict[str, Any]:
    """A study that trains the pairs' teachers and distils them in each way that asks something of the networks."""
    experiment = {"pairs": list(pairs), "methods": ["kd", "fitnet", "crd"], "seeds": [0]}
    methods = {"fitnet": {"objective": {"fitnet": {"layer": layer}}}, "crd": TINY["methods"]["crd"]}
    return {"settings": settings, "methods": methods, "experiments": {"docs": experiment}}


def made(records: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    """The networks of all runs, teacher before student."""
    settings = [record["settings"] for record in records.values()]
    return sorted((*(teacher["model"] for teacher in run.get("teachers") or ()), run["model"]) for run in settings)


def test_a_model_added_to_kd(copy: Project, earlier: list[Run]) -> None:
    codes = copy.codes(earlier)
    copy.follow("add-a-model.md")
    records = copy.run(**distilling(["tiny", "tiny"], ["resnet8", "tiny"]))
    assert made(records) == sorted([("tiny",), ("resnet8",), *3 * [("tiny", "tiny"), ("resnet8", "tiny")]])
    assert copy.codes(earlier) == codes


def test_maps_that_a_loss_cannot_relate_are_refused_as_soon_as_their_shapes_are_known(copy: Project) -> None:
    [with_shapes] = copy.follow("add-a-model.md")
    experiment = {"pairs": [["tiny", "resnet8"]], "methods": ["at"], "seeds": [0]}
    study = {"settings": {}, "experiments": {"docs": experiment}}
    message = "at: 3 stages of the student [16x8x8, 32x4x4, 64x2x2] do not pair with 1 of the teacher [32x4x4]"
    assert copy.plan(**study).returncode == 0
    assert message in copy.run_planned().stderr.splitlines()[-1]
    copy.replace(with_shapes)
    planned = copy.plan(**study)
    assert planned.returncode == 1
    assert message in planned.stderr


def test_a_function_of_ones_own(copy: Project, earlier: list[Run]) -> None:
    codes = copy.codes(earlier)
    copy.follow("add-a-model.md")
    [pair] = yaml.safe_load(blocks("add-a-model.md", "yaml")[0])["pairs"]
    own = [pair[1], pair[1]]
    records = copy.run(**distilling(pair, own, layer=0))
    assert made(records) == sorted([(name,) for name in pair] + 3 * [tuple(pair), tuple(own)])
    assert copy.codes(earlier) == codes


def test_a_data_set_added_to_kd(copy: Project, earlier: list[Run]) -> None:
    codes = copy.codes(earlier)
    copy.follow("add-a-dataset.md")
    dataset = {"name": "squares", "classes": ["top left", "bottom right"]}
    records = copy.run(**distilling(PAIR, dataset=dataset))
    assert made(records) == [(PAIR[0],), *3 * [tuple(PAIR)]]
    for path, record in records.items():
        assert path.startswith("runs/squares-2/")
        assert record["classes"] == ["top left", "bottom right"]
        assert record["train_images"] == 200
    assert copy.codes(earlier) == codes


def test_images_of_ones_own(copy: Project) -> None:
    endings = {f"{split}/daisy": "jpg" for split in ("train", "test")} | {"train/rose": "png", "test/rose": "webp"}
    listed = blocks("add-a-dataset.md", "text")[0].split()
    assert sorted(listed) == sorted(f"my/images/{place}/*.{ending}" for place, ending in endings.items())
    for number, (place, ending) in enumerate(endings.items()):
        folder = copy.folder / "my/images" / place
        folder.mkdir(parents=True)
        for n in range(4):
            noise = np.random.default_rng([number, n]).integers(0, 256, (70, 80, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"{n}.{ending}")
    settings = yaml.safe_load(blocks("add-a-dataset.md", "yaml")[0])["settings"]
    study = distilling(PAIR, **settings)
    study["experiments"]["docs"]["methods"] = ["scratch"]
    [record] = copy.run(**study).values()
    assert record["classes"] == ["daisy", "rose"]
    assert (record["train_images"], record["settings"]["dataset"]["image_size"]) == (8, 64)


def test_a_study_on_few_gpus(copy: Project) -> None:
    """The runs of one process, then the tables of the workflow, which makes no run again."""
    [commands] = [block for block in blocks("gpu.md", "sh") if "my-study" in block]
    study = distilling(PAIR, **{key: TINY[key] for key in ("dataset", "teacher", "training", "compute")})
    study["experiments"]["docs"]["methods"] = ["scratch", "kd"]
    (copy.folder / "config/studies/my-study.yaml").write_text(yaml.safe_dump({"title": "docs", **study}))
    plan, run, tables = commands.splitlines()
    assert "3 runs written to runs.yaml" in copy.shell(plan)
    copy.shell(f"{run} --device cpu --no-download")
    records = sorted((copy.folder / "results/runs").rglob("run.json"))
    before = [file.stat().st_mtime_ns for file in records]
    assert len(before) == 3
    said = copy.shell(f"{tables} --resources gpu=1")
    assert "\nruns     3 of 3 done, 0 to do\n" in said
    assert re.search(r"\ndrawn: tables, figures, report, ", said)
    assert "data prepared" not in said
    assert [file.stat().st_mtime_ns for file in records] == before
    assert "2 together" in (copy.folder / "results/studies/my-study/table.md").read_text()


def keys(section: dict[str, Any], above: str = "") -> list[str]:
    """Return the keys of all settings; those inside another, such as inversion.generator.lr, by their path."""
    found = []
    for key, value in section.items():
        if key == "training":  # explained once for students, teachers and data-free students
            found += [f"`{inner}`" for inner in value]
        elif key == "objective":  # by its terms
            found.append("`objective.")
        elif isinstance(value, dict) and key != "methods":
            found += keys(value, f"{above}{key}.")
        else:
            found.append(f"`{above}{key}`")
    return found


def test_every_setting_is_explained() -> None:
    """Each key of config.yaml stands in config/README.md."""
    text = (ROOT / "config/README.md").read_text()
    settings = keys(yaml.safe_load((ROOT / "config/config.yaml").read_text()))
    assert len(settings) > 60
    assert [key for key in settings if key not in text] == []
