"""What the losses' settings may be. Imports no torch: validation asks before any job starts, the losses ask, too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from kd.runtime.messages import ConfigError

Rule = tuple[str, str, Callable[[dict[str, Any]], bool]]  # a setting, what it must be, whether a loss's settings obey


def _at_least(bound: int, *keys: str) -> list[Rule]:
    return [(key, f"at least {bound}", lambda settings, key=key: settings[key] >= bound) for key in keys]


def _above_0(*keys: str) -> list[Rule]:
    return [(key, "above 0", lambda settings, key=key: settings[key] > 0) for key in keys]


RULES: dict[str, list[Rule]] = {
    "kd": _above_0("temperature"),
    "dkd": [*_above_0("temperature"), *_at_least(0, "alpha", "beta")],
    "dist": [*_above_0("temperature"), *_at_least(0, "beta", "gamma")],
    "crd": [
        *_at_least(1, "feat_dim", "negatives"),
        *_above_0("tau"),
        ("momentum", "at least 0 and below 1", lambda settings: 0 <= settings["momentum"] < 1),
        # other indices may share the class: a relaxed positive could be one of them
        ("positive", "exact when negatives_from is other_indices", lambda settings: _exact(settings, "negatives_from")),
        # a queue holds no embedding of a given sample
        ("positive", "exact when memory is queue", lambda settings: _exact(settings, "memory")),
    ],
    "rkd": _at_least(0, "distance_weight", "angle_weight"),
    "cc": _at_least(1, "feat_dim"),
    "fitnet": _at_least(0, "layer"),
    "at": _at_least(1, "p"),
    "vid": [
        *_above_0("eps"),
        ("init_pred_var", "above eps", lambda settings: settings["init_pred_var"] > settings["eps"]),
    ],
    "kdsvd": _at_least(1, "k"),
    "reviewkd": _at_least(1, "max_mid_width"),
    "simkd": _at_least(1, "factor"),
    "ab": [*_at_least(0, "first_epochs"), *_above_0("margin")],
    "ft": [*_at_least(0, "first_epochs"), *_above_0("first_lr", "factor_rate")],
    "fsp": _at_least(0, "first_epochs"),
}


def _exact(settings: dict[str, Any], other: str) -> bool:
    return settings["positive"] != "relax" or settings[other] not in ("other_indices", "queue")


def faults(loss: str, settings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(key, what it must be) of what is out of range; `settings` are all of the loss's, of the types it takes."""
    for key, wanted, obeyed in RULES.get(loss, ()):
        if not obeyed(settings):
            yield key, wanted


def require(loss: str, **settings: Any) -> None:
    """Refuse settings out of range; all that the loss's rules name are to be given. Raises ConfigError."""
    for key, wanted in faults(loss, settings):
        raise ConfigError(f"{loss}: {key} must be {wanted}; got {settings[key]!r}")
