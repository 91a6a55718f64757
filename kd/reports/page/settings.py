"""Settings of runs side by side: those that differ, and those that all have in common."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from kd.reports.page.markup import Html, table

# What the tables name already, per run, and what only says where a file of the user's lay.
NAMED = ("seed", "scale", "model", "kind")
ABSENT = "–"
MOST = 4  # values of one method in a cell, such as one for each pair of networks


def flat(settings: dict[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield each setting as `replay.alpha` and its value as JSON, without those that tables name."""
    for key, value in settings.items():
        if key in NAMED:
            continue
        if key == "teachers" and isinstance(value, list):
            for teacher in value:
                yield from flat(teacher, "teacher.")
        elif isinstance(value, dict):
            yield from flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", json.dumps(value, ensure_ascii=False)


def values(variants: dict[str, list[dict[str, Any]]]) -> dict[str, dict[str, list[str]]]:
    """Return setting -> name of the method -> its values, in the order in which its runs have them.

    variants: name of the method -> records of its runs.
    """
    found: dict[str, dict[str, list[str]]] = {}
    for name, records in variants.items():
        for record in records:
            for key, value in flat(record.get("settings", {})):
                listed = found.setdefault(key, {}).setdefault(name, [])
                if value not in listed:
                    listed.append(value)
    return found


def differing(variants: dict[str, list[dict[str, Any]]]) -> Html | None:
    """Return the table of settings that are not the same for all methods; None where there are none."""
    found, names = values(variants), _names(variants)
    rows = [
        [key, *(_cell(by_name.get(name, [])) for name in names)]
        for key, by_name in found.items()
        if not _is_shared(key, by_name, found)
    ]
    caption = f"{ABSENT}: the method has no such setting" if any(ABSENT in row for row in rows) else ""
    return table(["setting", *names], rows, caption) if rows else None


def shared(variants: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Return the settings that have one value, as rows of a table; with the methods' names where others have none."""
    found, names = values(variants), _names(variants)
    rows = []
    for key, by_name in found.items():
        if _is_shared(key, by_name, found):
            [value] = next(iter(by_name.values()))
            rows.append([key, value if len(by_name) == len(names) else f"{value} (of {', '.join(by_name)})"])
    return rows


def _names(variants: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [name for name, records in variants.items() if records]


def _is_shared(key: str, by_name: dict[str, list[str]], found: dict[str, dict[str, list[str]]]) -> bool:
    """Whether all methods that have a section at all have one value there: a student without a teacher has none."""
    section = key.split(".")[0]
    concerned = {name for other, names in found.items() if other.split(".")[0] == section for name in names}
    return concerned == set(by_name) and len({value for listed in by_name.values() for value in listed}) == 1


def _cell(listed: list[str]) -> str:
    shown = listed if len(listed) <= MOST else [*listed[:MOST], f"{len(listed) - MOST} more"]
    return " / ".join(shown) or ABSENT
