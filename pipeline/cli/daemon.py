"""`daemon`: runs it in the foreground; systemd, a container or a terminal keeps it."""

from __future__ import annotations

import asyncio

from pipeline.cli.console import errors_explained, load_settings, set_up_logs
from pipeline.core.errors import NightshiftError
from pipeline.daemon import run_daemon


def daemon_command(host: str | None, port: int | None, database: str | None) -> None:
    """Run until SIGTERM or Ctrl-C."""
    with errors_explained():
        loaded = load_settings({"host": host, "port": port, "database_url": database})
        set_up_logs(loaded.settings.log_level)  # a daemon has nothing else to say what it does
        try:
            asyncio.run(run_daemon(loaded))
        except* NightshiftError as group:
            raise group.exceptions[0] from None
