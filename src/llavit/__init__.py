"""LLaViT: vision-language models in which the LLM is itself an extended vision transformer.

Here is what builds, loads and asks a model. Recipes and training are in `llavit.train`, data in `llavit.data`, scores
in `llavit.evaluate`, analyses in `llavit.inspect`, experiments in `llavit.compare`, servers in `llavit.serve`. After
`import llavit`, transformers' Auto classes know LLaViT.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from llavit.registration import register

if TYPE_CHECKING:
    from llavit.model.build import BuiltLlavit, build_llavit
    from llavit.model.configuration import LlavitConfig
    from llavit.model.modeling import LlavitForConditionalGeneration, LlavitModel
    from llavit.model.processor import LlavitProcessor
    from llavit.serve import Answer, Engine, EngineBusy, EngineClosed, Sampling

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "BuiltLlavit",
    "Engine",
    "EngineBusy",
    "EngineClosed",
    "LlavitConfig",
    "LlavitForConditionalGeneration",
    "LlavitModel",
    "LlavitProcessor",
    "Sampling",
    "build_llavit",
]

_HOMES = {
    "Answer": "llavit.serve",
    "BuiltLlavit": "llavit.model.build",
    "Engine": "llavit.serve",
    "EngineBusy": "llavit.serve",
    "EngineClosed": "llavit.serve",
    "LlavitConfig": "llavit.model.configuration",
    "LlavitForConditionalGeneration": "llavit.model.modeling",
    "LlavitModel": "llavit.model.modeling",
    "LlavitProcessor": "llavit.model.processor",
    "Sampling": "llavit.serve",
    "build_llavit": "llavit.model.build",
}
"""Where the public names are. They are imported when they are asked for: transformers takes seconds."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register(sys.modules[__name__])
