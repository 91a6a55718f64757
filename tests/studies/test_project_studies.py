"""The studies in config/studies hold what they promise."""

from __future__ import annotations

import pytest
from conftest import ROOT
from own_studies import SCHEMAS

from kd.studies.study import load_study
from kd.training.datafree import capacity

FAST = {"fast2": (2, 0.015, 0.005), "fast": (5, 0.01, 0.003), "fast10": (10, 0.01, 0.002)}


@pytest.mark.parametrize("name", ["ssdkd-cifar10", "ssdkd-cifar100"])
def test_the_published_studies_hold_what_they_promise(name):
    study, small = (
        load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": name, "quick": quick}) for quick in (False, True)
    )
    assert len(study.table[["teacher", "student"]].drop_duplicates()) == 5
    assert set(study.table["seed"]) == {0, 1, 2}
    scale = study.table[study.table["experiment"] == "scale"]
    assert sorted(set(scale["scale"])) == [0.01, 0.05, 0.1, 0.2, 1.0]
    assert len(scale[["teacher", "student"]].drop_duplicates()) == 3
    modules = study.table[study.table["experiment"] == "modules"].drop_duplicates("ablation")
    switched = set()
    for path in modules["path"]:
        run = study.runs[path]
        switched.add((run.modulation.diversity > 0, run.modulation.gamma > 0, run.replay.alpha > 0))
        assert (run.replay.alpha > 0) == (run.replay.beta > 0)
    assert len(switched) == len(modules) == 8, "the full 2x2x2 table"
    originals = study.table[study.table["method"] == "original"]
    assert set(originals["scale"]) == {0.1}
    assert {study.runs[path].inversion.source for path in originals["path"]} == {"original"}
    resnet = next(
        run for run in study.runs.values() if run.teacher and run.teacher.model == "resnet34" and run.inversion
    )
    assert (resnet.inversion.settings["adv"], resnet.inversion.settings["bn"], resnet.inversion.settings["oh"]) == (
        1.33,
        10.0,
        0.5,
    )
    assert {claim[0] for claim in study.claims} == {claim[0] for claim in small.claims} == set("abcd")
    assert set(small.table["experiment"]) == set(study.table["experiment"])
    assert set(small.table["teacher"]) == {"wrn_16_1"}


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "config/studies").glob("*.yaml")))
def test_every_study_of_the_project_has_runs(name, tmp_path):
    given = {"study": name}
    if name == "crd-imagenet":  # its teacher is a file of the user's
        (tmp_path / "resnet34.pt").write_bytes(b"weights")
        given["teacher"] = {"weights": str(tmp_path / "resnet34.pt")}
    study = load_study(ROOT / "config/config.yaml", SCHEMAS, given, for_search=True)
    assert study.students
    assert set(study.table["experiment"]) == set(study.experiments)


@pytest.mark.parametrize("name", ["crd-cifar100", "crd-scale", "crd-modules", "crd-transfer"])
def test_crds_studies_hold_what_they_promise(name):
    study, small = (
        load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": name, "quick": quick}) for quick in (False, True)
    )
    assert set(small.table["experiment"]) <= set(study.table["experiment"])
    assert set(small.table["student"]) == {"resnet8"}
    assert set(study.claims) == set(small.claims) != set(), "rules for either version"
    if name == "crd-cifar100":
        judged = [len(version.claims["crd-above-kd-on-every-pair"]["tests"]) for version in (study, small)]
        assert judged == [13, 1]
        assert len(study.table[["teacher", "student"]].drop_duplicates()) == 13
        assert len(set(study.table["method"])) == 20
        slow = {run.model for run in study.runs.values() if run.teacher and run.training.lr == 0.01}
        assert slow == {"mobilenetv2_half", "shufflenetv1", "shufflenetv2"}
        for method, setting, usual, others in (
            ("dkd", "beta", 8.0, {("resnet56", "resnet20"): 2.0, ("resnet110", "resnet32"): 2.0}),
            ("reviewkd", "weight", 5.0, {("resnet56", "resnet20"): 0.6, ("resnet110", "resnet32"): 1.0}),
        ):
            others |= {("resnet110", "resnet20"): others["resnet110", "resnet32"]}
            if method == "dkd":
                others |= {("vgg13", "vgg8"): 6.0, ("vgg13", "mobilenetv2_half"): 6.0}
                others |= {("wrn_40_2", student): 6.0 for student in ("wrn_16_2", "wrn_40_1")}
            else:
                others |= {("resnet32x4", "shufflenetv2"): 8.0}
            rows = study.table[study.table["method"] == method]
            found = {
                (row.teacher, row.student): study.runs[row.path].objective[method].get(setting, usual)
                for row in rows.itertuples()
            }
            assert found == {pair: others.get(pair, usual) for pair in found}
            assert len(found) == 13
    if name == "crd-scale":
        assert set(study.table["scale"]) == {1.0, 0.5, 0.2, 0.1, 0.05, 0.01}
        assert all(run.teacher.scale == 1.0 for run in study.runs.values() if run.teacher)
    if name == "crd-transfer":
        assert {len(run.teachers) for run in study.runs.values() if run.teachers} == {1, 2, 4}
        assert {(run.teacher.view, run.view) for run in study.runs.values() if run.teacher} == {
            *(("rgb", "rgb"), ("luminance", "chrominance"))
        }


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_the_data_free_methods_are_as_published(name):
    study = load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": f"dfkd-baselines-{name}"})
    table = study.table[study.table["experiment"] != "equal-steps"].query("kind == 'datafree'")
    assert len(table[["teacher", "student"]].drop_duplicates()) == 5
    assert set(table["seed"]) == {0, 1, 2}
    runs = {method: study.runs[path] for method, path in table[["method", "path"]].values}
    steps = {method: run.distillation.steps_per_epoch(capacity(run, 50_000)) for method, run in runs.items()}
    assert {steps.pop(method) for method in ("ssdkd", "original")} == {40}
    assert set(steps.values()) == {400}
    for method in ("fast2", "fast", "fast10", "deepinversion", "cmi"):
        run = runs[method]
        assert capacity(run, 50_000) == (20 + 200) * 256, "every image stays in the pool"
        assert (run.replay.alpha, run.replay.beta, run.replay.with_replacement) == (0, 0, False)
        assert (run.modulation.diversity, run.modulation.gamma) == (0, 0)
    made = {method: run.inversion.settings for method, run in runs.items()}
    fast = {name: (made[name]["steps"], made[name]["lr_noise"], made[name]["lr_generator"]) for name in FAST}
    assert fast == FAST
    slow = {method: made[method]["steps"] for method in ("deepinversion", "cmi", "nayer", "nayer-5000")}
    nayer = 30 if name == "cifar10" else 40
    assert slow == {"deepinversion": 2000, "cmi": 500, "nayer": nayer, "nayer-5000": nayer}
    for method in ("vanilla", "zskt", "dafl", "dfq"):
        assert capacity(runs[method], 50_000) == made[method]["batches"] * made[method]["batch_size"], (
            "a round's images"
        )
    shared = load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": f"ssdkd-{name}"})
    paths = {method: set(rows["path"]) for method, rows in table.groupby("method")}
    assert paths["fast2"] | paths["fast10"] | paths["ssdkd"] | paths["original"] <= set(shared.table["path"])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_equal_work_is_equal(name):
    for quick, passes in ((False, 40 * 200 * 256), (True, 32 * 40 * 32)):
        given = {"study": f"dfkd-baselines-{name}", "quick": quick}
        study = load_study(ROOT / "config/config.yaml", SCHEMAS, given)
        paths = study.table.loc[study.table["experiment"] == "equal-steps", "path"]
        for run in map(study.runs.get, paths):
            steps = run.distillation.steps_per_epoch(capacity(run, 5_000))
            assert steps * run.distillation.training.epochs * run.distillation.training.batch_size == passes


def test_crd_on_imagenet_holds_what_it_promises(tmp_path):
    (tmp_path / "resnet34.pt").write_bytes(b"weights")
    given = {"study": "crd-imagenet", "teacher": {"weights": str(tmp_path / "resnet34.pt")}}
    study = load_study(ROOT / "config/config.yaml", SCHEMAS, given)
    small = load_study(ROOT / "config/config.yaml", SCHEMAS, {"study": "crd-imagenet", "quick": True})
    assert (
        set(study.table["method"]) == set(small.table["method"]) == {"scratch", "kd", "at", "sp", "cc", "crd", "crd-kd"}
    )
    assert {run.teacher.kind for run in study.runs.values() if run.teacher} == {"given"}
    assert {run.teacher.kind for run in small.runs.values() if run.teacher} == {"train"}
    assert all(run.dataset.stream for version in (study, small) for run in version.runs.values())
    for path in study.students:
        training = study.runs[path].training
        assert (training.epochs, training.batch_size, training.lr) == (100, 256, 0.1)
        assert (training.milestones, training.gamma, training.weight_decay) == ((30, 60, 90), 0.1, 0.0001)
    published = study.table.drop_duplicates("method").set_index("method")["quoted"]
    errors = {"scratch": 30.25, "kd": 29.34, "at": 29.30, "sp": 29.38, "cc": 30.04, "crd": 28.83, "crd-kd": 28.62}
    assert {method: round(100 - accuracy, 2) for method, accuracy in published.items()} == errors
    assert small.table["quoted"].isna().all(), "ten classes are no thousand"
    assert set(study.claims) > set(small.claims)
