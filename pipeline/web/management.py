"""Health for those who restart hosts, the switch by model, and the text queue: by the names that clients know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipeline.core.errors import UsageError
from pipeline.core.modes import Mode, Slot
from pipeline.core.naming import find_named
from pipeline.web import shapes
from pipeline.web.errors import described
from pipeline.web.services import Services

_MODES = {Slot.GENERATION: Mode.GENERATION, Slot.EMBEDDING: Mode.EMBEDDING}


def health_routes() -> APIRouter:
    """`/health`, which is open to all."""
    router = APIRouter(tags=["Management"])

    @router.get("/health", summary="Whether the daemon answers; needs no key")
    async def health() -> shapes.Healthy:
        return shapes.Healthy()

    return router


def management_routes(services: Services) -> APIRouter:
    """`/management/health`, `/switch-backend` and `/embed`."""
    router = APIRouter(tags=["Management"])

    unhealthy: dict[int | str, dict[str, Any]] = {
        503: {"model": shapes.ManagementHealth, "description": "The daemon cannot go on: `unhealthy`."}
    }

    @router.get("/management/health", summary="The mode, the model and the GPU's memory", responses=unhealthy)
    @router.get("/api/management/health", summary="The same", responses=unhealthy)
    async def management_health(response: Response) -> shapes.ManagementHealth:
        report = health_report(services.host(), services.broken())
        response.status_code = 503 if report.status == "unhealthy" else 200
        return report

    @router.post(
        "/switch-backend",
        summary="Switch to the mode that serves a model, and wait until it does",
        responses=described(shapes.Detail, 404, 409),
    )
    async def switch_backend(
        model_name: Annotated[
            shapes.InAddress | None, Query(description="Empty, or any name of a configured model.")
        ] = None,
        model_type: Annotated[Literal["generation", "embedding"] | None, Query()] = None,
        body: shapes.SwitchBackendRequest | None = None,
    ) -> shapes.SwitchBackendDone:
        asked = body or shapes.SwitchBackendRequest()
        wanted = model_type or asked.model_type
        card = _card(services, Slot(wanted) if wanted else None, model_name or asked.model_name)
        slot = card.slot
        done = await services.switch(_MODES[slot], "request", None)
        return shapes.SwitchBackendDone(
            model_name=card.id, model_type=slot.value, server_mode=done.mode, seconds=round(done.seconds, 3)
        )

    @router.post(
        "/embed",
        status_code=202,
        summary="Put a text onto the queue, to be embedded and stored",
        responses=described(shapes.Detail, 429),
    )
    async def embed(text: shapes.TextRequest) -> shapes.TextTaken:
        return await services.embed_text(text.text, text.metadata)

    @router.get("/embed/{text_id}", summary="What became of a text", responses=described(shapes.Detail, 404))
    async def text_state(text_id: str) -> shapes.TextState:
        state = await services.text_state(text_id)
        if state is None:
            raise HTTPException(404, f"no text has the id {text_id}")
        return state

    return router


def degraded_because(host: shapes.HostState) -> list[str]:
    """Why the host is not as it should be, in words; empty where it is."""
    reasons = [f"{state.slot}: {state.why_failed or 'failed'}" for state in host.slots if state.state == "failed"]
    if host.mode is not host.wanted and host.switching is None:
        by = f" ({host.wanted_because})" if host.wanted_because else ""
        reasons.append(f"the host is in mode {host.mode}, and {host.wanted} is wanted{by}")
    return reasons


def health_report(host: shapes.HostState, broken: str | None) -> shapes.ManagementHealth:
    """How the host is, for those who restart it. broken: why the daemon cannot go on."""
    reasons = [*([broken] if broken else []), *degraded_because(host)]
    loaded = {state.slot: state.model for state in host.slots if state.state == "ready" and state.model}
    gpu = host.gpu
    return shapes.ManagementHealth(
        status="unhealthy" if broken else "degraded" if reasons else "healthy",
        server_mode=host.mode,
        loaded_model=next((loaded[slot] for slot in Slot if slot in loaded), None),
        gpu_memory_usage=None if gpu is None else _usage(gpu),
        loaded_models=loaded,
        switching=host.switching,
        reasons=reasons,
        problems=list(dict.fromkeys([*reasons, *host.problems])),
    )


def _usage(gpu: shapes.GpuMemory) -> shapes.GpuMemoryUsage:
    percent = round(100 * gpu.used_bytes / gpu.total_bytes, 1) if gpu.total_bytes else 0.0
    return shapes.GpuMemoryUsage(used_bytes=gpu.used_bytes, total_bytes=gpu.total_bytes, percent=percent)


def card_named(cards: Sequence[shapes.ModelCard], name: str) -> shapes.ModelCard:
    """The configured model that a name means. Raises HTTPException (404) where it means none, or more than one."""
    try:
        return find_named(name, cards, lambda card: [[card.id], *card.names], lambda card: f"{card.id} ({card.slot})")
    except UsageError as error:
        raise HTTPException(404, str(error)) from error


def _card(services: Services, slot: Slot | None, name: str | None) -> shapes.ModelCard:
    """The model of a slot, or the one of a name; without either the language model."""
    slot = slot or (None if name else Slot.GENERATION)
    cards = [card for card in services.models() if slot is None or card.slot is slot]
    if name:
        return card_named(cards, name)
    if not cards:
        raise HTTPException(404, f"no {slot} model is configured")
    return cards[0]
