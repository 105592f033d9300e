"""What vLLM may be asked for and LLaViT would answer wrongly: refused at load, with what works instead."""

WORKING = "TRITON_ATTN"
"""A backend that honours bidirectional images on every GPU."""


def check_backend(name: str, honours_images: bool, flash_attention: int | None = None) -> None:
    """Refuse an attention backend that is causal on images.

    Args:
        name: of the backend, as vLLM's `--attention-backend` has it.
        honours_images: what the backend says of itself (`supports_mm_prefix`).
        flash_attention: the version that runs, for FLASH_ATTN: it says yes where version 4 is installed, but may run an
            earlier one, which takes no mask.

    Raises:
        ValueError: names a backend that works.

    Example:
        >>> check_backend("FLEX_ATTENTION", honours_images=True)
        >>> check_backend("FLASHINFER", honours_images=False)
        Traceback (most recent call last):
        ...
        ValueError: attention backend FLASHINFER is causal on images: bidirectional visual attention would be lost ...
    """
    if honours_images and (name != "FLASH_ATTN" or flash_attention == 4):
        return
    version = f" (version {flash_attention})" if flash_attention is not None else ""
    raise ValueError(
        f"attention backend {name}{version} is causal on images: bidirectional visual attention would be lost without "
        f"a word. Use --attention-backend {WORKING}"
    )


def check_window(window: int | None, image_tokens: int, on_cpu: bool, second_runner: bool) -> None:
    """Refuse a sliding window shorter than an image, where vLLM would make the image causal or clamp it.

    Args:
        window: of the LLM, in tokens; None or 0 without one.
        image_tokens: visual tokens of an image.
        on_cpu: whether vLLM runs on a CPU.
        second_runner: whether it runs its model runner 2.

    Raises:
        ValueError: says what works.
    """
    if not window or window >= image_tokens:
        return
    where = f"an image has {image_tokens} visual tokens, more than the LLM's sliding window of {window}"
    if on_cpu:
        raise ValueError(f"{where}: vLLM's CPU backend cannot attend so; use `llavit serve`, or a GPU")
    if second_runner:
        raise ValueError(
            f"{where}: vLLM's model runner 2 would make it causal; set VLLM_USE_V2_MODEL_RUNNER=0"
        )


def check_scheduler(scheduler: object, prefill_threshold: int, image_tokens: int) -> None:
    """Refuse what would cut images, or keep a request waiting for ever.

    Args:
        scheduler: vLLM's `scheduler_cls`; expected None.
        prefill_threshold: its `long_prefill_token_threshold`; 0 is none.
        image_tokens: visual tokens of an image.

    Raises:
        ValueError: says what is expected.
    """
    if scheduler is not None:
        raise ValueError(
            f"scheduler_cls: expected none, got {scheduler}: other schedulers cut images, and llavit brings its own"
        )
    if 0 < prefill_threshold < image_tokens:
        raise ValueError(
            f"long_prefill_token_threshold: expected 0 or at least the {image_tokens} tokens of an image, which is not "
            f"cut, got {prefill_threshold}"
        )


def check_parallel(tensor: int, projections: int, model_type: str) -> None:
    """Refuse tensor parallelism where visual QKV cannot be sharded.

    Args:
        tensor: parallel size.
        projections: how many linear layers make q, k and v: 3, or one fused one.
        model_type: of the LLM.

    Raises:
        ValueError: says what is expected.
    """
    if tensor > 1 and projections == 1:
        raise ValueError(
            f"tensor_parallel_size: expected 1 for a {model_type} with visual QKV, got {tensor}: its q, k and v are "
            "one projection, which vLLM does not shard together with its visual twin"
        )


def check_pipeline(pipeline: int, second_runner: bool) -> None:
    """Refuse pipeline parallelism where later stages are not told which tokens are visual.

    Args:
        pipeline: parallel size.
        second_runner: whether vLLM runs its model runner 2.

    Raises:
        ValueError: says what works.
    """
    if pipeline > 1 and second_runner:
        raise ValueError(
            f"pipeline_parallel_size: expected 1 with visual QKV and vLLM's model runner 2, got {pipeline}; set "
            "VLLM_USE_V2_MODEL_RUNNER=0"
        )


def check_adapters(lora: bool) -> None:
    """Refuse adapters of vLLM's, which do not know of two projections in one place.

    Args:
        lora: whether they were asked for (`--enable-lora`).

    Raises:
        ValueError: says what to do instead.
    """
    if lora:
        raise ValueError(
            "enable_lora: expected off with visual QKV; `llavit export` merges adapters into a plain folder"
        )
