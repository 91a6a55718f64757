"""CRD's study of ImageNet on a tiny tree of the same kind: what is missing is said, and it runs to its table."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch
import yaml
from conftest import ROOT
from photos import photo_tree
from tiny_study import finish, snakemake

from kd.models.build import build
from kd.runtime.torchvision_compat import import_torchvision

TINY = {
    "extends": str(ROOT / "config/studies/crd-imagenet.yaml"),
    "settings": {
        "dataset": {"image_size": 32},
        "training": {"epochs": 2, "batch_size": 8, "milestones": [1], "lr": 0.001},
        "compute": {"device": "cpu", "workers": 1},
        "tracking": {"enabled": False},
    },
    "methods": {"crd": {"objective": {"crd": {"negatives": 16}}}},
    "experiments": {
        "resnet": None,
        "tiny": {
            "view": "pairs",
            "pairs": [["torchvision:resnet34", "torchvision:resnet18"]],
            "methods": ["scratch", "crd"],
            "seeds": [0],
        },
    },
    "claims": dict.fromkeys(("crd-above-kd", "crd-above-the-others", "crd-kd-above-crd", "crd-as-published")),
}


def test_the_study_of_imagenet_runs_on_a_tiny_tree(project: Path) -> None:
    study, data = project / "config/studies/tiny.yaml", project / "imagenet"
    study.write_text(yaml.safe_dump(TINY, sort_keys=False), "utf-8")
    without = snakemake(project, "-n")
    assert without.returncode == 1
    [line] = [line for line in without.stderr.splitlines() if line.startswith("error:")]
    assert "teacher.weights: no file 'imagenet/resnet34.pt'" in line
    assert "docs/imagenet.md" in line

    data.mkdir()
    torch.manual_seed(0)
    theirs = import_torchvision().models.resnet34(num_classes=4).eval()
    torch.save(theirs.state_dict(), data / "resnet34.pt")
    without = snakemake(project, "-n")
    assert without.returncode == 1
    assert "dataset.root: got 'imagenet', which lacks train/ and test/" in without.stderr
    assert "docs/imagenet.md" in without.stderr

    photo_tree(data, classes=4, train=6, test=3)
    finish(project)
    results = pd.read_csv(project / "results/studies/tiny/results.csv")
    assert sorted(results["method"]) == ["crd", "scratch"]
    assert results["accuracy"].between(0, 100).all()
    table = (project / "results/studies/tiny/table.md").read_text("utf-8")
    assert "CRD on ImageNet" in table
    [listed] = (project / "results/data").glob("*.pt")
    assert listed.stat().st_size < 10_000, "no image is in what was prepared"
    [given] = (project / "results/runs").glob("*/*/given-*/seed0")
    network = build("torchvision:resnet34", num_classes=4, image_size=32).eval()
    network.load_state_dict(torch.load(given / "weights.pt", weights_only=True))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        answer = network(images)
        torch.testing.assert_close(answer.logits, theirs(images), rtol=0, atol=0)
    assert answer.feature.shape == (2, 512)
    assert "3 of 3 done" in (said := snakemake(project, "-n").stdout) or "nothing" in said.lower(), said
