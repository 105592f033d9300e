"""The questions that both answering sides get: the same pictures and words in every round, and no picture twice."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image


@dataclass(frozen=True)
class Question:
    """A picture, and two questions about it."""

    image: Image.Image
    first: str
    second: str


class Questions:
    """Questions about the pictures of a data set.

    Args:
        data: LLaVA-format json, conversations of at least two turns about an image.

    Example:
        ```python
        Questions("instruct.json").take(round=0, start=0, count=5)
        ```
    """

    def __init__(self, data: str):
        folder = Path(data).parent
        rows = json.loads(Path(data).read_text(encoding="utf-8"))
        self.rows = [(str(folder / row["image"]), row["conversations"]) for row in rows if "image" in row]

    def take(self, round: int, start: int, count: int) -> list[Question]:
        """Give some questions; those of another round, or with another start, have other pictures.

        The first pixel is set to a number of its own, so that a cache knows no picture from before even where the
        data set has too few.
        """
        found = []
        for number in range(start, start + count):
            path, turns = self.rows[(round * 37 + number) % len(self.rows)]
            image = Image.open(path).convert("RGB")
            image.putpixel((0, 0), (round % 256, number % 256, 77))
            said = [turn["value"].replace("<image>", "").strip() for turn in turns if turn["from"] == "human"]
            found.append(Question(image, said[0], said[1 % len(said)] + (" Why?" if len(said) < 2 else "")))
        return found


def sizes(quick: bool) -> dict[str, int]:
    """Say how much a round of each measurement asks: questions, and tokens of an answer."""
    if quick:
        return {"questions": 1, "decode_tokens": 6, "batch": 8, "batch_tokens": 4}
    return {"questions": 5, "decode_tokens": 128, "batch": 8, "batch_tokens": 64}


def facts_of(model: Any) -> dict[str, Any]:
    """Say what a model is."""
    import torch

    return {
        "class": type(model).__name__,
        "dtype": str(model.dtype),
        "attention": model.config.text_config._attn_implementation,
        "threads": torch.get_num_threads(),
    }
