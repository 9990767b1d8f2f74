"""A supervised child process: a server of any kind that this process starts, watches and ends.

It runs in a session and process group of its own; its standard input is a pipe that stays open
as long as this process lives; its standard error goes to a log of bounded size. Knows nothing
of models.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import psutil
import structlog

from pipeline.backends.family import MARK, end, family, signs_of_life
from pipeline.backends.leash import leashed
from pipeline.backends.logfile import RotatedLog
from pipeline.core.errors import BackendDied, BackendStartFailed

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

log = structlog.get_logger(__name__)

NATIVE_CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGILL, signal.SIGBUS, signal.SIGFPE, signal.SIGTRAP}
)
MAX_PENDING_LINE = 65_536
HEALTH_INTERVAL = 0.05
HEALTH_TIMEOUT = 5.0
SIGN_INTERVAL = 5.0
"""How often a silent child is looked at for other signs of life, at least; a scan of the processes."""
LAST_WORDS = 0.05
DRAIN_SECONDS = 1.0
"""For what a dead child wrote to be read; a grandchild may hold its pipes open for longer."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """What to run.

    name: for people. env: the whole environment. log: where standard error goes.
    health_url: what answers 200 once the server is ready; where it is None the server says so
    itself, by a JSON line on standard output. leashed: whether the kernel is to kill it when this
    process dies, for a server that does not watch its standard input itself.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(repr=False)
    log: Path
    health_url: str | None = None
    leashed: bool = False


class ChildProcess:
    """One run of a `ChildSpec`, from `spawn` to `stop`.

    `exited` is set as soon as the process is gone. `mark` is what it and all its descendants carry in
    their environment (see `family`).
    """

    def __init__(self, spec: ChildSpec) -> None:
        self.spec = spec
        self.exited = asyncio.Event()
        self.log = RotatedLog(spec.log)
        self.mark = secrets.token_hex(8)
        self._messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._pending = b""
        self._last_sign = asyncio.get_running_loop().time()
        self._transport: asyncio.SubprocessTransport | None = None
        self._closed = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._ended_because: str | None = None

    @classmethod
    async def spawn(cls, spec: ChildSpec) -> ChildProcess:
        """Start it. Raises BackendStartFailed where the program cannot be run at all."""
        child = cls(spec)
        loop = asyncio.get_running_loop()
        argv = leashed(list(spec.argv)) if spec.leashed else spec.argv
        env = {**spec.env, MARK: child.mark}
        try:
            transport, _ = await loop.subprocess_exec(lambda: _Listener(child), *argv, env=env, start_new_session=True)
        except OSError as error:
            raise BackendStartFailed(f"{spec.name} cannot be started: {error.strerror or error}") from error
        child._transport = transport
        return child

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        assert self._transport is not None
        return self._transport.get_pid()

    @property
    def returncode(self) -> int | None:
        """Its exit status, minus the signal's number where it died of one; None while it lives."""
        return None if self._transport is None else self._transport.get_returncode()

    @property
    def crashed_natively(self) -> bool:
        """Whether it died of a signal that native code dies of."""
        code = self.returncode
        return code is not None and -code in NATIVE_CRASHES

    async def gone(self) -> str:
        """Wait until it has ended; `describe_exit`, with all that it logged."""
        await self.exited.wait()
        await self._drained()
        return self.describe_exit()

    def describe_exit(self) -> str:
        """One sentence on how it ended; with the end of its log, unless we ended it for a reason of ours."""
        code = self.returncode
        if code is None:
            return f"{self.spec.name} is running"
        if self._ended_because is not None:
            return f"{self.spec.name} was ended by Nightshift: {self._ended_because} (its log: {self.spec.log})"
        how = f"ended with exit status {code}" if code >= 0 else f"was ended by {_signal_name(-code)}"
        return f"{self.spec.name} {how}; the end of {self.spec.log}:\n{self.log.tail()}"

    async def ready(self, stall_seconds: float) -> dict[str, Any]:
        """Wait until it serves; what it said about itself (nothing where it has a health URL).

        Raises BackendDied when it ends first, and BackendStartFailed when it gives no sign of
        life (output, progress, disk reads, growing memory) for `stall_seconds`.
        """
        wait = self._message() if self.spec.health_url is None else self._healthy(self.spec.health_url)
        return await self._unless_dead(wait, stall_seconds)

    async def prepared(self, stall_seconds: float) -> dict[str, Any]:
        """Wait until it says that it is prepared, and only waits for `release`. Raises as `ready`."""
        return await self._unless_dead(self._message(("progress",)), stall_seconds)

    def release(self) -> None:
        """Tell a child that is prepared to go on."""
        assert self._transport is not None
        pipe = self._transport.get_pipe_transport(0)
        assert isinstance(pipe, asyncio.WriteTransport)
        pipe.write(b"go\n")

    def family(self) -> set[psutil.Process]:
        """Its living processes: itself, its descendants, and what left its group. Scans all processes."""
        reused = self.exited.is_set() and psutil.pid_exists(self.pid)
        return family(None if reused else self.pid, self.mark)

    async def _unless_dead(self, wait: Coroutine[Any, Any, dict[str, Any]], stall_seconds: float) -> dict[str, Any]:
        self._last_sign = asyncio.get_running_loop().time()
        told = asyncio.create_task(wait, name="wait for readiness")
        tasks: list[asyncio.Task[Any]] = [
            told,
            asyncio.create_task(self._stalled(stall_seconds), name="wait for a stall"),
            asyncio.create_task(self.exited.wait(), name="wait for the exit"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if told.done():
                return told.result()
            if self.exited.is_set():
                await self._drained()
                await asyncio.wait({told}, timeout=LAST_WORDS)  # it may have said why before it ended
                if told.done():
                    return told.result()
                raise BackendDied(self.describe_exit())
            raise BackendStartFailed(
                f"{self.spec.name} gave no sign of life for {stall_seconds:g} s while starting;"
                f" the end of {self.spec.log}:\n{self.log.tail()}"
            )
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def stop(self, grace_seconds: float = 10.0, why: str | None = None) -> None:
        """End it: SIGTERM, after `grace_seconds` SIGKILL to its group, and wait until it is gone.

        What it leaves behind is killed too, in its group or out of it. May be called at any time,
        any number of times, by several at once. why: the reason that `describe_exit` gives; the first one given counts.
        """
        if self._ended_because is None and not self.exited.is_set():
            self._ended_because = why
        if self._stopping is None:
            self._stopping = asyncio.create_task(self._stop(grace_seconds), name=f"stop {self.spec.name}")
        await asyncio.shield(self._stopping)

    async def _stop(self, grace_seconds: float) -> None:
        assert self._transport is not None
        relatives: set[psutil.Process] = set()
        try:
            if not self.exited.is_set():
                # Before the signal: once the leader is gone, nobody knows any more whose children these are.
                relatives = await asyncio.to_thread(self.family)
                self._transport.terminate()
                await asyncio.wait_for(self.exited.wait(), grace_seconds)
        except (ProcessLookupError, TimeoutError):
            pass
        finally:
            _kill_group(self.pid)
            await self.exited.wait()
            relatives |= await asyncio.to_thread(self.family)
            left = await end(relatives)
            if left:
                log.error("Processes outlived SIGKILL", of=self.spec.name, pids=sorted(one.pid for one in left))
            self._transport.close()
            await self._closed.wait()
            self.log.close()

    async def _drained(self) -> None:
        try:
            await asyncio.wait_for(self._closed.wait(), DRAIN_SECONDS)
        except TimeoutError:
            return

    async def _message(self, besides: tuple[str, ...] = ("progress", "prepared")) -> dict[str, Any]:
        """The next message that is about nothing in `besides`."""
        while True:
            message = await self._messages.get()
            if not any(topic in message for topic in besides):
                return message

    async def _healthy(self, url: str) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=HEALTH_TIMEOUT) as client:
            while True:
                try:
                    if (await client.get(url)).status_code == httpx.codes.OK:
                        return {}
                except httpx.TransportError:
                    pass
                await asyncio.sleep(HEALTH_INTERVAL)

    async def _stalled(self, seconds: float) -> None:
        """Wait until there has been no sign of life for `seconds`."""
        loop = asyncio.get_running_loop()
        most = 0
        while self._last_sign + seconds > loop.time():
            await asyncio.sleep(min(SIGN_INTERVAL, seconds / 4))
            signs = await asyncio.to_thread(signs_of_life, self.pid, self.mark)
            if signs > most:
                most = signs
                self._last_sign = loop.time()

    def _on_output(self, descriptor: int, data: bytes) -> None:
        self._last_sign = asyncio.get_running_loop().time()
        if descriptor != 1 or self.spec.health_url is not None:
            self.log.write(data)
            return
        *lines, rest = (self._pending + data).split(b"\n")
        self._pending = rest[-MAX_PENDING_LINE:]
        for line in lines:
            message = _json_object(line)
            if message is None:
                self.log.write(line + b"\n")
            else:
                self._messages.put_nowait(message)


class _Listener(asyncio.SubprocessProtocol):
    """Hands the event loop's calls on to the child that they are about."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self._child._on_output(fd, data)

    def process_exited(self) -> None:
        self._child.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._child._closed.set()


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
