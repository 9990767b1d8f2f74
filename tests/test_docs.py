"""What the documentation says of settings and commands is what the program does."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import typer

from pipeline.backends.models import parse_hub_name
from pipeline.cli.app import app
from pipeline.core.errors import SettingsError
from pipeline.settings import KnownSetting, known_settings, load
from pipeline.web.app import create_app
from pipeline.web.metrics import Metrics
from pipeline.web.options import WebOptions
from tests.web.world import World

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
FIRST_DAY = (ROOT / "docs" / "first-day.md").read_text(encoding="utf-8")
commands: Any = typer.main.get_command(app)


def documented_rows() -> dict[str, list[str]]:
    """Setting -> [default, environment variable, meaning], as the tables of the document have them."""
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| `(\w+)` \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) == len({key for key, *_ in rows}), "a setting is documented twice"
    return {key: cells for key, *cells in rows}


@pytest.mark.parametrize("known", known_settings(), ids=lambda known: known.key)
def test_every_setting_is_documented_with_its_default(known: KnownSetting) -> None:
    default, variable, meaning = documented_rows()[known.key]
    assert default.strip("`") == known.default
    assert variable == known.variable
    assert meaning == known.description


def test_nothing_is_documented_that_is_not_a_setting() -> None:
    assert list(documented_rows()) == [known.key for known in known_settings()]


def test_the_toml_example_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "nightshift.toml").write_text(example, encoding="utf-8")
    loaded = load(environ={}, cwd=tmp_path)
    assert tomllib.loads(example)["chunk"] == {"tokens": 512, "overlap": 64}
    assert (loaded.settings.chunk.tokens, loaded.origins["chunk.tokens"]) == (512, "nightshift.toml")


def test_the_environment_example_is_the_same_as_the_file(tmp_path: Path) -> None:
    (example,) = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    environ = dict(re.findall(r"(NIGHTSHIFT_\w+)=(\S+)", example))
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    from_file = load(environ={}, cwd=tmp_path).settings.flatten()
    from_environment = load(environ=environ, cwd=tmp_path / "elsewhere").settings.flatten()
    keys = [known.key for known in known_settings() if known.variable in environ]
    assert len(keys) == len(environ) == 5
    assert {key: from_file[key] for key in keys} == {key: from_environment[key] for key in keys}


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        ("", {"NIGHTSHIFT_EMBEDDING_THREADS": "many"}),
        ("\n\n[embeding]\n", {}),
        ("\n\n\n\n[chunk]\noverlap = 200\n", {}),
    ],
)
def test_the_quoted_errors_are_the_real_ones(toml: str, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load(environ=environ, cwd=tmp_path)
    assert f"    {caught.value}\n" in TEXT


def typed(page: str) -> list[str]:
    """What a page has people type: its indented lines, and commands of ours within a sentence."""
    lines = re.findall(r"^    (?:\$ )?(\S.*)$", page, flags=re.MULTILINE)
    return [line.strip() for line in [*lines, *re.findall(r"`(\.venv/bin/python -m [^`]+)`", page)]]


def parsed(command: Any, arguments: list[str], parent: Any = None) -> str:
    """The full name of the command that takes the arguments. Raises as the program does where none takes them."""
    context = command.make_context(command.name, list(arguments), parent=parent)
    if not getattr(command, "commands", None) or not context._protected_args:
        return str(context.command_path)
    _, inner, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return parsed(inner, rest, context)


@pytest.mark.parametrize("page", [README, FIRST_DAY], ids=["README.md", "first-day.md"])
def test_each_command_that_is_to_be_typed_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    seen = set()
    for line in typed(page):
        words = shlex.split(line.partition("  # ")[0])
        while "=" in words[0]:
            assert words[0].partition("=")[0] in {"CMAKE_ARGS", *(known.variable for known in known_settings())}
            del words[0]
        if words[0] == "make":
            assert targets.issuperset(words[1:]), line
            seen.add(line)
        elif words[:3] == [".venv/bin/python", "-m", "pipeline"]:
            assert parsed(commands, words[3:]), line
            seen.add(line)
    assert len(seen) >= 5


def test_a_command_that_does_not_exist_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such command"):
        parsed(commands, ["statsu"])
    with pytest.raises(Exception, match="No such option"):
        parsed(commands, ["documents", "show", "a.pdf", "--nmae", "x"])


def test_the_first_day_is_short_and_found_from_the_first_screen() -> None:
    assert "(docs/first-day.md)" in "\n".join(README.splitlines()[:40])
    assert len([line for line in FIRST_DAY.splitlines() if line]) <= 45
    for page, anchor in re.findall(r"\]\(([\w.-]+\.md)(?:#([\w-]+))?\)", FIRST_DAY):
        headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / page).read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not anchor or anchor in {heading.lower().replace(" ", "-") for heading in headings}


def test_the_first_day_s_settings_are_valid_and_its_model_is_named_alike_everywhere(tmp_path: Path) -> None:
    (toml,) = re.findall(r"```toml\n(.*?)```", FIRST_DAY, flags=re.DOTALL)
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    loaded = load(environ={}, cwd=tmp_path)
    assert loaded.changed() == ["generation.model"]
    file = parse_hub_name(str(loaded.settings.generation.model)).file
    assert file.endswith(".gguf")
    assert set(re.findall(r"\"?model\"?[:=] ?\"(.*?)\"", FIRST_DAY)) == {Path(file).stem}


def test_the_first_day_s_requests_are_ones_that_the_daemon_takes(tmp_path: Path) -> None:
    settings = load(environ={}, cwd=tmp_path).settings
    base = f"http://{settings.host}:{settings.port}"
    (curl,) = [line for line in typed(FIRST_DAY) if line.startswith("curl ")]
    _, _, url, *options = shlex.split(curl)
    assert url.startswith(base)
    paths = create_app(World("http://127.0.0.1:9", tmp_path).services(), WebOptions(), Metrics()).openapi()["paths"]
    assert "post" in paths[url.removeprefix(base)]
    assert json.loads(options[-1])["messages"][0]["role"] == "user"

    asked: list[str] = []

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers["Content-Length"]))
            message = {"role": "assistant", "content": "좋은 아침이에요"}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            answer = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    (code,) = re.findall(r"```python\n(.*?)```", FIRST_DAY, flags=re.DOTALL)
    assert f'"{base}/v1"' in code
    with HTTPServer(("127.0.0.1", 0), Answers) as server, contextlib.redirect_stdout(io.StringIO()) as printed:
        answering = threading.Thread(target=server.handle_request)
        answering.start()
        there: dict[str, Any] = {}
        exec(code.replace(base, f"http://127.0.0.1:{server.server_port}"), there)
        there["client"].close()
        answering.join()
    assert asked == ["/v1/chat/completions"]
    assert printed.getvalue() == "좋은 아침이에요\n"


def test_the_page_of_commands_has_each_of_them() -> None:
    page = (ROOT / "docs" / "commands.md").read_text("utf-8")
    listed = {words.split()[0] for words in re.findall(r"`([a-z][^`]*)`", page.partition("\n\nEach takes")[0])}
    assert set(commands.commands) <= listed
    assert all(f"`db {name}" in page for name in ("upgrade", "backup", "restore", "index"))
