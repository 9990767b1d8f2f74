"""sqlite-vec, where it is installed: the connections to SQLite get its functions, or they go on without them."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

_FAILURES = (sqlite3.Error, OSError, AttributeError, ValueError)


def load_sqlite_vec(connection: sqlite3.Connection) -> bool:
    """Give a connection the functions of sqlite-vec; False where it cannot have them, and nothing has changed.

    Which library SQLite is, and whether Python lets extensions into it, differs from host to host. What counts is
    whether the functions answer afterwards.
    """
    library = _library()
    if library is not None and not has_sqlite_vec(connection):
        with suppress(*_FAILURES):
            connection.enable_load_extension(True)
            try:
                connection.load_extension(str(library))
            finally:
                connection.enable_load_extension(False)
    return library is not None and has_sqlite_vec(connection)


def has_sqlite_vec(connection: sqlite3.Connection) -> bool:
    """Whether the functions of sqlite-vec answer on this connection."""
    try:
        return bool(connection.execute("SELECT vec_version()").fetchone())
    except sqlite3.Error:
        return False


@functools.cache
def offer_sqlite_vec() -> bool:
    """Let every connection of this process have sqlite-vec that is opened from now on; False where that cannot be.

    For a Python that was built without a way to load extensions. SQLite is the very library that `sqlite3` uses,
    found through that module's symbols: a second copy of it in one process would break the locks of the first.
    """
    library = _library()
    if library is None or hasattr(sqlite3.Connection, "enable_load_extension"):
        return False
    # Where the module is built into the interpreter it has no file, and its symbols are the interpreter's.
    module = getattr(sys.modules.get("_sqlite3"), "__file__", None)
    with suppress(*_FAILURES):
        sqlite, entry = ctypes.CDLL(module), ctypes.CDLL(str(library)).sqlite3_vec_init
        if _call(sqlite.sqlite3_auto_extension, entry) != 0:
            return False
        if _new_ones_have_it():
            return True
        # An extension that cannot begin would let no connection be opened any more.
        _call(sqlite.sqlite3_cancel_auto_extension, entry)
    return False


def _call(function: Any, entry: Any) -> int:
    function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_int
    return int(function(ctypes.cast(entry, ctypes.c_void_p)))


def _new_ones_have_it() -> bool:
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            return has_sqlite_vec(connection)
    except sqlite3.Error:
        return False


@functools.cache
def _library() -> Path | None:
    """Where sqlite-vec's library lies; None where the package is not there, or not for this system."""
    found = importlib.util.find_spec("sqlite_vec")
    folders = [Path(folder) for folder in (found.submodule_search_locations or ())] if found is not None else []
    files = (folder / f"vec0{ending}" for folder in folders for ending in (".so", ".dylib", ".dll"))
    return next((file for file in files if file.is_file()), None)
