"""LLaViT: vision-language models in which the LLM is itself an extended vision transformer."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from llavit.model.build import BuiltLlavit, build_llavit
from llavit.model.configuration import LlavitConfig
from llavit.model.modeling import LlavitForConditionalGeneration, LlavitModel
from llavit.model.processor import LlavitProcessor

AutoConfig.register("llavit", LlavitConfig, exist_ok=True)
AutoModel.register(LlavitConfig, LlavitModel, exist_ok=True)
AutoModelForImageTextToText.register(LlavitConfig, LlavitForConditionalGeneration, exist_ok=True)
AutoProcessor.register(LlavitConfig, LlavitProcessor, exist_ok=True)

__version__ = "0.1.0"

__all__ = [
    "BuiltLlavit",
    "LlavitConfig",
    "LlavitForConditionalGeneration",
    "LlavitModel",
    "LlavitProcessor",
    "build_llavit",
]
