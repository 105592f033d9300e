"""Tasks of the general family."""

from __future__ import annotations

from llavit.starter.bench.task import Task

GENERAL: tuple[Task, ...] = ()
