"""Choices that several commands offer."""

from __future__ import annotations

from enum import StrEnum


class Dtype(StrEnum):
    """The types of `llavit.loading.load_model`."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


class Compile(StrEnum):
    """When the engine compiles its decode step."""

    never = "never"
    auto = "auto"
    always = "always"
