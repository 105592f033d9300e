"""Each image one bidirectional block, also on attention backends that do not know such blocks.

vLLM tells backends where images are (`mm_req_doc_ranges`, if the model's `is_mm_prefix_lm` is true). Some honour it;
its CPU backend passes it over in silence. But that one can run causal and other requests in one batch, so a request is
cut at the edges of its images into pieces that share its blocks of keys (`spans.py`).
"""

import functools
from collections.abc import Iterable
from typing import Any

import torch
from vllm.v1.attention.backend import subclass_attention_backend
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from llavit.serve.vllm.checks import check_backend
from llavit.serve.vllm.spans import split_at_images


def honour_bidirectional_images(layers: Iterable[Any]) -> None:
    """See to it that each attention layer runs images as bidirectional blocks.

    Args:
        layers: vLLM's `Attention` modules.

    Raises:
        ValueError: a backend would be causal in silence; names one that works.
    """
    for layer in layers:
        backend = layer.attn_backend
        if issubclass(backend, CPUAttentionBackend):
            layer.attn_backend = splitting_backend(backend)
            continue
        version = getattr(layer.impl, "vllm_flash_attn_version", None)
        check_backend(backend.get_name(), backend.supports_mm_prefix(), version)


@functools.cache
def splitting_backend(backend: Any) -> Any:
    """Return vLLM's CPU backend with requests cut at the edges of images."""

    class Builder(backend.get_builder_cls()):  # type: ignore[misc]
        def build(self, common_prefix_len: int, common_attn_metadata: Any, fast_build: bool = False) -> Any:
            return super().build(common_prefix_len, split(common_attn_metadata), fast_build)

    return subclass_attention_backend("BidirectionalImages", backend, Builder)


def split(metadata: Any) -> Any:
    """Cut the requests of a step at the edges of images.

    Args:
        metadata: vLLM's `CommonAttentionMetadata`, its tensors on the CPU.

    Returns:
        the same with more, shorter requests, each of them causal or not; unchanged where no image is.
    """
    ranges = metadata.mm_req_doc_ranges
    if not ranges or not any(ranges.values()):
        return metadata
    starts = metadata.query_start_loc_cpu.tolist()
    ends = metadata.seq_lens.tolist()
    chunks = [(ends[i] - (starts[i + 1] - starts[i]), ends[i]) for i in range(metadata.num_reqs)]
    images = {i: [(first, last + 1) for first, last in spans] for i, spans in ranges.items()}
    pieces = split_at_images(chunks, images)
    if all(piece.causal for piece in pieces):
        return metadata
    lengths = torch.tensor([0] + [piece.end - piece.first for piece in pieces], dtype=torch.int32)
    starts_q = lengths.cumsum(0, dtype=torch.int32)
    return metadata.replace(
        num_reqs=len(pieces),
        query_start_loc=starts_q,
        query_start_loc_cpu=starts_q,
        seq_lens=torch.tensor([piece.end for piece in pieces], dtype=torch.int32),
        max_query_len=int(lengths.max()),
        block_table_tensor=metadata.block_table_tensor[[piece.request for piece in pieces]].contiguous(),
        causal=torch.tensor([piece.causal for piece in pieces], dtype=torch.int32),
    )
