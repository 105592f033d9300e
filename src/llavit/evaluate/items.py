"""Items: one question about one picture, with its answer."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from llavit.model.images import open_image

Picture = Literal["own", "blank", "none"] | Path
"""What a question is asked with: its picture, a grey one of the same size, none at all, or another picture."""

_GREY = (128, 128, 128)


@dataclass(frozen=True)
class Item:
    """One question of a benchmark.

    Attributes:
        id: unique in its file.
        image: path of the picture; None for a question about no picture.
        question: what is asked, instructions included.
        answer: the right answer.
        task: what kind of question it is; scores are reported by task.
        options: the choices of a multiple-choice question, else None.
        unseen: names of what training never showed ("concept", "style").
        accepted: further right answers; for a caption, the nouns that it should name.
        group: of a grouped task, the items that count only together.
        truth: what the picture holds, as plain values; "nouns" of a caption's picture lists each with further names.
    """

    id: str
    image: Path | None
    question: str
    answer: str
    task: str
    options: tuple[str, ...] | None = None
    unseen: frozenset[str] = field(default_factory=frozenset)
    accepted: tuple[str, ...] = ()
    group: str | None = None
    truth: Any = None

    def messages(self, picture: Picture = "own") -> list[dict[str, Any]]:
        """Return the conversation that asks the question; a question about no picture is asked without one."""
        text = {"type": "text", "text": self.question}
        if picture == "none" or self.image is None:
            return [{"role": "user", "content": [text]}]
        image: Any = str(picture if isinstance(picture, Path) else self.image)
        if picture == "blank":
            image = Image.new("RGB", open_image(self.image, self.id).size, _GREY)
        return [{"role": "user", "content": [{"type": "image", "image": image}, text]}]


def load_items(path: str | Path) -> list[Item]:
    """Read items from the starter's `test.json` or `val.json`; pictures lie beside the file, null is none.

    Raises:
        ValueError: if a record lacks a field; names the record and the field.
    """
    path = Path(path)
    items = []
    for number, record in enumerate(json.loads(path.read_text(encoding="utf-8"))):
        missing = {"id", "image", "question", "answer", "task"} - record.keys()
        if missing:
            raise ValueError(
                f"{path}: record {number}: expected the fields {sorted(missing)}, got {sorted(record)}"
            )
        items.append(
            Item(
                id=record["id"],
                image=None if record["image"] is None else path.parent / record["image"],
                question=record["question"],
                answer=str(record["answer"]),
                task=record["task"],
                options=tuple(record["options"]) if record.get("options") else None,
                unseen=frozenset(what for what in ("concept", "style") if record.get(f"unseen_{what}")),
            )
        )
    return items
