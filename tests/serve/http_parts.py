"""Requests, pictures and running servers for the tests of the HTTP server."""

import base64
import contextlib
import io
import threading
import time

import httpx
import numpy as np
from PIL import Image

from llavit.serve.http import Settings, bind, create_app
from llavit.serve.http.server import DrainingServer

NEVER_ENDS = {"logit_bias": {"2": -100}}
"""No end-of-turn token of the tiny model."""


def picture(seed: int = 0, width: int = 20, height: int = 18) -> Image.Image:
    """Noise, so that no two pictures are the same."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def data_url(data: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def image_part(seed: int = 0) -> dict:
    return {"type": "image_url", "image_url": {"url": data_url(encoded(picture(seed)))}}


def chat(*content, **options) -> dict:
    """The body of a request; each of `content` is a text or a part."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    body = {"model": "tiny", "messages": [{"role": "user", "content": parts or "Hi"}]}
    return {**body, "temperature": 0, "max_tokens": 8, **options}


def client(engine, **settings) -> httpx.AsyncClient:
    """A client of an app in the same process, without sockets."""
    app = create_app(engine, Settings(**{"model_name": "tiny", **settings}))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://llavit")


class Running:
    """A real server in a thread: its address, and the way to stop it."""

    def __init__(self, engine, settings: Settings):
        self.socket = bind("127.0.0.1", 0)
        self.port = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = create_app(engine, settings)
        ready = threading.Event()
        self.server = DrainingServer(self.app, engine, settings, ready.set)
        self.thread = threading.Thread(target=self.server.run, args=([self.socket],), daemon=True)
        self.thread.start()
        assert ready.wait(20)

    def stop(self):
        self.server.should_exit = True
        self.thread.join(20)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def running(engine, **settings):
    """A real server on a free port."""
    server = Running(engine, Settings(**{"model_name": "tiny", **settings}))
    try:
        yield server
    finally:
        server.stop()


def wait_until(condition, seconds: float = 10.0, what: str = "it"):
    """Wait for a condition, and fail if it does not come."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds} s"
        time.sleep(0.01)
