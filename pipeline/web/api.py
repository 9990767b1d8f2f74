"""`/api`: for programs, everything that the command line can do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.exceptions import HTTPException
from starlette.requests import Request

from pipeline.core.documents import DocumentState
from pipeline.web import shapes
from pipeline.web.errors import described
from pipeline.web.search_shapes import DocumentParameters, DocumentResults, SearchParameters, SearchResults
from pipeline.web.services import Services
from pipeline.web.uploads import checked_name

FAILING = (DocumentState.EMPTY, DocumentState.ENCRYPTED, DocumentState.FAILED)

_NOT_FOUND = described(shapes.Detail, 404)
_CONFLICT = described(shapes.Detail, 409)
_FILE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
Limit = Annotated[int, Query(ge=1, le=1000)]
DocumentId = Annotated[int, Path(ge=1, le=shapes.MOST_INTEGER)]


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

    @router.get("/plan", summary="What waits, what fits into the next window, and when all is done")
    async def plan() -> dict[str, Any]:
        return await services.plan()

    @router.get(
        "/reports/latest",
        summary="The report of the last run that had something to do",
        responses=_NOT_FOUND,
    )
    async def latest_report() -> dict[str, Any]:
        return _found(await services.report(None), "there is no report yet")

    @router.get("/switches", summary="The journal of switches, newest first")
    async def switches(limit: Limit = 20) -> Sequence[shapes.SwitchRow]:
        return await services.switches(limit)

    @router.post(
        "/switch",
        summary="Switch to a mode, and wait until it is on; with `hold`, keep it so long against the schedule",
        responses=_CONFLICT,
    )
    async def switch(asked: shapes.SwitchRequest) -> shapes.SwitchDone:
        return await services.switch(asked.mode, "operator", asked.hold)

    @router.delete(
        "/hold",
        status_code=204,
        summary="End the hold: the schedule counts again",
        responses=_NOT_FOUND,
    )
    async def end_hold() -> None:
        if not await services.end_hold():
            raise HTTPException(404, "no mode is held")

    return router


def _run_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api/runs", tags=["Runs"])

    @router.get("", summary="The last runs, newest first")
    async def runs(limit: Limit = 20) -> Sequence[shapes.LastRun]:
        return await services.runs(limit)

    @router.post("", status_code=202, summary="Begin a run", responses=_CONFLICT)
    async def start(asked: shapes.RunRequest | None = None) -> shapes.RunStarted:
        asked = asked or shapes.RunRequest()
        return shapes.RunStarted(
            run_id=await services.start_run(asked.paths, asked.confirm_deletions, asked.extract_only)
        )

    @router.get("/current", summary="How far the run at work has come")
    async def current() -> shapes.CurrentRun:
        return shapes.CurrentRun(run=services.progress())

    @router.post("/current/stop", status_code=202, summary="Let the run at work end after the batches in flight")
    async def stop() -> shapes.StopAsked:
        return shapes.StopAsked(stopping=await services.stop_run())

    @router.get(
        "/{run_id}/result",
        summary="What one of the daemon's last runs came to, as `run-now --json` prints it",
        responses=_NOT_FOUND,
    )
    async def result(run_id: str) -> dict[str, Any]:
        return _found(services.run_result(run_id), f"what became of a run {run_id} is not known")

    @router.get("/{run_id}/report", summary="The report of a run", responses=_NOT_FOUND)
    async def report(run_id: str) -> dict[str, Any]:
        return _found(await services.report(run_id), f"there is no report of a run {run_id}")

    return router


def _document_routes(services: Services) -> APIRouter:
    router = APIRouter(prefix="/api", tags=["Documents"])

    @router.get("/documents", summary="The documents by path, all or those in some states")
    async def documents(
        state: Annotated[list[DocumentState] | None, Query()] = None,
        limit: Limit = 100,
        offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    ) -> list[shapes.DocumentLine]:
        lines = await services.documents.list(state, limit, offset)
        return [shapes.DocumentLine.model_validate(line) for line in lines]

    @router.post("/documents/retry", summary="Let the next run try all documents in some states again")
    async def retry_states(asked: shapes.RetryRequest | None = None) -> shapes.Retried:
        states = [DocumentState(state) for state in asked.states] if asked and asked.states else FAILING
        return shapes.Retried(documents=await services.documents.retry(None, states))

    @router.get("/documents/{document_id}", summary="One document with its chunks", responses=_NOT_FOUND)
    async def show(document_id: DocumentId) -> shapes.DocumentDetail:
        return await _document(services, document_id)

    @router.post(
        "/documents/{document_id}/retry",
        summary="Let the next run try one again",
        responses=_NOT_FOUND,
    )
    async def retry(document_id: DocumentId) -> shapes.Retried:
        await _document(services, document_id)
        return shapes.Retried(documents=await services.documents.retry([document_id], FAILING))

    @router.put(
        "/documents/{name:path}",
        status_code=201,
        summary="Write a PDF or DOCX file into the inbox; the body is the file itself",
        openapi_extra=_FILE,
    )
    async def upload(name: str, request: Request) -> shapes.Uploaded:
        return await services.documents.upload(checked_name(name), _parts(request))

    @router.get("/models", summary="The models that made vectors, and which one search uses")
    async def models() -> Sequence[shapes.IndexModel]:
        return await services.index_models()

    @router.post("/models/use", summary="Move search to a model in one step", responses=_CONFLICT)
    async def use_model(asked: shapes.UseModelRequest) -> shapes.ModelUsed:
        return await services.use_model(asked.model, asked.anyway)

    @router.get("/search", summary="The passages that answer a question best")
    async def search(asked: Annotated[SearchParameters, Query()]) -> SearchResults:
        return await services.search(asked.asked())

    @router.get(
        "/search/documents",
        summary="The documents nearest in meaning, by their own vectors",
    )
    async def search_documents(asked: Annotated[DocumentParameters, Query()]) -> DocumentResults:
        return await services.search_documents(asked.asked())

    return router


def _found(report: dict[str, Any] | None, otherwise: str) -> dict[str, Any]:
    if report is None:
        raise HTTPException(404, otherwise)
    return report


async def _parts(request: Request) -> AsyncIterator[bytes]:
    async for part in request.stream():
        if part:
            yield part


async def _document(services: Services, document_id: int) -> shapes.DocumentDetail:
    found = await services.documents.show(document_id)
    if found is None:
        raise HTTPException(404, f"no document has the id {document_id}")
    return found
