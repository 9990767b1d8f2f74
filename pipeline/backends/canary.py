"""One token from a language model: the proof that it computes, and not only that its port answers."""

from __future__ import annotations

from typing import Any

import httpx

from pipeline.core.errors import BackendDied, BackendRefused, BackendTimeout, BadAnswer

PROMPT = "The night shift begins when"
TIMEOUT = httpx.Timeout(120.0, connect=10.0)
"""Of a first token: what was left for the first request (kernels to compile, pages to map) is done here."""


async def generate_one_token(base_url: str, api_key: str | None, model: str, *, trust_env: bool = False) -> None:
    """Ask the server at `base_url` (without `/v1`) for one token of `model`.

    A server without plain completions is asked by chat. Raises BackendDied (no connection),
    BackendTimeout, BackendRefused, or BadAnswer.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    limit: dict[str, Any] = {"model": model, "max_tokens": 1, "temperature": 0}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=TIMEOUT, trust_env=trust_env) as client:
        answer = await _post(client, "/v1/completions", {**limit, "prompt": PROMPT})
        if answer.status_code in (httpx.codes.NOT_FOUND, httpx.codes.METHOD_NOT_ALLOWED):
            messages = [{"role": "user", "content": PROMPT}]
            answer = await _post(client, "/v1/chat/completions", {**limit, "messages": messages})
    if answer.status_code != httpx.codes.OK:
        raise BackendRefused(answer.status_code, f"the model server gave no token: {answer.text[:500]}")
    try:
        choices = answer.json()["choices"]
    except (ValueError, KeyError, TypeError) as error:
        raise BadAnswer("the model server's answer holds no choices") from error
    if not isinstance(choices, list) or not choices:
        raise BadAnswer("the model server's answer holds no choices")


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> httpx.Response:
    try:
        return await client.post(path, json=body)
    except httpx.TimeoutException as error:
        raise BackendTimeout("the model server gave no token in time") from error
    except httpx.TransportError as error:
        raise BackendDied(f"the model server does not answer: {error}") from error
