"""OpenAI's API on one port: each request goes to the backend in its slot, or is told when to come back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
from fastapi import APIRouter
from starlette.responses import Response

from pipeline.core.errors import AdmissionError, NotServing, WaitingFull
from pipeline.core.modes import Slot
from pipeline.web import shapes
from pipeline.web.errors import Refusal, described
from pipeline.web.management import card_named
from pipeline.web.options import WebOptions
from pipeline.web.relay import Relay, Way
from pipeline.web.services import Services

_CHANGES: dict[str, Any] = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}
}
_ANSWERS = described(shapes.ApiErrorBody, 404, 415, 429, 502, 504) | {
    200: {
        "description": "The backend's answer as it is; with `stream`, server-sent events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    },
    "default": {"description": "What else the backend answers, as it is."},
}


def backend_client(options: WebOptions) -> httpx.AsyncClient:
    """The connections to the backends, kept open between requests.

    They are given up before a backend does: llama-server and uvicorn close theirs after 5 idle
    seconds, and a request sent at that moment would be lost.
    """
    timeout = httpx.Timeout(
        connect=options.connect_timeout, read=options.read_timeout, write=options.read_timeout, pool=None
    )
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=2.0)
    return httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False)


def gateway_routes(services: Services, options: WebOptions, client: httpx.AsyncClient) -> APIRouter:
    """The routes under `/v1`."""

    def refuse(error: AdmissionError) -> Refusal:
        return plan_refusal(error, services, options.fallback_retry)

    def again(slot: Slot) -> float:
        return services.retry_after(slot) or options.fallback_retry

    def way(slot: Slot) -> Way:
        return Way(slot, services.admission, client, services.target, refuse, again, options.max_body)

    ways = {slot: way(slot) for slot in Slot}
    router = APIRouter(prefix="/v1", tags=["OpenAI's API"])

    def relays(path: str, slot: Slot) -> Callable[[], Any]:
        async def relay() -> Relay:
            return Relay(ways[slot], f"/v1{path}")

        return relay

    for path, slot, summary in (
        ("/chat/completions", Slot.GENERATION, "Chat with the language model"),
        ("/completions", Slot.GENERATION, "Continue a text"),
        ("/embeddings", Slot.EMBEDDING, "Vectors of texts"),
    ):
        router.add_api_route(
            path,
            relays(path, slot),
            methods=["POST"],
            response_class=Response,
            response_model=None,
            responses=_ANSWERS,
            openapi_extra=_CHANGES,
            summary=summary,
            name=path,
        )

    @router.get("/models", summary="The models that are configured")
    async def models() -> shapes.ListedModels:
        return shapes.ListedModels(data=[_listed(card, services) for card in services.models()])

    @router.get("/models/{model:path}", summary="One of them", responses=described(shapes.ApiErrorBody, 404))
    async def model(model: str) -> shapes.ListedModel:
        return _listed(card_named(services.models(), model), services)

    return router


def plan_refusal(error: AdmissionError, services: Services, fallback: float) -> Refusal:
    """What a client is told whom admission turned away. fallback: seconds until it may try again during a switch."""
    slot = Slot(error.slot)
    seconds = services.retry_after(slot)
    match error:
        case NotServing() if not any(card.slot is slot for card in services.models()):
            return Refusal(
                404,
                f"no model for {slot} is configured",
                "not_found_error",
                "model_not_found",
                outcome="not_configured",
            )
        case NotServing():
            message = _why_not(slot, services.host(), seconds)
            return Refusal(503, message, "mode_unavailable", "mode_unavailable", seconds, "not_serving")
        case WaitingFull():
            again = seconds or fallback
            return Refusal(429, str(error), "rate_limit_error", "queue_full", again, "queue_full")
        case _:
            again = seconds or fallback
            return Refusal(503, str(error), "service_unavailable_error", "waited_too_long", again, "waited_too_long")


def _why_not(slot: Slot, host: shapes.HostState, seconds: float | None) -> str:
    if any(state.slot is slot and state.state == "failed" for state in host.slots):
        return f"the backend of {slot} failed; /api/status says why"
    when = "nothing in the schedule serves it" if seconds is None else f"the schedule serves it {_in_words(seconds)}"
    return f"the host is in mode {host.mode} and does not serve {slot} now; {when}"


def _in_words(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "in less than a minute"
    hours, minutes = divmod(minutes, 60)
    return "in " + " ".join(f"{number} {unit}" for number, unit in ((hours, "h"), (minutes, "min")) if number)


def _listed(card: shapes.ModelCard, services: Services) -> shapes.ListedModel:
    created = card.created or int(services.started_at.timestamp())
    return shapes.ListedModel(id=card.id, created=created, slot=card.slot, status=card.status, meta=card.meta)
