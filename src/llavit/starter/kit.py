"""What makers of pictures work with: drawings, fonts, words and tables of one split, and what they hand back.

    edition, split --> Kit --maker--> Samples (a picture, its questions, its caption, its truth)

A maker is a function of a `Kit` alone. The same maker serves training and test: the kit gives it what its split may
show (sources, concepts, fonts, tables, phrasings), and all randomness. Editions:

    starter   everything out of PyPI packages
    full      npm and Debian packages as well

[Contract] An answer is read off the scene that the maker drew, never off pixels; a question that a fair person could
answer in another way is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, Protocol

from PIL import Image

from llavit.starter.palette import Rgb
from llavit.starter.phrases import HELD_OUT
from llavit.starter.plan import Deal

Edition = Literal["starter", "full"]
Split = Literal["train", "val", "test"]

LETTER = "Answer with the option's letter from the given choices directly."
SHORT = "Answer the question using a single word or phrase."
YES_NO = "Please answer yes or no."


@dataclass(frozen=True)
class Drawing:
    """One picture of one thing, in one style.

    Attributes:
        source: art family, e.g. "twemoji"; a family belongs to one split.
        key: name of the drawing in its family.
        name: canonical name of what it shows, equal in all families.
        category: e.g. "animal"; None if it fits none.
        tintable: one colour only, so that it can be drawn in any.
        photo: a photograph.
        accepted: further right names.
        whole: a picture with a ground of its own, not a cut-out.
        text: title or sentence that its makers gave it; "" if there is none but the name.
    """

    source: str
    key: str
    name: str
    category: str | None = None
    tintable: bool = False
    photo: bool = False
    accepted: tuple[str, ...] = ()
    whole: bool = False
    text: str = ""


class Gallery(Protocol):
    """Where the drawings, fonts, words and tables of an edition come from."""

    edition: Edition

    def drawings(self, split: Split) -> Sequence[Drawing]:
        """All that a split may show as an object of a scene, in a fixed order; each name may be asked for."""

    def pictures(self, split: Split) -> Sequence[Drawing]:
        """What else a split may show, alone: pictures with a ground of their own, flags, things told by a title."""

    def render(self, drawing: Drawing, size: int, tint: Rgb | None = None) -> Image.Image:
        """The drawing as RGBA, cut to its content; the longer side has `size` pixels."""

    def fonts(self, split: Split) -> Sequence[tuple[str, str]]:
        """Families with the path of a TrueType file: a family belongs to one split."""

    def words(self, split: Split) -> Sequence[str]:
        """Short common words, none of them the name of a drawing."""

    def tables(self, split: Split) -> Sequence[str]:
        """Names of tables of numbers."""

    def columns(self, table: str) -> Sequence[tuple[str, tuple[float, ...]]]:
        """Numeric columns of a table: names and values."""


@dataclass(frozen=True)
class Ask:
    """One question about a sample.

    Attributes:
        text: the question as the model reads it, instruction included.
        answer: the right answer; for a choice, its letter.
        accepted: further right answers.
        options: the texts behind the letters A, B, ... of a choice.
        topic: questions of one topic tell each other's answer; a conversation holds one of them.
    """

    text: str
    answer: str
    accepted: tuple[str, ...] = ()
    options: tuple[str, ...] | None = None
    topic: str = ""


@dataclass(frozen=True)
class Sample:
    """A picture with what is asked about it.

    Attributes:
        image: RGB.
        ask: the question that it was made for.
        more: further questions, for conversations in training.
        caption: one true sentence.
        truth: the scene, as plain values for JSON.
        names: of the drawings in it, for the split by concept.
        unseen_concept: it shows something whose name never occurs in training.
        unseen_style: art family, font or table is one that training never shows.
    """

    image: Image.Image
    ask: Ask
    more: tuple[Ask, ...] = ()
    caption: str = ""
    truth: dict[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    unseen_concept: bool = False
    unseen_style: bool = False


@dataclass(frozen=True)
class Kit:
    """Everything one item is made with; all randomness comes from `rng` and `deal`.

    Attributes:
        gallery: of the edition.
        split: whose drawings, fonts, words, tables and phrasings are used.
        rng: seeded by (seed, split, task, number).
        deal: deals balanced choices, e.g. `deal.pick("answer", ("yes", "no"))`.
        image_size: side of the picture in pixels.
    """

    gallery: Gallery
    split: Split
    rng: Random
    deal: Deal
    image_size: int = 112

    @property
    def scale(self) -> float:
        """Pixels per layout unit; scenes are laid out on 112 x 112 units."""
        return self.image_size / 112

    def phrase(self, forms: Sequence[str], **slots: str) -> str:
        """Put a question in one of several phrasings; the last two of each list are asked in the test only.

        Example:
            >>> from llavit.starter.plan import Deal
            >>> kit = Kit(None, "train", Random(0), Deal("example", 0))
            >>> kit.phrase(("What is the {thing}?", "Held out 1", "Held out 2"), thing="clock")
            'What is the clock?'
        """
        own = forms[-HELD_OUT:] if self.split == "test" else forms[:-HELD_OUT] or forms
        return self.rng.choice(own).format(**slots)

    def choice(
        self, question: str, answer: str, others: Sequence[str], topic: str = "", label: str = "letter"
    ) -> Ask:
        """Make a choice out of an answer and wrong ones; the letters of the right ones are balanced by `deal`.

        Args:
            question: without options and instruction.
            answer: the right option.
            others: the wrong ones, shuffled here.
            topic: of the question.
            label: makes the deal of letters independent of other deals.

        Example:
            >>> from llavit.starter.plan import Deal
            >>> kit = Kit(None, "train", Random(0), Deal("example", 0))
            >>> ask = kit.choice("What is it?", "dog", ["cat", "bus"])
            >>> ask.options["ABC".index(ask.answer)]
            'dog'
        """
        options = list(others)
        self.rng.shuffle(options)
        options.insert(self.deal.pick(label, range(len(others) + 1)), answer)
        return lettered(question, options, answer, topic)


def lettered(question: str, options: Sequence[str], answer: str, topic: str = "") -> Ask:
    """Write a choice with its options in a given order.

    Example:
        >>> print(lettered("What is it?", ["cat", "dog"], "dog").text)
        What is it?
        A. cat
        B. dog
        Answer with the option's letter from the given choices directly.
    """
    letters = "ABCDEFGHIJ"
    lines = [f"{letter}. {option}" for letter, option in zip(letters, options, strict=False)]
    letter = letters[list(options).index(answer)]
    return Ask("\n".join([question, *lines, LETTER]), letter, options=tuple(options), topic=topic)


Maker = Callable[[Kit], list[Sample]]
"""Makes the samples of one group: one, or two for tasks that score pairs."""
