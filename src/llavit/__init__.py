"""LLaViT: vision-language models in which the LLM is itself an extended vision transformer."""

from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from llavit.model.build import BuiltLlavit, build_llavit
from llavit.model.configuration import LlavitConfig
from llavit.model.modeling import LlavitForConditionalGeneration, LlavitModel
from llavit.model.processor import LlavitProcessor

if TYPE_CHECKING:
    from llavit.serve import Answer, Engine, EngineBusy, EngineClosed, Sampling

AutoConfig.register("llavit", LlavitConfig, exist_ok=True)
AutoModel.register(LlavitConfig, LlavitModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavitConfig, LlavitForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavitConfig, LlavitProcessor, exist_ok=True)

__version__ = "0.1.0"

_SERVE = ("Answer", "Engine", "EngineBusy", "EngineClosed", "Sampling")


def __getattr__(name: str) -> Any:
    """Import the engine when it is asked for: `import llavit` stays as fast as it was."""
    if name in _SERVE:
        import llavit.serve

        return getattr(llavit.serve, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


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
