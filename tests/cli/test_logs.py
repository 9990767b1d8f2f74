"""What is logged of an error that nobody expected: where it happened, and not what the variables held."""

from __future__ import annotations

import pytest
import structlog

from pipeline.cli.console import set_up_logs


def test_a_traceback_shows_no_values(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logs("info")
    secret = "-".join(["key", "of", "the", "door"])
    try:
        _fail(secret)
    except ValueError as error:
        structlog.get_logger(__name__).error("a request failed", exc_info=error)
    said = capsys.readouterr().err
    assert "ValueError: 15" in said
    assert "test_a_traceback_shows_no_values" in said
    assert secret not in said
    assert len(said.splitlines()) < 10


def _fail(secret: str) -> None:
    raise ValueError(len(secret))
