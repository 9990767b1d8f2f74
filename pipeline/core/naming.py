"""Which model a name means: a path, a file's name with or without its ending, `hf:`, an alias, or its own name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import PurePath
from typing import TypeVar

from pipeline.core.errors import UsageError

T = TypeVar("T")

Names = Sequence[Sequence[str]]
"""The names of a model, in steps: a name that fits one step is not looked for in the later ones."""


def names_of(path: str, name: str, aliases: Iterable[str] = ()) -> Names:
    """The names of a model. path: of its file or folder; empty where it has none. name: what it calls itself."""
    file = PurePath(path)
    # A download lies at OWNER/REPO[@REVISION]/FILE.
    hub = [f"hf:{'/'.join(file.parts[-length:])}" for length in range(2, 6) if len(file.parts) > length]
    return [
        [*aliases, *([path] if path else [])],
        [file.name, *hub] if path else [],
        [file.name.removesuffix(".gguf")] if path else [],
        [name],
    ]


def matching(wanted: str, models: Sequence[T], names: Callable[[T], Names]) -> list[T]:
    """The models that `wanted` may mean, with capital letters or without, by the first step that has any."""
    known = [(model, names(model)) for model in models]
    for same in (str, str.casefold):
        for step in range(max((len(each) for _, each in known), default=0)):
            found = [
                model
                for model, each in known
                if wanted and step < len(each) and same(wanted) in [same(name) for name in each[step]]
            ]
            if found:
                return found
    return []


def find_named(
    wanted: str, models: Sequence[T], names: Callable[[T], Names], described: Callable[[T], str], *, ask: str = ""
) -> T:
    """The model that `wanted` means. described: one such that it is told from others. ask: where more is to be learnt.

    Raises UsageError where it means none, which lists those that there are, or more than one, which says which.
    """
    found = matching(wanted, models, names)
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"{wanted}: could be more than one model: {', '.join(map(described, found))}")
    there = ", ".join(map(described, models)) or "none"
    raise UsageError(f"{wanted}: no such model here; there are: {there}{f' ({ask})' if ask else ''}")
