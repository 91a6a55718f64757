"""Settings given on the command line, of Snakemake or of kd. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kd.runtime.messages import ConfigError, shown
from kd.runtime.yaml_files import parse_yaml

if TYPE_CHECKING:
    from kd.studies.study import Study


def settings_from(items: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE as Snakemake's --config does, values as YAML. Raises ConfigError."""
    chosen: dict[str, Any] = {}
    for item in items:
        key, _, value = item.partition("=")
        if not value:
            raise ConfigError(f"--config: got {item!r}; needed: KEY=VALUE")
        if key in chosen:
            raise ConfigError(f"--config {key}: given twice, last with {shown(value)}; write it once")
        try:
            chosen[key] = parse_yaml(value)
        except ConfigError as error:
            raise ConfigError(f"--config {key}: got {shown(value)}; {error}") from None
    return chosen


def command_for(settings: dict[str, Any], command: str, option: str = "") -> str:
    """Return a command of kd for the study of these merged settings, as it was asked for; `option` comes before its
    name, such as `--study`.
    """
    changes = [] if settings["results"] == "results" else [f"results={settings['results']}"]
    changes += ["quick=true"] if settings.get("quick") is True else []
    name = shlex.quote(settings["study"])
    return " ".join(
        filter(None, ["python -m kd", command, option, name, changes and f"--config {shlex.join(changes)}"])
    )


def require_one_config(arguments: Sequence[str]) -> None:
    """Raise ConfigError where Snakemake's arguments have --config more than once: it forgets all but the last one."""
    places = [at for at, item in enumerate(arguments) if item.startswith("-C") or item.split("=")[0] == "--config"]
    if len(places) > 1:
        first = arguments[places[0] + 1 : places[0] + 2] if arguments[places[0]] in ("-C", "--config") else []
        lost = f", so that {shown(first[0])} would be forgotten" if first else ""
        raise ConfigError(
            f"--config: given {len(places)} times{lost}; write all after one, as in --config study=demo quick=true"
        )


def asks_for_search(arguments: Sequence[str]) -> bool:
    """Return whether Snakemake's arguments name its target `tune`, or a file of a search."""
    return any(item == "tune" or ("/tune/" in item and "=" not in item) for item in arguments)


def require_searches(study: Study, arguments: Sequence[str]) -> None:
    """Raise ConfigError where a search is asked for and the study has none."""
    if "tune" in arguments and not study.tunings:
        raise ConfigError(
            f"tune: study {study.name} has no `tune:` section; config/README.md shows one, and so do the "
            "studies demo and tune-ssdkd"
        )


def retyped(value: Any) -> Any:
    """Read text as YAML again: of {epochs: 5} in --config Snakemake makes {"epochs": "5"}."""
    if isinstance(value, dict):
        return {key: retyped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [retyped(item) for item in value]
    try:
        return parse_yaml(value) if isinstance(value, str) else value
    except ConfigError:
        return value
