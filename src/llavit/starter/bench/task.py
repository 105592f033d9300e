"""What a task is: a maker of samples, how they are grouped and scored, and the rows that are written of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Literal, get_args

from llavit.starter.kit import Ask, Gallery, Kit, Maker, Sample, Split, lettered
from llavit.starter.plan import Deal

Family = Literal["general", "knowledge", "ocr_chart", "vision_centric", "anchor"]
Metric = Literal["choice", "yes_no", "exact", "relaxed", "anls", "caption"]
Group = Literal["pair", "circular"]

PAIR, ROTATIONS = 2, 4


@dataclass(frozen=True)
class Task:
    """One task of the benchmark.

    Attributes:
        name: e.g. "mini-mme".
        family: general, knowledge, ocr_chart, vision_centric or anchor.
        metric: how one answer is judged: choice (a letter), yes_no, exact, relaxed (numbers within 5 %), anls or
            caption.
        maker: makes the samples of one group.
        about: one sentence.
        group: None; "pair" if the maker gives two samples that count only together; "circular" if it gives one
            choice, which is asked once with each rotation of its options and counts only if all are right.
        chance: expected score, in the task's own counting, of guessing among the answers that are possible.
        max_new_tokens: that an answer may take.
        items: questions of the built task; the rotations of one choice count as one question.
        version: raised by every change that alters items.
        optional: built and run only where it is named, not with "all" or its family.

    Raises:
        ValueError: unknown family, metric or group; a number of items that the group does not divide.
    """

    name: str
    family: Family
    metric: Metric
    maker: Maker
    about: str
    group: Group | None = None
    chance: float = 0.0
    max_new_tokens: int = 8
    items: int = 300
    version: int = 1
    optional: bool = False

    def __post_init__(self) -> None:
        for value, kind in ((self.family, Family), (self.metric, Metric)):
            if value not in get_args(kind):
                raise ValueError(f"task {self.name}: {value!r} is none of {list(get_args(kind))}")
        if self.group not in (None, *get_args(Group)):
            raise ValueError(f"task {self.name}: group {self.group!r} is none of {[None, *get_args(Group)]}")
        if self.group == "circular" and self.metric != "choice":
            raise ValueError(
                f"task {self.name}: only a choice has options to rotate, not metric {self.metric!r}"
            )
        if self.group == "pair" and self.items % PAIR:
            raise ValueError(f"task {self.name}: items={self.items} is odd, and pairs take two each")

    def identity(self, edition: str) -> str:
        """Name of the task in every result: another edition or version is another task.

        Example:
            >>> Task("mini-mme", "general", "yes_no", list, "").identity("starter")
            'mini-mme@starter-1'
        """
        return f"{self.name}@{edition}-{self.version}"

    def numbers(self, items: int | None = None) -> int:
        """How often the maker is called for so many questions (`Task.items` if None)."""
        wanted = self.items if items is None else items
        return -(-wanted // PAIR) if self.group == "pair" else wanted

    def kit(self, gallery: Gallery, number: int, split: Split = "test", seed: int = 0) -> Kit:
        """What the maker gets for its call `number`; equal arguments give equal samples."""
        key = f"{seed}/{split}/{self.name}"
        return Kit(gallery, split, Random(f"{key}/{number}"), Deal(key, number))

    def samples(self, gallery: Gallery, number: int, split: Split = "test", seed: int = 0) -> list[Sample]:
        """The samples of call `number`.

        Raises:
            ValueError: the maker gave another number of samples, or other questions, than the task states.
        """
        made = self.maker(self.kit(gallery, number, split, seed))
        wanted = PAIR if self.group == "pair" else 1
        if len(made) != wanted:
            raise ValueError(
                f"maker of {self.name}, number {number}: expected {wanted} samples, got {len(made)}"
            )
        for sample in made:
            self._check(sample.ask, number)
        return made

    def _check(self, ask: Ask, number: int) -> None:
        where = f"maker of {self.name}, number {number}"
        if self.metric == "choice":
            letters = "ABCDEFGHIJ"[: len(ask.options or ())]
            if len(ask.answer) != 1 or ask.answer not in letters:
                raise ValueError(f"{where}: answer {ask.answer!r} is no letter of the options {ask.options}")
        if self.metric == "yes_no" and ask.answer not in ("yes", "no"):
            raise ValueError(f"{where}: answer {ask.answer!r} is neither yes nor no")
        if self.group == "circular" and len(ask.options or ()) != ROTATIONS:
            raise ValueError(f"{where}: circular evaluation takes {ROTATIONS} options, got {ask.options}")

    def rows(self, samples: list[Sample], number: int) -> Iterator[tuple[dict[str, Any], Sample]]:
        """The rows of items.jsonl of one call, each with its sample; samples of one picture share its file."""
        group = f"{self.name}-{number:05d}"
        pictures: dict[int, str] = {}
        for place, sample in enumerate(samples):
            end = f"-{'ab'[place]}" if self.group == "pair" else ""
            image = pictures.setdefault(id(sample.image), f"images/{number:05d}{end}.png")
            asks = rotations(sample.ask) if self.group == "circular" else [sample.ask]
            for turn, ask in enumerate(asks):
                suffix = f"-{turn}" if self.group == "circular" else end
                row = {
                    "id": group + suffix,
                    "image": image,
                    "question": ask.text,
                    "answer": ask.answer,
                    "accepted": list(ask.accepted),
                    "options": list(ask.options) if ask.options else None,
                    "group": group if self.group else None,
                    "unseen_concept": sample.unseen_concept,
                    "unseen_style": sample.unseen_style,
                    "truth": json.loads(json.dumps(sample.truth)),
                }
                yield row, sample


def rotations(ask: Ask) -> list[Ask]:
    """The same choice with its options turned, so that the right one stands once at each letter.

    Example:
        >>> made = rotations(lettered("What is it?", ["cat", "dog", "bus", "car"], "dog"))
        >>> [(ask.options[0], ask.answer) for ask in made]
        [('cat', 'B'), ('dog', 'A'), ('bus', 'D'), ('car', 'C')]
    """
    assert ask.options is not None
    question = ask.text.split("\nA. ")[0]
    right = ask.options["ABCDEFGHIJ".index(ask.answer)]
    turned = [ask.options[turn:] + ask.options[:turn] for turn in range(len(ask.options))]
    return [lettered(question, options, right, ask.topic) for options in turned]
