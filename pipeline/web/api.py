"""`/api`: for programs, everything that the command line can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.core.documents import DocumentState
from pipeline.core.errors import UsageError
from pipeline.web import shapes
from pipeline.web.services import Services
from pipeline.web.uploads import checked_name

FAILING = (DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED)

_ERROR: dict[str, Any] = {"model": shapes.Detail}
_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Limit = Annotated[int, Query(ge=1, le=1000)]


def api_routes(services: Services) -> APIRouter:
    """The routes under `/api`."""
    router = APIRouter()
    router.include_router(_host_routes(services))
    router.include_router(_run_routes(services))
    router.include_router(_document_routes(services))
    return router


def _host_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["Host"])

    @router.get("/status", summary="What the host does now, and what the database holds")
    async def status() -> shapes.Status:
        counts = await services.counts()
        return shapes.Status(
            version=services.version,
            started_at=services.started_at,
            host=services.host(),
            run=services.progress(),
            **{name: getattr(counts, name) for name in shapes.Counts.model_fields},
        )

    @router.get("/config", summary="Every setting, and where it was set; secrets are left out")
    async def config() -> Sequence[shapes.Setting]:
        return services.config()

    @router.get("/jobs", summary="The jobs, their next windows, and what is wrong with their files")
    async def jobs() -> shapes.Jobs:
        return services.jobs()

    @router.get("/switches", summary="The journal of switches, newest first")
    async def switches(limit: Limit = 20) -> Sequence[shapes.SwitchRow]:
        return await services.switches(limit)

    @router.post(
        "/switch",
        summary="Switch to a mode, and wait until it is on; with `hold`, keep it so long against the schedule",
        responses={409: _ERROR, 503: _ERROR},
    )
    async def switch(asked: shapes.SwitchRequest) -> shapes.SwitchDone:
        return await services.switch(asked.mode, "operator", asked.hold)

    @router.delete("/hold", status_code=204, summary="End the hold: the schedule counts again", responses={404: _ERROR})
    async def end_hold() -> None:
        if not await services.end_hold():
            raise HTTPException(404, "no mode is held")

    return router


def _run_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/runs", tags=["Runs"])

    @router.get("", summary="The last runs, newest first")
    async def runs(limit: Limit = 20) -> Sequence[shapes.LastRun]:
        return await services.runs(limit)

    @router.post("", status_code=202, summary="Begin a run", responses={400: _ERROR, 409: _ERROR})
    async def start(asked: shapes.RunRequest | None = None) -> shapes.RunStarted:
        return shapes.RunStarted(run_id=await services.start_run(asked.paths if asked else None))

    @router.get("/current", summary="How far the run at work has come")
    async def current() -> shapes.CurrentRun:
        return shapes.CurrentRun(run=services.progress())

    @router.post("/current/stop", status_code=202, summary="Let the run at work end after the batches in flight")
    async def stop() -> shapes.StopAsked:
        return shapes.StopAsked(stopping=await services.stop_run())

    return router


def _document_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["Documents"])

    @router.get("/documents", summary="The documents by path, all or those in some states")
    async def documents(
        state: Annotated[list[DocumentState] | None, Query()] = None,
        limit: Limit = 100,
        offset: Annotated[int, Query(ge=0)] = 0,
    ) -> list[shapes.DocumentLine]:
        lines = await services.documents.list(state, limit, offset)
        return [shapes.DocumentLine.model_validate(line) for line in lines]

    @router.post("/documents/retry", summary="Let the next run try all documents in some states again")
    async def retry_states(asked: shapes.RetryRequest | None = None) -> shapes.Retried:
        states = [DocumentState(state) for state in asked.states] if asked and asked.states else FAILING
        return shapes.Retried(documents=await services.documents.retry(None, states))

    @router.get("/documents/{document_id}", summary="One document with its chunks", responses={404: _ERROR})
    async def show(document_id: int) -> shapes.DocumentDetail:
        return await _document(services, document_id)

    @router.post("/documents/{document_id}/retry", summary="Let the next run try one again", responses={404: _ERROR})
    async def retry(document_id: int) -> shapes.Retried:
        await _document(services, document_id)
        return shapes.Retried(documents=await services.documents.retry([document_id], FAILING))

    @router.put(
        "/documents/{name:path}",
        status_code=201,
        summary="Write a PDF or DOCX file into the inbox; the body is the file itself",
        responses={400: _ERROR, 413: _ERROR},
        openapi_extra=_FILE,
    )
    async def upload(name: str, request: Request) -> shapes.Uploaded:
        return await services.documents.upload(checked_name(name), _parts(request))

    @router.get("/search", summary="The passages nearest in meaning to a question", responses={503: _ERROR})
    async def search(
        q: Annotated[str, Query(min_length=1, max_length=8000)], k: Annotated[int, Query(ge=1, le=100)] = 5
    ) -> shapes.SearchResults:
        if not q.strip():
            raise UsageError("there is nothing to look for")
        return await services.search(q, k)

    return router


async def _parts(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        if part:
            yield part


async def _document(services: Services, document_id: int) -> shapes.DocumentDetail:
    found = await services.documents.show(document_id)
    if found is None:
        raise HTTPException(404, f"no document has the id {document_id}")
    return found
