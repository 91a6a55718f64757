"""config/config.yaml, its JSON schema and the tables of config/README.md, made from kd.settings.shapes.

`python -m kd.settings.documents` writes them; a test asks that they are current. The methods in config.yaml and the
text around the tables are written by hand and stay.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from kd.registry import keywords
from kd.registry.losses import LOSSES
from kd.registry.setting import Setting
from kd.registry.sources import SOURCES, source_defaults, source_settings
from kd.settings import shapes
from kd.settings.schema import settings_schema

CONFIG, SCHEMA, README = "config/config.yaml", "workflow/schemas/config.schema.yaml", "config/README.md"
METHODS = "# --- methods, by name"  # the line above which config.yaml is made
TABLES = {"settings": "<!-- settings -->", "losses": "<!-- losses -->", "end": "<!-- end -->"}
HEAD = """\
# Every setting and its default. A study (config/studies/NAME.yaml) overrides them under `settings`, per method, per
# ablation or per experiment; `--config key=value` on the command line comes last. Mappings merge, everything else is
# replaced, and the result is checked before any job starts. Write 0.001, not 1e-3: YAML reads the latter as text.
# Down to the methods this file is made from kd/settings/shapes.py and the registry (`make settings`).
"""


def documents(project: Path) -> dict[str, str]:
    """Return the three files as they should be: path below the project -> text."""
    config, readme = ((project / name).read_text(encoding="utf-8") for name in (CONFIG, README))
    schema = "# Made from kd/settings/shapes.py and kd/registry/sources.py (`make settings`): edit those.\n"
    schema += yaml.safe_dump(settings_schema(), sort_keys=False, width=120)
    return {
        CONFIG: HEAD + "\n" + "\n".join(_yaml(shapes.Settings, {})) + "\n\n" + config[config.index(METHODS) :],
        SCHEMA: schema,
        README: _between(_between(readme, "settings", _settings_tables()), "losses", _losses_table()),
    }


def _between(text: str, name: str, table: str) -> str:
    """Return the text with what stands between a table's marks replaced."""
    before, rest = text.split(TABLES[name] + "\n", 1)
    after = rest[rest.index(TABLES["end"]) :]
    return f"{before}{TABLES[name]}\n{table}{after}"


def _yaml(shape: type, defaults: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Yield config.yaml's lines of a section."""
    hints, after_section = get_type_hints(shape), False
    for item in fields(shape):
        if item.name == "methods":
            continue
        if "setting" in item.metadata:
            if not indent and after_section:
                yield ""
            after_section = False
            value = defaults.get(item.name, item.metadata["default"])
            yield _line(indent, item.name, value, item.metadata["setting"])
            continue
        if not indent:
            yield ""
        after_section = True
        yield f"{indent}{item.name}: # {item.metadata['says']}"
        if item.name == "objective":
            yield f"{indent}  ce: {{weight: 1.0}}"
        elif item.name == "inversion":
            yield from _sources(indent + "  ")
        elif is_dataclass(hints[item.name]):
            yield from _yaml(hints[item.name], item.metadata["defaults"], indent + "  ")


def _sources(indent: str) -> Iterator[str]:
    yield f"{indent}source: {next(iter(SOURCES))} # {' or '.join(SOURCES)}"
    for name, entry in SOURCES.items():
        yield f"{indent}{name}: {'' if entry.settings else '{} '}# {entry.says}"
        for key, value in source_defaults(name).items():
            yield _line(indent + "  ", key, value, entry.settings[key])


def _line(indent: str, key: str, value: Any, setting: Setting) -> str:
    return f"{indent}{key}: {_written(value)} # {setting.says}"


def _written(value: Any) -> str:
    """Return a value as YAML writes it, numbers without an exponent."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, float):
        return f"{value:.10f}".rstrip("0") + "0" * f"{value:.10f}".rstrip("0").endswith(".")
    return yaml.safe_dump(value).split("\n")[0]


# -------------------------------------------------------------------------------------------------------- README.md


def _settings_tables() -> str:
    """Return a table of all settings: key, default, what is allowed, meaning. A schedule's keys stand there once."""
    rows = list(_rows(shapes.Settings, ""))
    training = list(_rows(shapes.Training, ""))
    text = (
        _table(rows) + "\n`training` (with data), `teacher.training` and `distillation.training` (data-free) have the"
    )
    text += " same keys:\n\n" + _table(training)
    return text


def _rows(shape: type, prefix: str) -> Iterator[tuple[str, Any, str, Setting]]:
    hints = get_type_hints(shape)
    for item in fields(shape):
        key = prefix + item.name
        if key == "inversion":
            says = "; ".join(f"`{name}`: {entry.says}" for name, entry in SOURCES.items())
            names = f"Literal[{', '.join(map(repr, SOURCES))}]"
            yield "inversion.source", next(iter(SOURCES)), names, Setting(f"what fills the replay buffer. {says}")
            for name, entry in SOURCES.items():
                for setting, annotation in source_settings(name).items():
                    default = source_defaults(name)[setting]
                    yield f"inversion.{name}.{setting}", default, annotation, entry.settings[setting]
        elif "setting" in item.metadata:
            yield key, item.metadata["default"], item.type, item.metadata["setting"]
        elif is_dataclass(hints[item.name]) and hints[item.name] is not shapes.Training:
            yield from _rows(hints[item.name], f"{key}.")


def _table(rows: list[tuple[str, Any, str, Setting]]) -> str:
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, default, annotation, setting in rows:
        lines.append(f"| `{key}` | `{_written(default)}` | {_allowed(annotation, setting)} | {setting.says} |")
    return "\n".join(lines) + "\n"


def _allowed(annotation: str, setting: Setting) -> str:
    if annotation.startswith("Literal["):
        return ", ".join(f"`{part.strip()[1:-1]}`" for part in annotation[8:-1].split(","))
    words = {"int": "integer", "float": "number", "bool": "`true`, `false`", "str": "text", "None": "`null`"}
    many = {"int": "list of integers", "float": "list of numbers", "str": "list of names"}
    kinds = [words.get(part) or many[part[6:].split(",")[0]] for part in annotation.split(" | ")]
    return ", ".join(filter(None, [" or ".join(kinds), setting.allowed]))


def _losses_table() -> str:
    """Return a table of the losses' settings below `objective.<loss>`."""
    lines = ["| loss | setting | default | allowed | meaning |", "|---|---|---|---|---|"]
    for name, entry in LOSSES.items():
        annotations, defaults = keywords.annotations(entry.code), keywords.defaults(entry.code)
        for key, annotation in annotations.items():
            setting, default = entry.settings[key], _written(defaults[key])
            lines.append(f"| `{name}` | `{key}` | `{default}` | {_allowed(annotation, setting)} | {setting.says} |")
        if not annotations:
            lines.append(f"| `{name}` | | | | |")
    return "\n".join(lines) + "\n"


def main(project: Path) -> None:
    """Write the files that differ."""
    for name, text in documents(project).items():
        if (project / name).read_text(encoding="utf-8") != text:
            (project / name).write_text(text, encoding="utf-8")
            print(f"written: {name}")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
