"""Serving: an engine with an image cache and continuous batching, an OpenAI-style server, a web page."""

from llavit.serve.answers import (
    Answer,
    EngineBusy,
    EngineClosed,
    EngineStats,
    FinishReason,
    Piece,
    TokenLogprob,
)
from llavit.serve.engine import Engine
from llavit.serve.request import Stream
from llavit.serve.sampling import Sampling

__all__ = [
    "Answer",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "EngineStats",
    "FinishReason",
    "Piece",
    "Sampling",
    "Stream",
    "TokenLogprob",
]
