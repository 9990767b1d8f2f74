"""Stands in for vLLM: takes its command line, and behaves as badly as STANDIN_MODE says.

`serve`; `forever` (loads and never gets ready, silently); `stubborn` (ignores SIGTERM, and so do the
two processes that it leaves: one in its group, one in a session of its own, as an engine might be).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MODE = os.environ.get("STANDIN_MODE", "serve")
ENGINE = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(200, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {os.environ['VLLM_API_KEY']}":
            self.answer(401, {"error": "Unauthorized"})
        elif self.path == "/v1/completions":
            self.answer(404, {"error": "chat only"})
        else:
            self.answer(200, {"choices": [{"message": {"content": "x"}}]})

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    arguments = sys.argv[1:]
    assert arguments[0] == "serve"
    if MODE == "forever":
        time.sleep(120)
    if MODE == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for apart in (False, True):
            subprocess.Popen([sys.executable, "-c", ENGINE], start_new_session=apart)
    port = int(arguments[arguments.index("--port") + 1])
    ThreadingHTTPServer((arguments[arguments.index("--host") + 1], port), Handler).serve_forever()


if __name__ == "__main__":
    main()
