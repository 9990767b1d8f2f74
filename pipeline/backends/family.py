"""Which process is which: what tells one from a later one with the same pid, and which belong to a child.

A process is known by its pid and its birth (`birth`), a number that no step of the clock changes.

To a child belong its group and session, its descendants, and whatever bears its mark: a server may leave processes
behind that changed their group or lost their parent. What a process was started with stays readable for as long as it
lives, so a mark in its environment finds them.
"""

from __future__ import annotations

import asyncio
import functools
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

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TICKS = 2.0**36
"""More than a kernel counts in twenty years, a hundred a second."""

_CREATED_WITHIN = 1.0
"""Seconds by which two readings of one time of creation may differ: the kernel corrects the boot time a little."""


def birth(pid: int) -> float | None:
    """When a living process began, so that no later one with its pid has the same number; None where none lives.

    A zombie is not alive. On Linux the number is negative: it holds the boot and the kernel's ticks since then, which
    do not move with the clock. Elsewhere it is the time of creation, in seconds since 1970.
    """
    boot = _boot()
    if boot is None:
        return _created(pid)
    try:
        state, *fields = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
        )
    except OSError:
        return None
    # What follows the name is the third field of proc(5); the start is the 22nd.
    return None if state in "ZXx" else -(boot * _TICKS + int(fields[18]))


def is_alive(pid: int, born: float) -> bool:
    """Whether the process that had this pid and this `birth` lives. On Linux too a time of creation will do."""
    if born < 0:
        return birth(pid) == born
    created = _created(pid)
    return created is not None and abs(created - born) < _CREATED_WITHIN


def began_since_boot(born: float) -> bool:
    """Whether a process with this `birth` began after the system did: nothing of an earlier one is left."""
    if born < 0:
        return _boot() == -born // _TICKS
    return born > psutil.boot_time() - _CREATED_WITHIN


def family(leader: int | None, mark: str | None = None) -> set[psutil.Process]:
    """Every living process of a child, the child itself included.

    leader: the child's process id, which is also that of its group and session; None where that
    number may belong to somebody else by now. mark: the value of `MARK` in its environment.
    """
    found: dict[int, psutil.Process] = {}
    for pid in psutil.pids():
        if (leader is not None and _led_by(pid, leader)) or (mark is not None and _bears(pid, mark)):
            _add(found, pid)
    if leader is not None and leader in found:
        with suppress(psutil.NoSuchProcess):
            found |= {child.pid: child for child in found[leader].children(recursive=True)}
    return {process for process in found.values() if _lives(process)}


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


@functools.cache
def _boot() -> int | None:
    """Sixteen bits of what the system calls this boot; None where it does not say."""
    try:
        return int(_BOOT_ID.read_text(encoding="ascii")[:4], 16)
    except (OSError, ValueError):
        return None


def _created(pid: int) -> float | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except psutil.Error:
        return None


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
