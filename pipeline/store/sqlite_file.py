"""The file of a SQLite database: how it is opened where nobody may write, and whether it is still the one it was."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pipeline.core.errors import StoreError

DAMAGED = (
    "it is damaged: put a backup back (`python -m pipeline db restore FILE`); without one, `python -m pipeline verify` "
    "says what is damaged, `sqlite3 {file} .recover` saves what can be read, and a run that finds no file there "
    "embeds all documents anew"
)


def uri_for_reading(file: Path) -> str | None:
    """The address by which a database can only be read; None where SQLite may make its files beside it.

    Raises:
        StoreError: a part of it lies in its log, which SQLite reads only where it may write.
    """
    if not file.exists() or os.access(file.parent, os.W_OK):
        return None
    address = f"file:{quote(os.fsencode(file.absolute()))}?mode=ro"
    log, index = (file.with_name(file.name + ending) for ending in ("-wal", "-shm"))
    if not log.exists() or not log.stat().st_size:
        return f"{address}&immutable=1"
    if index.exists():
        return address
    raise StoreError(
        f"the database {file} cannot be read: {log.name} beside it holds a part of it, which SQLite reads only where "
        f"it may write, and {_locked(file.parent)}; copy both files to a folder that can be written, and name that one "
        "with --database"
    )


def advice(file: Path, cause: str) -> str | None:
    """What SQLite's words mean for this file and what to do; None where they say all there is."""
    if any(words in cause for words in ("malformed", "not a database", "database corruption")):
        return DAMAGED.format(file=file)
    if not any(words in cause for words in ("readonly", "read-only", "unable to open", "disk I/O")):
        return None
    folder = file.parent
    if not folder.is_dir():
        return f"the folder {folder} is not there: is its disk mounted?"
    if not os.access(folder, os.W_OK | os.X_OK):
        return _locked(folder)
    for path in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            return f"this user may not write to {path}"
    return None


def _locked(folder: Path) -> str:
    try:
        on_media = os.statvfs(folder).f_flag & os.ST_RDONLY
    except OSError:
        on_media = 0
    return f"{folder} is on a read-only file system" if on_media else f"this user may not write to {folder}"


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A database file that is open, by its number on its device, which is no other's as long as it is open."""

    path: Path
    device: int
    number: int

    def check(self) -> None:
        """Raises StoreError where another file, or none, is at its path: what is written would be lost."""
        try:
            now = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            what, remedy = "deleted", "put a backup back (`python -m pipeline db restore FILE`), or embed anew"
        except OSError:
            return  # a disk that stumbles: SQLite says so itself
        else:
            if (now.st_dev, now.st_ino) == (self.device, self.number):
                return
            what, remedy = "replaced by another one", "start again to go on with that one"
        raise StoreError(
            f"the database file {self.path} was {what} while it was in use, and what was stored since is lost: {remedy}"
        )


def open_file(path: Path) -> OpenFile | None:
    """The database file at a path, which has to be open by now; None where nobody can say."""
    try:
        found = path.absolute().stat()
    except OSError:
        return None
    return OpenFile(path.absolute(), found.st_dev, found.st_ino)
