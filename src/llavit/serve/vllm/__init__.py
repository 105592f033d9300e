"""LLaViT on vLLM, for more than one process can serve: `pip install "llavit[vllm]"` is all that it takes.

vLLM calls `register` in each of its processes (entry point `vllm.general_plugins`); any LLaViT folder then runs with
`vllm serve FOLDER` and `vllm.LLM(FOLDER)`. See README.md beside this file and docs/serving-vllm.md.
"""

import logging

from llavit.serve.vllm.version import SUPPORTED, refusal

ARCHITECTURE = "LlavitForConditionalGeneration"
"""What `config.json` of a LLaViT folder names."""

_INSIDE = "llavit.serve.vllm.inside"

logger = logging.getLogger(__name__)


def register() -> None:
    """Tell vLLM about LLaViT; may be called again, as vLLM does in each process.

    With a version of vLLM that is not supported, a line in the log says what to install, other models run as ever, and
    a LLaViT is refused with the same words.

    Example:
        ```python
        register()  # vLLM does it by itself where llavit is installed
        llm = vllm.LLM("runs/demo/instruct")
        ```
    """
    import vllm

    import llavit  # noqa: F401  # transformers' Auto classes know its configuration and processor from here on

    vllm.ModelRegistry.register_model(ARCHITECTURE, f"{_INSIDE}.model:{ARCHITECTURE}")
    message = refusal(vllm.__version__)
    if message is not None:
        logger.warning(message)
        return
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP

    from llavit.serve.vllm.inside.settings import LlavitSettings

    MODELS_CONFIG_MAP[ARCHITECTURE] = LlavitSettings


__all__ = ["ARCHITECTURE", "SUPPORTED", "register"]
