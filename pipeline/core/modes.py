"""What the host is for, and what a change of that takes.

A mode fills slots: each slot is one model server, on one device. `plan_switch` compares
what runs with what should run, and says what to stop, keep and start. Knows no process.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Mode(StrEnum):
    """What the host is for now."""

    GENERATION = "generation"
    EMBEDDING = "embedding"
    MIXED = "mixed"
    IDLE = "idle"


class Slot(StrEnum):
    """The place that a backend fills; requests are routed by slot. In the order in which they are started."""

    GENERATION = "generation"
    EMBEDDING = "embedding"


class Device(StrEnum):
    """Where a backend computes."""

    GPU = "gpu"
    CPU = "cpu"


Placement = Mapping[Slot, Device]

_PLACES: Mapping[Mode, Placement] = {
    Mode.GENERATION: {Slot.GENERATION: Device.GPU},
    Mode.EMBEDDING: {Slot.EMBEDDING: Device.GPU},
    Mode.MIXED: {Slot.GENERATION: Device.GPU, Slot.EMBEDDING: Device.CPU},
    Mode.IDLE: {},
}


class Action(StrEnum):
    """What happens to a slot in a switch."""

    STOP = "stop"
    KEEP = "keep"
    START = "start"


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that a switch does. device: where the slot's backend runs now (stop, keep) or will run (start)."""

    action: Action
    slot: Slot
    device: Device


def slots_of(mode: Mode) -> tuple[Slot, ...]:
    """The slots that a mode fills, in the order in which they are started."""
    return tuple(slot for slot in Slot if slot in _PLACES[mode])


def serves(mode: Mode, slot: Slot) -> bool:
    """Whether requests for a slot are answered in a mode."""
    return slot in _PLACES[mode]


def place(mode: Mode, *, configured: Collection[Slot] = tuple(Slot), has_gpu: bool = True) -> dict[Slot, Device]:
    """Where each slot of a mode runs.

    configured: the slots that have a model; a slot without one stays empty, whatever the mode.
    has_gpu: without one, everything is on the CPU.
    """
    return {slot: _PLACES[mode][slot] if has_gpu else Device.CPU for slot in slots_of(mode) if slot in configured}


def plan_switch(current: Mode | Placement, target: Mode | Placement) -> tuple[Step, ...]:
    """What takes the host from one state to another, in order: every stop, then what stays, then every start.

    current, target: a mode, or the device of each slot that runs or should run (after a failure
    or without a model that is not what the mode says). A slot keeps its backend when it stays on
    its device; one that changes its device is stopped and started. The GPU is never asked to
    hold two models, because every stop comes before the first start. Nothing to do is no step
    but `keep`.
    """
    running = place(current) if isinstance(current, Mode) else current
    wanted = place(target) if isinstance(target, Mode) else target
    stops = [slot for slot in Slot if slot in running and wanted.get(slot) != running[slot]]
    keeps = [slot for slot in Slot if slot in running and wanted.get(slot) == running[slot]]
    starts = [slot for slot in Slot if slot in wanted and running.get(slot) != wanted[slot]]
    return (
        *(Step(Action.STOP, slot, running[slot]) for slot in stops),
        *(Step(Action.KEEP, slot, running[slot]) for slot in keeps),
        *(Step(Action.START, slot, wanted[slot]) for slot in starts),
    )
