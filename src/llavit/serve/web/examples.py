"""Pictures with questions to begin with, drawn out of the starter's packages where they are installed."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

KINDS = ("name", "colour", "count", "word", "place", "chart")
"""Which of the starter's tasks are shown, one picture each."""


@dataclass(frozen=True)
class Example:
    """A picture with a question."""

    image: Image.Image
    question: str


def starter_examples(image_size: int = 224, seed: int = 3) -> list[Example]:
    """Draw one picture of each of `KINDS`, of the starter's test; nothing where its packages are not installed.

    Args:
        image_size: side of the pictures in pixels.
        seed: other pictures for another seed.

    Example:
        >>> [example.image.size for example in starter_examples(112)[:1]] in ([], [(112, 112)])
        True
    """
    try:
        from llavit.starter.items import Factory, render
        from llavit.starter.sources import package_versions

        package_versions()
    except ImportError:
        return []
    examples = []
    for kind in KINDS:
        item = Factory("test", ((kind, 1.0),), image_size, seed, brief=True).item(0)
        examples.append(Example(render(item.scene), item.record()["question"]))
    return examples
