"""What vLLM's configuration must be for LLaViT; vLLM calls it once, before an engine starts."""

from typing import Any

from vllm.config import CompilationConfig, CUDAGraphMode
from vllm.model_executor.models.config import VerifyAndUpdateConfig

from llavit.model.families import family_of
from llavit.serve.vllm.checks import check_adapters, check_parallel, check_scheduler
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
            _allow_routing(vllm_config, model.hf_config.llm)


def _keep_images_whole(scheduler: Any, image_tokens: int) -> None:
    check_scheduler(scheduler.scheduler_cls, scheduler.long_prefill_token_threshold, image_tokens)
    scheduler.disable_chunked_mm_input = True
    scheduler.scheduler_cls = f"{_INSIDE}.scheduler.make_scheduler"


def _allow_routing(vllm_config: Any, llm: Any) -> None:
    check_adapters(lora=vllm_config.lora_config is not None)
    tensor = vllm_config.parallel_config.tensor_parallel_size
    check_parallel(tensor, len(family_of(llm).projections), llm.model_type)
    compilation = vllm_config.compilation_config
    # Routing runs between CUDA graphs, not in them: a graph would do for ever what it did when it was taken. On a
    # CPU there are none.
    if compilation.cudagraph_mode is None or compilation.cudagraph_mode.has_full_cudagraphs():
        compilation.cudagraph_mode = CUDAGraphMode.PIECEWISE
    if compilation.splitting_ops is None:
        compilation.splitting_ops = [*CompilationConfig._attention_ops, *_CACHE_UPDATES]
    compilation.splitting_ops = [*compilation.splitting_ops, OPERATOR]
