"""Loading a model to be asked: a LLaViT as it was trained, a LLaVA as the LLaVA that it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from llavit.model.adapters import ADAPTER, base_of, find_adapters, has_adapters, merge_adapters
from llavit.model.compat import LOCATION
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.processor import LlavitProcessor
from llavit.model.quantize import is_int8, quantize_int8
from llavit.precision import resolve_dtype
from llavit.progress import status

DTYPES = ("auto", "bfloat16", "float16", "float32")
QUANTISATIONS = ("int8",)


def load_model(
    pretrained: str | Path,
    *,
    dtype: str = "auto",
    device: str | None = None,
    quantize: str | None = None,
    progress: bool = False,
    **kwargs: Any,
) -> tuple[Any, LlavitProcessor]:
    """Load a model and its processor, ready to answer.

    A checkpoint in LLaVA's own format has neither visual QKV nor the visual mask; it is loaded with both switches
    off unless they are given, so that its answers are LLaVA's.

    Args:
        pretrained: a folder or a hub id; a folder with adapters too.
        dtype: "auto" takes bfloat16 where the hardware multiplies it fast.
        device: where it computes; the GPU if there is one. Not with `device_map`, which says it part by part.
        quantize: "int8" holds the LLM's weights in int8 (`llavit.model.quantize`), after merging adapters if there are
            some; None leaves a model as it was saved.
        progress: say on stderr what is happening, if that is a terminal.
        **kwargs: for `from_pretrained`, e.g. `attn_implementation`, `revision`, `visual_qkv`, `device_map`.

    Raises:
        ValueError: another dtype or quantisation, a device and a `device_map`, or a path of a folder that is not there.
        OSError: no such model.

    Example:
        ```python
        model, processor = load_model("runs/demo/instruct")
        ```
    """
    import torch

    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r}: expected one of {', '.join(DTYPES)}")
    if quantize is not None and quantize not in QUANTISATIONS:
        raise ValueError(f"quantize={quantize!r}: expected None or one of {', '.join(QUANTISATIONS)}")
    mapped = kwargs.get("device_map") is not None
    if mapped and device is not None:
        raise ValueError(
            f"device={device!r} and device_map={kwargs['device_map']!r}: expected one of them, got both"
        )
    require_source(pretrained)
    location = {key: kwargs[key] for key in LOCATION if key in kwargs}
    stated, _ = PreTrainedConfig.get_config_dict(pretrained, **location)
    if stated.get("model_type") == "llava":
        kwargs = {"visual_qkv": False, "bidirectional_visual_attention": False, **kwargs}
    chosen = resolve_dtype(dtype)[0]
    where = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = _shown_name(pretrained, location.get("subfolder"))
    with status(f"{name}: loading weights", show=progress) as say:
        model = LlavitForConditionalGeneration.from_pretrained(pretrained, dtype=chosen, **kwargs)
        if quantize is not None and not is_int8(model):
            say(f"{name}: making weights int8")
            if has_adapters(model):
                merge_adapters(model)
            quantize_int8(model)
        say(f"{name}: loading the processor")
        processor = LlavitProcessor.from_pretrained(pretrained, **location)
        if mapped:  # its parts are where they belong
            return model.eval(), processor
        if where != "cpu":
            say(f"{name}: moving to {where}")
        return model.to(where).eval(), processor


def require_source(pretrained: str | Path) -> None:
    """Refuse what is neither a folder nor can be an id on the hub.

    Raises:
        ValueError: it is neither.

    Example:
        >>> require_source("llava-hf/llava-1.5-7b-hf")
    """
    path = Path(pretrained)
    if not path.is_dir() and (path.is_absolute() or len(path.parts) > 2 or str(pretrained).startswith(".")):
        raise ValueError(f"pretrained={pretrained}: no such folder, and no id of a model on the hub either")


def weight_bytes(folder: str | Path) -> int:
    """Count the bytes of weights that loading a folder reads: those of adapters and of their base as well.

    Returns:
        0 for a model on the hub.

    Raises:
        FileNotFoundError: the base of adapters is not where it was.

    Example:
        >>> weight_bytes("llava-hf/llava-1.5-7b-hf")
        0
    """
    folder = Path(folder)
    if not folder.is_dir():
        return 0
    size = sum(file.stat().st_size for file in [*folder.glob("*.safetensors"), *folder.glob("*.bin")])
    if find_adapters(folder) is not None:
        size += weight_bytes(folder / ADAPTER) + weight_bytes(base_of(folder))
    return size


def _shown_name(pretrained: str | Path, subfolder: str | None) -> str:
    """Name and size, as far as it is known: "instruct (697 MB)"."""
    path = Path(pretrained, subfolder or "")
    if not path.is_dir():
        return str(path)
    return f"{path.resolve().name} ({weight_bytes(path) / 1e6:,.0f} MB)"
