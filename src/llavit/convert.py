"""Checkpoints of LLaVA's own repository (haotian-liu/LLaVA), written anew in Hugging Face's format.

They come in three kinds, all of which LLaVA's own scripts write: a whole model, LoRA adapters with
`non_lora_trainables.bin`, and a projector alone (`mm_projector.bin`), as pretraining leaves it. What makes them unlike
Hugging Face's format: the LLM is named as if it were the whole, the projector is part of it, and the vision tower,
the chat template and the way to pad an image are not in the folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from llavit.folders import require_free, whole_folder
from llavit.llava_prompt import conversation_v1, with_llavas_tokens
from llavit.loading import require_source
from llavit.model.build import build_llavit
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.processor import LlavitProcessor, padding_to_square
from llavit.progress import quiet_transformers, status

LLM_TYPES = {"llava": "llama", "llava_llama": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}
"""`model_type` of LLaVA's own checkpoints, and of the LLM inside."""

PROJECTOR, LORA, NON_LORA = "mm_projector.bin", "adapter_config.json", "non_lora_trainables.bin"
_OF_LLAVA = re.compile(
    r"^(mm_|use_mm_|tune_mm_|image_|freeze_|unfreeze_|tokenizer_|architectures|model_type|auto_map|_name)"
)
_LAYERS = {"0": "linear_1", "2": "linear_2"}


def convert_llava(
    source: str | Path,
    output: str | Path,
    *,
    llm: str | Path | None = None,
    vision_tower: str | Path | None = None,
    chat_template: str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Path:
    """Write a checkpoint of LLaVA's own repository in Hugging Face's format, as llava-hf/llava-1.5-7b-hf is.

    transformers loads the result as the LLaVA that it is, and so do `load_model` and all commands here.
    `LlavitForConditionalGeneration.from_pretrained`, and a recipe that names it as `model.checkpoint`, make a LLaViT
    of it. Images are padded to a square where the checkpoint was trained so (`image_aspect_ratio`).

    Args:
        source: a folder or a hub id: a whole model, LoRA adapters, or a projector alone.
        output: a new folder, or an empty one; it appears when it is whole.
        llm: adapters and projectors: the LLM that they were trained with, if not the one they name.
        vision_tower: a folder or id, if not the one that the checkpoint names.
        chat_template: Jinja template; if not given the tokenizer's own, else LLaVA-1.5's conversation "v1".
        dtype: of the weights; if not given that of the LLM.
        progress: say on stderr what is happening, if that is a terminal.

    Returns:
        the output folder.

    Raises:
        ValueError: not such a checkpoint, or one of a kind that is not read: several views of an image
            (`anyres`, LLaVA-NeXT) or several scales (`s2`), another projector than the two-layer MLP,
            `mm_use_im_start_end`; or it names an LLM or a vision tower by a path that is not there.
        OSError: it has no config.json or no weights, or names an LLM or a vision tower that cannot be loaded.
        ImportError: adapters need peft.

    Example:
        ```python
        convert_llava("liuhaotian/llava-v1.5-7b", "llava-1.5-7b")
        ```
    """
    require_source(source)
    output = require_free(output)
    with quiet_transformers(), status(f"{source}: looking", show=progress) as say:
        folder = _local(source)
        stated = _stated(folder)
        _require_readable(folder, stated)
        say(f"{source}: loading the LLM")
        lm, tokenizer, trained = _language_model(folder, stated, llm, dtype)
        say(f"{source}: loading the vision tower")
        tower, image_processor = _tower(
            folder, vision_tower or stated["mm_vision_tower"], stated, trained, dtype or lm.dtype
        )
        say(f"{source}: putting it together")
        template = chat_template or tokenizer.chat_template or conversation_v1()
        model, processor = build_llavit(
            tower,
            lm,
            vision_feature_layer=stated["mm_vision_select_layer"],
            visual_qkv=False,
            bidirectional_visual_attention=False,
            tokenizer=tokenizer,
            image_processor=image_processor,
            chat_template=template,
            dtype=dtype,
        )
        processor = with_llavas_tokens(processor, template)
        model.model.multi_modal_projector.load_state_dict(_projector(trained, folder))
        say(f"{source}: writing")
        with whole_folder(output) as unfinished:
            _as_llava(model).save_pretrained(unfinished)
            llava_processor(processor).save_pretrained(unfinished)
    return output


def _local(source: str | Path) -> Path:
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(source)))


def _stated(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder}: expected a config.json, as LLaVA's scripts write beside weights; there is none"
        )
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _require_readable(folder: Path, stated: Mapping[str, Any]) -> None:
    """Refuse what would load and answer something else."""
    kind = stated.get("model_type")
    if "text_config" in stated or kind == "llavit":
        raise ValueError(f"{folder} is in Hugging Face's format already: llavit loads it as it is")
    if "mm_vision_tower" not in stated or kind not in LLM_TYPES:
        raise ValueError(
            f"{folder}: expected a checkpoint of LLaVA's own repository (mm_vision_tower, and model_type one of "
            f"{', '.join(LLM_TYPES)}), got model_type {kind!r}"
        )
    wanted = {
        "mm_projector_type": ("mlp2x_gelu", "the two-layer MLP of LLaVA-1.5"),
        "mm_vision_select_feature": ("patch", "the patches' features"),
        "mm_use_im_start_end": (False, "no tokens around an image"),
        "s2": (False, "an image at one scale"),
    }
    defaults = {
        "mm_projector_type": "linear",
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": False,
        "s2": False,
    }
    for key, (value, meaning) in wanted.items():
        got = stated.get(key, defaults[key])
        if got != value:
            raise ValueError(
                f"{folder}: {key}: expected {value!r} ({meaning}), got {got!r}: not a model that llavit has"
            )
    if (
        "anyres" in str(stated.get("image_aspect_ratio"))
        or stated.get("mm_patch_merge_type", "flat") != "flat"
    ):
        raise ValueError(
            f"{folder}: image_aspect_ratio {stated.get('image_aspect_ratio')!r}: it was trained on several views of an "
            "image (LLaVA-NeXT); llavit shows an LLM one"
        )


def _language_model(
    folder: Path, stated: Mapping[str, Any], llm: str | Path | None, dtype: torch.dtype | None
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Load the LLM, its tokenizer, and what else was trained, by names without prefixes of wrappers."""
    if (folder / LORA).is_file():
        return _adapted(folder, llm, dtype)
    if (folder / PROJECTOR).is_file() and not _weight_files(folder):
        lm, tokenizer, trained = _base(folder, llm or stated.get("_name_or_path"), dtype)
        return lm, tokenizer, trained | _read(folder / PROJECTOR)
    if llm is not None:
        raise ValueError(f"{folder} holds an LLM; llm={llm} is for adapters and projectors alone")
    return _whole(folder, stated, dtype)


def _whole(
    folder: Path, stated: Mapping[str, Any], dtype: torch.dtype | None
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    state: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        state |= _read(path)
    if not state:
        raise FileNotFoundError(
            f"{folder}: expected weights (model*.safetensors, pytorch_model*.bin, {LORA} with {NON_LORA}, or "
            f"{PROJECTOR}); there are none"
        )
    own = {name: tensor for name, tensor in state.items() if not _is_ours(name)}
    config = AutoConfig.for_model(
        LLM_TYPES[stated["model_type"]],
        **{key: value for key, value in stated.items() if not _OF_LLAVA.match(key)},
    )
    lm = _filled(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)], config, own, dtype, folder)
    if (folder / "generation_config.json").is_file():  # Llama 3 and Qwen2 end an answer in several ways
        lm.generation_config = GenerationConfig.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, config=config)
    return lm, tokenizer, {name: tensor for name, tensor in state.items() if _is_ours(name)}


def _base(
    folder: Path, named: str | Path | None, dtype: torch.dtype | None
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """Load what adapters or a projector were trained on: an LLM, or a whole LLaVA (finetune_task_lora.sh)."""
    if not named:
        raise ValueError(f"{folder} does not name the LLM that it was trained with; expected llm")
    with _found(folder, named, "llm"):
        stated, _ = PreTrainedConfig.get_config_dict(named)
        if "mm_vision_tower" not in stated:
            lm = AutoModelForCausalLM.from_pretrained(named, dtype=dtype or "auto")
            return lm, AutoTokenizer.from_pretrained(named), {}
        whole = _local(named)
    _require_readable(whole, stated)
    return _whole(whole, stated, dtype)


@contextmanager
def _found(folder: Path, named: str | Path, argument: str) -> Iterator[None]:
    """Say how to name a part: many checkpoints name a folder of the machine that they were trained on."""
    try:
        require_source(named)
        yield
    except (OSError, ValueError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(
            f"{folder}: {argument} {str(named)!r} cannot be loaded; say with {argument} where it is ({error})"
        ) from error


def _adapted(
    folder: Path, llm: str | Path | None, dtype: torch.dtype | None
) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    from llavit.model.adapters import require_peft

    peft = require_peft()
    named = json.loads((folder / LORA).read_text(encoding="utf-8")).get("base_model_name_or_path")
    lm, tokenizer, before = _base(folder, llm or named, dtype)
    lm = peft.PeftModel.from_pretrained(lm, str(folder)).merge_and_unload(safe_merge=True)
    trained = _read(folder / NON_LORA)
    others = sorted(name for name in trained if not _is_ours(name))
    if others:
        missing = lm.load_state_dict({name: trained[name] for name in others}, strict=False).unexpected_keys
        if missing:
            raise ValueError(f"{folder / NON_LORA}: the LLM has no {', '.join(missing[:3])}")
    return lm, tokenizer, before | {name: trained[name] for name in trained if _is_ours(name)}


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of weights under the names that LLaVA gives them in a whole model."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent}: expected {path.name}, as LLaVA's scripts write; there is none"
        )
    if path.suffix == ".safetensors":
        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    names = {
        name: re.sub(r"^model\.(?=model\.|lm_head\.)", "", name.removeprefix("base_model.")) for name in state
    }
    return {names[name]: tensor for name, tensor in state.items() if not name.endswith("rotary_emb.inv_freq")}


def _is_ours(name: str) -> bool:
    return name.startswith(("model.mm_projector.", "model.vision_tower."))


def _filled(
    kind: Any, config: Any, state: dict[str, torch.Tensor], dtype: torch.dtype | None, folder: Path
) -> Any:
    name = config._name_or_path
    model, info = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype or _dtype_of(state), output_loading_info=True
    )
    wrong = sorted(info["missing_keys"]) + sorted(info["unexpected_keys"])
    if wrong:
        raise ValueError(
            f"{folder}: weights are missing or unknown: {len(wrong)}, first {', '.join(wrong[:3])}"
        )
    model.config._name_or_path = name  # transformers wrote "None", which a model card would show as the base
    return model


def _dtype_of(state: Mapping[str, torch.Tensor]) -> torch.dtype:
    return next((tensor.dtype for tensor in state.values() if tensor.is_floating_point()), torch.float32)


def _tower(
    folder: Path,
    source: str | Path,
    stated: Mapping[str, Any],
    trained: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
) -> tuple[Any, Any]:
    """Load the tower, with the checkpoint's own weights where it was trained, and what prepares its images."""
    prefix = "model.vision_tower.vision_tower."
    own = {name.removeprefix(prefix): tensor for name, tensor in trained.items() if name.startswith(prefix)}
    with _found(folder, source, "vision_tower"):
        tower = AutoModel.from_pretrained(source, dtype=dtype)
        prepares = AutoImageProcessor.from_pretrained(source, backend="pil")
    tower = getattr(tower, "vision_model", tower) if hasattr(tower, "text_model") else tower
    if own:
        tower = _filled(MODEL_MAPPING[type(tower.config)], tower.config, own, dtype, folder)
    return tower, padding_to_square(prepares) if stated.get("image_aspect_ratio") == "pad" else prepares


def _projector(trained: Mapping[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for name, tensor in trained.items():
        layer, _, kind = name.removeprefix("model.mm_projector.").partition(".")
        if name.startswith("model.mm_projector."):
            found[f"{_LAYERS.get(layer, layer)}.{kind}"] = tensor
    if not found:
        raise FileNotFoundError(f"{folder}: there is no projector (model.mm_projector) among its weights")
    return found


def _as_llava(model: LlavitForConditionalGeneration) -> LlavaForConditionalGeneration:
    """Put a model without any of the changes into transformers' class; nothing is copied."""
    stated = model.config
    config = LlavaConfig(
        vision_config=stated.tower,
        text_config=stated.llm,
        image_token_index=stated.image_token_index,
        image_seq_length=stated.image_seq_length,
        vision_feature_layer=stated.vision_feature_layer,
        vision_feature_select_strategy=stated.vision_feature_select_strategy,
        tie_word_embeddings=stated.llm.tie_word_embeddings,
        dtype=stated.dtype,
    )
    with torch.device("meta"):
        plain = LlavaForConditionalGeneration(config)
    plain.load_state_dict(model.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = model.generation_config
    return plain


def llava_processor(processor: LlavitProcessor) -> LlavaProcessor:
    """Give transformers' own processor, with the image processor, tokenizer and chat template of ours."""
    return LlavaProcessor(
        processor.image_processor,
        processor.tokenizer,
        patch_size=processor.patch_size,
        vision_feature_select_strategy=processor.vision_feature_select_strategy,
        chat_template=processor.chat_template,
        image_token=processor.image_token,
        num_additional_image_tokens=processor.num_additional_image_tokens,
    )
