"""What is known of settings without reading any, and how their values are shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from pipeline.core.redaction import MASK, redacted, secrets_in, secrets_of_address

ENVIRONMENT_PREFIX = "NIGHTSHIFT_"

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class KnownSetting:
    """One setting.

    key: dotted. variable: of the environment. default: as the documentation writes it. is_secret: its value is shown
    to nobody.
    """

    key: str
    variable: str
    default: str
    description: str
    is_path: bool
    is_secret: bool


def describe(model: type[BaseModel], prefix: str = "") -> Iterator[KnownSetting]:
    """The settings of a model and of the models in it, in order."""
    for name, field in model.model_fields.items():
        section = section_of(field)
        if section is not None:
            yield from describe(section, f"{prefix}{name}.")
            continue
        key = prefix + name
        yield KnownSetting(
            key=key,
            variable=ENVIRONMENT_PREFIX + key.replace(".", "_").upper(),
            default=_default_text(field),
            description=field.description or "",
            is_path=field.annotation in (Path, Path | None),
            is_secret=SecretStr in _types_in(field.annotation),
        )


def _types_in(annotation: object) -> set[object]:
    """A type, and all types that it is made of."""
    return {annotation}.union(*(_types_in(part) for part in get_args(annotation)))


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a field that holds further settings."""
    annotation = field.annotation
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def value_of(settings: BaseModel, key: str) -> object:
    """The value of a dotted key, as it is."""
    value: object = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def shown(value: object) -> Plain:
    """A value fit for JSON: a secret masked, also one in an address; a path as text, a list with commas."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return MASK if any(isinstance(one, SecretStr) for one in value) else redacted(", ".join(map(str, value)))
    return value if value is None or isinstance(value, int | float) else redacted(str(value))


def secrets_of(value: object) -> Iterator[str]:
    """What of a value is secret."""
    if isinstance(value, tuple):
        for one in value:
            yield from secrets_of(one)
    elif isinstance(value, SecretStr):
        yield from secrets_of_address(value.get_secret_value())
    elif isinstance(value, str):
        yield from secrets_in(value)


def _default_text(field: FieldInfo) -> str:
    extra: Any = field.json_schema_extra
    if isinstance(extra, dict):
        return str(extra["default_text"])
    if field.default is None:
        return "not set"
    if isinstance(field.default, bool):
        return str(field.default).lower()
    if isinstance(field.default, float):
        return f"{field.default:g}"
    if isinstance(field.default, tuple):
        return ", ".join(map(str, field.default)) or "empty"
    return str(field.default) or "empty"
