"""Which children this process has, on disk, so that the next one finds those that a kill left behind.

The file holds one JSON object a line and is replaced as a whole. A child and all that it starts carry
a mark in their environment; process ids are used again by the system, and are believed together with
the birth of the process only (`family.birth`).
"""

from __future__ import annotations

import json
import os
import threading
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import psutil
import structlog

from pipeline.backends.family import began_since_boot, birth, end, family, is_alive
from pipeline.core.errors import BackendStartFailed

if TYPE_CHECKING:
    from pathlib import Path

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Child:
    """A child and who owns it. pgid is that of its session too.

    create_time, owner_create_time: their births; times of creation in a file of an earlier version.
    """

    pid: int
    create_time: float
    pgid: int
    argv0: str
    mark: str
    owner_pid: int
    owner_create_time: float


@dataclass(frozen=True, slots=True)
class Orphan:
    """A process that an earlier owner left. ended: whether it is gone now."""

    pid: int
    argv0: str
    ended: bool


class ChildRegistry:
    """The children of this process, in the file at `path`.

    `end_orphans` first, before the first child: it takes over a file that a dead process left.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writing = threading.Lock()
        self._me = (os.getpid(), birth(os.getpid()) or 0.0)

    def add(self, pid: int, argv0: str, mark: str) -> None:
        """Note a child, and the `mark` that it carries. One that is gone already is no error."""
        born = birth(pid)
        if born is None:
            return
        with self._writing:
            self._write([*self._read(), Child(pid, born, pid, argv0, mark, *self._me)])

    def remove(self, pid: int) -> None:
        """Forget a child that is gone with all that it started."""
        with self._writing:
            self._rewrite([child for child in self._read() if (child.pid, child.owner_pid) != (pid, self._me[0])])

    async def end_orphans(self) -> list[Orphan]:
        """Kill what dead owners left, and forget it; returns what was found. Children of a living owner stay."""
        found: list[Orphan] = []
        kept: list[Child] = []
        for child in self._read():
            if is_alive(child.owner_pid, child.owner_create_time):
                kept.append(child)
                continue
            if not began_since_boot(child.create_time):
                continue
            members = family(_number(child), child.mark)
            left = await end(members)
            found += [Orphan(one.pid, child.argv0, ended=one not in left) for one in members]
            if left:
                kept.append(child)
        with self._writing:
            self._rewrite(kept)
        if found:
            log.warning("An earlier process left children, which were ended", pids=[orphan.pid for orphan in found])
        return found

    def _read(self) -> list[Child]:
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        children = []
        for line in lines:
            try:
                children.append(Child(**json.loads(line)))
            except (ValueError, TypeError):
                log.warning("A line of the list of children makes no sense and is dropped", path=str(self._path))
        return children

    def _rewrite(self, children: list[Child]) -> None:
        """Write the list without those that are gone. Where that fails they stay on it, which does no harm."""
        try:
            self._write(children)
        except BackendStartFailed as error:
            log.warning("The list of children cannot be written", error=str(error.__cause__))

    def _write(self, children: list[Child]) -> None:
        new = self._path.with_name(f"{self._path.name}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text("".join(json.dumps(asdict(child)) + "\n" for child in children), encoding="utf-8")
            new.replace(self._path)
        except OSError as error:
            raise BackendStartFailed(
                f"no model server is started where {self._path}, which names it to whoever comes after a crash, "
                f"cannot be written: {error.strerror}"
            ) from error


def _number(child: Child) -> int | None:
    """The child's process id, unless it belongs to another process now."""
    if psutil.pid_exists(child.pid) and not is_alive(child.pid, child.create_time):
        return None
    return child.pid
