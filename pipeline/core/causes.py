"""Reasons that differ in a name or a number only, as one cause: a thousand like failures are one line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST_CAUSES = 200
"""Kept apart; what comes after is counted together, so that hostile files cannot fill the memory with reasons."""

EXAMPLES = 3
LONGEST = 200
OTHER = "other reasons"

_QUOTED = re.compile(r"'[^'\n]*'|\"[^\"\n]*\"|`[^`\n]*`|«[^»\n]*»|“[^”\n]*”")
_PATH = re.compile(r"(?:(?<=\s)|(?<=^)|(?<=\())~?(?:/[^\s/,;:()]+)+/?")
_HEX = re.compile(r"\b(?:0x[0-9a-fA-F]+|(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{8,})\b")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SPACE = re.compile(r"\s+")


def normalise(reason: str) -> str:
    """What a reason has in common with others: quoted text, paths, hashes and numbers are left open.

    Of the first line, as one line of at most 200 characters. The same again when it is given back its result.
    """
    line = next((line for line in reason.splitlines() if line.strip()), "")
    for pattern, instead in ((_QUOTED, "…"), (_PATH, "…"), (_HEX, "…"), (_NUMBER, "N")):
        line = pattern.sub(instead, line)
    return _SPACE.sub(" ", line).strip()[:LONGEST].rstrip() or "no reason is known"


@dataclass(slots=True)
class Cause:
    """Documents that ended alike. reason: of the first, in full. examples: paths of the first few."""

    state: str
    cause: str
    reason: str
    count: int = 0
    examples: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Causes:
    """Counts failures by their cause as they come."""

    _causes: dict[tuple[str, str], Cause] = field(default_factory=dict)

    def add(self, path: str, state: str, reason: str, count: int = 1) -> None:
        """So many documents, of which `path` is one, ended in `state` for this reason."""
        key = (state, normalise(reason))
        if key not in self._causes and len(self._causes) >= MOST_CAUSES:
            key = (state, OTHER)
        cause = self._causes.get(key)
        if cause is None:
            cause = self._causes[key] = Cause(state, key[1], reason)
        cause.count += count
        if len(cause.examples) < EXAMPLES:
            cause.examples.append(path)

    def most_first(self) -> list[Cause]:
        """All causes, those of most documents first."""
        return sorted(self._causes.values(), key=lambda cause: (-cause.count, cause.state, cause.cause))


def group(failures: Iterable[tuple[str, str, str]]) -> list[Cause]:
    """Failures as (path, state, reason), by cause."""
    causes = Causes()
    for path, state, reason in failures:
        causes.add(path, state, reason)
    return causes.most_first()
