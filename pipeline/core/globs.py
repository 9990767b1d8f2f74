r"""Globs as in .gitignore, compiled once to one regular expression.

    *.tmp        a name, in any folder           drafts/      a folder, with all that is below it
    /a.pdf       only at the top of the source   a/b.pdf      a slash inside counts from the top as well
    a/**/b.pdf   any number of folders between   **/x         the same as x
    ? [a-f] [!a] one character, never a slash    \*           the character itself

What matches a folder matches everything below it. Case counts, but not in the suffix: `*.pdf` is `X.PDF` too.
There is no `!pattern`: what is wanted is an include glob.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_SUFFIX = re.compile(r"\.[A-Za-z0-9]+\Z")
_CLASS_END = re.compile(r"\]")


@dataclass(frozen=True, slots=True)
class PathFilter:
    """Which paths of a source are wanted: those that an include glob matches (none: all), but for the excluded ones.

    excluded_files: of `excluded` what may match a file and not the folders that it is in.
    """

    included: re.Pattern[str] | None = None
    excluded: re.Pattern[str] | None = None
    excluded_files: re.Pattern[str] | None = None

    def wants(self, path: str) -> bool:
        """Whether the file at `path` (relative to the source, with `/`) is wanted."""
        return self._includes(path) and not _matches(self.excluded, path)

    def wants_file(self, path: str) -> bool:
        """The same, of a file in a folder of which `wants_below` is known to be true."""
        return self._includes(path) and not _matches(self.excluded_files, path)

    def wants_below(self, folder: str) -> bool:
        """Whether anything below `folder` may be wanted: a folder that is excluded need not be looked into."""
        return not _matches(self.excluded, folder + "/")

    def _includes(self, path: str) -> bool:
        return self.included is None or _matches(self.included, path)


def path_filter(include: Sequence[str] = (), exclude: Sequence[str] = ()) -> PathFilter:
    """Raises ValueError for a glob that makes no sense, and says which."""
    of_files = [glob for glob in exclude if not glob.endswith("/")]
    return PathFilter(compile_globs(include), compile_globs(exclude), compile_globs(of_files))


def compile_globs(globs: Sequence[str]) -> re.Pattern[str] | None:
    """An expression whose `fullmatch` is whether any of these globs matches; None for no globs at all.

    Asked about a folder, it wants the path with a slash at its end. Raises ValueError.
    """
    if not globs:
        return None
    return re.compile("|".join(f"(?:{_expression(glob)})" for glob in globs), re.DOTALL)


def _matches(globs: re.Pattern[str] | None, path: str) -> bool:
    return globs is not None and globs.fullmatch(_composed(path)) is not None


def _composed(path: str) -> str:
    # Some systems store an accent as a character of its own; nobody types globs like that.
    return path if path.isascii() else unicodedata.normalize("NFC", path)


def _expression(glob: str) -> str:
    text = _composed(glob)
    folder_only, text = text.endswith("/"), text.removesuffix("/")
    anchored, text = "/" in text, text.removeprefix("/")
    parts = text.split("/")
    if text.startswith("!"):
        raise ValueError(f'should not begin with "!" ({glob}): name what is wanted in sources.include')
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"should be a path below the source, without empty or dotted parts ({glob})")
    # Between two `**` the first place that fits is as good as any later one; to look for no other keeps it linear.
    sections = [list(section) for is_gap, section in itertools.groupby(parts, "**".__eq__) if not is_gap]
    starts_anywhere, ends_anywhere = not anchored or parts[0] == "**", parts[-1] == "**"
    found = ""
    for i, section in enumerate(sections):
        is_last = i == len(sections) - 1 and not ends_anywhere
        names = "/".join(_name(part, glob, is_last=is_last and part is section[-1]) for part in section)
        names += r"(?=/|\Z)" if is_last else "/"
        found += f"(?>(?:[^/]+/)*?{names})" if i or starts_anywhere else names
    if ends_anywhere:
        return found + (".+/.*" if folder_only else ".+")
    return found + ("/.*" if folder_only else "(?:/.*)?")


def _name(part: str, glob: str, *, is_last: bool) -> str:
    """One name between slashes. What follows a star is looked for once, as near as it is, so that nothing explodes."""
    suffix = _SUFFIX.search(part) if is_last else None
    stem, tail = (part[: suffix.start()], suffix[0]) if suffix and not part.endswith("\\" + suffix[0]) else (part, "")
    runs: list[str] = [""]
    i = 0
    while i < len(stem):
        character = stem[i]
        i += 1
        if character == "*":
            if len(runs) == 1 or runs[-1]:
                runs.append("")
        elif character == "?":
            runs[-1] += "[^/]"
        elif character == "[":
            expression, i = _class(stem, i, glob)
            runs[-1] += expression
        elif character == "\\":
            if i == len(stem):
                raise ValueError(f"should not end with a backslash ({glob})")
            runs[-1] += re.escape(stem[i])
            i += 1
        else:
            runs[-1] += re.escape(character)
    ending = f"(?i:{re.escape(tail)})" if tail else ""
    if len(runs) == 1:
        return runs[0] + ending
    first, *between, final = runs
    middle = "".join(f"(?>[^/]*?{run})" for run in between)
    return f"(?=[^/]){first}{middle}[^/]*{final}{ending}"


def _class(text: str, start: int, glob: str) -> tuple[str, int]:
    """A character class whose `[` is just before `start`, and where what follows it begins."""
    negated = text[start : start + 1] in ("!", "^")
    begin = start + negated
    end = _CLASS_END.search(text, begin + 1)  # a bracket that comes first is one of the characters
    if end is None:
        raise ValueError(f'should have a "]" for each "[" ({glob})')
    members = re.sub(r"([\\\[\]^&~|])", r"\\\1", text[begin : end.start()])
    expression = f"(?!/)[{'^' if negated else ''}{members}]"
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"holds a range that cannot be ({glob})") from error
    return expression, end.end()
