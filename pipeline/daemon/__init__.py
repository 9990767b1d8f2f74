"""The composition root: builds everything, runs it for months, closes it in reverse."""

from pipeline.daemon.app import run_daemon

__all__ = ["run_daemon"]
