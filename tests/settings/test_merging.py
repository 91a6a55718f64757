"""The rule of merging."""

import copy

from kd.settings.merging import merge


def test_mappings_merge_and_everything_else_is_replaced():
    base = {"a": {"b": 1, "c": [1, 2], "d": {"e": 1}}, "f": 1, "g": {"h": 1}}
    first = {"a": {"c": [3], "d": {"i": 2}}, "f": {"j": 1}, "g": None}
    last = {"a": {"b": 2}, "k": {"l": []}}
    assert merge(base, first, last) == {
        "a": {"b": 2, "c": [3], "d": {"e": 1, "i": 2}},
        "f": {"j": 1},
        "g": None,
        "k": {"l": []},
    }
    assert merge(base) == base
    assert merge({"a": {"b": 1}}, {"a": {}}) == {"a": {"b": 1}}


def test_merging_changes_nothing_that_is_given():
    given = [{"a": {"b": [1], "c": {"d": 1}}}, {"a": {"e": {"f": [2]}}}, {"a": {"e": {"f": [3]}, "c": {"d": 2}}}]
    before = copy.deepcopy(given)
    merged = merge(*given)
    assert given == before
    merged["a"]["b"].append(9)
    merged["a"]["c"]["d"] = 9
    merged["a"]["e"]["f"].append(9)
    assert given == before
