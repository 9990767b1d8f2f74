"""The processes that belong to a child: its group and session, its descendants, and whatever bears its mark.

A server may leave processes behind that changed their group or lost their parent. What a process
was started with stays readable for as long as it lives, so a mark in its environment finds them.
"""

from __future__ import annotations

import asyncio
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterable

MARK = "NIGHTSHIFT_CHILD"
"""The environment variable that every child and all its descendants carry."""

GONE_POLL = 0.02


def family(leader: int | None, mark: str | None = None, *, since: float = 0.0) -> set[psutil.Process]:
    """Every living process of a child, the child itself included.

    leader: the child's process id, which is also that of its group and session; None where that
    number may belong to somebody else by now. mark: the value of `MARK` in its environment.
    since: what was created before (seconds since the epoch) is no member, whatever it says.
    """
    found: dict[int, psutil.Process] = {}
    for pid in psutil.pids():
        if (leader is not None and _led_by(pid, leader)) or (mark is not None and _bears(pid, mark)):
            _add(found, pid)
    if leader is not None and leader in found:
        with suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in found[leader].children(recursive=True)}
    return {process for process in found.values() if _lives(process) and process.create_time() >= since}


async def end(processes: Iterable[psutil.Process], deadline: float = 5.0) -> set[psutil.Process]:
    """SIGKILL them, and wait up to `deadline` seconds until they are gone; returns those that are not.

    A process whose number belongs to another by now is not touched.
    """
    left = set(processes)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    until = time.monotonic() + deadline
    while left and time.monotonic() < until:
        left = {process for process in left if _lives(process)}
        await asyncio.sleep(GONE_POLL if left else 0)
    return left


def signs_of_life(leader: int, mark: str | None = None) -> int:
    """A number that grows while a child reads from disk or fills its memory, in megabytes.

    A server that maps its weights says nothing for a long time, and is loading all the same.
    Processor time is no such sign: a process that hangs may spin.
    """
    total = 0
    for process in family(leader, mark):
        try:
            total += process.memory_info().rss
            total += process.io_counters().read_bytes
        except (psutil.Error, AttributeError):
            continue
    return total >> 20


def _led_by(pid: int, leader: int) -> bool:
    try:
        return pid == leader or os.getsid(pid) == leader or os.getpgid(pid) == leader
    except (ProcessLookupError, PermissionError):
        return False


def _bears(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")


def _add(found: dict[int, psutil.Process], pid: int) -> None:
    try:
        found[pid] = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
