"""A log file of bounded size for the output of a child process, and its last lines in memory."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINE = 500


class RotatedLog:
    """Appends bytes to `path`; past `max_bytes` the file becomes `path.1`, and that one `path.2`.

    Never raises while writing: a full disk costs log lines and not the child.
    """

    def __init__(self, path: Path, *, max_bytes: int = 1_000_000, keep: int = 2, tail_lines: int = 20) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._keep = keep
        self._lines: deque[str] = deque(maxlen=tail_lines)
        self._unfinished = b""
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> None:
        """Take `data` in, as it came."""
        *whole, self._unfinished = (self._unfinished + data).split(b"\n")
        self._unfinished = self._unfinished[-4 * MAX_LINE :]
        self._lines.extend(line.decode("utf-8", errors="replace")[:MAX_LINE] for line in whole if line.strip())
        try:
            self._append(data)
        except OSError:
            self.close()

    def tail(self) -> str:
        """The last lines, or a note that there are none."""
        lines = [*self._lines]
        if self._unfinished.strip():
            lines.append(self._unfinished.decode("utf-8", errors="replace")[:MAX_LINE])
        return "\n".join(lines) or "(it logged nothing)"

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _append(self, data: bytes) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        if self._file.tell() + len(data) > self._max_bytes and self._file.tell() > 0:
            self.close()
            self._rotate()
            self._file = self.path.open("ab", buffering=0)
        self._file.write(data)

    def _rotate(self) -> None:
        for number in range(self._keep, 0, -1):
            older = self.path.with_name(f"{self.path.name}.{number}")
            newer = self.path.with_name(f"{self.path.name}.{number - 1}") if number > 1 else self.path
            if newer.exists():
                newer.replace(older)
