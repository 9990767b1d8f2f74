"""What takes the network away, in processes of their own: it is for good."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NAMESPACE = """
import ctypes, socket, sys
from pipeline.ingest import confinement
if not confinement._own_network(ctypes.CDLL(None, use_errno=True)):
    sys.exit("not permitted")
print([name for _, name in socket.if_nameindex()])
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=5)
except OSError:
    print("refused")
"""

FILTERED = """
import ctypes, errno, os, socket, subprocess, sys, threading
from pipeline.ingest import confinement
ready, go = threading.Event(), threading.Event()
seen = []
def earlier():
    ready.set(); go.wait()
    library = ctypes.CDLL(None, use_errno=True)
    seen.append((library.socket(2, 1, 0), ctypes.get_errno()))
thread = threading.Thread(target=earlier); thread.start(); ready.wait()
print(confinement.confine())
go.set(); thread.join()
print(seen == [(-1, errno.EACCES)])
library = ctypes.CDLL(None, use_errno=True)
for call in (425, 438, {"x86_64": 310, "aarch64": 270}[os.uname().machine]):
    print(library.syscall(call, -1, 0, 0, 0, 0, 0), ctypes.get_errno() == errno.EACCES)
print("NoNewPrivs:\\t1" in open("/proc/self/status").read())
print(open(__import__("pipeline").__file__).read() is not None, subprocess.run(["true"]).returncode)
"""


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")
def test_an_empty_network_of_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ended = run(NAMESPACE, str(listener.getsockname()[1]))
        if ended.stderr.strip() == "not permitted":
            pytest.skip("this kernel lets nobody make a network namespace here")
        assert ended.stdout.split("\n") == ["['lo']", "refused", ""]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


@pytest.mark.skipif(
    sys.platform != "linux" or os.uname().machine not in ("x86_64", "aarch64"), reason="seccomp is not used here"
)
def test_the_filter_holds_for_every_thread_and_every_way_to_a_socket() -> None:
    ended = run(FILTERED)
    assert ended.stderr == ""
    assert ended.stdout.split("\n") == [
        "('seccomp', 'audit')",
        "True",
        "-1 True",
        "-1 True",
        "-1 True",
        "True",
        "True 0",
        "",
    ]
