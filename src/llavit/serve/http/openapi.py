"""The OpenAPI document: what the framework cannot see by itself, since bodies are read by us."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from llavit.serve.http.errors import ErrorBody
from llavit.serve.http.responses import Completion
from llavit.serve.http.schema import ChatRequest
from llavit.serve.http.settings import Settings

_TEXTS = {
    400: "Something in the request is to be changed; the message says what.",
    401: "The API key is missing or wrong.",
    403: "The header Host names what this server does not answer to.",
    404: "No such model.",
    408: "The body did not come in time, or no token of the answer did.",
    413: "The body is too large.",
    415: "The body is not application/json, or is compressed.",
    429: "As many requests as may be are under way; Retry-After says when to come again.",
    503: "The server is shutting down.",
}
_REF = "#/components/schemas/{model}"

CHAT_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": _REF.format(model="ChatRequest")}}},
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return what the document says of these statuses."""
    return {status: {"model": ErrorBody, "description": _TEXTS[status]} for status in statuses}


EVENT: dict[str, Any] = {
    "type": "object",
    "description": "One event of the stream: a chunk as JSON, an error as JSON, or [DONE].",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}

CHAT_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Completion,
        "description": "The answer; with `stream`, chunks as server-sent events, the last one `data: [DONE]`.",
        "content": {"text/event-stream": {"schema": EVENT}},
    },
    **errors(400, 401, 404, 408, 413, 415, 429, 503),
}


def describe(app: FastAPI, settings: Settings) -> None:
    """Give an app its document at /openapi.json."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                routes=app.routes,
            )
            _, definitions = models_json_schema([(ChatRequest, "validation")], ref_template=_REF)
            schemas = made["components"]["schemas"]
            schemas.update(definitions["$defs"])
            schemas["ChatRequest"]["properties"]["model"]["examples"] = [settings.model_name]
            for unused in ("HTTPValidationError", "ValidationError"):
                schemas.pop(unused, None)
            for path in made["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            if settings.api_key:
                made["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
                for path, operations in made["paths"].items():
                    if path.startswith("/v1/"):
                        for operation in operations.values():
                            operation["security"] = [{"key": []}]
            app.openapi_schema = made
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]
