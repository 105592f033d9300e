"""Tasks of the vision-centric family."""

from __future__ import annotations

from llavit.starter.bench.task import Task

VISION: tuple[Task, ...] = ()
