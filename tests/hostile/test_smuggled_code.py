"""Nothing that others write into results, data, searches or weights is run as code (docs/security.md)."""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_run
from hostile import CONFIG, SCHEMAS, own_study, searching
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from smuggled import SOMEBODY, Code, is_alive

from kd.__main__ import main
from kd.data.dataset import load
from kd.data.downloads import torchvision_splits
from kd.data.raw import Source
from kd.integrations.trial_storage import TrialStorage
from kd.inversion.sources.nayer import _read as read_embeddings
from kd.models.imported import read as read_foreign
from kd.reports.figures import correlations, synthetic
from kd.runs import watch
from kd.runs.compiler_cache import compiler_cache
from kd.runs.export import read_bundle, read_run
from kd.runs.folder import sealed
from kd.runtime.checkpoint import MAGIC, Checkpoint
from kd.runtime.files import read_json, write_json
from kd.runtime.messages import ConfigError
from kd.runtime.plain_pickle import read_plain_pickles
from kd.runtime.torchvision_compat import import_torchvision
from kd.runtime.weights import read_state
from kd.runtime.yaml_files import parse_yaml
from kd.studies.search import Tuning, folder_of
from kd.studies.study import load_study
from kd.studies.trials import read_results


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    assert is_alive(tmp_path / "canary")
    return tmp_path / "canary"


def arrays_with(code: Code) -> np.ndarray:
    found = np.empty(1, dtype=object)
    found[0] = code
    return found


def legacy(code: Code, file: Path) -> None:
    torch.save({"w": torch.zeros(1), "x": code}, file, _use_new_zipfile_serialization=False)


def npz(code: Code, file: Path) -> None:
    with file.open("wb") as opened:
        np.savez(opened, images=arrays_with(code), classes=np.zeros(1), differences=arrays_with(code))


FILES: dict[str, tuple[Callable, Callable]] = {  # how it is written, and what reads it
    "weights": (lambda code, file: torch.save({"w": torch.zeros(1), "x": code}, file), read_state),
    "weights of an old torch": (legacy, read_state),
    "weights that are a pickle alone": (lambda code, file: file.write_bytes(pickle.dumps(code)), read_state),
    "prepared data": (
        lambda code, file: torch.save({"train_images": code}, file),
        lambda file: load(file, tiny_run("kd").dataset, torch.device("cpu")),
    ),
    "a bundle": (lambda code, file: torch.save({"state_dict": {}, "card": code}, file), read_bundle),
    "a network of another code": (
        lambda code, file: torch.save({"model": {"w": torch.zeros(1)}, "opt": argparse.Namespace(lr=code)}, file),
        lambda file: read_foreign(file, "repdistiller", "wrn_16_1"),
    ),
    "held-out images": (npz, lambda file: watch._read(file, torch.device("cpu"))),
    "synthetic images": (npz, lambda file: synthetic.draw_images({"a": file.parent}, "t", "")),
    "correlations": (npz, lambda file: correlations.draw({"a": file.parent}, "t", "")),
    "embeddings": (
        lambda code, file: np.save(file.open("wb"), arrays_with(code), allow_pickle=True),
        lambda file: read_embeddings(str(file), ["one"]),
    ),
}
NAMES = {"synthetic images": "synthetic.npz", "correlations": "correlations.npz"}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_with_code_in_it_is_refused(tmp_path: Path, canary: Path, kind: str) -> None:
    write, read = FILES[kind]
    file = tmp_path / NAMES.get(kind, "file")
    write(Code(canary), file)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        read(file)
    assert not canary.exists()


def test_a_checkpoint_with_code_in_it_is_put_aside(tmp_path: Path, canary: Path) -> None:
    buffer, said = io.BytesIO(), []
    torch.save({"identity": "me", "state": {}, "torch_rng": Code(canary)}, buffer)
    payload = buffer.getvalue()
    whole = MAGIC + hashlib.sha256(payload).hexdigest().encode() + payload
    (tmp_path / "checkpoint.pt").write_bytes(whole)
    assert Checkpoint(tmp_path, "me", 1e9, said.append).restore({}) is False
    assert (tmp_path / "checkpoint.unusable.pt").read_bytes() == whole
    assert len(said) == 1
    assert not canary.exists()


@pytest.mark.parametrize("tag", ["object/apply:os.mkdir", "object/new:os.mkdir", "name:os.mkdir", "module:os"])
def test_a_tag_of_yaml_makes_no_object(canary: Path, tag: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML in line 2"):
        parse_yaml(f"a: 1\nb: !!python/{tag} ['{canary}']\n")
    assert not canary.exists()


def test_the_state_of_cmaes_in_a_storage_is_no_way_in(tmp_path: Path, canary: Path) -> None:
    """Optuna keeps it as a pickle in the attributes of trials; the file may be anybody's, as may a database."""
    space = {key: {"low": 0.0, "high": 1.0, "integer": False} for key in ("replay.alpha", "replay.beta")}
    storage = TrialStorage(Tuning("t", {}, space, 0, sampler="cmaes", startup=1), tmp_path / "t", "s/t", print)
    state = {"cma:generation": 0, "cma:optimizer:0": pickle.dumps(Code(canary)).hex()}
    given = {"params": dict.fromkeys(space, 0.5), "distributions": dict.fromkeys(space, FloatDistribution(0.0, 1.0))}
    for _ in range(2):
        storage.study().add_trial(create_trial(value=1.0, system_attrs=state, **given))
    with pytest.raises(pickle.UnpicklingError, match="mkdir, which is no number"):
        storage.ask(3)
    assert not canary.exists()


def test_plain_pickles_hold_arrays_and_what_is_named() -> None:
    module = SimpleNamespace(pickle=pickle)
    read_plain_pickles(module, ("types", "SimpleNamespace"))
    content = {
        "data": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "one": np.float64(0.5),
        "names": ["a", b"b", 1, None],
    }
    again = module.pickle.loads(module.pickle.dumps([content, SimpleNamespace(a=1)]))
    assert again[0]["data"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert (again[0]["one"], again[0]["names"], again[1].a) == (0.5, content["names"], 1)
    with pytest.raises(pickle.UnpicklingError):
        module.pickle.loads(pickle.dumps(Path("x")))
    with pytest.raises(AttributeError):
        read_plain_pickles(SimpleNamespace())


def test_batches_of_cifar_that_change_after_their_checksum_run_nothing(
    tmp_path: Path, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cifar = import_torchvision().datasets.cifar
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)  # it was the original while that was looked at
    kind, folder = cifar.CIFAR10, tmp_path / cifar.CIFAR10.base_folder
    folder.mkdir()
    batch = {"data": np.zeros((2, 3072), np.uint8), "labels": [0, 1]}
    for name, _ in kind.train_list + kind.test_list:
        (folder / name).write_bytes(pickle.dumps(batch))
    (folder / kind.meta["filename"]).write_bytes(pickle.dumps({kind.meta["key"]: ["a", "b"]}))
    source = Source(tmp_path, tmp_path, download=False)
    assert torchvision_splits("CIFAR10", source)[0].data.shape == (10, 32, 32, 3)
    (folder / "data_batch_5").write_bytes(pickle.dumps({**batch, "more": Code(canary)}))
    with pytest.raises(pickle.UnpicklingError, match="mkdir, which is no number"):
        torchvision_splits("CIFAR10", source)
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------- code that is named


@pytest.fixture
def results(tmp_path: Path, store: Path, canary: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A results folder below the current one, which is on Python's path; it holds a module, and one lies outside."""
    run = tiny_run("kd").teacher
    shutil.copytree(store / run.path, tmp_path / "results" / run.path)
    shutil.copytree(store / "data", tmp_path / "results/data")
    code = f"import os\nos.mkdir({str(canary)!r})\n\ndef build(**sizes):\n    raise ValueError('it was asked')\n"
    for place in ("results", "."):
        (tmp_path / place / "smuggled_net.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path_importer_cache", {})
    for name in [name for name in sys.modules if name.split(".")[0] in ("results", "smuggled_net")]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path / "results"


def test_a_record_names_no_code_in_the_results_folder(
    results: Path, canary: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = results / tiny_run("kd").teacher.path
    record = read_json(folder / "run.json")
    del record["files"]
    of_theirs = record | {"settings": record["settings"] | {"model": "results.smuggled_net:build"}}
    write_json(folder / "run.json", sealed(folder, of_theirs))
    with pytest.raises(
        ConfigError, match=r"run\.json: model results\.smuggled_net:build: its code lies in the results"
    ):
        read_run(folder)
    assert main(["run", "--settings", str(folder / "run.json")]) == 1
    assert "its code lies in the results folder" in capsys.readouterr().err
    assert not canary.exists()
    # the user's own, elsewhere, is what a record may name: it is asked for the network
    own = record | {"settings": record["settings"] | {"model": "smuggled_net:build"}}
    write_json(folder / "run.json", sealed(folder, own))
    with pytest.raises(ValueError, match="it was asked"):
        read_run(folder)
    assert canary.exists()


BEST = {  # what somebody wrote into best.yaml -> the setting that is refused
    "student: {model: 'smuggled_net:build'}": "student.model",
    "dataset: {name: folder, root: /home}": "dataset.name",
    "teacher: {weights: /tmp/theirs.pt}": "teacher.weights",
    "replay: {alpha: 0.5, refresh: all}": "replay.refresh",
}


@pytest.mark.parametrize("of", ["t", "other/t"])
@pytest.mark.parametrize("text", BEST)
def test_best_settings_hold_what_a_search_chooses(tmp_path: Path, of: str, text: str) -> None:
    experiment = {"methods": ["ssdkd"], "ablations": ["full", "x"], "scales": [0.3]}
    study = own_study(tune={"t": searching()}, ablations={"x": {"tuned": of}}, experiments={"a": experiment})
    (tmp_path / "mine.yaml").write_text(str(study))
    given = {"study": str(tmp_path / "mine.yaml"), "results": str(tmp_path / "results")}
    tuning = load_study(CONFIG, SCHEMAS, given, for_search=True).tunings["t"]
    folder = folder_of(tmp_path / "results", of.rpartition("/")[0] or "mine", "t")
    folder.mkdir(parents=True)
    write_json(folder / "search.json", {"digest": tuning.digest, **tuning.identity})
    (folder / "best.yaml").write_text("replay: {alpha: 0.5}\n")
    assert len(load_study(CONFIG, SCHEMAS, given).students) == 2
    (folder / "best.yaml").write_text(text + "\n")
    if of == "other/t" and text.startswith("replay"):  # of which the space is not known
        assert len(load_study(CONFIG, SCHEMAS, given).students) == 2
        return
    with pytest.raises(ConfigError) as refused:
        load_study(CONFIG, SCHEMAS, given)
    assert f"best.yaml: {BEST[text]}: is not what this search chooses" in str(refused.value)


@pytest.mark.parametrize(
    "change", [{"params": {"x": 2.0}}, {"params": {"student.model": "a:b"}}, {"value": "99"}, {"state": []}]
)
def test_trials_outside_of_the_space_are_none(tmp_path: Path, change: dict) -> None:
    tuning = Tuning("t", {}, {"x": {"low": 0.0, "high": 1.0, "integer": False}}, 0)
    trial = {"number": 7, "params": {"x": 0.5}, "state": "COMPLETE", "value": 90.0, "epoch": 1, "seconds": 1.0}
    trial |= {"note": "", "search": tuning.digest}
    for number, content in enumerate((trial, trial | change)):
        (tmp_path / f"trial{number}").mkdir()
        write_json(tmp_path / f"trial{number}/trial.json", content)
    assert read_results(tmp_path, tuning) == {0: trial | {"number": 0}}


# --------------------------------------------------------------------------------------------------- compiled kernels


def test_compiled_code_is_kept_where_nobody_else_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results, home = tmp_path / "shared/results", tmp_path / "home"
    (results / "cache").mkdir(parents=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    for place in (results / "cache", results, results.parent):
        assert compiler_cache(results) == results / "cache"
        place.chmod(0o775)
        assert compiler_cache(results) == home / "kd"
        place.chmod(0o755)
    assert (home / "kd").stat().st_mode & 0o777 == 0o700
    results.chmod(0o777)
    (home / "kd").chmod(0o770)
    last = compiler_cache(results)
    assert not last.is_relative_to(tmp_path)
    assert last.stat().st_mode & 0o777 == 0o700
    assert compiler_cache(results) == last


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_compiled_code_of_somebody_else_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    (tmp_path / "results/cache").mkdir(parents=True)
    os.chown(tmp_path / "results/cache", SOMEBODY, -1)
    assert compiler_cache(tmp_path / "results") == tmp_path / "home/kd"
    os.chown(tmp_path / "home/kd", SOMEBODY, -1)
    assert not compiler_cache(tmp_path / "results").is_relative_to(tmp_path)
