"""A small server that behaves as its environment says: what the supervisor is tested against.

STANDIN_MODE: `serve`, or `crash-with-extra-bufts` (SIGSEGV at start unless --no-extra-bufts),
`crash`, `crash-on-request` (SIGSEGV at the second request unless --no-extra-bufts), `silent`,
`chatty` (progress, never ready), `exit`, `explain`, `nonsense`, `stubborn` (ignores SIGTERM and
leaves a grandchild), `wrong-size`, `once` (fails to start unless the file STANDIN_FILE exists, and makes it).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

MODE = os.environ.get("STANDIN_MODE", "serve")
SAFE = "--no-extra-bufts" in sys.argv
ONE = base64.b64encode(b"\0\0\x80\x3f" + bytes(12)).decode()


class Handler(BaseHTTPRequestHandler):
    requests = 0

    def do_GET(self) -> None:
        self.answer({"status": "ok"})

    def do_POST(self) -> None:
        type(self).requests += 1
        if MODE == "crash-on-request" and not SAFE and self.requests > 1:
            crash()
        inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["input"]
        self.answer({"data": [{"index": index, "embedding": ONE} for index in range(len(inputs))]})

    def answer(self, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def crash() -> None:
    sys.stderr.write("about to crash in native code\n")
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


def say(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main() -> None:
    if MODE == "crash" or (MODE == "crash-with-extra-bufts" and not SAFE):
        crash()
    elif MODE == "silent":
        time.sleep(60)
    elif MODE == "chatty":
        for step in range(6):
            say(progress=step / 10)
            time.sleep(0.2)
    elif MODE == "exit":
        sys.exit("no such device")
    elif MODE == "explain":
        say(error="the weights are upside down", kind="model")
        sys.exit(1)
    elif MODE == "nonsense":
        say(hello="world")
    elif MODE == "once":
        marker = Path(os.environ["STANDIN_FILE"])
        if not marker.exists():
            marker.touch()
            sys.exit("not yet")
    elif MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        grandchild = subprocess.Popen(["sleep", "60"])
        sys.stderr.write(f"grandchild {grandchild.pid}\n")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    say(port=server.server_port, dimension=5 if MODE == "wrong-size" else 4, max_tokens=8, model="stand-in")
    server.serve_forever()


if __name__ == "__main__":
    main()
