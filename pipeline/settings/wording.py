"""What is wrong with a setting, in plain words. Knows no setting by name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pipeline.core.redaction import redacted

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_parsing_size": "a smaller number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "less than {lt:g}",
    "less_than_equal": "at most {le:g}",
}
_LONGEST = 60


def problem(kind: str, message: str, context: Mapping[str, Any], value: object, *, secret: bool) -> str:
    """One of pydantic's errors as half a sentence; a secret's value is not repeated.

    kind, message, context, value: `type`, `msg`, `ctx` and `input` of the error.
    """
    if kind in ("string_too_short", "too_short"):
        return "should not be empty"
    if kind == "literal_error":
        expected = "should be " + str(context["expected"]).replace("''", "empty").replace("'", '"')
    elif kind in _EXPECTED:
        expected = "should be " + _EXPECTED[kind].format(**context)
    else:
        expected = message.replace("Input should", "should").removeprefix("Value error, ")
    return expected if secret else f"{expected}, not {shown(value)}"


def shown(value: object) -> str:
    """A value as TOML would write it, on one line and not too long."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    text = redacted(str(value))
    return json.dumps(text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…", ensure_ascii=False)


def unknown_key(key: str, keys: Iterable[str], sections: Iterable[str]) -> str:
    """That a dotted key is unknown, with the one that was probably meant.

    A misspelt name in the right table comes first, then the right name in another table.
    """
    table, _, name = key.rpartition(".")
    keys = list(keys)
    names = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == table}
    tables = [] if table else list(sections)
    near = get_close_matches(name, [*names, *tables], 1)
    if near:
        return _unknown("key", names.get(near[0], near[0]))
    elsewhere = [known for known in keys if known.rpartition(".")[2] == name] or get_close_matches(key, keys, 1, 0.8)
    return _unknown("key", elsewhere[0] if elsewhere else None)


def unknown_variable(name: str, variables: Iterable[str], prefix: str) -> str:
    """That an environment variable is unknown, with the one that was probably meant; `prefix` begins all of them."""
    # Compared without what all of them begin with, or else any short name is like any other.
    ends = {known.removeprefix(prefix): known for known in variables}
    near = get_close_matches(name.upper().removeprefix(prefix), list(ends), 1, 0.75)
    return _unknown("variable", ends[near[0]] if near else None)


def not_toml(what: str) -> str:
    """What the parser has against a file, in words of those who write files."""
    if "overwrite" in what or "twice" in what or what.startswith("Duplicate"):
        return "sets the same key or table twice"
    return f"is not TOML: {what}"


def _unknown(what: str, meant: str | None) -> str:
    return f'unknown {what}, did you mean "{meant}"?' if meant else f"unknown {what}"
