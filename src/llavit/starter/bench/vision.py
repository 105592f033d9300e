"""Tasks of the vision-centric family."""

from __future__ import annotations

from llavit.starter.bench.task import Task
from llavit.starter.bench.vision_mmvp import mmvp
from llavit.starter.bench.vision_space import cv2d, cv3d, realworld

VISION: tuple[Task, ...] = (
    Task(
        "mini-mmvp",
        "vision_centric",
        "choice",
        mmvp,
        "Pairs of pictures that differ in one thing: colour, number, side, size, upright or not, there or not.",
        group="pair",
        chance=0.25,
    ),
    Task(
        "mini-realworld",
        "vision_centric",
        "choice",
        realworld,
        "Spatial relations of cut-outs: at which side, which one is outermost, which one is in front.",
        chance=(1 / 4 + 1 / 4 + 1 / 2) / 3,
    ),
    Task(
        "mini-cv2d",
        "vision_centric",
        "choice",
        cv2d,
        "Silhouettes: how many (1 to 6), and at which side.",
        chance=0.25,
    ),
    Task(
        "mini-cv3d",
        "vision_centric",
        "choice",
        cv3d,
        "Relative size, depth by occlusion, the closest one, and the odd one out of nine.",
        chance=(1 / 4 + 1 / 2 + 1 / 3 + 3 / 4) / 6,
    ),
)
