"""Qdrant's REST calls that Nightshift makes, over the client library's own local engine; it may be told to misbehave.

It stands in for the wire, not for the server: what a Qdrant server makes of a call is the local engine's idea of it.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qdrant_client import QdrantClient, models
from qdrant_client.common.client_warnings import SEEN_MESSAGES

Answer = tuple[int, object]


@dataclass(slots=True)
class World:
    """What the server holds. faults: answers to the next requests, in place of what they ask for; 200 says that
    there is no result. key: that it wants.

    requests: method and path of each that came. lost: answers to PUT that get lost after the request was done.
    refused: times that points are not taken.
    """

    engine: QdrantClient = field(default_factory=lambda: QdrantClient(":memory:"))
    faults: list[int] = field(default_factory=list)
    lost: int = 0
    refused: int = 0
    key: str | None = None
    requests: list[tuple[str, str]] = field(default_factory=list)
    url: str = ""
    turn: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def qdrant_server() -> Iterator[World]:
    """A server on a free port, for as long as the block runs."""
    SEEN_MESSAGES.add("create-local-payload-indexes")
    world = World()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            path = self.path.partition("?")[0]
            with world.turn:
                world.requests.append((self.command, path))
                status, result = self._answered(path, body)
                if world.lost and self.command == "PUT":
                    world.lost -= 1
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
            # As Qdrant writes it: null values are left out of nothing.
            said = {"result": result, "status": "ok" if status == 200 else {"error": str(result)}, "time": 0.0}
            data = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _answered(self, path: str, body: dict[str, Any]) -> Answer:
            if world.key is not None and self.headers.get("api-key") != world.key:
                return 401, "Must provide an API key"
            if world.faults:
                status = world.faults.pop(0)
                return status, None if status == 200 else "out of order"
            if world.refused and self.command == "PUT" and path.endswith("/points"):
                world.refused -= 1
                return 422, "a payload is too large"
            try:
                return 200, _done(world.engine, self.command, path.strip("/").split("/"), body)
            except ValueError as error:
                return (404 if "not found" in str(error) else 400), str(error)

        do_GET = do_PUT = do_POST = do_DELETE = _handle  # noqa: N815  # the library's names

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    world.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield world
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
        world.engine.close()


def _done(engine: QdrantClient, method: str, path: list[str], body: dict[str, Any]) -> object:
    if path == ["collections"]:
        return engine.get_collections().model_dump(mode="json")
    if path == ["aliases"]:
        return engine.get_aliases().model_dump(mode="json")
    if path == ["collections", "aliases"]:
        changes = models.ChangeAliasesOperation.model_validate(body).actions
        return engine.update_collection_aliases(change_aliases_operations=changes)
    name, *rest = path[1:]
    return _CALLS[method, "/".join(rest)](engine, name, body)


def _create(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    return engine.create_collection(name, vectors_config=models.VectorParams.model_validate(body["vectors"]))


def _upsert(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    batch = models.Batch.model_validate(body["batch"])
    return engine.upsert(name, points=batch).model_dump(mode="json")


def _scroll(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    rows, offset = engine.scroll(
        name, limit=body["limit"], offset=body.get("offset"), with_payload=body["with_payload"], with_vectors=False
    )
    return {"points": [row.model_dump(mode="json") for row in rows], "next_page_offset": offset}


def _query(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    only = models.Filter.model_validate(body["filter"]) if body.get("filter") else None
    question = body["query"]["nearest"]
    found = engine.query_points(
        name, query=question, query_filter=only, limit=body["limit"], with_payload=body["with_payload"]
    )
    return found.model_dump(mode="json")


def _retrieve(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    rows = engine.retrieve(name, body["ids"], with_payload=True, with_vectors=True)
    return [row.model_dump(mode="json") for row in rows]


def _delete(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    return engine.delete(name, points_selector=models.PointIdsList(points=body["points"])).model_dump(mode="json")


def _index(engine: QdrantClient, name: str, body: dict[str, Any]) -> object:
    made = engine.create_payload_index(name, body["field_name"], field_schema=body["field_schema"])
    return made.model_dump(mode="json")


_CALLS: dict[tuple[str, str], Callable[[QdrantClient, str, dict[str, Any]], object]] = {
    ("GET", "exists"): lambda engine, name, _: {"exists": engine.collection_exists(name)},
    ("GET", ""): lambda engine, name, _: engine.get_collection(name).model_dump(mode="json"),
    ("DELETE", ""): lambda engine, name, _: engine.delete_collection(name),
    ("PUT", ""): _create,
    ("PUT", "index"): _index,
    ("PUT", "points"): _upsert,
    ("POST", "points"): _retrieve,
    ("POST", "points/delete"): _delete,
    ("POST", "points/scroll"): _scroll,
    ("POST", "points/query"): _query,
    ("POST", "points/count"): lambda engine, name, _: engine.count(name).model_dump(mode="json"),
}
