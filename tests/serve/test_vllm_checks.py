import pytest

from llavit.serve.vllm.checks import (
    check_adapters,
    check_backend,
    check_parallel,
    check_pipeline,
    check_scheduler,
    check_window,
)


@pytest.mark.parametrize(
    ("name", "honours", "version"),
    [("TRITON_ATTN", True, None), ("FLEX_ATTENTION", True, None), ("FLASH_ATTN", True, 4)],
)
def test_backends_that_honour_bidirectional_images(name, honours, version):
    check_backend(name, honours, version)


@pytest.mark.parametrize(
    ("name", "honours", "version"),
    [
        ("FLASHINFER", False, None),
        ("ROCM_ATTN", False, None),
        ("FLASH_ATTN", True, 3),
        ("FLASH_ATTN", False, 2),
    ],
)
def test_a_causal_backend_is_refused_with_the_name_of_one_that_works(name, honours, version):
    with pytest.raises(ValueError, match=rf"{name}.* is causal on images.*--attention-backend TRITON_ATTN"):
        check_backend(name, honours, version)


def test_a_window_shorter_than_an_image_is_refused_where_vllm_would_change_the_mask():
    for window in (None, 0, 16, 17):
        check_window(window, 16, on_cpu=True, second_runner=True)
    check_window(15, 16, on_cpu=False, second_runner=False)
    with pytest.raises(
        ValueError, match=r"16 visual tokens, more than the LLM's sliding window of 15.*llavit serve"
    ):
        check_window(15, 16, on_cpu=True, second_runner=False)
    with pytest.raises(ValueError, match="VLLM_USE_V2_MODEL_RUNNER=0"):
        check_window(15, 16, on_cpu=False, second_runner=True)


def test_settings_that_cut_images_are_refused():
    check_scheduler(None, 0, 16)
    check_scheduler(None, 16, 16)
    with pytest.raises(ValueError, match=r"scheduler_cls: expected none, got my\.Scheduler"):
        check_scheduler("my.Scheduler", 0, 16)
    with pytest.raises(ValueError, match=r"expected 0 or at least the 16 tokens of an image, .* got 15"):
        check_scheduler(None, 15, 16)


def test_fused_projections_are_not_sharded():
    check_parallel(1, 1, "phi3")
    check_parallel(8, 3, "llama")
    with pytest.raises(ValueError, match="expected 1 for a phi3 with visual QKV, got 2"):
        check_parallel(2, 1, "phi3")


def test_later_stages_of_a_pipeline_know_visual_tokens_or_are_refused():
    check_pipeline(1, second_runner=True)
    check_pipeline(4, second_runner=False)
    with pytest.raises(ValueError, match=r"got 4; set VLLM_USE_V2_MODEL_RUNNER=0"):
        check_pipeline(4, second_runner=True)


def test_adapters_are_to_be_merged():
    check_adapters(lora=False)
    with pytest.raises(ValueError, match="llavit export"):
        check_adapters(lora=True)
