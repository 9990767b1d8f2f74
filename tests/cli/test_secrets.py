"""No command, log line, answer or report shows a password or a key, whichever setting has it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import httpx
import pytest
import structlog
from pydantic import SecretStr
from sqlalchemy.exc import SQLAlchemyError

from pipeline.backends.remote import RemoteServer
from pipeline.cli.console import complain, load_settings, print_error, set_up_logs
from pipeline.core.errors import BackendStartFailed, NightshiftError, SettingsError, StoreError
from pipeline.core.modes import Mode, Slot
from pipeline.core.redaction import remember
from pipeline.settings import load
from pipeline.settings.description import section_of
from pipeline.settings.fields import Settings, known_settings
from pipeline.store.database import Database, make_engine
from pipeline.store.qdrant.client import Place
from pipeline.web import shapes
from pipeline.web.errors import answer
from tests.runs import Host
from tests.web.world import NOW

SECRET = "S3CRET"
URLS = (
    f"postgresql+psycopg://u:{SECRET}@db.example/d",
    f"postgresql+psycopg://u:{SECRET}%40x@db.example/d?sslpassword={SECRET}",
    f"postgresql+psycopg://db.example/d?password={SECRET}",
    f"sqlite://u:{SECRET}@db.example",
    f"http://u:{SECRET}@db.example:80/d?api_key={SECRET}",
    f"http://db.example/d?token={SECRET}&key={SECRET}#password={SECRET}",
    f"http://db.example/d http://u:{SECRET}@db.example",
    f"host=db.example password='{SECRET}'",
    f"{SECRET}-{SECRET}",
)


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    hook = sys.excepthook
    yield
    sys.excepthook = hook
    remember(())
    assert logging.lastResort is not None
    logging.lastResort.setFormatter(None)


def _loaded(folder: Path, key: str, value: object) -> tuple[Settings | None, str]:
    """The settings with that value, or none and what the error says."""
    try:
        return load({key: value}, environ={"NIGHTSHIFT_DATA_DIR": str(folder)}, cwd=folder).settings, ""
    except NightshiftError as error:
        return None, str(error)


def _types_in(annotation: object) -> set[object]:
    return {annotation}.union(*(_types_in(part) for part in get_args(annotation)))


def _texts() -> list[str]:
    """The settings that can hold an address: all that are text, a list of texts, a path or a secret."""
    fields = {
        known.key: (section_of(Settings.model_fields[known.key.partition(".")[0]]) or Settings).model_fields
        for known in known_settings()
    }
    return [key for key, of in fields.items() if {str, SecretStr, Path} & _types_in(of[key.split(".")[-1]].annotation)]


def test_there_are_settings_to_look_at() -> None:
    assert {"api_key", "database_url", "embedding.url", "generation.url", "qdrant.url"} <= {*_texts()}


@pytest.mark.parametrize("key", _texts())
def test_no_setting_shows_a_secret(key: str, tmp_path: Path) -> None:
    is_secret = {known.key: known.is_secret for known in known_settings()}[key]
    for url in URLS if is_secret else URLS[:-1]:
        settings, problem = _loaded(tmp_path, key, url)
        assert SECRET not in problem
        if settings is not None:
            shown = json.dumps(settings.flatten())
            assert SECRET not in shown
            assert is_secret or "db.example" in shown


@pytest.mark.parametrize("value", [[SECRET], {"a": SECRET}, 53637, f"{SECRET}\x00", f"[{SECRET}"])
def test_a_wrong_value_of_a_secret_is_not_repeated(value: object, tmp_path: Path) -> None:
    problems = [_loaded(tmp_path, known.key, value)[1] for known in known_settings() if known.is_secret]
    assert any(problems) or isinstance(value, str)
    assert not [problem for problem in problems if SECRET in problem or "53637" in problem]


def test_a_value_that_is_cut_is_cut_after_the_secret_is_gone(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"qdrant.url": f"http://u:{SECRET * 20}@host"}, environ={}, cwd=tmp_path)
    assert "http://u:" in str(caught.value)
    assert SECRET not in str(caught.value)


def test_commands_logs_and_tracebacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("NIGHTSHIFT_EMBEDDING_API_KEY", SECRET)
    load_settings({"database_url": URLS[0]})
    set_up_logs("info")
    error = RuntimeError(f"{URLS[1]} and {SECRET}")
    structlog.get_logger(__name__).warning(f"cannot open {URLS[4]}", url=URLS[5], key=SECRET, exc_info=error)
    assert logging.lastResort is not None
    logging.lastResort.handle(logging.makeLogRecord({"msg": f"{URLS[2]} {SECRET}", "levelno": logging.ERROR}))
    sys.excepthook(RuntimeError, error, None)
    complain(f"{URLS[3]}: {SECRET}")
    print_error(f"{URLS[3]}: {SECRET}")
    said = "".join(capsys.readouterr())
    assert said.count("db.example") >= 7
    assert SECRET not in said


@pytest.mark.parametrize("url", [f"postgresql+psycopg://u:{SECRET}@127.0.0.1:1/d?sslpassword={SECRET}", *URLS[2:4]])
def test_what_the_database_says(url: str) -> None:
    with pytest.raises(StoreError) as caught:
        Database.open(url.replace("db.example", "127.0.0.1:1"))
    assert SECRET not in str(caught.value)
    assert isinstance(caught.value.__cause__, SQLAlchemyError | None)


def test_an_address_that_is_none() -> None:
    with pytest.raises(StoreError) as caught:
        make_engine(f"postgresql+psycopg://u:{SECRET}@h:port/d")
    assert SECRET not in str(caught.value)


async def test_a_remote_server_that_is_away() -> None:
    server = RemoteServer(Slot.GENERATION, f"http://u:{SECRET}@127.0.0.1:1/x", "m", start_stall=0.0, trust_env=False)
    with pytest.raises(BackendStartFailed) as caught:
        await server.start()
    assert SECRET not in str(caught.value)
    slot = shapes.SlotState(
        slot=Slot.GENERATION, model="m", kind="remote", device=None, state="failed", gate="closed",
        why_failed=server.why_failed,
    )  # fmt: skip
    host = shapes.HostState(
        mode=Mode.IDLE, since=NOW, wanted=Mode.IDLE, wanted_because="", slots=[slot], problems=[str(server.why_failed)]
    )
    assert SECRET in str(server.why_failed)
    assert "127.0.0.1:1" in host.model_dump_json()
    assert SECRET not in host.model_dump_json()


def test_answers_and_places() -> None:
    assert SECRET not in bytes(answer("/api/x", 503, URLS[4]).body).decode()
    assert SECRET not in bytes(answer("/v1/x", 503, URLS[4]).body).decode()
    assert SECRET not in Place(URLS[5], None, "c").location


def test_every_secret_of_the_settings_is_remembered() -> None:
    settings = Settings.model_validate({"embedding": {"api_key": SECRET}, "api_key": "sesame"})
    remember(settings.secrets())
    error = httpx.InvalidURL(f"Invalid path: '/{SECRET}' for sesame")
    assert not {SECRET, "sesame"} & {*str(NightshiftError(error)).replace("'", " ").replace("/", " ").split()}


def test_a_source_of_a_job_with_a_password(tmp_path: Path) -> None:
    jobs, named = tmp_path / "jobs", f"//u:{SECRET}@nas/share"
    jobs.mkdir()
    (jobs / "night.toml").write_text(
        f'cron = "0 2 * * *"\nuntil = "06:00"\nmode = "embedding"\ntask = "ingest"\nsources = ["{named}"]\n'
    )
    host = Host(tmp_path, {"NIGHTSHIFT_JOBS_DIR": str(jobs)})
    host.run_json("db", "upgrade")
    for command in (("jobs",), ("jobs", "check"), ("jobs", "--json"), ("plan",), ("plan", "--json"), ("status",)):
        done = host.run(*command)
        assert SECRET not in done.stdout + done.stderr, command


@pytest.mark.parametrize("port", ["54x32", "99999"])
def test_a_database_at_a_port_that_is_none_is_told_without_its_password(tmp_path: Path, port: str) -> None:
    host = Host(tmp_path, {"NIGHTSHIFT_DATABASE_URL": f"postgresql+psycopg://u:{SECRET}@h:{port}/d"})
    for command in ("status", "documents", "plan", "run-now"):
        done = host.run(command)
        assert (done.returncode != 0 or command == "status", SECRET in done.stdout + done.stderr) == (True, False)
        assert "Traceback" not in done.stderr
