"""A picture of questions and answers: to look at, and to show."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from llavit.evaluate.items import Item
from llavit.evaluate.score import is_right

_RIGHT, _WRONG = "#1a7f37", "#c0392b"


def first_of_each_task(items: Sequence[Item], count: int) -> list[int]:
    """Return the positions of the first `count` items of each task, task by task.

    Nothing is picked by its result.
    """
    by_task: dict[str, list[int]] = {}
    for position, item in enumerate(items):
        of_task = by_task.setdefault(item.task, [])
        if len(of_task) < count:
            of_task.append(position)
    return [position for of_task in by_task.values() for position in of_task]


def save_sheet(
    items: Sequence[Item], answers: Sequence[str], path: Path, per_task: int = 2, columns: int = 6
) -> None:
    """Draw the first items of each task with the model's answers, right ones green, into an image file.

    Args:
        items: the questions.
        answers: the model's, one to each item.
        path: file to write, e.g. `sheet.png`.
        per_task: items of each task.
        columns: pictures in a row.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = first_of_each_task(items, per_task)
    rows = -(-len(chosen) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(2.1 * columns, 3.05 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, position in zip(axes.flat, chosen, strict=False):
        item, answer = items[position], answers[position]
        assert item.image is not None  # the starter's items have one
        with Image.open(item.image) as picture:
            axis.imshow(picture.convert("RGB"))
        right = is_right(answer, item)
        said = answer if right else f"{answer}  (truth: {item.answer})"
        question = textwrap.fill(item.question.split("\n")[0], 31)
        axis.text(0, 1.02, question, transform=axis.transAxes, fontsize=7.5, va="bottom")
        axis.text(
            0, -0.03, textwrap.fill(said, 28), transform=axis.transAxes, fontsize=9.5, va="top", weight="bold"
        )
        axis.texts[-1].set_color(_RIGHT if right else _WRONG)
    figure.tight_layout(h_pad=1.2)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
