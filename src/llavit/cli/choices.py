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
    """When the engine compiles."""

    never = "never"
    auto = "auto"
    always = "always"


class ServedDtype(StrEnum):
    """What a served model's weights may be held in; the types of `llavit.sizing.serving_size`."""

    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    int8 = "int8"
