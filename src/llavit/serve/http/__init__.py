"""The OpenAI-style server of an engine: `create_app` for an ASGI app, `llavit serve` for a running server."""

try:
    import fastapi as _fastapi  # noqa: F401
    import httpcore as _httpcore  # noqa: F401
    import prometheus_client as _prometheus_client  # noqa: F401
    import uvicorn as _uvicorn  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; serving needs an extra: pip install 'llavit[serve]'", name=error.name
    ) from error

from llavit.serve.http.app import create_app
from llavit.serve.http.server import bind, serve
from llavit.serve.http.settings import Settings

__all__ = ["Settings", "bind", "create_app", "serve"]
