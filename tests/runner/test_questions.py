"""The server for questions, with the real model: when it comes, who shares it, and when it goes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.backends.models import file_key
from pipeline.backends.orphans import ChildRegistry
from pipeline.core.errors import BackendStartFailed, ModelError, NightshiftError, UsageError, WaitingFull
from pipeline.ingest.work import utc_now
from pipeline.runner.question import embed_question
from pipeline.runner.questions import MOST_QUESTIONS, QuestionServer
from pipeline.runner.target import take_aim
from pipeline.settings import Settings
from pipeline.settings.fields import EmbeddingSettings, SearchSettings
from pipeline.store import models
from pipeline.store.database import Database
from pipeline.store.models import StoredModel
from tests.conftest import DEFAULT_MODEL

HEADER = 2_000_000
"""Bytes; the vocabulary and the names of the weights end before, most weights come after."""


async def until(condition: Callable[[], object]) -> None:
    """Let others work until it is so."""
    while not condition():  # noqa: ASYNC110  nobody tells of it
        await asyncio.sleep(0)


def model_servers() -> list[psutil.Process]:
    """Those that this process started and that have not ended."""

    def serves(child: psutil.Process) -> bool:
        try:
            return "--n-gpu-layers=0" in child.cmdline()
        except (psutil.ZombieProcess, psutil.NoSuchProcess):
            return False

    return [child for child in psutil.Process().children() if serves(child)]


@pytest.fixture
def opened(sqlite_url: str) -> Database:
    return Database.open(sqlite_url)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path,
        embedding=EmbeddingSettings(model=str(DEFAULT_MODEL)),
        search=SearchSettings(idle=3600.0),
    )


@pytest.fixture
async def model(settings: Settings, opened: Database) -> StoredModel:
    return (await take_aim(settings, opened)).model


@pytest.fixture
async def server(settings: Settings, opened: Database, tmp_path: Path) -> AsyncIterator[QuestionServer]:
    made = QuestionServer(settings, opened, ChildRegistry(tmp_path / "children.json"))
    yield made
    await made.stop()
    opened.close()


async def test_questions_that_come_together_share_one_server(
    server: QuestionServer, model: StoredModel, settings: Settings, tmp_path: Path
) -> None:
    assert server.state().state == "stopped"
    texts = [f"what happens to lamp {number}" for number in range(12)]
    vectors = await asyncio.gather(*(server.embed(model, text) for text in texts))
    state = server.state()
    assert (state.state, state.starts, state.answered, state.asking) == ("ready", 1, 12, 0)
    assert state.model == model.name
    assert state.pid is not None
    process = psutil.Process(state.pid)
    # Nothing of it is on a GPU, and it is noted for a later daemon to find.
    assert process.environ()["CUDA_VISIBLE_DEVICES"] == "-1"
    assert {"--n-gpu-layers=0", "--contexts=1"} <= set(process.cmdline())
    assert str(state.pid) in (tmp_path / "children.json").read_text()
    alone = await embed_question(settings, model, texts[3])
    assert float(alone @ vectors[3]) > 0.9999
    assert float(alone @ vectors[4]) < 0.9999
    await server.stop()
    assert server.state().state == "stopped"
    assert not process.is_running()
    assert (tmp_path / "children.json").read_text() == ""


async def test_one_that_was_killed_is_started_by_the_next_question(server: QuestionServer, model: StoredModel) -> None:
    before = await server.embed(model, "what happens to the lamp")
    first = server.state().pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    after = await server.embed(model, "what happens to the lamp")
    assert np.allclose(before, after, atol=1e-4)
    assert server.state().starts == 2
    assert server.state().pid != first


async def test_questions_under_way_survive_its_death(server: QuestionServer, model: StoredModel) -> None:
    await server.embed(model, "what happens to the lamp")
    pid = server.state().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # so that the questions are under way when it dies
    asked = [asyncio.create_task(server.embed(model, f"what is in room {number}")) for number in range(6)]
    await until(lambda: server.state().asking == 6)
    os.kill(pid, signal.SIGKILL)
    assert {vector.shape for vector in await asyncio.gather(*asked)} == {(384,)}
    assert server.state().starts == 2


async def test_it_goes_when_nobody_asks_and_when_others_answer(
    server: QuestionServer, model: StoredModel, settings: Settings, opened: Database
) -> None:
    await server.embed(model, "what happens to the lamp")
    await server.review(model.fingerprint)
    assert server.state().state == "ready"  # an hour is not over
    await server.review(None)
    assert server.state().state == "stopped"
    assert not server.running

    hasty = QuestionServer(settings.model_copy(update={"search": SearchSettings(idle=1e-6)}), opened)
    try:
        asked = asyncio.create_task(hasty.embed(model, "what happens to the lamp"))
        await until(lambda: hasty.state().state == "starting")
        await hasty.review(model.fingerprint)  # somebody asks
        assert (await asked).shape == (384,)
        await hasty.review(model.fingerprint)
        assert hasty.state().state == "stopped"
    finally:
        await hasty.stop()


async def test_search_with_another_model_ends_the_server_of_the_first(
    server: QuestionServer, model: StoredModel, opened: Database
) -> None:
    first = await server.embed(model, "what happens to the lamp")
    pid = server.state().pid
    assert pid is not None
    other = await opened.write(
        models.ensure_model,
        fingerprint=f"cls:{model.fingerprint}"[:64],
        name="the same, pooled otherwise",
        path=model.path,
        size=1,
        mtime_ns=1,
        dimension=384,
        now=utc_now(),
    )
    second = await server.embed(other, "what happens to the lamp")
    assert float(first @ second) < 0.99
    assert not psutil.pid_exists(pid)
    assert server.state().model == other.name
    await server.review(model.fingerprint)
    assert server.state().state == "stopped"


async def test_more_than_may_wait_are_turned_away(server: QuestionServer, model: StoredModel) -> None:
    asked = [server.embed(model, f"question {number}") for number in range(MOST_QUESTIONS + 3)]
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(answer) for answer in answers if isinstance(answer, BaseException)] == [WaitingFull] * 3
    assert server.state().answered == MOST_QUESTIONS


async def test_a_question_that_is_too_long_is_the_askers_mistake(server: QuestionServer, model: StoredModel) -> None:
    with pytest.raises(UsageError, match=r"too long for the model: \d+ tokens, and 512 are the most"):
        await server.embed(model, "lamp " * 600)
    assert (await server.embed(model, "lamp")).shape == (384,)


async def test_a_model_that_is_gone_is_said_and_one_that_is_broken_is_not_tried_at_once_again(
    server: QuestionServer, settings: Settings, opened: Database, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copy(DEFAULT_MODEL, copy)
    aimed = settings.model_copy(update={"embedding": EmbeddingSettings(model=str(copy))})
    model = (await take_aim(aimed, opened)).model
    gone = replace(model, fingerprint="0" * 64, path=str(tmp_path / "gone.gguf"))
    for _ in range(2):
        with pytest.raises(ModelError, match=r"gone\.gguf\), which is no longer there: put it back"):
            await server.embed(gone, "lamp")

    # As a disk breaks a file: of the same size and age, so that its stored fingerprint is believed.
    _, size, mtime_ns = file_key(copy)
    with copy.open("r+b") as file:
        file.seek(HEADER)
        file.write(b"\0" * (size - HEADER))
    os.utime(copy, ns=(mtime_ns, mtime_ns))
    with pytest.raises(NightshiftError):
        await server.embed(model, "lamp")
    state = server.state()
    assert state.state == "failed"
    assert state.why_failed
    with pytest.raises(BackendStartFailed, match=r"questions cannot be embedded; that is tried again in \d s"):
        await server.embed(model, "lamp")
    assert server.state().starts == 0
    assert not server.running


async def test_stopping_ends_a_server_that_starts_and_lets_no_other_start(
    server: QuestionServer, model: StoredModel
) -> None:
    asked = asyncio.create_task(server.embed(model, "lamp"))
    await until(model_servers)
    await server.stop()
    with pytest.raises(NightshiftError):
        await asked
    with pytest.raises(BackendStartFailed, match="the daemon stops"):
        await server.embed(model, "lamp")
    assert not model_servers()


async def test_an_asker_that_goes_away_while_it_starts_leaves_nothing_behind(
    server: QuestionServer, model: StoredModel
) -> None:
    asked = asyncio.create_task(server.embed(model, "lamp"))
    await until(model_servers)
    asked.cancel()
    await asyncio.gather(asked, return_exceptions=True)
    assert not model_servers()
    assert (await server.embed(model, "lamp")).shape == (384,)
    assert server.state().starts == 1
