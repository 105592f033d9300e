"""Merging a folder with LoRA adapters into an ordinary one. `export` does that too, and more."""

from __future__ import annotations

from pathlib import Path

from llavit.folders import require_free, whole_folder
from llavit.model.adapters import ADAPTER, has_adapters, merge_adapters
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.processor import LlavitProcessor
from llavit.progress import quiet_transformers


def merge(source: str | Path, output: str | Path) -> Path:
    """Write the whole model that adapters and their base make, and its processor.

    Adapters of a QLoRA stage are merged into the weights before they were quantised.

    Args:
        source: a folder with adapters, as training with `lora` writes it.
        output: a new folder, or an empty one; it appears when it is whole.

    Returns:
        the output folder.

    Raises:
        FileNotFoundError: no such folder, or its base is not where it was.
        ValueError: the folder has no adapters, or the output is there already.

    Example:
        ```python
        merge("runs/llava15-llavit-lora/instruct", "runs/merged")
        ```
    """
    source = Path(source)
    if not source.is_dir():
        raise FileNotFoundError(f"no such model folder: {source}")
    if not (source / ADAPTER).is_dir():
        raise ValueError(f"nothing to merge: {source} has no adapters")
    output = require_free(output)
    with quiet_transformers(), whole_folder(output) as folder:
        model = LlavitForConditionalGeneration.from_pretrained(source)
        assert has_adapters(model)
        merge_adapters(model)
        model.save_pretrained(folder)
        LlavitProcessor.from_pretrained(source).save_pretrained(folder)
    return output
