"""From names to files. The hub is a small one on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from benchmarks.tiny_models import write_decoder
from pipeline.backends.models import HubName, file_key, fingerprint, parse_hub_name, resolve
from pipeline.core.errors import ModelError
from tests.backends.conftest import MODEL


def test_a_path(tmp_path: Path) -> None:
    found = resolve(str(MODEL), tmp_path)
    assert found.path == MODEL
    assert found.fingerprint == hashlib.sha256(MODEL.read_bytes()).hexdigest()
    assert (found.name, found.kind) == ("MiniLM L6 H384 Uncased", "gguf")


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2-F16", "ALL-MINILM-L6-V2-F16", "MiniLM L6 H384 Uncased"])
def test_the_name_of_a_model_that_is_here(tmp_path: Path, name: str) -> None:
    assert resolve(name, tmp_path).path == MODEL


def test_the_name_of_a_model_that_is_not_here_lists_those_that_are(tmp_path: Path) -> None:
    write_decoder(tmp_path / "x.gguf")
    with pytest.raises(ModelError, match=r"^own/y: no such file and no such model here; there are: x\.gguf, "):
        resolve("own/y", tmp_path)


def test_the_name_of_a_model_that_was_used_before(tmp_path: Path) -> None:
    used = tmp_path / "elsewhere.gguf"
    write_decoder(used)
    known = {(str(used), 1, 1): "f" * 64}
    assert resolve("elsewhere", tmp_path / "models", known=known).path == used
    for folder in ("a", "b"):
        (tmp_path / "models" / folder).mkdir(parents=True)
        (tmp_path / "models" / folder / "elsewhere.gguf").write_bytes(used.read_bytes())
    with pytest.raises(ModelError, match=r"could be more than one model: .*/a/elsewhere\.gguf, .*/b/elsewhere\.gguf"):
        resolve("elsewhere", tmp_path / "models", known=known)


def test_a_known_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"one")
    known = {file_key(path): "remembered"}
    assert fingerprint(path, known) == "remembered"
    path.write_bytes(b"three")
    assert fingerprint(path, known) == hashlib.sha256(b"three").hexdigest()


def test_a_model_directory(tmp_path: Path) -> None:
    folder = tmp_path / "bge"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(folder), tmp_path)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    (folder / "README.md").write_text("about")
    found = resolve(str(folder), tmp_path)
    assert (found.kind, found.name) == ("directory", "bge")
    (folder / "README.md").write_text("about something else")
    assert resolve(str(folder), tmp_path).fingerprint == found.fingerprint
    (folder / "tokenizer.json").write_text("{ }")
    assert resolve(str(folder), tmp_path).fingerprint != found.fingerprint


def test_a_directory_of_ggufs_asks_which(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").touch()
    with pytest.raises(ModelError, match=r"holds a\.gguf: name one"):
        resolve(str(tmp_path), tmp_path)


def test_what_is_not_there_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"there is no model at .*; name a file that is there"):
        resolve(str(tmp_path / "nothing.gguf"), tmp_path)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("hf:o/r/f.gguf", HubName("o", "r", None, "f.gguf")),
        ("hf:o/r", HubName("o", "r", None, "")),
        ("hf:o/r@v1.0", HubName("o", "r", "v1.0", "")),
        ("hf:o-x/r.1/sub/dir/f.gguf", HubName("o-x", "r.1", None, "sub/dir/f.gguf")),
        ("hf:o/r@v1.0/f.gguf", HubName("o", "r", "v1.0", "f.gguf")),
    ],
)
def test_hub_names(name: str, parts: HubName) -> None:
    assert parse_hub_name(name) == parts


@pytest.mark.parametrize(
    "name",
    [
        "hf:", "hf:o", "hf:o/..", "hf:o/r/", "hf:/r/f", "hf:o/r/../f", "hf:../r/f", "hf:o/../f", "hf:o/r//etc/passwd",
        "hf:o/r@../f", "hf:o/r/a\\b", "hf:o/r/\0",
    ],
)  # fmt: skip
def test_names_that_lead_nowhere_or_out(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        resolve(name, tmp_path)


class Hub(BaseHTTPRequestHandler):
    files: dict[str, bytes] = {}  # noqa: RUF012  one hub a test
    requests: list[str] = []  # noqa: RUF012

    def do_HEAD(self) -> None:
        self.reply(with_body=False)

    def do_GET(self) -> None:
        self.reply(with_body=True)

    def reply(self, *, with_body: bool) -> None:
        self.requests.append(f"{self.command} {self.path}")
        data = self.files.get(self.path)
        self.send_response(404 if data is None else 200)
        if data is None:
            self.send_header("X-Error-Code", "EntryNotFound" if "/known/" in self.path else "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(data or b"").hexdigest()}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(data or b"")))
        self.end_headers()
        if with_body:
            self.wfile.write(data or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    write_decoder(tmp_path / "tiny.gguf")
    Hub.files = {"/night/known/resolve/main/sub/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}
    Hub.requests = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_name_is_downloaded_once(hub: str, tmp_path: Path) -> None:
    models = tmp_path / "models"
    found = resolve("hf:night/known/sub/tiny.gguf", models, endpoint=hub)
    assert found.path == models / "night" / "known" / "sub" / "tiny.gguf"
    assert found.path.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert found.name == "tiny decoder"
    asked = len(Hub.requests)
    assert asked > 0
    assert resolve("hf:night/known/sub/tiny.gguf", models, endpoint=hub) == found
    assert len(Hub.requests) == asked, "what is there needs no network"


@pytest.mark.parametrize(
    ("name", "message"),
    [("hf:night/known/other.gguf", "no such file"), ("hf:night/unknown/x.gguf", "no such repository")],
)
def test_what_the_hub_does_not_know(hub: str, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        resolve(name, tmp_path / "models", endpoint=hub)


def test_without_a_network_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelError, match=r"connect to the network once, or copy the file to .*/o/r/f\.gguf and name"):
        resolve("hf:o/r/f.gguf", tmp_path, endpoint="http://127.0.0.1:9")


def test_a_repository_is_downloaded_once_and_without_pickles(hub: str, tmp_path: Path) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"a program", "README.md": b""}
    Hub.files |= {f"/night/known/resolve/{'0' * 40}/{name}": data for name, data in files.items()}
    info = {"id": "night/known", "sha": "0" * 40, "siblings": [], "private": False, "downloads": 0, "tags": []}
    Hub.files["/api/models/night/known/revision/main"] = json.dumps(info).encode()
    listed = [{"type": "file", "path": name, "size": len(data), "oid": "1" * 40} for name, data in files.items()]
    tree = f"/api/models/night/known/tree/{'0' * 40}?recursive=true&expand=false"
    Hub.files[tree] = json.dumps(listed).encode()
    models = tmp_path / "models"
    found = resolve("hf:night/known", models, endpoint=hub)
    assert (found.kind, found.name, found.path) == ("directory", "known", models / "night" / "known")
    assert (found.path / "model.safetensors").read_bytes() == b"weights"
    assert not (found.path / "pytorch_model.bin").exists()
    asked = len(Hub.requests)
    assert resolve("hf:night/known", models, endpoint=hub) == found
    assert len(Hub.requests) == asked, "what is there needs no network"
    (found.path / ".nightshift-complete").unlink()
    assert resolve("hf:night/known", models, endpoint=hub) == found
    assert len(Hub.requests) > asked, "a download that was cut off goes on"
