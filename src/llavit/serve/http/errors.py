"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`, and a fitting status."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException

from llavit.serve.answers import EngineClosed
from llavit.serve.http.schema import NOT_HERE

_WORDS = re.compile(
    r"^Value error, |^(Input|String|List|Dictionary|Value) should (be |have |match )?| after validation.*$"
)
"""What pydantic's messages have too much of."""

logger = logging.getLogger("llavit.serve")

TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}
"""OpenAI's `type` of an error by its status; all others are `invalid_request_error`."""

LONGEST_NAME = 60
"""Of a name that a client made up, so many characters are repeated."""


class ErrorDetail(BaseModel):
    """What went wrong: `message` says what to change, `param` where, `code` is for programs."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorDetail


class ApiError(Exception):
    """An answer that is not a success.

    Args:
        status: of the response.
        message: says what to change.
        param: which field of the request it is about.
        code: for programs.
        headers: of the response, e.g. Retry-After.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """Return the body in OpenAI's shape."""
        return error_body(self.status, self.message, self.param, self.code)

    def response(self) -> JSONResponse:
        """Return the response."""
        return JSONResponse(self.body(), self.status, self.headers)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return an error in OpenAI's shape.

    Example:
        >>> error_body(429, "the queue is full")["error"]["type"]
        'rate_limit_error'
    """
    kind = TYPES.get(status, "invalid_request_error")
    return {"error": {"message": sayable(message), "type": kind, "param": param, "code": code}}


def sayable(text: str, longest: int = 2000) -> str:
    """Return a text that any encoder takes: lone surrogates replaced, and not endless.

    Example:
        >>> sayable("a" * 10, longest=4)
        'aaaa...'
    """
    text = text if len(text) <= longest else text[:longest] + "..."
    return text.encode("utf-8", "replace").decode()


def retry_after(seconds: float) -> dict[str, str]:
    """Return the header that says when to come again, in whole seconds, at least one.

    Example:
        >>> retry_after(0.2)
        {'Retry-After': '1'}
    """
    return {"Retry-After": str(max(1, math.ceil(min(seconds, 3600))))}


def invalid_request(error: ValidationError, model: type[BaseModel]) -> ApiError:
    """Turn what pydantic found wrong with a body into an error that says what to change.

    The first finding is told; an unknown field comes with the nearest known name.
    """
    findings = error.errors(include_url=False, include_context=True)
    found = findings[0]
    kind, where = found["type"], _path(found["loc"])
    if kind == "json_invalid":
        return ApiError(
            400, f"the body is not JSON: {found['msg'].removeprefix('Invalid JSON: ')}", code="invalid_json"
        )
    if kind == "extra_forbidden":
        return ApiError(400, _unknown(found["loc"], where, model), param=where, code="unknown_parameter")
    if kind == "missing":
        return ApiError(
            400, f"{where}: missing; it is required", param=where, code="missing_required_parameter"
        )
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        message = "expected a part with type text or image_url"
        return ApiError(400, f"{where}: {message}", param=where, code="invalid_value")
    if kind in ("too_short", "too_long"):
        context = found["ctx"]
        least = kind == "too_short"
        bound = context["min_length" if least else "max_length"]
        said = (
            f"{where}: expected {'at least' if least else 'at most'} {bound} item{'s' * (bound != 1)}, "
            f"got {context['actual_length']}"
        )
        return ApiError(400, said, param=where, code="invalid_value")
    if found["loc"][-1:] == ("[key]",):
        said = f"{where}: expected token ids as keys, got {_shown(found['input'])}"
        return ApiError(400, said, param=where, code="invalid_value")
    message = _WORDS.sub("", found["msg"])
    said = (
        message
        if found["msg"].startswith("Value error")
        else f"expected {message}, got {_shown(found['input'])}"
    )
    return ApiError(400, f"{where}: {said}" if where else said, param=where or None, code="invalid_value")


def _path(location: tuple[int | str, ...]) -> str:
    """Write a place in the body as in messages[0].content[1].text; steps that only name a type are left out."""
    path = ""
    before: int | str | None = None
    for step in location:
        kind_of_part = isinstance(before, int) and ".content[" in path  # which of the union it is: no field
        before = step
        if isinstance(step, int):
            path += f"[{step}]"
        elif step not in ("as_text", "as_parts", "[key]") and not kind_of_part:
            path += f".{_cut(step)}" if path else _cut(step)
    return path


def _unknown(location: tuple[int | str, ...], where: str, model: type[BaseModel]) -> str:
    name = str(location[-1])
    hint = ""
    if len(location) == 1 and name in NOT_HERE:
        hint = f"; {NOT_HERE[name]}"
    elif len(location) == 1:
        near = difflib.get_close_matches(name[:LONGEST_NAME], model.model_fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else "; see /openapi.json for those that are known"
    return f"{where}: unknown field{hint or '; leave it out'}"


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    return _cut(repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a huge number")


def _cut(text: str) -> str:
    return sayable(text, LONGEST_NAME)


def install_error_handlers(app: FastAPI) -> None:
    """Give every error of an app OpenAI's shape, those of the framework among them."""

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> JSONResponse:
        request.scope["llavit.notes"] = (error.code,)
        return error.response()

    @app.exception_handler(HTTPException)
    async def framework(request: Request, error: HTTPException) -> JSONResponse:
        path = _cut(request.url.path)
        message = {
            404: f"no such path: {path}; there are /v1/chat/completions, /v1/models, /health and /metrics",
            405: f"{request.method} is not allowed at {path}; see the header Allow",
        }.get(error.status_code, str(error.detail))
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        return ApiError(error.status_code, message, code=code, headers=error.headers).response()

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        return failure(error).response()


def failure(error: BaseException) -> ApiError:
    """Log what nobody foresaw and return what a client is told of it."""
    logger.error("a request failed: %r", error, exc_info=error)
    return ApiError(
        500, f"the server failed: {type(error).__name__}; its log says more", code="internal_error"
    )


def draining() -> ApiError:
    """Return the error of a server that takes nothing new."""
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=retry_after(10))


def as_api_error(error: Exception) -> ApiError:
    """Return what a client is told of an error of the engine."""
    if isinstance(error, ApiError):
        return error
    return draining() if isinstance(error, EngineClosed) else failure(error)
