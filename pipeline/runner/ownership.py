"""One host, one owner: a lock that ends with its process, and says who holds it."""

from __future__ import annotations

import datetime as dt
import fcntl
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import HostBusy, StoreError

HOST, PAUSED = "owner.lock", "paused.lock"


@dataclass(frozen=True, slots=True)
class Owner:
    """Who works on this host's data folder. url: where a daemon listens."""

    kind: Literal["daemon", "run-now", "tune", "verify", "import", "restore"]
    pid: int
    since: str
    url: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} (pid {self.pid}, since {self.since}{f', {self.url}' if self.url else ''})"


@contextmanager
def own_host(
    data_dir: Path, kind: Literal["daemon", "run-now", "tune", "verify", "import", "restore"], lock: str = HOST
) -> Iterator[Callable[[str], None]]:
    """Hold the host's lock for as long as the block runs. The kernel lets go of it however the process ends.

    Gives a function that tells others the URL at which the owner listens. lock: `PAUSED` for whoever has the host
    from a daemon that is idle for it.

    Raises:
        HostBusy: somebody else holds it.
        StoreError: nothing can be written in the data folder.
    """
    folder = data_dir / "run"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(
            f"the data folder {data_dir} cannot be used: {error.strerror or error}; make it writable, or name another "
            "one with NIGHTSHIFT_DATA_DIR"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostBusy(str(owner_of(data_dir, lock) or "another process")) from error
        since = f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC"

        def tell(url: str | None) -> None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(asdict(Owner(kind, os.getpid(), since, url))).encode(), 0)

        tell(None)
        try:
            yield tell
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def owner_of(data_dir: Path, lock: str = HOST) -> Owner | None:
    """Who holds the host's lock now, or None. Raises StoreError where that may not be seen."""
    try:
        with (data_dir / "run" / lock).open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Owner(**json.loads(file.read()))
    except PermissionError as error:
        raise StoreError(
            f"whether a daemon runs cannot be seen: {error.filename}: {error.strerror}; run this as the user whose "
            "it is, or name another data folder with NIGHTSHIFT_DATA_DIR"
        ) from error
    except (OSError, ValueError, TypeError):
        return None
    return None
