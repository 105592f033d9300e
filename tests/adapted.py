"""A tiny model with adapters that do something, on disk."""

from pathlib import Path
from typing import Any

import torch

from llavit.model.adapters import add_lora


def save_adapted(tiny, folder: Path) -> Any:
    """Write `folder/base` and, with adapters for it, `folder/adapted`; give the model with them in place."""
    model, processor = tiny.build(dtype=torch.float32)
    model.save_pretrained(folder / "base")
    add_lora(model, base="../base", rank=2, alpha=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.save_pretrained(folder / "adapted")
    processor.save_pretrained(folder / "adapted")
    return model
