"""What the plug-in uses of vLLM's inside, each part by name: the first tests to read when a version changes."""

import dataclasses
import inspect
from types import SimpleNamespace

import pytest
import torch

from llavit import LlavitConfig
from tests.vllm.parts import LLAVA


def arguments(function) -> list[str]:
    return list(inspect.signature(function).parameters)


# The interfaces


def test_the_registry_takes_a_class_by_name():
    from vllm import ModelRegistry

    assert arguments(ModelRegistry.register_model) == ["model_arch", "model_cls"]


def test_the_configuration_hook():
    from vllm.config.vllm import VllmConfig
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig

    assert isinstance(MODELS_CONFIG_MAP, dict)
    assert arguments(VerifyAndUpdateConfig.verify_and_update_config) == ["vllm_config"]
    assert "MODELS_CONFIG_MAP" in inspect.getsource(VllmConfig.try_verify_and_update_config)


def test_is_mm_prefix_lm_is_read_from_the_configuration():
    import vllm.config  # first: the next module imports it in a circle
    from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

    assert vllm.config.ModelConfig.is_mm_prefix_lm
    source = inspect.getsource(ModelArchConfigConvertorBase.is_mm_prefix_lm)
    assert "self.hf_config.is_mm_prefix_lm" in source
    assert LlavitConfig().is_mm_prefix_lm
    assert not LlavitConfig(bidirectional_visual_attention=False).is_mm_prefix_lm


def test_the_scheduler():
    from vllm.config import SchedulerConfig
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    assert arguments(Scheduler._try_schedule_encoder_inputs)[:5] == [
        "self",
        "request",
        "num_computed_tokens",
        "num_new_tokens",
        "encoder_compute_budget",
    ]
    assert inspect.getsource(Scheduler.schedule).count("self._try_schedule_encoder_inputs(") == 2
    assert issubclass(AsyncScheduler, Scheduler)
    fields = {field.name for field in dataclasses.fields(SchedulerConfig)}
    assert {"scheduler_cls", "disable_chunked_mm_input", "long_prefill_token_threshold"} <= fields


def test_attention_metadata():
    from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    fields = {field.name for field in dataclasses.fields(CommonAttentionMetadata)}
    assert fields >= {
        "num_reqs",
        "query_start_loc",
        "query_start_loc_cpu",
        "seq_lens",
        "max_query_len",
        "block_table_tensor",
        "causal",
        "mm_req_doc_ranges",
    }
    assert arguments(CPUAttentionMetadataBuilder.build) == [
        "self",
        "common_prefix_len",
        "common_attn_metadata",
        "fast_build",
    ]
    assert not AttentionBackend.supports_mm_prefix()


def test_the_runner_keeps_images_longer_than_a_window_if_asked():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    source = inspect.getsource(GPUModelRunner)
    assert (
        'getattr(\n                self.model, "mm_prefix_clamp_sliding_window", False\n            )'
        in source
    )
    assert "self.model.requires_raw_input_tokens" in source


def test_the_transformers_backend():
    from vllm.model_executor.models.transformers import TransformersMultiModalForCausalLM

    assert arguments(TransformersMultiModalForCausalLM.forward)[:5] == [
        "self",
        "input_ids",
        "positions",
        "intermediate_tensors",
        "inputs_embeds",
    ]
    assert arguments(TransformersMultiModalForCausalLM.embed_input_ids) == [
        "self",
        "input_ids",
        "multimodal_embeddings",
        "is_multimodal",
    ]


def test_logits_are_scaled_and_capped_by_attributes():
    from vllm.model_executor.layers.logits_processor import LogitsProcessor

    source = inspect.getsource(LogitsProcessor)
    assert "self.scale = scale" in source and "self.soft_cap = soft_cap" in source


def test_fused_layers_are_remembered_in_a_cache():
    from vllm.model_executor.models.transformers.fuser import get_fusers

    get_fusers.cache.clear()


def test_operators_find_modules_and_rows_in_the_forward_context():
    from vllm.config import CompilationConfig
    from vllm.forward_context import ForwardContext

    fields = {field.name for field in dataclasses.fields(ForwardContext)}
    assert {"no_compile_layers", "additional_kwargs"} <= fields
    names = {field.name for field in dataclasses.fields(CompilationConfig)}
    assert {"static_forward_context", "splitting_ops", "cudagraph_mode"} <= names
    assert "vllm::unified_attention_with_output" in CompilationConfig._attention_ops
    source = inspect.getsource(CompilationConfig.set_splitting_ops_for_v1)
    assert '"vllm::unified_kv_cache_update"' in source and '"vllm::unified_mla_kv_cache_update"' in source


# Our parts, without an engine


def test_register_may_be_called_again():
    from vllm import ModelRegistry

    from llavit.serve.vllm import ARCHITECTURE, register

    register()
    register()
    assert ARCHITECTURE in ModelRegistry.get_supported_archs()


def test_another_version_is_refused_when_the_model_is_imported(monkeypatch):
    import importlib

    import vllm

    from llavit.serve.vllm.inside import model

    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    with pytest.raises(ImportError, match=r"got vLLM 0\.99\.0: pip install"):
        importlib.reload(model)


def metadata(chunks, images):
    """vLLM's metadata of a step; each request has four blocks."""
    from vllm.v1.attention.backend import CommonAttentionMetadata

    lengths = [0, *(end - first for first, end in chunks)]
    starts = torch.tensor(lengths, dtype=torch.int32).cumsum(0, dtype=torch.int32)
    return CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=torch.tensor([end for _, end in chunks], dtype=torch.int32),
        num_reqs=len(chunks),
        num_actual_tokens=int(starts[-1]),
        max_query_len=max(lengths),
        max_seq_len=max(end for _, end in chunks),
        block_table_tensor=torch.arange(4 * len(chunks), dtype=torch.int32).view(-1, 4),
        slot_mapping=torch.zeros(int(starts[-1]), dtype=torch.int64),
        mm_req_doc_ranges=images,
    )


def test_requests_are_split_at_images():
    from llavit.serve.vllm.inside.attention import split

    got = split(metadata([(4, 14), (7, 8)], {0: [(6, 9)], 1: [(2, 5)]}))  # vLLM's ranges include their ends
    assert got.num_reqs == 4 and got.max_query_len == 4
    assert got.query_start_loc.tolist() == got.query_start_loc_cpu.tolist() == [0, 2, 6, 10, 11]
    assert got.seq_lens.tolist() == [6, 10, 14, 8]
    assert got.causal.tolist() == [1, 0, 1, 1] and got.causal.dtype == torch.int32
    assert got.block_table_tensor.tolist() == [[0, 1, 2, 3]] * 3 + [[4, 5, 6, 7]]


@pytest.mark.parametrize("images", [None, {}, {0: []}, {0: [(0, 3)], 1: [(20, 30)]}])
def test_a_step_without_an_image_is_left_alone(images):
    from llavit.serve.vllm.inside.attention import split

    step = metadata([(8, 9), (2, 6)], images)
    assert split(step) is step


def layer(backend, **impl):
    return SimpleNamespace(attn_backend=backend, impl=SimpleNamespace(**impl))


def test_backends():
    from vllm.v1.attention.backend import AttentionBackend
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    from llavit.serve.vllm.inside.attention import honour_bidirectional_images

    class Causal(AttentionBackend):
        get_name = staticmethod(lambda: "CAUSAL")

    class Bidirectional(Causal):
        supports_mm_prefix = classmethod(lambda cls: True)

    cpu, fine = layer(CPUAttentionBackend), layer(Bidirectional)
    honour_bidirectional_images([cpu, fine])
    assert issubclass(cpu.attn_backend, CPUAttentionBackend) and cpu.attn_backend is not CPUAttentionBackend
    assert fine.attn_backend is Bidirectional
    with pytest.raises(ValueError, match="CAUSAL is causal on images"):
        honour_bidirectional_images([layer(Causal)])


def test_only_visual_rows_are_projected_twice(monkeypatch):
    from llavit.serve.vllm.inside import projection

    routed = projection.RoutedProjection(torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), "here")
    context = SimpleNamespace(no_compile_layers={"here": routed}, additional_kwargs={})
    monkeypatch.setattr(projection, "get_forward_context", lambda: context)
    seen = []
    routed.visual.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    x, visual = torch.randn(1, 5, 4), torch.tensor([False, True, True, False, False])
    with torch.no_grad():
        text = routed.text(x)
        for mask in (None, torch.zeros(5, dtype=torch.bool)):
            projection.set_visual_rows(mask, x.device)
            assert torch.equal(routed(x), text)
        assert not seen
        projection.set_visual_rows(visual, x.device)
        got = routed(x)
        assert seen == [2]
        torch.testing.assert_close(got[:, visual], routed.visual(x[:, visual]))
        assert torch.equal(got[:, ~visual], text[:, ~visual])


def test_the_image_token_is_suppressed_in_both_model_runners():
    from vllm.v1.sample.logits_processor import LogitsProcessor as First
    from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as Second

    from llavit.serve.vllm.inside.sampling import NoImageToken

    assert issubclass(NoImageToken, First) and issubclass(NoImageToken, Second)
    assert arguments(First.__init__) == ["self", "vllm_config", "device", "is_pin_memory"]
    assert arguments(Second.__init__) == ["self", "vllm_config", "req_states"]
    assert arguments(First.apply) == ["self", "logits"]
    assert arguments(Second.apply) == ["self", "logits", "ctx"]
    config = SimpleNamespace(model_config=SimpleNamespace(hf_config=SimpleNamespace(image_token_id=2)))
    first = NoImageToken(config, torch.device("cpu"), False)
    second = NoImageToken(config, object())
    assert not first.is_argmax_invariant() and second.add_request(0, None)
    for logits in (first.apply(torch.zeros(2, 4)), second.apply(torch.zeros(2, 4), object())):
        assert logits.isneginf().nonzero().tolist() == [[0, 2], [1, 2]]


def settings_of(tensor_parallel_size=1, lora=None, **switches):
    """vLLM's configuration of a model, as far as our hook reads it, after the hook."""
    from vllm.config import CompilationConfig

    from llavit.serve.vllm.inside.settings import LlavitSettings
    from tests.vllm.families import LLMS

    config = LlavitConfig(text_config=LLMS["llama"](), image_seq_length=16, **switches)
    asked = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=config, is_mm_prefix_lm=config.is_mm_prefix_lm, logits_processors=None
        ),
        scheduler_config=SimpleNamespace(
            scheduler_cls=None, long_prefill_token_threshold=0, disable_chunked_mm_input=False
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=tensor_parallel_size),
        compilation_config=CompilationConfig(),
        lora_config=lora,
    )
    LlavitSettings.verify_and_update_config(asked)
    return asked


def test_settings_follow_the_switches():
    from vllm.config import CompilationConfig, CUDAGraphMode
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from llavit.serve.vllm.inside.projection import OPERATOR
    from llavit.serve.vllm.inside.sampling import NoImageToken
    from llavit.serve.vllm.inside.scheduler import make_scheduler

    both = settings_of()
    assert resolve_obj_by_qualname(both.scheduler_config.scheduler_cls) is make_scheduler
    assert both.scheduler_config.disable_chunked_mm_input
    assert both.compilation_config.cudagraph_mode is CUDAGraphMode.PIECEWISE
    assert OPERATOR in both.compilation_config.splitting_ops
    assert both.compilation_config.splitting_ops_contain_attention()
    assert both.compilation_config.splitting_ops_contain_kv_cache_update()

    llava = settings_of(**LLAVA)
    assert llava.scheduler_config.scheduler_cls is None
    assert llava.compilation_config.cudagraph_mode is CompilationConfig().cudagraph_mode
    assert llava.compilation_config.splitting_ops is None
    for settings in (both, llava):
        (name,) = settings.model_config.logits_processors
        module, _, attribute = name.partition(":")
        assert resolve_obj_by_qualname(f"{module}.{attribute}") is NoImageToken


def test_adapters_are_refused_with_visual_qkv_only():
    settings_of(lora=object(), visual_qkv=False)
    with pytest.raises(ValueError, match="enable_lora"):
        settings_of(lora=object())


def test_cuda_graphs_are_cut_at_the_operator():
    """In the graph that torch.compile makes, vLLM sees the operator under the name that we give it."""
    from vllm.compilation.partition_rules import should_split

    from llavit.serve.vllm.inside.projection import OPERATOR, RoutedProjection

    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    routed = RoutedProjection(torch.nn.Linear(4, 3), torch.nn.Linear(4, 3), "there")
    compiled = torch.compile(routed, backend=keep, fullgraph=True)
    with pytest.raises(AssertionError, match=r"[Ff]orward context"), torch.no_grad():
        compiled(torch.randn(1, 5, 4))  # traced, then run outside vLLM
    splits = [node for node in graphs[0].graph.nodes if should_split(node, [OPERATOR])]
    assert len(splits) == 1 and splits[0].args[-1] == "there"


def test_the_runner_says_where_it_puts_image_features():
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    source = inspect.getsource(GPUModelRunner._preprocess)
    assert "multimodal_embeddings=mm_embeds" in source and "is_multimodal=is_mm_embed" in source


def test_which_tokens_of_a_step_are_visual():
    from llavit.serve.vllm.inside.model import LlavitForConditionalGeneration

    visual = torch.tensor([False, True, True])
    step = SimpleNamespace(_told=True, _visual_n=visual, config=SimpleNamespace(image_token_id=9))
    which = LlavitForConditionalGeneration._visual
    assert which(step, torch.tensor([9, 9, 9, 9]), 4) is visual  # padded, and a user who wrote "<image>"
    assert which(step, torch.tensor([1, 9, 2]), 3).tolist() == [False, True, False]  # a step of nobody's
    step._told, step._visual_n = True, None
    assert which(step, torch.tensor([1, 2]), 2) is None
    step._told, step._visual_n = True, visual
    with pytest.raises(ValueError, match="whole step of 3 tokens, got 2"):
        which(step, torch.tensor([1, 9]), 2)
    with pytest.raises(ValueError, match="expected input_ids"):
        which(step, None, 2)
