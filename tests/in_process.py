"""The command line called in this process, with model servers that stay for the next call.

A command as a process of its own spends most of its time on importing the program and on loading the
model. Called here it does the same work, in the same database, with the same model server behind it.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import structlog

from pipeline.backends.launch import plan_launch
from pipeline.backends.logfile import RotatedLog
from pipeline.backends.server import ModelServer, _where_we_are
from pipeline.cli import main

ROOT = Path(__file__).parents[1]
MOST_KEPT = 3
"""Model servers at a time; the one that was not used for longest goes."""


def can_call() -> bool:
    """Whether the caller is the main thread with no event loop running: a command has both for itself."""
    return threading.current_thread() is threading.main_thread() and asyncio._get_running_loop() is None


def call(arguments: Sequence[str], environment: Mapping[str, str], folder: Path) -> subprocess.CompletedProcess[str]:
    """`python -m pipeline ARGUMENTS` with that environment, in that folder; its exit code and what it printed."""
    with ExitStack() as stack:
        out = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        err = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))
        nothing = stack.enter_context(Path(os.devnull).open(encoding="utf-8"))
        stack.enter_context(_environment(environment))
        stack.enter_context(_folder(folder))
        for name, value in {
            "argv": [str(ROOT / "pipeline" / "__main__.py"), *arguments],
            "stdin": nothing,
            "stdout": out,
            "stderr": err,
            "excepthook": sys.excepthook,
        }.items():
            stack.callback(setattr, sys, name, getattr(sys, name))
            setattr(sys, name, value)
        stack.enter_context(kept_servers())
        stack.callback(structlog.reset_defaults)
        code: Any = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return subprocess.CompletedProcess(arguments, int(code or 0), *texts)


@contextmanager
def kept_servers() -> Iterator[None]:
    """Model servers that are started meanwhile stay, and are used again by whoever asks for the like."""
    before = ModelServer._spawn
    ModelServer._spawn = _borrow  # type: ignore[assignment,method-assign]
    try:
        yield
    finally:
        ModelServer._spawn = before  # type: ignore[method-assign]


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _folder(wanted: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(wanted)
    try:
        yield
    finally:
        os.chdir(before)


@dataclass
class _Kept:
    """A model server that outlives the run that started it. told: its first line."""

    process: subprocess.Popen[str]
    api_key: str
    told: dict[str, Any]

    @classmethod
    def start(cls, argv: Sequence[str], env: Mapping[str, str], api_key: str) -> _Kept:
        process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout is not None
        told: dict[str, Any] = {}
        while "port" not in told and "error" not in told:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a model server ended with {process.wait()} while it started")
            told = json.loads(line)
        return cls(process, api_key, told)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


_kept: dict[tuple[str, ...], _Kept] = {}


@atexit.register
def _end_all() -> None:
    while _kept:
        _kept.popitem()[1].end()


@dataclass
class _Lent:
    """A kept server as a run sees it: started, ready, and ended as far as the run is concerned."""

    kept: _Kept
    log: RotatedLog
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    mark: str = field(default_factory=lambda: secrets.token_hex(8))
    returncode: int | None = None
    crashed_natively: bool = False

    @property
    def pid(self) -> int:
        return self.kept.process.pid

    async def ready(self, stall_seconds: float) -> dict[str, Any]:
        return self.kept.told

    async def prepared(self, stall_seconds: float) -> dict[str, Any]:
        return {"progress": 0.0}

    def release(self) -> None:
        """It runs already."""

    async def stop(self, grace_seconds: float = 10.0, why: str | None = None) -> None:
        self.returncode = 0
        self.exited.set()

    async def gone(self) -> str:
        await self.exited.wait()
        return self.describe_exit()

    def describe_exit(self) -> str:
        return "a kept model server is in use no more" if self.exited.is_set() else "a kept model server is running"

    def family(self) -> set[psutil.Process]:
        return {psutil.Process(self.pid)}


async def _borrow(server: Any, *, wait: bool = False) -> _Lent:
    """In place of `ModelServer._spawn`: a server with the same options that was started before, or a new one."""
    api_key = secrets.token_urlsafe(24)
    launch = server._launch = plan_launch(
        server.kind,
        server.slot,
        server.device,
        server._options,
        server._model,
        port=0,
        api_key=api_key,
        gpu=server._gpu,
        programs=server._programs,
        wait=False,
    )
    added = {name: value for name, value in launch.env.items() if value != api_key}
    key = (*launch.argv, *(f"{name}={value}" for name, value in sorted(added.items())))
    kept = _kept.pop(key, None)
    if kept is None or kept.process.poll() is not None:
        env = {**os.environ, **_where_we_are(), **launch.env}
        kept = await asyncio.to_thread(_Kept.start, launch.argv, env, api_key)
    if "error" in kept.told:
        kept.end()
    else:
        _kept[key] = kept  # the last one in a dict is the one that was used last
    while len(_kept) > MOST_KEPT:
        _kept.pop(next(iter(_kept))).end()
    server.api_key = kept.api_key
    child = server._child = _Lent(kept, RotatedLog(server._log_path))
    return child
