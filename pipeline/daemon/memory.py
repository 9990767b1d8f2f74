"""The GPU's memory as the switcher asks for it: how it stands, and whether it came back."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pipeline.backends.accelerator import Accelerator, Reading, wait_released
from pipeline.settings import Settings


class DeviceMemory:
    """What the switcher asks of a device. Without one, the end of the processes is all the proof there is."""

    def __init__(self, accelerator: Accelerator | None, settings: Settings) -> None:
        self.name = accelerator.name if accelerator else None
        self._accelerator = accelerator
        self._tolerance = settings.switch.release_tolerance_mib << 20
        self._deadline = settings.switch.release_timeout
        self._last: Reading | None = None
        self._baseline: Reading | None = None

    async def used(self) -> int | None:
        """Bytes in use; None without a GPU, or where it does not answer."""
        self._last = None
        if self._accelerator is not None:
            with suppress(OSError):
                self._last = await asyncio.to_thread(self._accelerator.read)
        return None if self._last is None else self._last.used_bytes

    async def mark(self) -> None:
        """Remember how the memory stands: what a release has to come back to."""
        await self.used()
        self._baseline = self._last

    async def released(self, pids: set[int], *, to_mark: bool) -> str | None:
        """Wait for the proof."""
        # Seen on the GPU while they ran, ours have the same numbers there as here, and so have the others.
        numbered_alike = self._last is not None and not self._last.pids.isdisjoint(pids)
        released = await wait_released(
            self._accelerator,
            self._baseline if to_mark else None,
            pids,
            tolerance_bytes=self._tolerance,
            deadline_s=self._deadline,
            others_may_grow=numbered_alike,
        )
        return None if released.ok else released.why
