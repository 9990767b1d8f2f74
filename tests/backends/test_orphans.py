"""Children that a killed owner left: found by their marks, and told from others that have their numbers now."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import structlog

from pipeline.backends.family import MARK, began_since_boot, birth, end, family, is_alive
from pipeline.backends.orphans import ChildRegistry
from pipeline.backends.readahead import read_ahead
from pipeline.core.errors import BackendStartFailed
from tests.backends.conftest import ROOT
from tests.backends.test_process import alive

APART = (
    "import subprocess, sys, time\n"
    "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], start_new_session=True)\n"
    "time.sleep(60)\n"
)

OWNER = """
import os, subprocess, sys, time
from pathlib import Path
from pipeline.backends.family import MARK
from pipeline.backends.orphans import ChildRegistry
registry = ChildRegistry(Path(sys.argv[1]))
env = os.environ | {MARK: sys.argv[3]}
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], start_new_session=True, env=env)
registry.add(child.pid, "server", sys.argv[3])
print(child.pid, flush=True)
time.sleep(60)
"""


def python(script: str, *arguments: str, mark: str | None = None) -> subprocess.Popen[str]:
    """A Python in a session of its own, with a mark."""
    environment = os.environ | ({} if mark is None else {MARK: mark})
    argv = [sys.executable, "-c", script, *arguments]
    return subprocess.Popen(argv, cwd=ROOT, env=environment, start_new_session=True, stdout=subprocess.PIPE, text=True)


async def settled(mark: str, count: int) -> set[psutil.Process]:
    for _ in range(200):
        found = await asyncio.to_thread(family, None, mark)
        if len(found) == count:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"there are {len(found)} processes, not {count}")


async def test_what_a_killed_owner_left_is_found_and_ended(tmp_path: Path) -> None:
    path, mark = tmp_path / "run" / "children.json", secrets.token_hex(8)
    with python(OWNER, str(path), APART, mark) as owner:
        assert owner.stdout is not None
        child = int(owner.stdout.readline())
        members = await settled(mark, 2)
        assert {os.getsid(member.pid) for member in members} == {member.pid for member in members}
        assert await ChildRegistry(path).end_orphans() == []
        assert alive(child)
        owner.kill()
        owner.wait()
        found = await ChildRegistry(path).end_orphans()
    assert {orphan.pid for orphan in found} == {member.pid for member in members}
    assert all(orphan.ended and orphan.argv0 == "server" for orphan in found)
    assert not [member for member in members if alive(member.pid)]
    assert path.read_text() == ""
    assert await ChildRegistry(path).end_orphans() == []


async def test_a_number_that_belongs_to_another_now_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "children.json"
    with python("import time; time.sleep(60)") as stranger:
        created = psutil.Process(stranger.pid).create_time()
        record = {
            "pid": stranger.pid, "create_time": created - 100, "pgid": stranger.pid, "argv0": "server",
            "mark": "nobody has it", "owner_pid": os.getpid(), "owner_create_time": 1.0,
        }  # fmt: skip
        path.write_text("not JSON\n" + json.dumps(record) + "\n" + '{"pid": 1}\n')
        try:
            with structlog.testing.capture_logs() as logs:
                assert await ChildRegistry(path).end_orphans() == []
            assert len(logs) == 2
            assert alive(stranger.pid)
            path.write_text(json.dumps(record | {"create_time": created}) + "\n")
            (orphan,) = await ChildRegistry(path).end_orphans()
            assert (orphan.pid, orphan.ended) == (stranger.pid, True)
        finally:
            stranger.kill()


def test_children_come_and_go_in_the_list(tmp_path: Path) -> None:
    registry = ChildRegistry(tmp_path / "a" / "children.json")
    with subprocess.Popen(["sleep", "60"]) as first, subprocess.Popen(["sleep", "60"]) as second:
        registry.add(first.pid, "one", "m")
        registry.add(second.pid, "two", "n")
        registry.remove(first.pid)
        (line,) = (tmp_path / "a" / "children.json").read_text().splitlines()
        assert json.loads(line)["argv0"] == "two"
        first.kill()
        second.kill()
    registry.add(2**22 + 1, "never was", "m")
    assert len((tmp_path / "a" / "children.json").read_text().splitlines()) == 1


async def test_a_family_is_its_descendants_its_session_and_whoever_bears_its_mark() -> None:
    mark = secrets.token_hex(8)
    with python(APART, mark=mark) as leader:
        members = await settled(mark, 2)
        assert family(leader.pid) == members
        leader.kill()
        leader.wait()
        (left,) = family(leader.pid, mark)
        assert left in members
        assert await end([left]) == set()
        assert family(leader.pid, mark) == set()


def test_a_process_is_known_by_the_ticks_of_the_kernel_and_not_by_a_clock(tmp_path: Path) -> None:
    # A name that looks like the rest of the line in which the kernel tells of a process.
    program = shutil.copy("/bin/sleep", tmp_path / "a) Z 1 (b")
    with subprocess.Popen([program, "60"]) as process:
        born = birth(process.pid)
        assert born is not None
        assert birth(process.pid) == born
        ticks = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        assert -born % 2**36 == ticks
        assert is_alive(process.pid, born)
        assert began_since_boot(born)
        assert json.loads(json.dumps(born)) == born
        # Another process with its number, and the same one in an earlier life of the system.
        assert not is_alive(process.pid, born - 1)
        assert not is_alive(os.getpid(), born)
        assert not is_alive(process.pid, born - 2**36)
        assert not began_since_boot(born - 2**36)
        process.kill()
        process.wait()
        assert birth(process.pid) is None
        assert not is_alive(process.pid, born)


def test_a_time_of_creation_as_earlier_versions_noted_it_still_tells_the_living_from_the_dead() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        created = psutil.Process(process.pid).create_time()
        assert is_alive(process.pid, created)
        assert began_since_boot(created)
        assert not is_alive(process.pid, created - 100)
        assert not began_since_boot(psutil.boot_time() - 100)
        process.kill()


def test_a_zombie_is_not_alive() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        born, created = birth(process.pid), psutil.Process(process.pid).create_time()
        assert born is not None
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has asked yet
        assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE
        assert birth(process.pid) is None
        assert not is_alive(process.pid, born)
        assert not is_alive(process.pid, created)


async def test_children_of_a_life_before_the_system_began_are_forgotten(tmp_path: Path) -> None:
    """Their numbers may be those of sessions that have nothing to do with them."""
    path = tmp_path / "children.json"
    leaves = "import subprocess, sys; print(subprocess.Popen(['sleep', '60'], stdout=subprocess.DEVNULL).pid)"
    with python(leaves) as leader:
        assert leader.stdout is not None
        stranger = int(leader.stdout.readline())
        born = birth(stranger)
        assert born is not None
        leader.wait()
        record = {
            "pid": leader.pid, "create_time": born - 2**36, "pgid": leader.pid, "argv0": "server",
            "mark": "nobody has it", "owner_pid": 2**22 + 1, "owner_create_time": born - 2**36,
        }  # fmt: skip
        path.write_text(json.dumps(record) + "\n")
        assert await ChildRegistry(path).end_orphans() == []
        assert alive(stranger)
        path.write_text(json.dumps(record | {"create_time": born}) + "\n")
        assert [orphan.pid for orphan in await ChildRegistry(path).end_orphans()] == [stranger]
        assert path.read_text() == ""


async def test_a_model_is_read_ahead_whole(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(bytes(20_000_000))
    (tmp_path / "b.safetensors").write_bytes(bytes(5))
    (tmp_path / "notes.txt").write_bytes(bytes(99))
    assert await read_ahead(tmp_path) == 20_000_005
    assert await read_ahead(tmp_path / "b.safetensors") == 5
    with structlog.testing.capture_logs() as logs:
        assert await read_ahead(tmp_path / "nothing") == 0
    assert logs[0]["log_level"] == "warning"


async def test_a_model_larger_than_the_memory_is_not_read_ahead(tmp_path: Path) -> None:
    huge = tmp_path / "huge.gguf"
    with huge.open("wb") as file:
        file.truncate(psutil.virtual_memory().total * 2)
    assert await read_ahead(huge) == 0


async def test_reading_ahead_ends_when_it_is_cancelled(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.gguf"
    with sparse.open("wb") as file:
        file.truncate(psutil.virtual_memory().available // 4)
    reading = asyncio.create_task(read_ahead(sparse))
    await asyncio.sleep(0.02)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    assert reading.cancelled()


def test_a_list_that_cannot_be_written_starts_nothing_and_holds_up_no_end(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    registry = ChildRegistry(tmp_path / "run" / "children.json")
    with pytest.raises(BackendStartFailed, match=r"children\.json, .* cannot be written: "):
        registry._write([])
    registry._rewrite([])
