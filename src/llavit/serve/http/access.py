"""One line and one count for each request. Neither keys nor queries, headers or bodies are ever written."""

from __future__ import annotations

import logging
import time
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llavit.serve.http.limits import route_path
from llavit.serve.http.metrics import Metrics

logger = logging.getLogger("llavit.serve.access")

PATHS = ("/v1/chat/completions", "/v1/models", "/health", "/metrics", "/openapi.json")
"""Paths by which requests are counted; that of a single model counts as /v1/models, any other as `other`, so that
clients cannot make counters."""

GONE = 499
"""Stands for an answer that its client did not wait for (nginx's number); it is never sent."""


class AccessLog:
    """Writes a line for each request, and counts it.

    Args:
        app: what comes behind.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and watch what is sent."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = time.monotonic()
        status = GONE

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            if scope.get("llavit.gone"):
                status = GONE
            seconds = time.monotonic() - begun
            path = counted_path(route_path(scope))
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.duration.labels(path).observe(seconds)
            level = logging.DEBUG if path in ("/health", "/metrics") and status < 400 else logging.INFO
            if logger.isEnabledFor(level):
                logger.log(level, "%s", _line(scope, status, seconds))


def counted_path(path: str) -> str:
    """Return what a path counts as.

    Example:
        >>> counted_path("/v1/models/mine"), counted_path("/wp-login.php")
        ('/v1/models', 'other')
    """
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in PATHS else "other"


def _line(scope: Scope, status: int, seconds: float) -> str:
    client = (scope.get("client") or ("-",))[0]
    path = quote(scope["path"], safe="/")[:100]  # nothing that could begin a new line or colour a terminal
    method = scope["method"][:16] if scope["method"].isalpha() else "?"
    words = [time.strftime("%H:%M:%S"), str(client), method, path, str(status), f"{seconds:.2f} s"]
    words += [str(each) for each in scope.get("llavit.notes", ())]
    return "  ".join(words)
