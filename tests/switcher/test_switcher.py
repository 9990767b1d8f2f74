"""The switch: never two models on the GPU, no request hangs, no failed release is loaded over."""

from __future__ import annotations

import asyncio
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.errors import (
    BackendStartFailed,
    NotServing,
    ReleaseFailed,
    SwitchDeferred,
    SwitchError,
    SwitchFailed,
    WaitedTooLong,
)
from pipeline.core.modes import Mode, Slot, slots_of
from pipeline.switcher.admission import Admission, Gate
from pipeline.switcher.record import DrainPolicy
from tests.switcher.fakes import FakeHost

G, E = Slot.GENERATION, Slot.EMBEDDING


async def test_a_switch_goes_through_its_phases_in_order() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule", "job day")
    record = await host.switcher.switch(Mode.EMBEDDING, "schedule", "job night")
    assert record is not None
    assert list(record.phases) == ["close", "drain", "stop", "release", "start", "ready", "canary", "open"]
    assert (record.from_mode, record.to_mode, record.outcome) == (Mode.GENERATION, Mode.EMBEDDING, "done")
    assert host.log == ["start generation on gpu", "stop generation on gpu", "start embedding on gpu"]
    assert (record.memory_before, record.memory_after) == (110, 100)  # and back, before the next is loaded
    assert len(record.pids_before) == len(record.pids_after) == 1
    assert record.pids_before != record.pids_after
    assert host.last == record
    assert [w.outcome for w in host.written].count("done") == 2
    assert host.admission.gate(E) is Gate.OPEN
    assert host.admission.gate(G) is Gate.CLOSED


async def test_the_time_of_a_mode_is_that_of_its_last_change() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    since = host.switcher.since
    assert await host.switcher.switch(Mode.GENERATION, "operator") is None
    host.failing[E, "start"] = 1
    with pytest.raises(SwitchFailed, match="generation is back"):
        await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.switcher.since == since  # it was never another one
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.switcher.since > since


async def test_to_be_where_one_is_takes_nothing() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.MIXED, "operator")
    before = list(host.log)
    assert await host.switcher.switch(Mode.MIXED, "operator") is None
    assert host.log == before


async def test_the_language_model_stays_where_both_modes_have_it() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    await host.switcher.switch(Mode.MIXED, "schedule")
    assert host.log == ["start generation on gpu", "start embedding on cpu"]
    held = await host.admission.reserve(G)
    await host.switcher.switch(Mode.GENERATION, "schedule", drain=DrainPolicy("defer"))  # it is not touched
    held.release()
    assert host.log[2:] == ["stop embedding on cpu"]


async def test_a_mode_without_its_model_is_a_state_and_not_a_crash() -> None:
    host = FakeHost(frozenset({E}))
    await host.switcher.switch(Mode.GENERATION, "schedule")
    assert host.switcher.mode is Mode.GENERATION
    assert host.running == []
    with pytest.raises(NotServing):
        await host.admission.reserve(G)
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.log == ["start embedding on gpu"]


async def test_requests_under_way_are_waited_for() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    held = await host.admission.reserve(G)
    switch = asyncio.create_task(host.switcher.switch(Mode.EMBEDDING, "schedule", drain=DrainPolicy("wait", 5)))
    await asyncio.sleep(0.02)
    assert not switch.done()
    assert "stop generation on gpu" not in host.log
    (server,) = host.running
    assert server.drains
    with pytest.raises(NotServing):  # closed before the drain: steady traffic cannot starve it
        await host.admission.reserve(G)
    held.release()
    record = await switch
    assert record is not None
    assert (record.in_flight, record.cut, held.cut.is_set()) == (1, 0, False)


@pytest.mark.parametrize(("kind", "seconds"), [("wait", 0.05), ("cut", 60.0)])
async def test_requests_that_do_not_end_are_cut(kind: Literal["wait", "cut"], seconds: float) -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    held = await host.admission.reserve(G)

    async def stream() -> None:
        await held.cut.wait()
        held.release()

    streaming = asyncio.create_task(stream())
    record = await host.switcher.switch(Mode.EMBEDDING, "schedule", drain=DrainPolicy(kind, seconds))
    await streaming
    assert record is not None
    assert record.cut == 1
    assert host.switcher.mode is Mode.EMBEDDING


async def test_a_request_that_ignores_the_cut_does_not_hold_the_switch_up() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    await host.admission.reserve(G)
    record = await host.switcher.switch(Mode.EMBEDDING, "schedule", drain=DrainPolicy("cut", cut_grace=0.05))
    assert record is not None
    assert record.outcome == "done"


async def test_a_deferred_switch_changes_nothing() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    held = await host.admission.reserve(G)
    with pytest.raises(SwitchDeferred):
        await host.switcher.switch(Mode.EMBEDDING, "schedule", drain=DrainPolicy("defer"))
    assert (host.switcher.mode, host.last.outcome) == (Mode.GENERATION, "deferred")
    assert [server.drains for server in host.running] == [False]
    (await host.admission.reserve(G)).release()
    with pytest.raises(NotServing):
        await host.admission.reserve(E)
    held.release()
    await host.switcher.switch(Mode.EMBEDDING, "schedule", drain=DrainPolicy("defer"))
    assert host.switcher.mode is Mode.EMBEDDING


async def test_requests_for_what_is_about_to_open_wait_for_it() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.hang = asyncio.Event()
    switch = asyncio.create_task(host.switcher.switch(Mode.EMBEDDING, "schedule"))
    await asyncio.sleep(0.02)
    waiting = asyncio.create_task(host.admission.reserve(E))
    await asyncio.sleep(0.02)
    assert not waiting.done()
    assert host.admission.waiting(E) == 1
    host.hang.set()
    await switch
    (await waiting).release()


@pytest.mark.parametrize("phase", ["start", "ready", "canary"])
async def test_a_failure_brings_the_mode_before_back(phase: str) -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.failing[E, phase] = 1
    with pytest.raises(SwitchFailed, match="generation is back"):
        await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert (host.switcher.mode, host.last.outcome) == (Mode.GENERATION, "rolled-back")
    assert [server.slot for server in host.running] == [G]
    (await host.admission.reserve(G)).release()
    with pytest.raises(NotServing):
        await host.admission.reserve(E)
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.switcher.mode is Mode.EMBEDDING


async def test_where_nothing_starts_any_more_the_host_is_idle_and_says_why() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.failing = {(E, "ready"): 1, (G, "ready"): 1}
    with pytest.raises(SwitchFailed, match="did not come back"):
        await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert (host.switcher.mode, host.last.outcome, host.running) == (Mode.IDLE, "failed", [])
    await host.switcher.switch(Mode.GENERATION, "schedule")
    assert host.switcher.mode is Mode.GENERATION


async def test_a_failed_release_is_never_loaded_over() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.leaks = True
    with pytest.raises(ReleaseFailed, match="still hold memory"):
        await host.switcher.switch(Mode.EMBEDDING, "schedule")
    for target in (Mode.EMBEDDING, Mode.GENERATION, Mode.IDLE):
        with pytest.raises(ReleaseFailed):
            await host.switcher.switch(target, "schedule")
    assert "start embedding on gpu" not in host.log
    assert host.switcher.unreleased
    with pytest.raises(NotServing):
        await host.admission.reserve(E)
    host.leaks, host.leaked = False, set()
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.switcher.mode is Mode.EMBEDDING
    assert not host.switcher.unreleased


async def test_the_memory_has_to_come_back_only_where_nothing_of_ours_stays() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.MIXED, "schedule")  # the language model on the GPU, embedding on the CPU
    assert host.marked_with == 0
    await host.switcher.switch(Mode.GENERATION, "schedule")
    await host.switcher.switch(Mode.IDLE, "schedule")
    assert host.proofs == [True, False, True]


async def test_a_server_that_died_is_started_again_and_a_later_one_is_left_alone() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.MIXED, "schedule")
    dead = host.switcher.servers[G]
    host.running[0].die()
    await host.switcher.recover(dead)
    assert host.last.reason == "recovery"
    assert host.last.outcome == "done"
    assert "it was killed" in host.last.detail
    assert {server.slot for server in host.running} == {G, E}
    assert host.switcher.servers[G] is dead  # a run that waits for it sees it come back
    (await host.admission.reserve(G)).release()
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    before = list(host.log)
    await host.switcher.recover(dead)
    assert host.log == before


async def test_a_server_that_does_not_come_back_closes_its_door() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    dead = host.switcher.servers[G]
    host.running[0].die()
    host.failing[G, "ready"] = 1
    with pytest.raises(BackendStartFailed):
        await host.switcher.recover(dead)
    assert host.last.outcome == "failed"
    with pytest.raises(NotServing):
        await host.admission.reserve(G)
    host.running.clear()
    await host.switcher.recover(dead)
    (await host.admission.reserve(G)).release()


async def test_a_switch_fills_the_place_of_a_server_that_died() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.running[0].die()
    await host.switcher.switch(Mode.MIXED, "schedule")
    assert {server.slot for server in host.running} == {G, E}
    assert not any(server.died.is_set() for server in host.switcher.servers.values())


async def test_a_disk_that_is_full_while_it_starts_is_a_failed_switch() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.disk_full = 1
    with pytest.raises(SwitchFailed, match="No space left"):
        await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.switcher.mode is Mode.GENERATION
    (await host.admission.reserve(G)).release()


async def test_a_slot_given_up_turns_requests_away() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.MIXED, "schedule")
    await host.switcher.empty(G)
    with pytest.raises(NotServing):
        await host.admission.reserve(G)
    (await host.admission.reserve(E)).release()


async def test_what_was_made_ready_is_used_and_what_was_not_wanted_is_ended() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    await host.switcher.prepare(Mode.EMBEDDING)
    await host.switcher.prepare(Mode.EMBEDDING)
    assert host.log.count("prepare embedding on gpu") == 1
    await host.switcher.switch(Mode.EMBEDDING, "schedule")
    assert host.running[0].prepared
    await host.switcher.prepare(Mode.GENERATION)
    await host.switcher.close()
    assert host.log[-2:] == ["stop embedding on gpu", "stop generation on gpu"]
    assert host.running == []


async def test_the_end_of_the_program_leaves_nothing_half_started() -> None:
    host = FakeHost()
    await host.switcher.switch(Mode.GENERATION, "schedule")
    host.hang = asyncio.Event()
    switch = asyncio.create_task(host.switcher.switch(Mode.EMBEDDING, "schedule"))
    await asyncio.sleep(0.02)
    switch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await switch
    assert host.last.outcome == "interrupted"
    await host.switcher.close()
    assert host.running == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Mode),
            st.sampled_from([None, "start", "ready", "canary"]),
            st.sampled_from(Slot),
            st.integers(0, 2),
            st.booleans(),
        ),
        max_size=8,
    ),
    st.sets(st.sampled_from(Slot)),
    st.booleans(),
)
def test_whatever_fails_gates_match_what_runs_and_requests_get_an_answer(
    script: list[tuple[Mode, str | None, Slot, int, bool]], configured: set[Slot], has_gpu: bool
) -> None:
    async def play() -> None:
        host = FakeHost(frozenset(configured), has_gpu=has_gpu)
        for target, phase, slot, times, leaks in script:
            if phase is not None:
                host.failing = {(slot, phase): times}
            host.leaks = leaks
            try:
                await host.switcher.switch(target, "operator")
            except SwitchError:
                pass
            else:
                assert host.switcher.mode is target
                assert {s.slot for s in host.running} == set(slots_of(target)) & configured
            host.leaks, host.leaked = False, set()
            running = {server.slot for server in host.running}
            assert running == set(host.switcher.servers)
            for each in Slot:
                assert (host.admission.gate(each) is Gate.OPEN) == (each in running)
                assert host.admission.gate(each) is not Gate.SOON
            assert host.switcher.under_way is None
            assert host.written == [] or host.last.outcome != "running"

    asyncio.run(play())


async def test_a_full_queue_and_a_long_wait_are_told_apart() -> None:
    from pipeline.core.errors import WaitingFull

    admission = Admission(max_waiting=1, max_wait=0.1)
    admission.set_gate(G, Gate.SOON)
    first = asyncio.create_task(admission.reserve(G))
    await asyncio.sleep(0.01)
    with pytest.raises(WaitingFull):
        await admission.reserve(G)
    with pytest.raises(WaitedTooLong):
        await first
    assert admission.waiting(G) == 0


async def test_a_request_that_gives_up_waiting_leaves_no_trace() -> None:
    admission = Admission(max_waiting=1)
    admission.set_gate(G, Gate.SOON)
    waiting = asyncio.create_task(admission.reserve(G))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert admission.waiting(G) == 0
    admission.set_gate(G, Gate.OPEN)
    async with await admission.reserve(G) as held:
        assert admission.in_flight(G) == 1
        held.release()
    assert admission.in_flight(G) == 0
    assert await admission.drained(G, 0)
