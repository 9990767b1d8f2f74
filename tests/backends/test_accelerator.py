"""Reading the GPU's memory: AMD from a made-up sysfs, NVIDIA from a made-up NVML; and waiting for its release."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest

from pipeline.backends.accelerator import (
    NvidiaAccelerator,
    Reading,
    find_accelerator,
    gpu_vendor,
    visible_devices,
    wait_released,
)

MIB = 2**20


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def amd_root(tmp_path: Path) -> Path:
    """Two cards of AMD, an Intel one without memory of its own, and one process."""
    for card, used in (("card0", 100), ("card1", 50)):
        device = tmp_path / "sys/class/drm" / card / "device"
        write(device / "mem_info_vram_used", f"{used * MIB}\n")
        write(device / "mem_info_vram_total", f"{1000 * MIB}\n")
    write(tmp_path / "sys/class/drm/card2/device/vendor", "0x8086\n")
    write(tmp_path / "sys/class/kfd/kfd/proc/4711/pasid", "1\n")
    return tmp_path


class FakeNvmlError(Exception):
    pass


class FakeMemory:
    def __init__(self, used: int, total: int) -> None:
        self.used = used
        self.total = total


class FakeProcess:
    def __init__(self, pid: int, used: int | None) -> None:
        self.pid = pid
        self.usedGpuMemory = used


class FakeNvml:
    """The part of `pynvml` that is used. A GPU is its (used, total, pids); `held` is by a process, on each GPU."""

    NVMLError = FakeNvmlError

    def __init__(self, gpus: Sequence[tuple[int, int, Sequence[int]]], *, driver: bool = True) -> None:
        self.gpus = gpus
        self.driver = driver
        self.held: dict[int, int] = {}

    def nvmlInit(self) -> None:  # noqa: N802  pynvml's names
        self._require_driver()

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return f"GPU-{handle}abc"

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return f"Fake {handle}".encode()

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> FakeMemory:  # noqa: N802
        self._require_driver()
        return FakeMemory(self.gpus[handle][0], self.gpus[handle][1])

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[FakeProcess]:  # noqa: N802
        return [FakeProcess(pid, self.held.get(pid)) for pid in self.gpus[handle][2]]

    def _require_driver(self) -> None:
        if not self.driver:
            raise FakeNvmlError("Driver Not Loaded")


class Scripted:
    """A GPU that gives one reading after the other, and the last one for good."""

    name = "scripted"
    vendor: Literal["nvidia", "amd"] = "nvidia"

    def __init__(self, *readings: Reading | OSError) -> None:
        self._readings: Iterator[Reading | OSError] = iter(readings)
        self._last = readings[-1]
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        reading = next(self._readings, self._last)
        if isinstance(reading, OSError):
            raise reading
        return reading


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "30"])


def reading(used_mib: int, *pids: int) -> Reading:
    return Reading(used_mib * MIB, 1000 * MIB, dict.fromkeys(pids))


def test_amd_is_read_from_sysfs(amd_root: Path) -> None:
    accelerator = find_accelerator(amd_root, nvml=FakeNvml([], driver=False))
    assert accelerator is not None
    assert (accelerator.vendor, accelerator.name) == ("amd", "AMD (card0, card1)")
    assert accelerator.read() == Reading(150 * MIB, 2000 * MIB, {4711: None})
    assert gpu_vendor(amd_root) == "amd"
    for gpu, held in (("vram_100", 30), ("vram_200", 12)):
        write(amd_root / "sys/class/kfd/kfd/proc/4711" / gpu, f"{held}\n")
    assert accelerator.read().held_bytes == {4711: 42}
    (amd_root / "sys/class/drm/card0/device/mem_info_vram_used").write_text("nonsense")
    with pytest.raises(OSError, match="make no sense"):
        accelerator.read()


def test_a_host_without_a_gpu_has_no_accelerator(tmp_path: Path) -> None:
    assert find_accelerator(tmp_path, nvml=FakeNvml([], driver=False)) is None
    assert find_accelerator(tmp_path, nvml=FakeNvml([])) is None
    assert find_accelerator(tmp_path / "nothing") is None
    assert gpu_vendor(tmp_path) is None


def test_nvidia_is_read_from_nvml() -> None:
    nvml = FakeNvml([(10, 100, [1, 2]), (20, 100, [2, 3])])
    accelerator = NvidiaAccelerator.find(nvml, None)
    assert accelerator is not None
    assert accelerator.name == "Fake 0, Fake 1"
    assert accelerator.read() == Reading(30, 200, {1: None, 2: None, 3: None})
    nvml.held = {1: 4, 2: 5}
    assert accelerator.read().held_bytes == {1: 4, 2: 10, 3: None}
    nvml.driver = False
    with pytest.raises(OSError, match="Driver Not Loaded"):
        accelerator.read()
    second = NvidiaAccelerator.find(FakeNvml(nvml.gpus), "1")
    assert second is not None
    assert second.read() == Reading(20, 100, {2: None, 3: None})
    assert NvidiaAccelerator.find(FakeNvml(nvml.gpus), "-1") is None


def test_the_maker_is_known_without_a_library(tmp_path: Path) -> None:
    write(tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0/information", "Model: x\n")
    assert gpu_vendor(tmp_path) == "nvidia"


@pytest.mark.parametrize(
    ("visible", "wanted"),
    [
        (None, [0, 1, 2]),
        ("1", [1]),
        ("2,0", [2, 0]),
        ("0,0", [0]),
        ("GPU-2", [2]),
        ("GPU-1abc, 0", [1, 0]),
        ("", []),
        ("-1", []),
        ("1,7,0", [1]),
        ("GPU-9,0", []),
    ],
)
def test_only_the_visible_gpus_are_ours(visible: str | None, wanted: list[int]) -> None:
    assert visible_devices(visible, ["GPU-0abc", "GPU-1abc", "GPU-2abc"]) == wanted


async def test_a_release_is_waited_for_until_processes_and_memory_are_gone() -> None:
    gone = 2**22 + 1
    gpu = Scripted(reading(900, gone), reading(900), reading(110))
    released = await wait_released(gpu, reading(100), {gone}, tolerance_bytes=20 * MIB, deadline_s=5)
    assert (released.ok, released.why) == (True, "")
    assert released.before == reading(900, gone)
    assert released.after == reading(110)
    assert gpu.reads == 3


@pytest.mark.parametrize(
    ("gpu", "why"),
    [
        (Scripted(reading(900)), "800 MiB more"),
        (Scripted(reading(100, 2**22 + 1)), "still on the GPU: 4194305"),
        (Scripted(OSError("gone to sleep")), "cannot be read: gone to sleep"),
    ],
)
async def test_a_release_that_does_not_come_is_said_to_have_failed(gpu: Scripted, why: str) -> None:
    released = await wait_released(gpu, reading(100), {2**22 + 1}, tolerance_bytes=MIB, deadline_s=0.1)
    assert not released.ok
    assert why in released.why
    assert gpu.reads >= 2


async def test_the_memory_counts_only_against_a_baseline() -> None:
    assert (await wait_released(Scripted(reading(900)), None, set(), deadline_s=0)).ok


@pytest.mark.parametrize(
    ("held_before", "held_after", "used_after", "ok"),
    [
        ({}, {7: 300}, 400, True),  # all that is more is a stranger's
        ({7: 200}, {7: 300}, 400, False),  # 200 of the 300 are nobody's that the driver knows
        ({7: 300}, {7: 100}, 400, False),  # a stranger that shrank does not pay for what we left
        ({}, {7: None}, 400, False),  # how much it holds is not known
    ],
)
async def test_what_others_took_meanwhile_is_not_ours_to_give_back(
    held_before: dict[int, int], held_after: dict[int, int | None], used_after: int, ok: bool
) -> None:
    def at(used: int, held: Mapping[int, int | None]) -> Reading:
        return Reading(
            used * MIB, 1000 * MIB, {pid: None if size is None else size * MIB for pid, size in held.items()}
        )

    before, after = at(100, held_before), at(used_after, held_after)
    released = await wait_released(
        Scripted(after), before, {2**22 + 1}, tolerance_bytes=20 * MIB, deadline_s=0, others_may_grow=True
    )
    assert released.ok is ok, released.why
    strict = await wait_released(Scripted(after), before, {2**22 + 1}, tolerance_bytes=20 * MIB, deadline_s=0)
    assert not strict.ok


async def test_without_a_gpu_the_end_of_the_processes_is_the_release() -> None:
    with sleeping() as process:
        try:
            waiting = asyncio.create_task(wait_released(None, None, {process.pid}, deadline_s=10))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        finally:
            process.kill()
        assert (await waiting).ok
    stays = await wait_released(None, None, {os.getpid()}, deadline_s=0.05)
    assert (stays.ok, stays.why) == (False, f"still running: {os.getpid()}")
