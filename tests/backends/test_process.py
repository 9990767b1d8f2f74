from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.backends.logfile import RotatedLog
from pipeline.backends.process import ChildProcess, ChildSpec
from pipeline.core.errors import BackendDied, BackendStartFailed

STANDIN = Path(__file__).with_name("standin_server.py")


def spec(
    tmp_path: Path, mode: str = "serve", *, health_url: str | None = None, argv: list[str] | None = None
) -> ChildSpec:
    return ChildSpec(
        "the stand-in",
        argv or [sys.executable, str(STANDIN)],
        os.environ | {"STANDIN_MODE": mode},
        tmp_path / "logs" / "standin.log",
        health_url,
    )


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen within five seconds")


async def test_from_ready_to_gone(tmp_path: Path) -> None:
    child = await ChildProcess.spawn(spec(tmp_path))
    told = await child.ready(10)
    assert told["model"] == "stand-in"
    assert os.getpgid(child.pid) == child.pid != os.getpgid(0)
    assert os.getsid(child.pid) == child.pid
    await asyncio.gather(child.stop(), child.stop())
    await child.stop()
    assert child.returncode == -signal.SIGTERM
    assert not alive(child.pid)


async def test_a_death_is_noticed_at_once(tmp_path: Path) -> None:
    child = await ChildProcess.spawn(spec(tmp_path))
    await child.ready(10)
    os.kill(child.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        assert "was ended by SIGKILL" in await child.gone()
    assert not child.crashed_natively
    await child.stop()


async def test_who_ignores_sigterm_is_killed_with_the_whole_group(tmp_path: Path) -> None:
    child = await ChildProcess.spawn(spec(tmp_path, "stubborn"))
    await child.ready(10)
    grandchild = int(child.log.tail().removeprefix("grandchild "))
    assert alive(grandchild)
    await child.stop(0.3)
    assert child.returncode == -signal.SIGKILL
    await until(lambda: not alive(grandchild))


async def test_what_a_leader_leaves_behind_is_killed_too(tmp_path: Path) -> None:
    script = "import subprocess; print(subprocess.Popen(['sleep', '60']).pid, flush=True)"
    child = await ChildProcess.spawn(spec(tmp_path, argv=[sys.executable, "-c", script]))
    await child.exited.wait()
    await until(lambda: child.log.tail().isdigit())
    grandchild = int(child.log.tail())
    await child.stop()
    await until(lambda: not alive(grandchild))


@pytest.mark.parametrize(
    ("mode", "message"), [("crash", "ended by SIGSEGV; .*about to crash"), ("exit", "exit status 1; .*no such device")]
)
async def test_a_death_before_readiness_shows_the_log(tmp_path: Path, mode: str, message: str) -> None:
    child = await ChildProcess.spawn(spec(tmp_path, mode))
    with pytest.raises(BackendDied, match=f"(?s){message}"):
        await child.ready(10)
    assert child.crashed_natively == (mode == "crash")
    await child.stop()


async def test_last_words_are_heard(tmp_path: Path) -> None:
    child = await ChildProcess.spawn(spec(tmp_path, "explain"))
    await child.exited.wait()
    assert (await child.ready(10))["error"] == "the weights are upside down"
    await child.stop()


async def test_a_silent_start_is_given_up_and_a_slow_one_with_progress_is_not(tmp_path: Path) -> None:
    silent = await ChildProcess.spawn(spec(tmp_path, "silent"))
    with pytest.raises(BackendStartFailed, match=r"no sign of life for 0\.6 s"):
        await silent.ready(0.6)
    await silent.stop()
    chatty = await ChildProcess.spawn(spec(tmp_path, "chatty"))
    assert (await chatty.ready(0.9))["model"] == "stand-in"
    await chatty.stop()


async def test_a_silent_start_that_fills_its_memory_is_not_given_up(tmp_path: Path) -> None:
    script = (
        "import time\n"
        "weights = []\n"
        "for _ in range(12): weights.append(bytes(range(256)) * 16384); time.sleep(0.1)\n"
        "print('{\"port\": 1}', flush=True); time.sleep(60)\n"
    )
    child = await ChildProcess.spawn(spec(tmp_path, argv=[sys.executable, "-c", script]))
    assert await child.ready(0.6) == {"port": 1}
    await child.stop()


async def test_a_leashed_program_is_itself_and_one_that_is_not_there_says_so(tmp_path: Path) -> None:
    def leashed(*argv: str) -> ChildSpec:
        return ChildSpec("the stand-in", argv, os.environ, tmp_path / "leashed.log", leashed=True)

    child = await ChildProcess.spawn(leashed(sys.executable, str(STANDIN)))
    assert (await child.ready(10))["model"] == "stand-in"
    assert psutil.Process(child.pid).cmdline() == [sys.executable, str(STANDIN)]
    await child.stop()
    assert child.returncode == -signal.SIGTERM
    absent = await ChildProcess.spawn(leashed("no-such-program"))
    with pytest.raises(BackendDied, match=r"(?s)exit status 127; .*no-such-program cannot be run: No such file"):
        await absent.ready(10)
    await absent.stop()


async def test_a_server_with_a_health_url_is_ready_when_that_answers(tmp_path: Path) -> None:
    script = (
        "import http.server, socket, time, os\n"
        "time.sleep(0.3); print('loading', flush=True)\n"
        "class H(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self): self.send_response(200); self.end_headers()\n"
        "http.server.HTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()\n"
    )
    listener = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    given = spec(tmp_path, health_url=f"http://127.0.0.1:{port}/", argv=[sys.executable, "-c", script])
    child = await ChildProcess.spawn(
        ChildSpec(given.name, given.argv, os.environ | {"PORT": str(port)}, given.log, given.health_url)
    )
    assert await child.ready(10) == {}
    await child.stop()
    assert "loading" in given.log.read_text()


async def test_a_program_that_is_not_there_is_a_failed_start(tmp_path: Path) -> None:
    with pytest.raises(BackendStartFailed, match="No such file"):
        await ChildProcess.spawn(spec(tmp_path, argv=[str(tmp_path / "nothing")]))


def test_a_log_is_bounded_and_keeps_its_last_lines(tmp_path: Path) -> None:
    log = RotatedLog(tmp_path / "a" / "x.log", max_bytes=1000, keep=2, tail_lines=3)
    assert log.tail() == "(it logged nothing)"
    for number in range(100):
        log.write(f"line {number} ".encode())
        log.write(b"x" * 80 + b"\n")
    log.write(b"unfinished")
    log.close()
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == ["x.log", "x.log.1", "x.log.2"]
    assert all(file.stat().st_size <= 1000 for file in (tmp_path / "a").iterdir())
    assert [line.split(" x")[0] for line in log.tail().splitlines()] == ["line 97", "line 98", "line 99", "unfinished"]
    assert (tmp_path / "a" / "x.log").read_bytes().endswith(b"unfinished")


def test_a_log_that_cannot_be_written_harms_nobody(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    log = RotatedLog(tmp_path / "file" / "x.log")
    log.write(b"still remembered\n")
    assert log.tail() == "still remembered"
