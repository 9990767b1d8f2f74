"""Talks to this host's daemon, where one runs."""

from __future__ import annotations

from typing import Any

import httpx

from pipeline.core.errors import BackendRefused, BackendTimeout, UsageError
from pipeline.runner.ownership import owner_of
from pipeline.settings import Settings
from pipeline.settings.description import ENVIRONMENT_PREFIX


class DaemonClient:
    """The daemon's API, for the commands. Errors are those of `core.errors`."""

    def __init__(self, url: str, api_key: str | None) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self.url = url
        self._client = httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(30.0), trust_env=False)

    def close(self) -> None:
        """End its connections."""
        self._client.close()

    def get(self, path: str, *, patience: float = 30.0) -> Any:
        """The answer's JSON, waited for at most so many seconds."""
        return self._ask("GET", path, None, patience)

    def post(self, path: str, body: Any = None, *, patience: float = 30.0) -> Any:
        """The answer's JSON, waited for at most so many seconds."""
        return self._ask("POST", path, body, patience)

    def delete(self, path: str) -> Any:
        """The answer's JSON."""
        return self._ask("DELETE", path, None, 30.0)

    def _ask(self, method: str, path: str, body: Any, patience: float) -> Any:
        try:
            answer = self._client.request(
                method, path, json=body, timeout=httpx.Timeout(min(30.0, patience), read=patience)
            )
        except httpx.TimeoutException as error:
            raise BackendTimeout(f"the daemon at {self.url} did not answer in {patience:g} s") from error
        except httpx.TransportError as error:
            raise BackendRefused(0, f"the daemon at {self.url} cannot be reached: {error}") from error
        except httpx.InvalidURL as error:
            raise UsageError(f"that is more than a daemon can be asked for: {error}") from error
        if answer.is_success:
            return answer.json() if answer.content else None
        try:
            reason = answer.json()["detail"]
        except (ValueError, KeyError, TypeError):
            reason = answer.text[:200]
        message = reason if isinstance(reason, str) else str(reason)
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            message = "the daemon wants a key: set NIGHTSHIFT_API_KEY as it is set for the daemon"
        if answer.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.NOT_FOUND):
            raise UsageError(message)
        raise BackendRefused(answer.status_code, message)


def running_daemon(settings: Settings) -> DaemonClient | None:
    """This host's daemon, if one runs."""
    owner = owner_of(settings.data_dir)
    if owner is None or owner.kind != "daemon" or owner.url is None:
        return None
    key = settings.api_key.get_secret_value() if settings.api_key else None
    return DaemonClient(owner.url.replace("//0.0.0.0:", "//127.0.0.1:"), key)


def need_daemon(settings: Settings) -> DaemonClient:
    """This host's daemon. Raises UsageError where none runs."""
    client = running_daemon(settings)
    if client is None:
        raise UsageError(f"{no_daemon(settings)}: start one with `python -m pipeline daemon`")
    return client


def no_daemon(settings: Settings) -> str:
    """That no daemon runs, and on which data folder: another folder may have one."""
    chooses = f"{ENVIRONMENT_PREFIX}DATA_DIR chooses another"
    return f"no daemon runs on the data folder {settings.data_dir} ({chooses})"
