"""All tasks by name, in the order in which results show them."""

from __future__ import annotations

from collections.abc import Iterable

from llavit.starter.bench.anchors import ANCHORS
from llavit.starter.bench.general import GENERAL
from llavit.starter.bench.knowledge import KNOWLEDGE
from llavit.starter.bench.ocr_chart import OCR_CHART
from llavit.starter.bench.task import Task
from llavit.starter.bench.vision import VISION

# One tuple of tasks per family, each in a module of its own; a family is added by one import and one name here.
TASKS: dict[str, Task] = {task.name: task for task in (*GENERAL, *KNOWLEDGE, *OCR_CHART, *VISION, *ANCHORS)}


def chosen(tasks: str | Iterable[str] = "all") -> list[Task]:
    """Tasks by name or by family, in the order of the registry.

    Args:
        tasks: "all", names and families separated by commas, or a list of them.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else list(tasks)
    families = {task.family for task in TASKS.values()}
    unknown = [name for name in names if name != "all" and name not in TASKS and name not in families]
    if unknown or not names:
        raise ValueError(
            f"unknown tasks {unknown}: choose from all, the families {sorted(families)}, and {list(TASKS)}"
        )
    return [
        task
        for task in TASKS.values()
        if task.name in names or (not task.optional and ("all" in names or task.family in names))
    ]
