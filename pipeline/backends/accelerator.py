"""The GPU's memory and who holds it, read from its driver; and whether what was stopped has let go of it.

NVIDIA through NVML (the extra `nvidia`), AMD through sysfs. Without either everything works, and the
end of the processes is all that can be seen.
"""

from __future__ import annotations

import asyncio
import importlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog

from pipeline.backends.family import birth

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

log = structlog.get_logger(__name__)

POLL_SECONDS = 0.02
TOLERANCE_BYTES = 256 * 2**20
"""What else may come and go on the GPU meanwhile: a desktop, a monitoring tool."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Memory of the GPUs that are ours to use, in bytes.

    held_bytes: by each process that computes on them; None where the driver does not tell how much.
    """

    used_bytes: int
    total_bytes: int
    held_bytes: Mapping[int, int | None] = field(default_factory=dict)

    @property
    def pids(self) -> frozenset[int]:
        """The processes that compute on the GPUs."""
        return frozenset(self.held_bytes)


class Accelerator(Protocol):
    """One or more GPUs of one maker."""

    name: str
    vendor: Literal["nvidia", "amd"]

    def read(self) -> Reading:
        """How it stands now. Raises OSError where the driver does not answer."""
        ...


@dataclass(frozen=True, slots=True)
class Released:
    """Whether the memory came back. before, after: the first and the last reading; None without a GPU."""

    ok: bool
    why: str
    before: Reading | None
    after: Reading | None


def find_accelerator(root: Path = Path("/"), nvml: Any = None) -> Accelerator | None:
    """The GPU that its driver tells about: NVIDIA's first, then AMD's; None where there is none.

    root: where /sys is. nvml: the module `pynvml`; None is the installed one, if there is one.
    """
    if nvml is None:
        try:
            nvml = importlib.import_module("pynvml")
        except ImportError:
            if gpu_vendor(root) == "nvidia":
                log.warning(
                    "There is an NVIDIA GPU, and its memory cannot be read: .venv/bin/pip install -e '.[nvidia]'"
                )
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if nvml is not None and (nvidia := NvidiaAccelerator.find(nvml, visible)) is not None:
        return nvidia
    return AmdAccelerator.find(root)


def gpu_vendor(root: Path = Path("/")) -> Literal["nvidia", "amd"] | None:
    """Whose GPU is here, by what the kernel shows: good enough to choose a server, without any library."""
    if _entries(root / "proc/driver/nvidia/gpus"):
        return "nvidia"
    return "amd" if _amd_cards(root) else None


class NvidiaAccelerator:
    """NVIDIA GPUs through NVML, as far as we may use them.

    In a container NVML may know processes by the host's numbers, or not at all; the memory counts then.
    """

    vendor: Literal["nvidia", "amd"] = "nvidia"

    def __init__(self, nvml: Any, handles: Sequence[Any]) -> None:
        self._nvml = nvml
        self._handles = handles
        self.name = ", ".join(_text(nvml.nvmlDeviceGetName(handle)) for handle in handles)

    @classmethod
    def find(cls, nvml: Any, visible: str | None) -> NvidiaAccelerator | None:
        """The GPUs that NVML knows and `visible` names; None where the driver is not there, or there are none.

        visible: the value of CUDA_VISIBLE_DEVICES; None is all.
        """
        try:
            nvml.nvmlInit()
            handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
            uuids = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
            ours = [handles[index] for index in visible_devices(visible, uuids)]
            return cls(nvml, ours) if ours else None
        except nvml.NVMLError as error:
            log.info("NVML finds no GPU", error=str(error))
            return None

    def read(self) -> Reading:
        """See `Accelerator`."""
        used = total = 0
        held: dict[int, int | None] = {}
        try:
            for handle in self._handles:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                used += int(memory.used)
                total += int(memory.total)
                for process in self._nvml.nvmlDeviceGetComputeRunningProcesses(handle):
                    share = getattr(process, "usedGpuMemory", None)
                    so_far = held.get(int(process.pid), 0)
                    held[int(process.pid)] = None if share is None or so_far is None else so_far + int(share)
        except self._nvml.NVMLError as error:
            raise OSError(f"NVML does not answer: {error}") from error
        return Reading(used, total, held)


class AmdAccelerator:
    """AMD GPUs through sysfs: amdgpu's memory counters, and the processes that amdkfd knows."""

    vendor: Literal["nvidia", "amd"] = "amd"

    def __init__(self, root: Path, cards: Sequence[Path]) -> None:
        self._processes = root / "sys/class/kfd/kfd/proc"
        self._cards = cards
        self.name = f"AMD ({', '.join(card.parent.name for card in cards)})"

    @classmethod
    def find(cls, root: Path = Path("/")) -> AmdAccelerator | None:
        """All cards with memory of their own; None where there are none."""
        cards = _amd_cards(root)
        return cls(root, cards) if cards else None

    def read(self) -> Reading:
        """See `Accelerator`."""
        try:
            used = sum(int((card / "mem_info_vram_used").read_text()) for card in self._cards)
            total = sum(int((card / "mem_info_vram_total").read_text()) for card in self._cards)
        except ValueError as error:
            raise OSError(f"amdgpu's memory counters make no sense: {error}") from error
        return Reading(
            used, total, {int(name): self._held(name) for name in _entries(self._processes) if name.isdecimal()}
        )

    def _held(self, pid: str) -> int | None:
        """Bytes that a process holds, by amdkfd's `vram_<GPU>` files; None where older kernels have none."""
        try:
            shares = [int(share.read_text()) for share in (self._processes / pid).glob("vram_*")]
        except (OSError, ValueError):  # it is just ending
            return None
        return sum(shares) if shares else None


def visible_devices(visible: str | None, uuids: Sequence[str]) -> list[int]:
    """The indices of the GPUs that a value of CUDA_VISIBLE_DEVICES names; None is all of them.

    As CUDA does it: what follows a name that means no GPU is not seen either.
    """
    if visible is None:
        return list(range(len(uuids)))
    chosen: list[int] = []
    for name in (part.strip() for part in visible.split(",")):
        matching = [index for index, uuid in enumerate(uuids) if name and uuid.startswith(name)]
        if name.isdecimal() and int(name) < len(uuids):
            chosen.append(int(name))
        elif matching:
            chosen.append(matching[0])
        else:
            break
    return list(dict.fromkeys(chosen))


async def wait_released(
    accelerator: Accelerator | None,
    baseline: Reading | None,
    pids: Iterable[int],
    *,
    tolerance_bytes: int = TOLERANCE_BYTES,
    deadline_s: float = 10.0,
    others_may_grow: bool = False,
) -> Released:
    """Wait until what was stopped has let go of the GPU, up to `deadline_s` seconds.

    pids: of the server and all that it started. They have to be gone from the host and from the
    GPU, and where there is a `baseline` (a reading from before the load), the memory in use has to
    be back at it within the tolerance. A driver that does not answer is no release.

    others_may_grow: what other processes of this host hold more than at the baseline is not ours to give
    back. Only where the driver knows processes by the numbers that we know them by: in a container it may
    not, and would then call our own memory somebody else's.
    """
    ours = frozenset(pids)
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline_s
    before: Reading | None = None
    while True:
        after, why = await asyncio.to_thread(_look, accelerator, baseline, ours, tolerance_bytes, others_may_grow)
        before = before or after
        if not why or loop.time() >= until:
            return Released(not why, why, before, after)
        await asyncio.sleep(POLL_SECONDS)


def growth_of_others(baseline: Reading, after: Reading, ours: frozenset[int]) -> int:
    """Bytes that processes other than ours hold more than they did at the baseline."""
    grown = 0
    for pid, now in after.held_bytes.items():
        if pid not in ours and now is not None:
            grown += max(0, now - (baseline.held_bytes.get(pid, 0) or 0))
    return grown


def _look(
    accelerator: Accelerator | None,
    baseline: Reading | None,
    pids: frozenset[int],
    tolerance: int,
    others_may_grow: bool,
) -> tuple[Reading | None, str]:
    """A reading, and what speaks against a release; empty where nothing does."""
    reading = None
    try:
        reading = None if accelerator is None else accelerator.read()
    except OSError as error:
        return None, f"the GPU cannot be read: {error}"
    running = sorted(pid for pid in pids if birth(pid) is not None)
    if running:
        return reading, f"still running: {', '.join(map(str, running))}"
    if reading is None:
        return None, ""
    if holding := sorted(pids & reading.pids):
        return reading, f"still on the GPU: {', '.join(map(str, holding))}"
    if baseline is not None:
        more = reading.used_bytes - baseline.used_bytes
        if others_may_grow and more > tolerance:
            more -= growth_of_others(baseline, reading, pids)
        if more > tolerance:
            return reading, f"{more >> 20} MiB more of the GPU's memory are in use than before the load"
    return reading, ""


def _amd_cards(root: Path) -> list[Path]:
    return sorted(card.parent for card in root.glob("sys/class/drm/card[0-9]*/device/mem_info_vram_total"))


def _entries(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
