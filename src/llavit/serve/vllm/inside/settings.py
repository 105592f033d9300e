"""What vLLM's configuration must be for LLaViT; vLLM calls it once, before an engine starts."""

from typing import Any

from vllm.config import CompilationConfig, CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from llavit.model.families import family_of
from llavit.serve.vllm.inside.projection import OPERATOR

_INSIDE = __name__.rpartition(".")[0]
_CACHE_UPDATES = ("vllm::unified_kv_cache_update", "vllm::unified_mla_kv_cache_update")


class LlavitSettings(VerifyAndUpdateConfig):
    """The configuration hook of the architecture, in vLLM's form."""

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        """Set what the model's switches ask for.

        Raises:
            ValueError: something was asked for that would change answers.
        """
        model = vllm_config.model_config
        names = model.logits_processors or []
        model.logits_processors = [*names, f"{_INSIDE}.sampling:NoImageToken"]
        if model.is_mm_prefix_lm:  # bidirectional, and images are allowed
            _keep_images_whole(vllm_config.scheduler_config, model.hf_config.image_seq_length)
        if model.hf_config.visual_qkv:
            _allow_routing(vllm_config, model.hf_config)


def _keep_images_whole(scheduler: Any, image_tokens: int) -> None:
    scheduler.disable_chunked_mm_input = True
    if scheduler.scheduler_cls is not None:
        raise ValueError(
            f"scheduler_cls: expected none, got {scheduler.scheduler_cls}: other schedulers cut images, and llavit "
            "brings its own"
        )
    scheduler.scheduler_cls = f"{_INSIDE}.scheduler.make_scheduler"
    threshold = scheduler.long_prefill_token_threshold
    if 0 < threshold < image_tokens:
        raise ValueError(
            f"long_prefill_token_threshold: expected 0 or at least the {image_tokens} tokens of an image, which is not "
            f"cut, got {threshold}"
        )


def _allow_routing(vllm_config: Any, config: Any) -> None:
    parallel, compilation = vllm_config.parallel_config, vllm_config.compilation_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            "pipeline_parallel_size: expected 1 with visual QKV, got "
            f"{parallel.pipeline_parallel_size}; use tensor_parallel_size"
        )
    if parallel.tensor_parallel_size > 1 and len(family_of(config.llm).projections) == 1:
        raise ValueError(
            f"tensor_parallel_size: expected 1 with visual QKV in {config.llm.model_type}, whose q, k and v are one "
            f"projection, got {parallel.tensor_parallel_size}"
        )
    # Routing runs between CUDA graphs, not in them: a graph would do for ever what it did when it was taken. On a
    # CPU there are none.
    if compilation.cudagraph_mode is None or compilation.cudagraph_mode.has_full_cudagraphs():
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    if compilation.splitting_ops is None:
        compilation.splitting_ops = [*CompilationConfig._attention_ops, *_CACHE_UPDATES]
    compilation.splitting_ops = [*compilation.splitting_ops, OPERATOR]
