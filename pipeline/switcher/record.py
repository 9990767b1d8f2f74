"""What a switch is asked to do, and what is known of it while it goes and after."""

from __future__ import annotations

import datetime as dt
import time
from dataclasses import dataclass, field
from typing import Literal

from pipeline.core.modes import Mode

Reason = Literal["schedule", "job", "operator", "request", "recovery"]
Outcome = Literal["running", "done", "rolled-back", "failed", "deferred", "interrupted"]


@dataclass(frozen=True, slots=True)
class DrainPolicy:
    """What happens to requests under way.

    wait: they may end within `timeout` seconds, and are then cut. cut: they are cut at once.
    defer: the switch is put off if there are any. cut_grace: seconds that a cut request has to say so.
    """

    kind: Literal["wait", "cut", "defer"] = "wait"
    timeout: float = 60.0
    cut_grace: float = 5.0


@dataclass(slots=True)
class SwitchRecord:
    """One switch.

    began: seconds, by a clock that nobody sets. phases: seconds by name, in the order in which they ended.
    memory_before, memory_after: bytes used on the device before anything was stopped, and when what was stopped had
    let go.
    """

    from_mode: Mode
    to_mode: Mode
    reason: Reason
    detail: str
    started_at: dt.datetime
    device: str | None = None
    phases: dict[str, float] = field(default_factory=dict)
    phase: str = ""
    outcome: Outcome = "running"
    memory_before: int | None = None
    memory_after: int | None = None
    pids_before: list[int] = field(default_factory=list)
    pids_after: list[int] = field(default_factory=list)
    in_flight: int = 0
    cut: int = 0
    error: str | None = None
    row_id: int | None = None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Of all phases so far."""
        return sum(self.phases.values())
