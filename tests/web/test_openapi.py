"""What OpenAPI says is what is answered: requests of every kind, made of the description, against the application."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import schemathesis
import structlog
from schemathesis import engine
from schemathesis.engine import events

from pipeline.core.modes import Mode
from pipeline.web import shapes
from pipeline.web.app import create_app
from pipeline.web.metrics import Metrics
from pipeline.web.options import WebOptions
from tests.web.world import World

KEY = "sesame"
SEED = 20260301
EXAMPLES = 5
"""Of each operation, made at random; those of the limits of its values come on top of that."""

NOT_SAID = {
    # Which texts are lengths, and which names a document can have, is said in words.
    "^/api/switch$": ["positive_data_acceptance"],
    "^/api/documents/{name}$": ["positive_data_acceptance", "unsupported_method", "allow_header_conformance"],
    # To PUT to any path below is to upload a document of that name, and to GET one is to ask for one of that id.
    "^/api/documents/.*retry$": ["unsupported_method", "allow_header_conformance"],
    "^/api/documents/{document_id}$": ["allow_header_conformance"],
}


class _Backend(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"object": "list", "data": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


async def _switch(mode: Mode, reason: str, hold: float | None) -> shapes.SwitchDone:
    return shapes.SwitchDone(mode=mode, outcome="done", seconds=0.0)


@pytest.fixture
def backend() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Backend)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.filterwarnings("ignore")
def test_every_operation_answers_as_it_says(backend: str, tmp_path: Path) -> None:
    world = World(backend, tmp_path)
    world.enter(Mode.MIXED)
    world.reports["r1"] = {"run_id": "r1"}
    # A switch would have the rest of the API answer 503, as it should.
    app = create_app(replace(world.services(), switch=_switch), WebOptions(api_key=KEY), Metrics())
    config = schemathesis.Config.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {KEY}"},
            "generation": {"max-examples": EXAMPLES, "database": "none"},
            "phases": {"stateful": {"enabled": False}},
            "operations": [
                {"include-path-regex": path, "checks": {check: {"enabled": False} for check in checks}}
                for path, checks in NOT_SAID.items()
            ],
        }
    )
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json", app, config=config, headers={"Authorization": f"Bearer {KEY}"}
    )

    @schema.hook
    def filter_query(_: object, query: dict[str, Any] | None) -> bool:
        """Not an object, of which an address has the parts: they may be what is asked for."""
        return not any(isinstance(value, dict) for value in (query or {}).values())

    found: list[str] = []
    tested: set[str | None] = set()
    with structlog.testing.capture_logs() as logged:
        for event in engine.from_schema(schema).execute():
            if isinstance(event, events.NonFatalError | events.FatalError):
                found.append(str(event))
            if isinstance(event, events.ScenarioFinished):
                tested.add(event.recorder.label)
                found += [
                    f"{event.recorder.label}: {check.name}: {check.failure_info.failure.title} "
                    f"{check.failure_info.failure.message}\n{check.failure_info.code_sample}"
                    for checks in event.recorder.checks.values()
                    for check in checks
                    if check.failure_info is not None
                ]
    assert not [line for line in logged if line["log_level"] in ("error", "critical")]
    assert not found, "\n".join(dict.fromkeys(found))
    described = {f"{each.upper()} {path}" for path, methods in app.openapi()["paths"].items() for each in methods}
    assert tested >= described


def test_a_text_in_an_address_says_that_it_has_no_character_0(tmp_path: Path) -> None:
    app = create_app(World("http://127.0.0.1:9", tmp_path).services(), WebOptions(), Metrics())
    asked = [
        (path, parameter)
        for path, methods in app.openapi()["paths"].items()
        for operation in methods.values()
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "query"
    ]
    texts = [(path, each["name"], text) for path, each in asked for text in texts_of(each["schema"])]
    assert {(path, name) for path, name, _ in texts} >= {("/api/search", "q"), ("/switch-backend", "model_name")}
    assert [one for one in texts if "enum" not in one[2] and "\\x00" not in one[2].get("pattern", "")] == []


def texts_of(schema: dict[str, Any]) -> list[dict[str, Any]]:
    parts = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    return [schema] if schema.get("type") == "string" else [text for part in parts for text in texts_of(part)]
