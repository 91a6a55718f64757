"""Names as parts of paths."""

import pytest

from kd.settings.run import slug

HOSTILE = [
    " ",
    "a b",
    "a  b",
    " a b",
    "a;b",
    "a'b",
    'a"b',
    "a`b",
    "$(rm -rf)",
    "${HOME}",
    "a|b",
    "a&b",
    ".",
    "..",
    "...",
    "../x",
    "../../etc/passwd",
    "/abs",
    "a/b",
    "a\\b",
    "a:b",
    "a.b",
    ".a.b",
    "a\nb",
    "a\x00b",
    "a\tb",
    "-rf",
    "é",
    "e\u0301",
    "мир",
    "日本",
    "٣",
    "*",
    "?",
    "{a}",
    "~",
    "~root",
    "a" * 80,
    "a" * 81,
    "a" * 300,
    "a" * 299 + "b",
    "é" * 300,
    "torchvision:resnet18",
    "torchvision.resnet18",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_becomes_one_safe_part_of_a_path(name):
    safe = slug(name)
    assert safe not in ("", ".", "..")
    assert len(safe.encode()) <= 80
    assert set(safe) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")


def test_an_empty_name_becomes_a_part_of_a_path():
    assert slug("")


def test_different_names_stay_different():
    assert len({slug(name) for name in HOSTILE}) == len(set(HOSTILE))


def test_plain_names_stay_as_they_are():
    for name in ("wrn_16_2", "crd-kd", "a.b", "A" * 80):
        assert slug(name) == name
