"""Bounds of requests: the key, their number, the size and the time of a body; and places that they wait for."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavit.serve.http.errors import ApiError, retry_after
from llavit.serve.http.settings import Settings

CHAT = "/v1/chat/completions"
BODIES = 8
"""Bodies of the greatest size that may be in memory at the same time, until their images have been read."""

LINGER_BYTES = 64 << 20
LINGER_SECONDS = 5.0
"""How much of a body that was refused is still taken in, so that its client reads the answer: one that is cut off while
it sends may see a broken connection only."""


def route_path(scope: Scope) -> str:
    """Return a request's path as the app's routes have it: without the path below which the app is mounted.

    Example:
        >>> route_path({"path": "/llm/v1/models", "root_path": "/llm"}), route_path({"path": "/v1/models"})
        ('/v1/models', '/v1/models')
    """
    path, root = scope["path"], scope.get("root_path", "")
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else path


class KeyCheck:
    """Lets requests to /v1/ pass that bring the key; compares in constant time.

    Args:
        app: what comes behind.
        key: the key; all pass if it is empty.
    """

    def __init__(self, app: ASGIApp, key: str):
        self.app = app
        self._digest = hashlib.sha256(key.encode()).digest() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with status 401, or pass on."""
        if (
            scope["type"] != "http"
            or not self._digest
            or not route_path(scope).startswith("/v1/")
            or self._has_key(scope)
        ):
            return await self.app(scope, receive, send)
        error = ApiError(
            401,
            "no API key, or not the right one: send it as Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await answer_early(error, scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = hashlib.sha256(key.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(given, self._digest) and kind.lower() == "bearer"


class Body:
    """The body of a request, as long as it is needed.

    Args:
        limits: where its bytes are counted.
    """

    def __init__(self, limits: BodyLimits):
        self.data = bytearray()
        self._limits = limits

    def add(self, more: bytes) -> None:
        """Take what has come."""
        self.data += more
        self._limits.held += len(more)

    def release(self) -> None:
        """Give its memory back."""
        self._limits.held -= len(self.data)
        self.data = bytearray()


class BodyLimits:
    """Reads the body of a POST whole, within bounds of size and time, and counts the chat requests.

    Args:
        app: what comes behind; it gets the body in one piece.
        settings: the limits.
    """

    def __init__(self, app: ASGIApp, settings: Settings):
        self.app = app
        self.settings = settings
        self.under_way = 0
        self.held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with 408, 413, 415 or 429, or pass on."""
        if scope["type"] != "http" or route_path(scope) != CHAT or scope["method"] != "POST":
            return await self.app(scope, receive, send)
        if self.under_way >= self.settings.max_requests:
            error = _busy(f"{self.under_way} requests are under way, as many as may be")
            return await answer_early(error, scope, receive, send)
        self.under_way += 1
        body = Body(self)
        try:
            try:
                self._check_head(Headers(scope=scope))
                if not await self._receive(body, receive):
                    return  # the client went away
            except ApiError as error:
                body.release()
                return await answer_early(error, scope, receive, send)
            scope["llavit.body"] = body
            await self.app(scope, receive, send)
        finally:
            body.release()
            self.under_way -= 1

    def _check_head(self, headers: Headers) -> None:
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(
                415,
                "expected a body of type application/json: send the header Content-Type: application/json",
                code="unsupported_media_type",
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415, "compressed bodies are not taken; send it as it is", code="unsupported_media_type"
            )
        stated = headers.get("content-length", "")
        if stated.isdecimal() and int(stated[:18]) > self.settings.max_request_bytes:
            raise self._too_large()

    async def _receive(self, body: Body, receive: Receive) -> bool:
        try:
            async with asyncio.timeout(self.settings.read_timeout):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        return False
                    body.add(message.get("body", b""))
                    if len(body.data) > self.settings.max_request_bytes:
                        raise self._too_large()
                    if self.held > BODIES * self.settings.max_request_bytes:
                        raise _busy("many large requests are being received")
                    if not message.get("more_body", False):
                        return True
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not come within {self.settings.read_timeout:g} s; send it faster or make it smaller",
                code="request_timeout",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body has more than {self.settings.max_request_bytes:,} bytes; make its images smaller "
            "(--max-request-bytes)",
            code="request_too_large",
            headers={"Connection": "close"},
        )


class Places:
    """Places for a few requests at the same time; who gets none in time is told to come again.

    Args:
        number: how many there are.
        wait: seconds that a request waits for one.
        why: what the error says.

    Example:
        >>> async def enter():
        ...     places = Places(1, 0.01, "one is in there")
        ...     async with places.one():
        ...         async with places.one():
        ...             pass
        >>> asyncio.run(enter())
        Traceback (most recent call last):
        ...
        llavit.serve.http.errors.ApiError: one is in there; try again later
    """

    def __init__(self, number: int, wait: float, why: str):
        self._free = asyncio.Semaphore(number)
        self._wait, self._why = wait, why

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Hold a place.

        Raises:
            ApiError: 429, none became free in time.
        """
        try:
            async with asyncio.timeout(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise _busy(self._why) from None
        try:
            yield
        finally:
            self._free.release()


def _busy(why: str) -> ApiError:
    return ApiError(429, f"{why}; try again later", code="server_busy", headers=retry_after(1))


async def answer_early(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request whose body has not been read, and take in some of the rest so that the answer arrives."""
    response = error.response()
    scope["llavit.notes"] = (error.code,)
    await send({"type": "http.response.start", "status": error.status, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    if error.status != 408 and "expect" not in Headers(scope=scope):
        try:
            async with asyncio.timeout(LINGER_SECONDS):
                await _take_in(receive)
        except TimeoutError:
            pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _take_in(receive: Receive) -> None:
    taken = 0
    while taken <= LINGER_BYTES:
        message: Message = await receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            return
        taken += len(message.get("body", b""))
