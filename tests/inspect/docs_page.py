"""docs/inspect.md for its tests: its sections, their code, and models in the folders that it names."""

import re
from pathlib import Path

import torch

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "inspect.md").read_text(encoding="utf-8")
SECTIONS = {
    part.split("\n", 1)[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE) if part.strip()
}


def blocks(language: str, *names: str) -> list[str]:
    """The blocks of code in some sections."""
    text = "".join(SECTIONS[name] for name in names)
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def save_models(tiny, folder: Path) -> None:
    """Put a LLaVA and a LLaViT where the page has them."""
    switches = {"visual_qkv": False, "bidirectional_visual_attention": False}
    for name, options in (("llava", switches), ("demo", {})):
        for part in tiny.build(dtype=torch.float32, **options):
            part.save_pretrained(folder / "runs" / name / "instruct")
