"""Merging a folder with LoRA adapters into an ordinary one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from llavit.model.adapters import ADAPTER, has_adapters, merge_adapters
from llavit.model.modeling import LlavitForConditionalGeneration
from llavit.model.processor import LlavitProcessor
from llavit.progress import quiet_transformers


def merge(source: str | Path, output: str | Path) -> Path:
    """Write the whole model that adapters and their base make, and its processor.

    Adapters of a QLoRA stage are merged into the weights before they were quantised.

    Args:
        source: a folder with adapters, as training with `lora` writes it.
        output: a new folder; it appears when it is whole.

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
    source, output = Path(source), Path(output)
    if not source.is_dir():
        raise FileNotFoundError(f"no such model folder: {source}")
    if not (source / ADAPTER).is_dir():
        raise ValueError(f"nothing to merge: {source} has no adapters")
    if output.exists():
        raise ValueError(f"{output} is there already; choose another folder")
    with quiet_transformers():
        model = LlavitForConditionalGeneration.from_pretrained(source)
        assert has_adapters(model)
        merge_adapters(model)
        unfinished = output.with_name(f".{output.name}.{os.getpid()}")
        try:
            model.save_pretrained(unfinished)
            LlavitProcessor.from_pretrained(source).save_pretrained(unfinished)
            os.replace(unfinished, output)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return output
