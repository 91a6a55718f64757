"""Digests of code: what they ignore, what they notice, and which runs an edit touches."""

import ast
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from kd.runs.provenance import environment, git_state, run_code
from kd.runtime.yaml_files import read_yaml
from kd.settings.merging import merge, run_of

ROOT = Path(__file__).resolve().parents[2]


@functools.cache
def runs():
    """Return one run for each way of using the code."""
    base = read_yaml(ROOT / "config/config.yaml")
    ce, soft, contrast = {"weight": 1.0}, {"weight": 1.0, "temperature": 4.0}, {"weight": 0.8}

    def run(kind, teacher, student, source="generator", **objective):
        override = {"kind": kind, "teacher": {"model": teacher}, "student": {"model": student}}
        override["inversion"] = {"source": source}
        return run_of({**merge(base, override), "objective": objective}, 0)

    return {
        "labels": run("train", "vgg8", "wrn_16_1", ce=ce),
        "labels-vgg": run("train", "vgg8", "vgg8", ce=ce),
        "kd": run("distill", "wrn_16_2", "resnet8", ce=ce, kd=soft),
        "crd": run("distill", "vgg8", "wrn_16_1", ce=ce, crd=contrast),
        "free": run("datafree", "wrn_16_2", "wrn_16_1"),
        "free-vgg": run("datafree", "vgg8", "wrn_16_1"),
        "original": run("datafree", "wrn_16_2", "wrn_16_1", source="original"),
        "own": run("train", "vgg8", "my_network:build", ce=ce),
    }


ALL = {"labels", "labels-vgg", "kd", "crd", "free", "free-vgg", "original", "own"}
WITH_DATA = ALL - {"free", "free-vgg", "original"}
OWN_MODEL = "def build(num_classes, in_channels, image_size):\n    return None\n"
# Reads the runs' settings, a line at a time, and answers with their digests, from a child that imports kd afresh.
SERVER = """
import ast, copy, dataclasses, difflib, hashlib, importlib.metadata, importlib.util, json, os, platform, subprocess, sys
import yaml
sys.dont_write_bytecode = True
for line in sys.stdin:
    if os.fork() == 0:
        from kd.settings.run import Run
        from kd.runs.provenance import run_code
        runs = json.loads(line)
        print(json.dumps({name: run_code(Run.from_dict(settings)) for name, settings in runs.items()}), flush=True)
        os._exit(0)
    if os.wait()[1]:
        print("failed", flush=True)
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """Make a copy of the package that a test may edit."""
    folder = tmp_path_factory.mktemp("copy")
    shutil.copytree(ROOT / "kd", folder / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "my_network.py").write_text(OWN_MODEL)
    return folder


def python(package, program, stdin="", **environment):
    variables = {**os.environ, "PYTHONPATH": str(package), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", program], input=stdin, cwd=package, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def codes(package):
    """Return a function that returns the digests of all runs by the copy's present code."""
    variables = {**os.environ, "PYTHONPATH": str(package)}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=package, env=variables
    ) as server:

        def codes():
            server.stdin.write(json.dumps({name: run.as_dict() for name, run in runs().items()}) + "\n")
            server.stdin.flush()
            return json.loads(server.stdout.readline())

        yield codes
        server.stdin.close()


@pytest.fixture(scope="module")
def before(codes):
    return codes()


@pytest.fixture
def touched(package, codes, before):
    """Return a function that edits files of the copy, returns the runs whose digests change, and undoes the edit."""

    def touched(edits):
        kept = {name: (package / name).read_bytes() if (package / name).exists() else None for name in edits}
        try:
            for name, edit in edits.items():
                old = (kept[name] or b"").decode()
                new = edit(old)
                assert new != old
                (package / name).write_text(new)
            after = codes()
        finally:
            for name, content in kept.items():
                if content is None:
                    (package / name).unlink()
                else:
                    (package / name).write_bytes(content)
        return {name for name in before if after[name] != before[name]}

    return touched


def body_of_first_function(text):
    """Add a statement at the end of the file's first function."""
    tree = ast.parse(text)
    next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)).body.append(ast.Pass())
    return ast.unparse(tree)


def reformatted(text):
    """Change quotes, line breaks and blank lines, and replace all comments."""
    return "# a comment\n\n\n" + ast.unparse(ast.parse(text)).replace("\n", "  # so\n", 1) + "\n\n\n# the end\n"


DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def other_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body[0].value.value = "Something else."
    return ast.unparse(tree)


def more_docstrings(text):
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is None:
            node.body.insert(0, ast.Expr(ast.Constant("New.")))
    return ast.unparse(ast.fix_missing_locations(tree))


CORE = (
    "kd/training/with_data.py",
    "kd/training/datafree.py",
    "kd/training/evaluate.py",
    "kd/losses/crd.py",
    "kd/models/vgg.py",
    "kd/models/wrn.py",
)


def test_the_copy_has_the_digests_of_the_original(before):
    assert before == {name: run_code(run) for name, run in runs().items() if name != "own"} | {"own": before["own"]}
    assert all(re.fullmatch("[0-9a-f]{10}", code) for code in before.values())
    assert before["kd"] != before["crd"]


def test_comments_and_formatting_do_not_count(touched):
    assert touched(dict.fromkeys(CORE, reformatted)) == set()


def test_the_words_of_docstrings_do_not_count(touched):
    assert touched(dict.fromkeys(CORE, other_docstrings)) == set()


def test_a_docstring_where_there_was_none_does_not_count(touched):
    assert touched(dict.fromkeys(CORE, more_docstrings)) == set()


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("kd/training/evaluate.py", ALL),
        ("kd/data/augment.py", ALL),
        ("kd/training/step.py", ALL),
        ("kd/training/device_flags.py", ALL),  # of cuDNN
        ("kd/training/with_data.py", WITH_DATA),
        ("kd/losses/ce.py", WITH_DATA),
        ("kd/losses/crd.py", {"crd"}),
        ("kd/losses/kd.py", {"kd", "free", "free-vgg", "original"}),  # data-free distillation uses its divergence
        ("kd/training/datafree.py", {"free", "free-vgg", "original"}),
        ("kd/inversion/replay.py", {"free", "free-vgg", "original"}),
        ("kd/inversion/sources/generator.py", {"free", "free-vgg"}),
        ("kd/inversion/sources/original.py", {"original"}),
        ("kd/models/generator.py", {"free", "free-vgg"}),
        ("kd/models/vgg.py", {"labels-vgg", "crd", "free-vgg"}),
        ("kd/models/wrn.py", {"labels", "kd", "crd", "free", "free-vgg", "original"}),
        ("kd/models/resnet_cifar.py", {"kd"}),
        ("kd/models/resnet.py", {"kd"}),  # CIFAR's residual networks use its block
        ("kd/models/shufflenetv1.py", set()),
        ("kd/models/classifier.py", ALL),
        ("my_network.py", {"own"}),
    ],
)
def test_an_edit_touches_the_runs_that_use_the_file(touched, file, expected):
    assert touched({file: body_of_first_function}) == expected


def test_the_weights_of_colours_count(touched):
    """A view's mix of red, green and blue, in kd/data/views.py, is part of what a network sees."""
    assert touched({"kd/data/views.py": lambda text: text.replace("0.299", "0.300")}) == ALL


def test_what_changes_no_number_touches_nothing(touched):
    """No file of these rooms is followed, whatever is added to them."""
    rooms = ("runtime", "runs", "studies", "reports", "integrations", "settings")
    files = [file for room in rooms for file in sorted((ROOT / "kd" / room).glob("*.py"))]
    edits = {file.relative_to(ROOT).as_posix(): lambda text: text + "\nADDED = 1\n" for file in files}
    assert len(edits) > 20
    assert touched({"kd/__main__.py": lambda text: text + "\nADDED = 1\n", **edits}) == set()


def test_a_message_of_a_run_touches_nothing(touched):
    reworded = {"kd/runs/run.py": lambda text: text.replace("already complete", "is already complete")}
    assert touched(reworded) == set()


def test_a_new_loss_or_model_touches_nothing(touched):
    edits = {
        "kd/losses/mine.py": lambda _: "def mine(student, teacher, batch):\n    return 0\n",
        "kd/registry/losses.py": lambda text: text.replace(
            "LOSSES: dict[str, Entry] = {", 'LOSSES = {"mine": Entry("kd.losses.mine:mine"),'
        ),
        "kd/models/mine.py": lambda _: "class Mine:\n    pass\n",
        "kd/registry/models.py": lambda text: text.replace(
            "] = {\n", '] = {\n    "mine": Model("kd.models.mine:Mine"),\n', 1
        ),
        "kd/registry/datasets.py": lambda text: text.replace('"digits":', '"mine": "kd.data.mine:load", "digits":'),
    }
    assert touched(edits) == set()


def test_a_models_line_counts_for_its_runs(touched):
    """Depths and widths stand in kd/registry/models.py; another width is another network."""

    def deeper(text):
        return text.replace('"vgg8": _vgg(8)', '"vgg8": _vgg(11)')

    assert touched({"kd/registry/models.py": deeper}) == {"labels-vgg", "crd", "free-vgg"}


def test_what_an_entry_knows_of_a_network_without_building_it_touches_nothing(touched):
    edits = {
        "kd/registry/map_shapes.py": lambda text: text.replace("[64, 128, 256, 512, 512]", "[64, 128, 256, 512, 9]"),
        "kd/registry/models.py": lambda text: text.replace("maps.wrn,", "maps.wrn, has_batchnorm=False,"),
    }
    assert touched(edits) == set()


def test_a_losss_line_counts_for_its_runs(touched):
    def another(text):
        return text.replace("kd.losses.kd:kd", "kd.losses.kd:kl_divergence")

    assert touched({"kd/registry/losses.py": another}) == {"kd"}


# ---------------------------------------------------------------------------------------------------------------- git

GIT = "import json\nfrom kd.runs.provenance import git_state\nprint(json.dumps(git_state()))"


def test_git_state_outside_a_repository(package):
    alone = {"GIT_CEILING_DIRECTORIES": str(package.parent)}
    assert python(package, GIT, KD_COMMIT="abc", **alone) == {"commit": "abc", "diff": ""}
    program = f"import os\nos.environ.pop('KD_COMMIT', None)\n{GIT}"
    assert python(package, program, **alone) == {"commit": "unknown", "diff": ""}
    assert python(package, program, PATH="/nowhere") == {"commit": "unknown", "diff": ""}


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_git_state_in_a_repository(tmp_path):
    shutil.copytree(ROOT / "kd", tmp_path / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True, capture_output=True)
    clean = python(tmp_path, GIT)
    assert re.fullmatch("[0-9a-f]{40}", clean["commit"])
    assert clean["diff"] == ""
    with (tmp_path / "kd/training/with_data.py").open("a") as file:
        file.write("CHANGED = 1\n")
    changed = python(tmp_path, GIT)
    assert changed["commit"] == clean["commit"]
    assert "+CHANGED = 1" in changed["diff"]
    (tmp_path / "kd/losses/mine.py").write_text("NEW = 1\n")
    assert "+NEW = 1" in python(tmp_path, GIT)["diff"], "a file that git does not know yet"
    (tmp_path / "config").mkdir()
    (tmp_path / "config/schön.yaml").write_bytes("# schön →\n# ".encode() + b"\xff\nuri: https://me:secret@host\n")
    diff = python(tmp_path, GIT, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")["diff"]
    assert {"+# schön →", "+# \\xff", "+NEW = 1", "+uri: https://***@host"} <= set(diff.splitlines())
    assert "secret" not in diff
    given = python(tmp_path, GIT, KD_COMMIT="abc")
    assert given == {"commit": "abc", "diff": ""}, "whoever names the commit vouches for the code"


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_a_repository_that_merely_surrounds_kd_is_not_its_history(tmp_path):
    inside = tmp_path / "home/kd-project"
    shutil.copytree(ROOT / "kd", inside / "kd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "home/notes.txt").write_text("of another project\n")
    name = ["-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "notes.txt"], [*name, "commit", "-qm", "first"]):
        subprocess.run(["git", "-C", str(tmp_path / "home"), *command], check=True, capture_output=True)
    assert python(inside, GIT) == {"commit": "unknown", "diff": ""}, "all of kd would be its diff"


def test_the_record_names_versions():
    names = environment()
    assert names["python"].count(".") == 2
    assert names["torch"][0].isdigit()
    assert names["processor"] not in ("", names["host"])
    assert all(isinstance(value, str) and value for value in names.values())
    assert set(git_state()) == {"commit", "diff"}


# ------------------------------------------------------------------------------------------------------------ imports

IMPORTS = """
import json, sys
import kd.integrations.jobs, kd.reports.publish, kd.runs.gpu_slots, kd.runs.provenance, kd.runtime.run_lock
import kd.settings.validation, kd.studies.claims, kd.studies.status, kd.studies.study
from kd.settings.run import Run
for settings in json.load(sys.stdin):
    kd.runs.provenance.run_code(Run.from_dict(settings))
ROOT = kd.runs.provenance.ROOT
kd.studies.study.load_study(ROOT / "config/config.yaml", ROOT / "workflow/schemas", {})
print(json.dumps([name for name in ("torch", "snakemake", "mlflow", "optuna", "matplotlib") if name in sys.modules]))
"""


def test_settings_studies_and_reports_import_no_heavy_package():
    assert python(ROOT, IMPORTS, json.dumps([run.as_dict() for name, run in runs().items() if name != "own"])) == []
