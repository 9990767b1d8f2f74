"""From the settings to how folders are looked at, and to the passwords that are tried on what is in them."""

from __future__ import annotations

from pipeline.core.errors import SettingsError
from pipeline.core.globs import path_filter
from pipeline.ingest.work import Looking
from pipeline.settings import Settings


def looking(settings: Settings) -> Looking:
    """How the settings want folders looked at."""
    wanted = settings.sources
    return Looking(path_filter(wanted.include, wanted.exclude), wanted.settle, wanted.timeout)


def passwords(settings: Settings) -> list[str]:
    """The passwords for encrypted PDFs, each once: those of the settings, then those of the file.

    Raises:
        SettingsError: the file cannot be read, or is not UTF-8.
    """
    listed = [password.get_secret_value() for password in settings.extract.passwords]
    file = settings.extract.password_file
    if file is not None:
        try:
            listed += file.read_text(encoding="utf-8-sig").splitlines()
        except OSError as error:
            problem = f"{file} cannot be read: {error.strerror or error}"
            raise SettingsError("extract.password_file", problem, "the settings") from error
        except UnicodeDecodeError:
            # The bytes that are wrong may be those of a password: they are not shown, nor is the error that has them.
            raise SettingsError("extract.password_file", f"{file} is not UTF-8 text", "the settings") from None
    return list(dict.fromkeys(password for password in listed if password))
