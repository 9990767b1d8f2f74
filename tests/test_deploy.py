"""What deploy/ and the Dockerfile name is there, is understood, and works: as far as it can be tried without either."""

from __future__ import annotations

import configparser
import http.server
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest

from pipeline.daemon.app import RUN_GRACE, SHUTDOWN
from pipeline.runner.ownership import owner_of
from pipeline.settings import known_settings
from pipeline.switcher.switcher import CLOSE_GRACE
from tests.runs import ROOT

UNIT = ROOT / "deploy" / "nightshift.service"
WATCHDOG_BEAT = 20.0
"""Seconds: the daemon looks at the host at least so often, and says then that it is alive."""

STOP_GRACE, KILL_PATIENCE = 10.0, 5.0
"""Seconds that a model server has after SIGTERM, and that what is left of it is waited for after SIGKILL."""


@dataclass(frozen=True)
class Instruction:
    word: str
    rest: str


def dockerfile() -> list[Instruction]:
    """The instructions of the Dockerfile, comments and continued lines resolved."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found = [line.split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [Instruction(word.upper(), rest.strip()) for word, rest in found]


def all_of(word: str) -> list[str]:
    return [instruction.rest for instruction in dockerfile() if instruction.word == word]


def image_environment() -> dict[str, str]:
    """What the last stage sets."""
    last = max(n for n, instruction in enumerate(dockerfile()) if instruction.word == "FROM")
    settings = [instruction.rest for instruction in dockerfile()[last:] if instruction.word == "ENV"]
    return dict(part.split("=", 1) for rest in settings for part in shlex.split(rest))


def in_context(path: str) -> bool:
    """Whether .dockerignore lets a file through; the last pattern that fits decides."""
    kept = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        parts = Path(path).parts
        prefixes = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        fits = any(
            fnmatch(prefix, pattern) or (pattern.startswith("**/") and fnmatch(prefix.rpartition("/")[2], pattern[3:]))
            for prefix in prefixes
        )
        if fits:
            kept = line.startswith("!")
    return kept


def copied() -> list[tuple[str, str]]:
    """(source, target) of what is copied from the checkout."""
    pairs = []
    for rest in all_of("COPY"):
        if rest.startswith("--from="):
            continue
        *sources, target = rest.split()
        pairs += [(source, target) for source in sources]
    return pairs


def make_image(folder: Path) -> None:
    """The files that the image would hold, in the places that it would have them in, below `folder`."""
    for source, target in copied():
        place = folder / target.lstrip("/") if target.startswith("/") else folder / "opt/nightshift" / target
        for file in [ROOT / source] if (ROOT / source).is_file() else sorted((ROOT / source).rglob("*")):
            name = file.relative_to(ROOT).as_posix()
            if file.is_dir() or not in_context(name):
                continue
            inside = place / file.name if file == ROOT / source and target.endswith("/") else place
            inside = inside if file == ROOT / source else place / file.relative_to(ROOT / source)
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, inside)


def unit() -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(interpolation=None, strict=False, delimiters=("=",), comment_prefixes=("#",))
    parsed.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parsed.read_string(UNIT.read_text())
    return parsed


def seconds(span: str) -> float:
    """A systemd time span."""
    number, name = re.fullmatch(r"(\d+)(s|min|h)?", span).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, None: 1, "min": 60, "h": 3600}[name]


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    # It looks for the program and the documentation too, which are where the unit says on a real host only.
    text = re.sub(r"(?m)^ExecStart=\S+", f'ExecStart="{sys.executable}"', UNIT.read_text())
    copy = tmp_path / "nightshift.service"
    copy.write_text(text)
    verified = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    copy.write_text(text.replace("KillMode=", "KilMode="))
    misspelt = subprocess.run([analyze, "verify", "--man=no", str(copy)], capture_output=True, text=True, check=False)
    assert "KilMode" in misspelt.stderr  # or what was found above would mean nothing


def test_the_unit_lets_the_daemon_end_its_children_and_reach_the_gpu() -> None:
    service = unit()["Service"]
    assert service["Type"] == "notify"
    assert service["KillMode"] == "mixed"
    assert service["Restart"] == "on-failure"
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert seconds(service["WatchdogSec"]) >= 2 * WATCHDOG_BEAT
    requests, run = 2 * SHUTDOWN, RUN_GRACE + SHUTDOWN
    servers = CLOSE_GRACE.timeout + CLOSE_GRACE.cut_grace + STOP_GRACE + KILL_PATIENCE
    assert seconds(service["TimeoutStopSec"]) > requests + run + servers
    closing_devices = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock", "ProcSubset"}
    assert not closing_devices & set(service)
    assert "MemoryDenyWriteExecute" not in service


def test_the_unit_writes_where_it_may_and_sets_what_there_is() -> None:
    service = unit()["Service"]
    name, _, value = service["Environment"].partition("=")
    assert name in {known.variable for known in known_settings()}
    assert service["ProtectSystem"] == "strict"
    assert service["ReadWritePaths"] == value == f"/var/lib/{service['StateDirectory']}"
    assert service["WorkingDirectory"] == f"/etc/{service['ConfigurationDirectory']}"
    assert unit()["Unit"]["Documentation"] == "file:///opt/nightshift/docs/daemon.md"
    assert (ROOT / "docs" / "daemon.md").is_file()


def test_what_the_image_copies_is_there_and_in_the_context() -> None:
    assert copied()
    for source, _ in copied():
        assert (ROOT / source).exists(), source
        files = [ROOT / source] if (ROOT / source).is_file() else [f for f in (ROOT / source).rglob("*") if f.is_file()]
        assert any(in_context(file.relative_to(ROOT).as_posix()) for file in files), source
    for left_out in (".git/config", ".venv/bin/python", "data/nightshift.db", "nightshift.toml", "tests/runs.py"):
        assert not in_context(left_out), left_out


def test_the_image_sets_what_there_is_and_no_key() -> None:
    environment = image_environment()
    names = {name for name in environment if name.startswith("NIGHTSHIFT_")}
    assert names <= {known.variable for known in known_settings()}
    assert environment["NIGHTSHIFT_HOST"] == "0.0.0.0"
    assert "NIGHTSHIFT_API_KEY" not in names
    assert all_of("USER") == ["nightshift"]
    assert all_of("VOLUME") == [environment["NIGHTSHIFT_DATA_DIR"]]
    assert all_of("EXPOSE") == [environment["NIGHTSHIFT_PORT"]]
    assert json.loads(all_of("ENTRYPOINT")[0])[-1] == "nightshift"
    stages = all_of("FROM")
    assert [stage.split()[0] for stage in stages] == ["${BUILD_IMAGE}", "${RUN_IMAGE}"]


def test_the_files_of_the_image_are_enough_and_without_a_key_it_stays_shut(tmp_path: Path) -> None:
    make_image(tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTSHIFT_")}
    environment |= {name: value for name, value in image_environment().items() if name.startswith("NIGHTSHIFT_")}
    data = tmp_path / "data"
    environment |= {
        "PYTHONPATH": str(tmp_path / "opt/nightshift"),
        "NIGHTSHIFT_DATA_DIR": str(data),
        "NIGHTSHIFT_PORT": "0",
    }
    command = [sys.executable, "-P", "-m", "pipeline", *json.loads(all_of("CMD")[0])]
    folder = tmp_path / "etc/nightshift"
    refused = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, check=False, timeout=60
    )
    assert refused.returncode == 2
    assert "NIGHTSHIFT_API_KEY" in refused.stderr
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment | {"NIGHTSHIFT_API_KEY": "sesame", "NIGHTSHIFT_HOST": "127.0.0.1"},
            cwd=folder,
            stdout=output,
            stderr=output,
        )
    try:
        url = _address(process, data, log)
        assert httpx.get(f"{url}/health").json() == {"status": "healthy"}
        assert httpx.get(f"{url}/api/jobs").status_code == 401
        jobs = httpx.get(f"{url}/api/jobs", headers={"Authorization": "Bearer sesame"}).json()["jobs"]
        assert {job["name"] for job in jobs} == {path.stem for path in (ROOT / "jobs").glob("*.toml")}
        models = httpx.get(f"{url}/v1/models", headers={"Authorization": "Bearer sesame"}).json()["data"]
        assert [model["slot"] for model in models] == ["embedding"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_the_health_check_tells_a_daemon_that_answers_from_one_that_does_not() -> None:
    (check,) = all_of("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[0] == "python"

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = os.environ | {"NIGHTSHIFT_PORT": str(server.server_port)}
        line = [sys.executable, *command[1:]]
        assert subprocess.run(line, env=environment, check=False, timeout=30).returncode == 0
        server.shutdown()
    after = subprocess.run(line, env=environment, check=False, timeout=30, capture_output=True)
    assert after.returncode == 1


def _address(process: subprocess.Popen[bytes], data: Path, log: Path) -> str:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        owner = owner_of(data)
        if owner is not None and owner.pid == process.pid and owner.url is not None:
            try:
                httpx.get(f"{owner.url}/health", timeout=5)
            except httpx.HTTPError:
                pass
            else:
                return owner.url
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_the_page_names_only_what_there_is() -> None:
    page = (ROOT / "docs" / "daemon.md").read_text()
    variables = {known.variable for known in known_settings()}
    assert set(re.findall(r"NIGHTSHIFT_[A-Z_]+", page)) <= variables
    keys = {known.key for known in known_settings()}
    sections = {key.partition(".")[0] for key in keys if "." in key}
    named = set(re.findall(r"`([a-z]+\.[a-z_]+)`", page))
    assert {key for key in named if key.partition(".")[0] in sections} <= keys
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    for anchor in re.findall(r"\]\(#([^)]+)\)", page):
        assert re.search(rf"(?mi)^#+ {anchor}$", page), anchor
    for argument in ("BUILD_IMAGE", "RUN_IMAGE", "CMAKE_ARGS"):
        assert f"--build-arg {argument}=" in page
        assert any(rest.startswith(f"{argument}=") for rest in all_of("ARG")), argument
