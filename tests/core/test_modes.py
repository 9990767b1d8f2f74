"""Modes, slots, and what a switch does to them."""

from __future__ import annotations

from itertools import product

import pytest

from pipeline.core.modes import Action, Device, Mode, Slot, Step, place, plan_switch, serves, slots_of

GEN, EMB = Slot.GENERATION, Slot.EMBEDDING
GPU, CPU = Device.GPU, Device.CPU
STOP, KEEP, START = Action.STOP, Action.KEEP, Action.START


@pytest.mark.parametrize(
    ("current", "target", "steps"),
    [
        (Mode.IDLE, Mode.GENERATION, [(START, GEN, GPU)]),
        (Mode.GENERATION, Mode.EMBEDDING, [(STOP, GEN, GPU), (START, EMB, GPU)]),
        (Mode.EMBEDDING, Mode.GENERATION, [(STOP, EMB, GPU), (START, GEN, GPU)]),
        (Mode.GENERATION, Mode.MIXED, [(KEEP, GEN, GPU), (START, EMB, CPU)]),
        (Mode.MIXED, Mode.GENERATION, [(STOP, EMB, CPU), (KEEP, GEN, GPU)]),
        (Mode.EMBEDDING, Mode.MIXED, [(STOP, EMB, GPU), (START, GEN, GPU), (START, EMB, CPU)]),
        (Mode.MIXED, Mode.EMBEDDING, [(STOP, GEN, GPU), (STOP, EMB, CPU), (START, EMB, GPU)]),
        (Mode.MIXED, Mode.IDLE, [(STOP, GEN, GPU), (STOP, EMB, CPU)]),
        (Mode.MIXED, Mode.MIXED, [(KEEP, GEN, GPU), (KEEP, EMB, CPU)]),
        (Mode.IDLE, Mode.IDLE, []),
    ],
)
def test_a_switch_stops_first_and_leaves_what_may_stay(
    current: Mode, target: Mode, steps: list[tuple[Action, Slot, Device]]
) -> None:
    assert plan_switch(current, target) == tuple(Step(*step) for step in steps)


@pytest.mark.parametrize(("current", "target"), list(product(Mode, Mode)))
def test_every_switch_arrives_and_never_puts_two_models_on_the_gpu(current: Mode, target: Mode) -> None:
    running = place(current)
    for step in plan_switch(current, target):
        if step.action is Action.STOP:
            assert running.pop(step.slot) is step.device
        elif step.action is Action.KEEP:
            assert running[step.slot] is step.device
        else:
            assert step.slot not in running
            running[step.slot] = step.device
        assert list(running.values()).count(Device.GPU) <= 1
    assert running == place(target)


def test_after_a_failure_only_what_is_missing_is_started() -> None:
    assert plan_switch({}, Mode.MIXED) == (Step(START, GEN, GPU), Step(START, EMB, CPU))
    assert plan_switch({EMB: CPU}, Mode.MIXED) == (Step(KEEP, EMB, CPU), Step(START, GEN, GPU))


def test_without_a_gpu_embedding_stays_where_it_is() -> None:
    embedding, mixed = place(Mode.EMBEDDING, has_gpu=False), place(Mode.MIXED, has_gpu=False)
    assert mixed == {GEN: CPU, EMB: CPU}
    assert plan_switch(embedding, mixed) == (Step(KEEP, EMB, CPU), Step(START, GEN, CPU))


def test_a_slot_without_a_model_stays_empty() -> None:
    assert place(Mode.GENERATION, configured={EMB}) == {}
    assert place(Mode.MIXED, configured={EMB}) == {EMB: CPU}
    assert plan_switch(Mode.EMBEDDING, place(Mode.GENERATION, configured={EMB})) == (Step(STOP, EMB, GPU),)


@pytest.mark.parametrize("mode", Mode)
def test_a_mode_serves_the_slots_that_it_fills(mode: Mode) -> None:
    assert slots_of(mode) == tuple(slot for slot in Slot if serves(mode, slot)) == tuple(place(mode))
    assert serves(mode, GEN) == (mode in (Mode.GENERATION, Mode.MIXED))
    assert serves(mode, EMB) == (mode in (Mode.EMBEDDING, Mode.MIXED))
