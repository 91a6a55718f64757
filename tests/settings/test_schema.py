"""The schema and the defaults name the same settings."""

from settings_cases import DEFAULTS, SCHEMA

from kd.settings.merging import merge
from kd.settings.validation import validate


def closed_sections(schema, values, path=""):
    """(path, properties, required, keys of config.yaml) of every closed object, from the top down."""
    if schema.get("additionalProperties") is False:
        yield path or "top level", set(schema["properties"]), set(schema["required"]), set(values)
        for key, inner in schema["properties"].items():
            if isinstance(values[key], dict) and "required" in inner:
                yield from closed_sections(inner, values[key], f"{path}.{key}".strip("."))


def test_schema_and_defaults_name_the_same_settings():
    sections = list(closed_sections(SCHEMA, DEFAULTS))
    assert {path for path, *_ in sections} >= {"top level", "dataset", "teacher.training", "distillation.training"}
    for path, properties, required, keys in sections:
        assert properties == keys, path
        assert required <= properties, path


def test_what_is_not_required_has_a_neutral_value_or_a_default_in_the_code():
    optional = {
        f"{path}.{key}" for path, keys, required, _ in closed_sections(SCHEMA, DEFAULTS) for key in keys - required
    }
    training = {
        f"{place}training.{key}"
        for place in ("", "teacher.", "distillation.")
        for key in ("milestones", "gamma", "final_lr")
    }
    names = ("generator", "adversarial", "deepinversion", "cmi", "nayer", "original")
    sources = {f"inversion.{name}" for name in names}
    replay = {f"replay.{key}" for key in ("replacement", "admitted", "initial_priority", "with_replacement")}
    own_teacher = {
        "dataset.channels",
        "dataset.rescale",
        "dataset.mean",
        "dataset.std",
        "dataset.stream",
        "teacher.weights",
    }
    assert optional == training | sources | replay | own_teacher | {"distillation.steps", "distillation.rounds"}


def test_every_object_of_the_schema_is_closed_but_the_named_maps():
    opened = {key for key, value in DEFAULTS.items() if isinstance(value, dict)} - {
        path.split(".")[0] for path, *_ in closed_sections(SCHEMA, DEFAULTS)
    }
    assert opened == {"objective", "methods"}


def test_schema_holds_no_default():
    assert "default" not in {key for key in _keys(SCHEMA) if isinstance(key, str)}


def _keys(value):
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _keys(item)
    elif isinstance(value, list):
        for item in value:
            yield from _keys(item)


def test_defaults_are_valid_with_every_method():
    validate(DEFAULTS, SCHEMA, "config.yaml")
    same_widths = {"student": {"model": DEFAULTS["teacher"]["model"]}}  # some distillers need them
    for override in DEFAULTS["methods"].values():
        validate(merge(DEFAULTS, same_widths, override), SCHEMA, "config.yaml")
