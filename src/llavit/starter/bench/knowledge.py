"""Tasks of the family of knowledge."""

from __future__ import annotations

from llavit.starter.bench.knowledge_diagrams import diagram
from llavit.starter.bench.knowledge_flags import geography
from llavit.starter.bench.knowledge_kinds import classify
from llavit.starter.bench.knowledge_math import calculate
from llavit.starter.bench.task import Task

KNOWLEDGE: tuple[Task, ...] = (
    Task(
        "mini-sqa",
        "knowledge",
        "choice",
        classify,
        "What kind of thing is it, which of four is a reptile, how many legs has it: concepts, some of them unseen.",
        chance=0.25,
    ),
    Task(
        "mini-mmmu",
        "knowledge",
        "choice",
        geography,
        "Flags in drawings that training never shows: the country, its capital, its continent, or one flag of four.",
        chance=0.25,
    ),
    Task(
        "mini-mathvista",
        "knowledge",
        "exact",
        calculate,
        "Clocks, dice and dominoes, sums, more or fewer dots, fractions of a circle.",
        chance=0.15,
    ),
    Task(
        "mini-ai2d",
        "knowledge",
        "choice",
        diagram,
        "Arrows between things, food chains, and letters that point at things or at the parts of a figure.",
        chance=0.25,
    ),
)
