"""Tasks of the anchor family."""

from __future__ import annotations

from llavit.starter.bench.task import Task

ANCHORS: tuple[Task, ...] = ()
