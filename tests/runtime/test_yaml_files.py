"""YAML files that are read, and those that are refused in one line."""

import pytest

from kd.runtime.messages import ConfigError
from kd.runtime.yaml_files import read_yaml


def test_a_yaml_mapping_is_read(tmp_path):
    (tmp_path / "a.yaml").write_text("a: {b: [1, 0.5, true, null, 'é']}\n", "utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"a": {"b": [1, 0.5, True, None, "é"]}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# nothing\n", "is empty"),
        (b"- 1\n- 2\n", "a list"),
        (b"text", "'text' (text)"),
        (b"5", "5 (integer)"),
        (b"a: 1\nb: [1\n", "not valid YAML in line"),
        (b"a: 1\n  b: 2\n", "in line 2"),
        (b"a:\n\t- 1\n", "in line 2"),
        (b"a: *missing\n", "in line 1"),
        (b"a: !!python/object/apply:os.system [id]\n", "in line 1"),
        (b"{[1]: 2}", "not valid YAML"),
        (b"a: \xff\xfe\n", "cannot be read"),
        (b"a: x\x00y\n", "not valid YAML"),
        (b"a: 2020-99-99\n", "not valid YAML"),
    ],
)
def test_what_is_no_mapping_is_refused_in_one_line(tmp_path, content, words):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_yaml(file)
    text = str(caught.value)
    assert text.startswith(f"{file}: ")
    assert words in text
    assert text.isprintable()


def test_a_key_given_twice_is_refused(tmp_path):
    """YAML would silently forget the first: of two `settings:` in a study, the first one's values would be lost."""
    file = tmp_path / "a.yaml"
    file.write_text("a: 1\nb: 2\na: 3\n")
    with pytest.raises(ConfigError, match="'a'"):
        read_yaml(file)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
