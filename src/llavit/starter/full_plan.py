"""What the corpus at full size is made of: which maker makes which share, and the record of a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

from llavit.starter.bench.registry import TASKS
from llavit.starter.kit import Ask, Gallery, Kit, Maker, Sample, Split
from llavit.starter.plan import Deal, Plan
from llavit.starter.showing import describe, show

CAPTIONS: dict[str, float] = {
    "show": 0.76,
    "mini-gqa": 0.05,
    "mini-pope": 0.04,
    "mini-realworld": 0.03,
    "mini-cv2d": 0.02,
    "mini-cv3d": 0.02,
    "mini-ocrbench": 0.03,
    "mini-textvqa": 0.02,
    "mini-chartqa": 0.03,
}
"""Shares of the captions by maker: the picture is the maker's, the text its caption."""

INSTRUCT: dict[str, float] = {
    "show": 0.13,
    "mini-mme": 0.06,
    "mini-gqa": 0.07,
    "mini-pope": 0.05,
    "mini-realworld": 0.05,
    "mini-cv2d": 0.05,
    "mini-cv3d": 0.05,
    "mini-mmvp": 0.08,
    "mini-chartqa": 0.12,
    "mini-ocrbench": 0.06,
    "mini-textvqa": 0.05,
    "mini-docvqa": 0.06,
    "mini-mathvista": 0.06,
    "mini-ai2d": 0.04,
    "mini-sqa": 0.04,
    "mini-mmmu": 0.04,
    "easy-vqa": 0.06,
}
"""Shares of the conversations, and of the questions of val, by maker."""

MOST_TURNS = 5


def makers() -> dict[str, Maker]:
    """Every maker by name: `show`, and those of the benchmark's tasks."""
    return {"show": show, **{name: task.maker for name, task in TASKS.items()}}


@dataclass(frozen=True)
class Part:
    """One file of the corpus.

    Attributes:
        name: "pretrain", "instruct" or "val".
        shares: of its makers, out of 1.
        seed: of the corpus.
        image_size: side of the pictures in pixels.
    """

    name: str
    shares: tuple[tuple[str, float], ...]
    seed: int
    image_size: int

    @classmethod
    def of(cls, name: str, seed: int, image_size: int) -> Part:
        """A part with the shares that it has by default."""
        shares: Mapping[str, float] = CAPTIONS if name == "pretrain" else INSTRUCT
        total = sum(shares.values())
        return cls(name, tuple((maker, share / total) for maker, share in shares.items()), seed, image_size)

    @property
    def split(self) -> Split:
        """Whose drawings, fonts, words and tables it shows."""
        return "val" if self.name == "val" else "train"

    @cached_property
    def plan(self) -> Plan:
        """Which record is of which maker."""
        return Plan(dict(self.shares), self.seed, f"full/{self.name}")

    def kit(self, gallery: Gallery, number: int) -> tuple[str, Kit]:
        """The maker of a record, by name, and what it gets."""
        maker, deal = self.plan.slot(number)
        key = f"{self.seed}/full/{self.name}/{maker}"
        rng = Random(f"{key}/{deal.ordinal}")
        return maker, Kit(gallery, self.split, rng, Deal(key, deal.ordinal), self.image_size)

    def record(self, gallery: Gallery, number: int) -> tuple[dict[str, Any], Sample]:
        """One record, as its json holds it, and the sample whose picture belongs to it.

        Raises:
            ValueError: a maker gave nothing to say.
        """
        maker, kit = self.kit(gallery, number)
        samples = makers()[maker](kit)
        sample = samples[kit.deal.ordinal % len(samples)]
        record: dict[str, Any] = {
            "id": f"full-{self.name}-{number:06d}",
            "image": f"images/{self.name}/{number:06d}.jpg",
        }
        if self.name == "val":
            return {**record, **_question(maker, sample)}, sample
        if self.name == "pretrain":
            if not sample.caption:
                raise ValueError(f"the maker of {maker}, number {number}, gave no caption")
            turns = [(describe(kit), sample.caption)]
        else:
            turns = [(ask.text, ask.answer) for ask in _turns(kit, sample)]
        said = []
        for place, (question, answer) in enumerate(turns):
            human = question if place else f"<image>\n{question}"
            said += [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
        return {**record, "conversations": said}, sample


def _turns(kit: Kit, sample: Sample) -> list[Ask]:
    """The sample's own question and others of other topics, in a random order."""
    others = list(sample.more)
    kit.rng.shuffle(others)
    chosen = {sample.ask.topic or sample.ask.text: sample.ask}
    for ask in others:
        if len(chosen) < MOST_TURNS:
            chosen.setdefault(ask.topic or ask.text, ask)
    asks = list(chosen.values())
    kit.rng.shuffle(asks)
    return asks


def _question(maker: str, sample: Sample) -> dict[str, Any]:
    return {
        "question": sample.ask.text,
        "answer": sample.ask.answer,
        "accepted": list(sample.ask.accepted),
        "options": list(sample.ask.options) if sample.ask.options else None,
        "task": maker,
        "unseen_concept": sample.unseen_concept,
        "unseen_style": sample.unseen_style,
        "needs_image": True,
        "question_in_unseen_words": None,
        "scene": sample.truth,
    }
