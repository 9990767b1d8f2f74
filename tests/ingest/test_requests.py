"""What is asked for at once: sizes that follow the server's speed, and documents that are done as the run goes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pipeline.ingest.pace import SECONDS_UNDER_WAY, Speed, plan_request
from pipeline.ingest.stages.embed import Documents
from pipeline.store.queue import PendingChunk

LENGTHS = st.lists(st.lists(st.integers(1, 90), min_size=1, max_size=8), max_size=12)


def chunks_of(documents: list[list[int]]) -> list[PendingChunk]:
    return [
        PendingChunk(100 * content + number, content, [7] * length)
        for content, lengths in enumerate(documents)
        for number, length in enumerate(lengths)
    ]


@given(LENGTHS, st.integers(1, 8), st.integers(1, 100), st.integers(0, 500))
def test_requests_keep_to_their_limits_and_leave_nothing_out(
    documents: list[list[int]], most: int, tokens: int, together: int
) -> None:
    waiting, found = Documents(chunks_of(documents)), []
    while waiting:
        found.append(waiting.take(most, tokens, together))
    assert sorted(chunk.chunk_id for request in found for chunk in request) == [
        chunk.chunk_id for chunk in chunks_of(documents)
    ]
    for request in found:
        assert 1 <= len(request) <= most
        assert len(request) == 1 or sum(len(chunk.tokens) for chunk in request) <= tokens


@given(LENGTHS, st.integers(1, 8), st.integers(1, 100), st.integers(0, 500))
def test_a_document_waits_for_its_own_group_only(
    documents: list[list[int]], most: int, tokens: int, together: int
) -> None:
    """When a chunk of a document is sent, all smaller documents are sent, but for those within a group's size."""
    needs = {content: sum(lengths) for content, lengths in enumerate(documents)}
    left = {content: len(lengths) for content, lengths in enumerate(documents)}
    waiting = Documents(chunks_of(documents))
    while waiting:
        for chunk in waiting.take(most, tokens, together):
            before = [other for other in left if left[other] and needs[other] < needs[chunk.content_id]]
            assert sum(needs[other] for other in before) <= max(0, together - needs[chunk.content_id])
            left[chunk.content_id] -= 1


def test_the_document_of_which_a_part_was_read_goes_last() -> None:
    waiting = Documents(chunks_of([[5], [50], [40]]), unfinished=0)
    assert [waiting.take(9, 1, 0)[0].content_id for _ in range(3)] == [2, 1, 0]


def plan(speed: float | None, requests: int = 0, tokens: int = 0, contexts: int = 1) -> int | None:
    return plan_request(speed, requests=requests, tokens=tokens, contexts=contexts, most_requests=3, most_tokens=16_384)


def test_the_first_request_is_small_and_waits_for_nothing() -> None:
    assert plan(None) == 1
    assert plan(None, requests=1, tokens=200) is None


def test_a_slow_server_has_a_chunk_for_each_of_its_contexts_and_no_more() -> None:
    slow = 0.05 * 250
    assert plan(slow, requests=0) == 8
    assert plan(slow, requests=1, tokens=250) is None
    assert plan(slow, requests=1, tokens=250, contexts=2) == 8
    assert plan(slow, requests=2, tokens=500, contexts=2) is None


def test_a_fast_server_has_as_much_as_is_allowed() -> None:
    assert plan(1_000_000, requests=2, tokens=32_768) == 16_384
    assert plan(1_000_000, requests=3, tokens=49_152, contexts=8) is None


@given(st.floats(1, 1e7), st.integers(0, 9), st.integers(1, 4))
def test_what_is_under_way_is_some_seconds_of_work(speed: float, requests: int, contexts: int) -> None:
    tokens = 0
    for sent in range(requests + 1):
        size = plan(speed, requests=sent, tokens=tokens, contexts=contexts)
        if size is None:
            break
        assert 1 <= size <= max(1, speed * SECONDS_UNDER_WAY)
        assert sent < contexts or tokens + size <= speed * SECONDS_UNDER_WAY
        tokens += size


def test_the_speed_follows_the_last_answers() -> None:
    speed = Speed()
    assert speed.tokens_per_second is None
    speed.answered(100, 1.0)
    assert speed.tokens_per_second == 100
    for _ in range(60):
        speed.answered(10, 1.0)
    assert 10 <= (speed.tokens_per_second or 0) < 11
    speed.answered(5_000, 0.0)
    assert (speed.tokens_per_second or 0) > 100
