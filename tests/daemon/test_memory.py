"""The proof of a release, as the daemon asks a GPU for it; the GPU says what the test wants."""

from __future__ import annotations

from typing import Literal

import pytest

from pipeline.backends.accelerator import Reading
from pipeline.daemon.memory import DeviceMemory
from pipeline.settings import Settings
from pipeline.settings.fields import SwitchSettings

MIB = 2**20
OURS = 2**22 + 1
STRANGER = 2**22 + 2


class Gpu:
    name = "a GPU of the test's"
    vendor: Literal["nvidia", "amd"] = "nvidia"

    def __init__(self) -> None:
        self.held: dict[int, int | None] = {}
        self.unseen = 0
        self.asleep = False

    def read(self) -> Reading:
        if self.asleep:
            raise OSError("asleep")
        used = sum(size or 0 for size in self.held.values()) + self.unseen
        return Reading(used * MIB, 1000 * MIB, {pid: size and size * MIB for pid, size in self.held.items()})


@pytest.fixture
def gpu() -> Gpu:
    return Gpu()


@pytest.fixture
def memory(gpu: Gpu) -> DeviceMemory:
    return DeviceMemory(gpu, Settings(switch=SwitchSettings(release_timeout=0.05, release_tolerance_mib=10)))


async def test_a_stranger_that_grew_beside_ours_does_not_keep_the_host_idle(gpu: Gpu, memory: DeviceMemory) -> None:
    await memory.mark()
    gpu.held = {OURS: 300, STRANGER: 200}
    assert await memory.used() == 500 * MIB
    gpu.held = {STRANGER: 250}
    assert await memory.released({OURS}, to_mark=True) is None


async def test_what_no_process_accounts_for_is_no_release(gpu: Gpu, memory: DeviceMemory) -> None:
    await memory.mark()
    gpu.held = {OURS: 300, STRANGER: 200}
    await memory.used()
    gpu.held, gpu.unseen = {STRANGER: 250}, 300
    assert "300 MiB more" in (await memory.released({OURS}, to_mark=True) or "")
    assert await memory.released({OURS}, to_mark=False) is None


async def test_a_driver_with_other_numbers_for_processes_is_not_believed(gpu: Gpu, memory: DeviceMemory) -> None:
    await memory.mark()
    gpu.held = {STRANGER: 300}  # ours, by the number that the host of this container knows it by
    await memory.used()
    assert "300 MiB more" in (await memory.released({OURS}, to_mark=True) or "")


async def test_a_driver_that_does_not_answer_is_no_release(gpu: Gpu, memory: DeviceMemory) -> None:
    await memory.mark()
    gpu.asleep = True
    assert await memory.used() is None
    assert "asleep" in (await memory.released({OURS}, to_mark=True) or "")


async def test_without_a_gpu_the_end_of_the_processes_is_the_proof() -> None:
    memory = DeviceMemory(None, Settings())
    await memory.mark()
    assert await memory.used() is None
    assert await memory.released({OURS}, to_mark=True) is None
