"""The app: paths, and what stands before them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.types import Receive, Scope, Send

from llavit.serve.engine import Engine
from llavit.serve.hosts import HostCheck
from llavit.serve.http.access import AccessLog
from llavit.serve.http.completions import Completions
from llavit.serve.http.errors import ApiError, draining, install_error_handlers
from llavit.serve.http.images import ImageLoader
from llavit.serve.http.limits import CHAT, Body, BodyLimits, KeyCheck, answer_early
from llavit.serve.http.metrics import CONTENT_TYPE, Metrics
from llavit.serve.http.openapi import CHAT_BODY, CHAT_RESPONSES, describe, errors
from llavit.serve.http.responses import Health, Model, Models
from llavit.serve.http.settings import Settings


def create_app(
    engine: Engine, settings: Settings | None = None, *, images: ImageLoader | None = None
) -> FastAPI:
    """Make the OpenAI-style app of an engine.

    Args:
        engine: what answers; the app does not close it.
        settings: limits and permissions; safe ones if not given.
        images: gets the images of requests; made from the settings if not given.

    Returns:
        an ASGI app. `app.state.draining = True` makes it refuse new chat requests and tell so at /health.

    Example:
        app = create_app(Engine.load("runs/starter/instruct"), Settings(api_key="secret"))
        uvicorn.run(app)
    """
    settings = settings or Settings()
    if not settings.model_name:
        settings = dataclasses.replace(settings, model_name=Path(engine.name).name or "llavit")
    metrics = Metrics(engine)
    completions = Completions(engine, settings, metrics, images)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        completions.close()

    app = FastAPI(
        title="llavit",
        summary="Chat completions about images and text, as OpenAI's",
        version=_version(),
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
        responses=errors(403),
    )
    app.state.draining = False
    app.state.settings = settings
    install_error_handlers(app)
    created = int(time.time())
    model = {"id": settings.model_name, "object": "model", "created": created, "owned_by": "llavit"}

    @app.post(CHAT, responses=CHAT_RESPONSES, openapi_extra={"requestBody": CHAT_BODY})
    async def chat_completions(request: Request) -> Response:
        """Answer a conversation; whole, or in chunks by server-sent events (`stream`)."""
        if app.state.draining:
            raise draining()
        body: Body = request.scope["llavit.body"]
        try:
            return await completions.answer(bytes(body.data))
        finally:
            body.release()

    @app.get("/v1/models", response_model=Models, responses=errors(401))
    async def models() -> dict[str, Any]:
        """List the models: one."""
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}", response_model=Model, responses=errors(401, 404))
    async def one_model(name: str) -> dict[str, Any]:
        """Tell of a model."""
        if name != settings.model_name:
            raise ApiError(
                404,
                f"no such model; this server has {settings.model_name!r}",
                param="model",
                code="model_not_found",
            )
        return model

    @app.get("/health", response_model=Health, responses=errors(503))
    async def health() -> dict[str, str]:
        """Say whether the server takes requests."""
        if app.state.draining:
            raise draining()
        return {"status": "ok"}

    @app.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def prometheus() -> Response:
        """Give counters in Prometheus' text format."""
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    describe(app, settings)
    app.add_middleware(BodyLimits, settings=settings)
    app.add_middleware(KeyCheck, key=settings.api_key)
    app.add_middleware(HostCheck, hosts=settings.allowed_hosts, refuse=_refuse_host)
    app.add_middleware(AccessLog, metrics=metrics)  # the last one added is the outermost
    return app


async def _refuse_host(message: str, scope: Scope, receive: Receive, send: Send) -> None:
    await answer_early(ApiError(403, message, code="host_not_allowed"), scope, receive, send)


def _version() -> str:
    from llavit import __version__

    return __version__
