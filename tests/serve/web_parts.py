"""What the tests of the web page share: tiny engines with long answers, and Debian's Chromium."""

import shutil
from contextlib import contextmanager
from urllib.parse import urlsplit

import pytest

from llavit import Engine
from tests.model.families import tiny
from tests.serve.parts import processor

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH to open the page in")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
LONG = 4000
"""Tokens of an answer that takes seconds."""


@contextmanager
def engine_with_room(length: int = 2 * LONG, *, llava: bool = False, name: str = "tiny", **options):
    """An engine over a tiny random model that knows `length` positions and hardly ever ends an answer by itself."""
    off = {"visual_qkv": False, "bidirectional_visual_attention": False, "vision_feature_layer": -2}
    model = tiny("llama", **(off if llava else {}))
    model.config.llm.max_position_embeddings = length
    with Engine(model, processor(), **{"max_batch": 2, "max_length": length, **options}) as engine:
        engine.name = name
        yield engine


def other_hosts(urls: list[str]) -> list[str]:
    """Those of a list of addresses that are not on this machine."""
    return [
        url for url in urls if url.startswith(("http", "ws")) and urlsplit(url).hostname not in ("127.0.0.1",)
    ]
