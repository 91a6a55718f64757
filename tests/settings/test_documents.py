"""config.yaml, its schema and the tables of config/README.md are what kd.settings.shapes says."""

import shutil

import pytest
from settings_cases import ROOT

from kd.settings.documents import CONFIG, README, SCHEMA, documents, main


@pytest.mark.parametrize("name", [CONFIG, SCHEMA, README])
def test_the_documents_are_current(name):
    assert (ROOT / name).read_text() == documents(ROOT)[name], "run: make settings"


def test_what_was_edited_by_hand_is_written_again(tmp_path):
    for name in (CONFIG, SCHEMA, README):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    config = (tmp_path / CONFIG).read_text()
    edited = config.replace("epochs: 240", "epochs: 7").replace("  scratch: {kind: train}", "  alone: {kind: train}")
    (tmp_path / CONFIG).write_text(edited)
    main(tmp_path)
    again = (tmp_path / CONFIG).read_text()
    assert "epochs: 7" not in again
    assert again == config.replace("  scratch: {kind: train}", "  alone: {kind: train}"), "methods are written by hand"
