"""One item of the corpus: its picture and its record, as a function of (settings, split, index)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from PIL import Image, ImageDraw

from llavit.starter import ask, charts, compose, shapes, words
from llavit.starter.captions import caption
from llavit.starter.palette import BACKGROUNDS, COLOURS
from llavit.starter.phrases import DESCRIBE, INSTRUCTION, phrase, unseen_phrase
from llavit.starter.plan import Plan
from llavit.starter.scene import Question, Scene
from llavit.starter.sprites import paste
from llavit.starter.studio import FRAME, Studio

SPLITS = ("pretrain", "instruct", "val", "test")

# In a conversation the questions that name the object come after those that ask for it.
_ORDER = {"category.shown": 0, "name.options": 1, "name": 1}


@dataclass(frozen=True)
class Factory:
    """Makes the items of one split."""

    split: str
    kinds: tuple[tuple[str, float], ...]
    image_size: int
    seed: int
    vocabulary: int | None = None
    brief: bool = False

    @cached_property
    def plan(self) -> Plan:
        """Which item is of which kind."""
        kinds = dict(self.kinds)
        if self.split in ("val", "test"):  # every task gets an equal share of the evaluation
            kinds = {kind: 1 / len(kinds) for kind in kinds}
        return Plan(kinds, self.seed, self.split)

    def item(self, index: int) -> Item:
        """Item `index`, without drawing it yet."""
        kind, deal = self.plan.slot(index)
        studio = Studio(
            self.split, self.plan.rng(index), deal, self.image_size, self.vocabulary, brief=self.brief
        )
        make = {"word": words.make, "chart": charts.make, "easyvqa": shapes.make}.get(kind)
        scene, question = make(studio) if make else compose.MAKERS[kind](studio)
        return Item(self.split, index, scene, question, studio)


@dataclass(frozen=True)
class Item:
    """A scene with the question that it was made for."""

    split: str
    index: int
    scene: Scene
    question: Question
    studio: Studio

    @property
    def id(self) -> str:
        """Name of the item: split and number."""
        return f"{self.split}-{self.index:06d}"

    @property
    def image(self) -> str:
        """Path of the picture, relative to the corpus."""
        return f"images/{self.split}/{self.index:06d}.jpg"

    def record(self) -> dict[str, Any]:
        """The item as its json holds it: a LLaVA conversation, or a test question with the scene's truth."""
        if self.split == "pretrain":
            rng = self.studio.rng
            return self._conversation([(rng.choice(DESCRIBE), caption(self.scene, self.studio))])
        if self.split == "instruct":
            return self._conversation(self._turns())
        return self._exam()

    def _conversation(self, turns: list[tuple[str, str]]) -> dict[str, Any]:
        said = []
        for number, (question, answer) in enumerate(turns):
            human = question if number else f"<image>\n{question}"
            said += [{"from": "human", "value": human}, {"from": "gpt", "value": answer}]
        return {"id": self.id, "image": self.image, "conversations": said}

    def _turns(self) -> list[tuple[str, str]]:
        rng = self.studio.rng
        others = further_questions(self.scene, self.studio)
        first = self.question
        if self.studio.brief:
            others = [question for question in others if is_open(question)]
            first = first if is_open(first) else others[0]
        rng.shuffle(others)
        if rng.random() < 0.3:  # at times the same topic from another side, as yes or no instead of a name
            first = next((q for q in others if q.topic and q.topic == first.topic), first)
        chosen = {first.topic or first.key + str(first.slots): first}
        wanted = 6 if self.studio.brief else rng.randint(3, 6)
        for question in others:
            if len(chosen) < wanted:
                chosen.setdefault(question.topic or question.key + str(question.slots), question)
        questions = list(chosen.values())
        rng.shuffle(questions)
        questions.sort(key=lambda q: _ORDER.get(q.key, 2))
        turns = [(phrase(q.key, q.slots, rng), q.answer) for q in questions]
        return [(self._instructed(turns[0][0]), turns[0][1]), *turns[1:]]

    def _instructed(self, question: str) -> str:
        return question if self.studio.brief else f"{question}\n{INSTRUCTION}"

    def _exam(self) -> dict[str, Any]:
        question, rng = self.question, self.studio.rng
        if self.studio.brief and not is_open(question):
            question = next(q for q in further_questions(self.scene, self.studio) if is_open(q))
        asked = phrase(question.key, question.slots, rng)
        other = unseen_phrase(question.key, question.slots, rng)
        return {
            "id": self.id,
            "image": self.image,
            "question": self._instructed(asked),
            "answer": question.answer,
            "options": list(question.options) if question.options else None,
            "task": question.task,
            "unseen_concept": self.scene.unseen_concept,
            "unseen_style": self.scene.unseen_style,
            "needs_image": True,
            "question_in_unseen_words": self._instructed(other) if other else None,
            "scene": self.scene.to_json(),
        }


def is_open(question: Question) -> bool:
    """Whether a question is answered neither by yes or no nor out of options that it names."""
    return question.options is None and question.answer not in ("yes", "no")


def further_questions(scene: Scene, studio: Studio) -> list[Question]:
    """Every other question that the scene answers beyond dispute."""
    more = {"word": words.more, "chart": charts.more, "easyvqa": shapes.more}.get(scene.kind)
    if more:
        return more(scene, studio)
    if len(scene.things) == 1 and scene.kind != "count":
        return ask.about_single(scene, studio)
    return ask.about_many(scene, studio)


def render(scene: Scene) -> Image.Image:
    """The scene as an RGB picture."""
    drawn = {"word": words.render, "chart": charts.render, "easyvqa": shapes.render}.get(scene.kind)
    if drawn:
        return drawn(scene)
    assert scene.background is not None
    side = scene.image_size
    image = Image.new("RGB", (side, side), BACKGROUNDS[scene.background])
    if scene.frame:
        width = round(FRAME * side / 112)
        ImageDraw.Draw(image).rectangle((0, 0, side - 1, side - 1), outline=COLOURS[scene.frame], width=width)
    for thing in scene.things:
        paste(image, thing.source, thing.file, thing.box, COLOURS[thing.colour] if thing.colour else None)
    return image
