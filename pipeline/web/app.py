"""The application: the routes, what guards them, and the connections to the backends while it lives."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from pipeline.core.errors import NightshiftError
from pipeline.ingest.names import stored_name
from pipeline.web import errors, shapes
from pipeline.web.api import api_routes
from pipeline.web.gateway import backend_client, gateway_routes
from pipeline.web.guard import Guard, Observe
from pipeline.web.management import health_routes, management_routes
from pipeline.web.metrics import Figures, Metrics
from pipeline.web.options import WebOptions
from pipeline.web.services import Services

_ABOUT = "One GPU, two shifts: a language model by day, a document index by night."


class Answer(JSONResponse):
    """JSON that any client can read: bytes of a path that are no UTF-8 are told as they are stored."""

    def render(self, content: object) -> bytes:
        """The bytes of the answer."""
        text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return stored_name(text).encode("utf-8", "backslashreplace")


def create_app(services: Services, options: WebOptions, metrics: Metrics) -> FastAPI:
    """The ASGI application. It opens its connections when it is started, and closes them when it is stopped."""
    client = backend_client(options)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with client:
            yield

    app = FastAPI(
        title="Nightshift",
        version=services.version,
        description=_ABOUT,
        lifespan=lifespan,
        redoc_url=None,
        default_response_class=Answer,
    )
    # The guard asks for the key; this only says so in the OpenAPI description.
    keyed = [Security(HTTPBearer(auto_error=False, description="Where an API key is set."))]
    in_ours = errors.described(shapes.Detail)
    in_openai = errors.described(shapes.ApiErrorBody)
    app.include_router(gateway_routes(services, options, client), dependencies=keyed, responses=in_openai)
    app.include_router(health_routes())
    app.include_router(management_routes(services), dependencies=keyed, responses=in_ours)
    app.include_router(api_routes(services), dependencies=keyed, responses=in_ours)

    @app.get(
        "/metrics",
        tags=["Management"],
        summary="Metrics for Prometheus",
        response_class=Response,
        responses=in_ours | {200: {"content": {"text/plain": {}}}},
        dependencies=keyed,
    )
    async def scrape() -> Response:
        try:
            counts = await services.counts()
        except NightshiftError:
            counts = None
        engine = await services.engine()
        figures = Figures(services.host(), services.admission, services.progress(), counts, engine)
        return Response(metrics.page(figures), headers={"Content-Type": CONTENT_TYPE_LATEST})

    errors.install(app)
    app.openapi = partial(errors.describe_what_is_answered, app)  # type: ignore[method-assign]  # as FastAPI has it
    app.add_middleware(Guard, options=options)
    app.add_middleware(Observe, observer=metrics.observe_request)
    return app
