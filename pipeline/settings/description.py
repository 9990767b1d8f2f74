"""What is known of settings without reading any, and how their values are shown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

ENVIRONMENT_PREFIX = "NIGHTSHIFT_"
MASK = "********"

Plain = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class KnownSetting:
    """One setting. key: dotted. variable: of the environment. default: as the documentation writes it."""

    key: str
    variable: str
    default: str
    description: str
    is_path: bool


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
        )


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
    """A value fit for JSON: a secret masked, a path as text, a list with commas."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return MASK if any(isinstance(one, SecretStr) for one in value) else ", ".join(map(str, value))
    return value if value is None or isinstance(value, str | int | float) else str(value)


def mask_password(url: str) -> str:
    """A database address that may be shown: no password, neither before the host nor among the parameters."""
    address, mark, query = url.partition("?")
    address = re.sub(r"(://[^:/@]*:).*@", rf"\g<1>{MASK}@", address)
    query = re.sub(r"((?:^|&)[^=&]*(?:passw|pwd|secret|key)[^=&]*=)[^&]*", rf"\g<1>{MASK}", query, flags=re.IGNORECASE)
    return address + mark + query


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
