"""Running the app: a socket that is taken early, headers that must come in time, and an end that loses nothing."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from llavit.serve.engine import Engine
from llavit.serve.hosts import served_hosts
from llavit.serve.http.app import create_app
from llavit.serve.http.errors import error_body
from llavit.serve.http.settings import Settings

logger = logging.getLogger("llavit.serve")

MOST_HEADERS = 64 << 10
KEEP_ALIVE = 30
"""Seconds that a connection may be idle between two requests."""

LAST_WORDS = 10
"""Seconds for connections to close when all requests have been answered."""


def bind(host: str, port: int) -> socket.socket:
    """Take an address, before a model is loaded for minutes; nobody can connect yet.

    Args:
        host: a name or an address.
        port: 0 takes any that is free.

    Raises:
        OSError: it cannot be had; the message says which.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(address)
        except OSError:
            taken.close()
            raise
        return taken
    except OSError as error:
        raise OSError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


def address(taken: socket.socket, host: str) -> str:
    """Return the URL of a server that listens at a socket."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{taken.getsockname()[1]}"


def serve(
    engine: Engine, settings: Settings, taken: socket.socket, *, ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until SIGTERM or SIGINT; then finish what runs and waits, and return. A second signal ends at once.

    Args:
        engine: what answers; it is closed at the end.
        settings: limits and permissions; bound to a loopback address, `served_hosts` says which names are served.
        taken: see `bind`.
        ready: called when clients can connect.
    """
    hosts = served_hosts(taken.getsockname()[0], settings.allowed_hosts)
    settings = dataclasses.replace(settings, allowed_hosts=hosts)
    app = create_app(engine, settings)
    server = DrainingServer(app, engine, settings, ready)
    try:
        server.run([taken])
    finally:
        engine.close()


class DrainingServer(uvicorn.Server):
    """A uvicorn server that goes on to answer /health while it finishes what runs.

    Args:
        app: made by `create_app`.
        engine: that of the app.
        settings: that of the app.
        ready: called when clients can connect.
    """

    def __init__(
        self, app: FastAPI, engine: Engine, settings: Settings, ready: Callable[[], None] = lambda: None
    ):
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings.read_timeout),
                ws="none",
                loop="asyncio",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=KEEP_ALIVE,
                timeout_graceful_shutdown=LAST_WORDS,
                h11_max_incomplete_event_size=MOST_HEADERS,
            )
        )
        self._app = app
        self._engine = engine
        self._ready = ready
        self._drained = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain at the first signal, end at the second."""
        if self._app.state.draining:
            self.should_exit = self.force_exit = True
            return
        self._app.state.draining = True
        # Not here: a signal's handler runs in the midst of anything, and these take locks.
        threading.Thread(target=self._drain, args=(sig,), name="llavit-drain", daemon=True).start()

    def _drain(self, sig: int) -> None:
        stats = self._engine.stats()
        name = signal.Signals(sig).name
        logger.info(f"{name}: finishing {stats.running} running and {stats.waiting} waiting requests")
        self._engine.drain()
        self._drained.set()

    async def on_tick(self, counter: int) -> bool:
        """Say whether to leave: when all is finished."""
        ends = await super().on_tick(counter)
        return ends or self._drained.is_set()


def protocol(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol, with a bound on the time that headers take, and errors in OpenAI's shape.

    Args:
        seconds: from the first byte of a request (or the connection's begin) to the end of its headers.
    """

    class Protocol(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            super().connection_lost(exc)

        def handle_events(self) -> None:
            super().handle_events()
            self._watch()

        def _watch(self) -> None:
            """Count down while the client owes something that no request of the app waits for."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering or self._between() or self.transport.is_closing():
                self._unwatch()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(seconds, self._too_slow)

        def _between(self) -> bool:
            """Whether the last request is done with, and the next has not begun: uvicorn's keep-alive time counts."""
            idle = self.cycle is not None and self.conn.their_state is h11.IDLE
            return idle and not self.conn.trailing_data[0]

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_slow(self) -> None:
            self._deadline = None
            if self.transport.is_closing():
                return
            if self.conn.our_state is h11.IDLE and self.conn.trailing_data[0]:
                self._refuse(408, f"the headers did not come within {seconds:g} s", "request_timeout")
            else:
                self.transport.abort()

        def send_400_response(self, msg: str) -> None:
            self._refuse(400, f"{msg} It is not HTTP/1.1, or its headers are too large", "invalid_http")

        def _refuse(self, status: int, message: str, code: str) -> None:
            body = json.dumps(error_body(status, message, code=code)).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            try:
                head = h11.Response(status_code=status, headers=headers, reason=b"")
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            except h11.LocalProtocolError:
                pass  # an answer is on its way already: the connection can only be closed
            self.transport.close()

    return Protocol
