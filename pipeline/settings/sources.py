"""Where settings are set: nightshift.toml, the environment, the command line.

Each source gives its values under dotted keys, with where each was set; an unknown name is
an error here, a wrong value is left to `loading`.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import SettingsError
from pipeline.settings import wording
from pipeline.settings.description import ENVIRONMENT_PREFIX
from pipeline.settings.fields import known_settings, sections

FILE_NAME = "nightshift.toml"
FILE_VARIABLE = "NIGHTSHIFT_CONFIG"

_SHORT_OPTIONS = {"database_url": "--database", "embedding.model": "--model"}


@dataclass(frozen=True, slots=True)
class Given:
    """One value as it was set.

    origin: short, for a table. place: exact, for an error; it ends the words "set in".
    base: the folder that a relative path starts from.
    """

    value: object
    origin: str
    place: str
    base: Path


def from_file(environ: Mapping[str, str], cwd: Path) -> dict[str, Given]:
    """The values of the settings file; none where there is no file and none was asked for."""
    asked_for = environ.get(FILE_VARIABLE)
    path = cwd / Path(asked_for).expanduser() if asked_for else cwd / FILE_NAME
    name = asked_for or FILE_NAME
    try:
        text = path.read_text(encoding="utf-8")
        tables = tomllib.loads(text)
    except FileNotFoundError as error:
        if not asked_for:
            return {}
        raise SettingsError(FILE_VARIABLE, f"there is no file {path}", "the environment") from error
    except OSError as error:
        if asked_for:
            raise SettingsError(FILE_VARIABLE, f"{path} cannot be read: {error.strerror}", "the environment") from error
        raise SettingsError(name, f"cannot be read: {error.strerror}", str(path)) from error
    except UnicodeDecodeError as error:
        raise SettingsError(name, "is not UTF-8 text", str(path)) from error
    except tomllib.TOMLDecodeError as error:
        what, _, where = str(error).rstrip(")").partition(" (at ")
        raise SettingsError(name, wording.not_toml(what), f"{name}, {where}" if where else name) from error

    found: dict[str, Given] = {}
    for key, value in _flat(tables, name, text).items():
        found[key] = Given(value, origin=name, place=_place(name, text, key), base=path.parent)
    return found


def from_environment(environ: Mapping[str, str], cwd: Path) -> dict[str, Given]:
    """The values of the `NIGHTSHIFT_*` variables; an empty one counts as not set."""
    keys = {known.variable: known.key for known in known_settings()}
    found: dict[str, Given] = {}
    for name, value in environ.items():
        if name == FILE_VARIABLE or not name.upper().startswith(ENVIRONMENT_PREFIX):
            continue
        if name not in keys:
            problem = wording.unknown_variable(name, [*keys, FILE_VARIABLE], ENVIRONMENT_PREFIX)
            raise SettingsError(name, problem, "the environment")
        if value:
            found[keys[name]] = Given(value, origin=name, place=f"the environment variable {name}", base=cwd)
    return found


def from_options(options: Mapping[str, object], cwd: Path) -> dict[str, Given]:
    """The values of command-line options, by dotted key; None is an option that was not given."""
    keys = [known.key for known in known_settings()]
    found: dict[str, Given] = {}
    for key, value in options.items():
        option = _SHORT_OPTIONS.get(key) or "--" + re.sub(r"[._]", "-", key)
        if key not in keys:
            raise SettingsError(key, wording.unknown_key(key, keys, sections()), f"the option {option}")
        if value is not None:
            found[key] = Given(value, origin=f"option {option}", place=f"the option {option}", base=cwd)
    return found


def _flat(tables: Mapping[str, object], name: str, text: str) -> dict[str, object]:
    """Dotted key -> value, for the two levels that settings have."""
    keys = [known.key for known in known_settings()]
    flat: dict[str, object] = {}
    for outer, value in tables.items():
        if outer not in sections():
            values = {outer: value}
        elif isinstance(value, dict):
            values = {f"{outer}.{inner}": inner_value for inner, inner_value in value.items()}
        else:
            raise SettingsError(outer, f"should be a table, not {wording.shown(value)}", _place(name, text, outer))
        for key in values:
            if key not in keys:
                raise SettingsError(key, wording.unknown_key(key, keys, sections()), _place(name, text, key))
        flat |= values
    return flat


def _place(name: str, text: str, key: str) -> str:
    """The file and, where a plain look at it finds the key, the line."""
    line = _line_of(text, key)
    return f"{name}, line {line}" if line else name


def _line_of(text: str, key: str) -> int | None:
    """The line that sets a key, or failing that its table. For messages: it does not read TOML in full."""
    table, of_table = "", None
    outer = key.partition(".")[0]
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[+\s*([\w.-]+)\s*\]", line)
        assigned = re.match(r"\s*([\w.-]+)\s*=", line)
        if header:
            table = header[1]
            if table == key:
                return number
        elif assigned and key == (f"{table}.{assigned[1]}" if table else assigned[1]):
            return number
        if of_table is None and outer in (header and header[1], not table and assigned and assigned[1]):
            of_table = number
    return of_table
