"""Pictures and questions of easy-VQA, an outside anchor: one coloured shape; its official test split is the test."""

from __future__ import annotations

from functools import cache

from PIL import Image

from llavit.starter.concepts import article
from llavit.starter.scene import Question, Scene
from llavit.starter.sources import easyvqa_image, easyvqa_questions
from llavit.starter.studio import Studio

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
_ANSWERS = ("yes",) * 6 + ("no",) * 6 + SHAPES * 2 + COLOURS
_MIN_QUESTIONS = 6
_VAL_EVERY = 10  # of the official training pictures each tenth is for validation


@cache
def _by_answer(split: str) -> dict[str, tuple[tuple[int, str], ...]]:
    """Questions of one of our splits as `{answer: ((image, question), ...)}`, of pictures known completely."""
    found: dict[str, list[tuple[int, str]]] = {}
    for image, rows in easyvqa_questions("test" if split == "test" else "train").items():
        if split != "test" and in_validation(image) != (split == "val"):
            continue
        if len(rows) < _MIN_QUESTIONS or None in _truth(tuple(rows)):
            continue
        for question, answer in rows:
            found.setdefault(answer, []).append((image, question))
    return {answer: tuple(rows) for answer, rows in found.items()}


def in_validation(image: int) -> bool:
    """Whether an official training picture is kept for validation."""
    return image % _VAL_EVERY == 0


def truth_of(official: str, image: int) -> tuple[str | None, str | None]:
    """Colour and shape of a picture of the official split, as far as its questions tell."""
    return _truth(tuple(easyvqa_questions(official)[image]))


def _truth(rows: tuple[tuple[str, str], ...]) -> tuple[str | None, str | None]:
    """Colour and shape of a picture, as far as its questions tell."""
    colour = next((a for _, a in rows if a in COLOURS), None)
    shape = next((a for _, a in rows if a in SHAPES), None)
    for question, answer in rows:
        positive = (answer == "yes") != any(word in question.split() for word in ("no", "not"))
        if answer in ("yes", "no") and positive:
            named = question.rstrip("?").split()
            colour = colour or next((c for c in COLOURS if c in named), None)
            shape = shape or next((s for s in SHAPES if s in named), None)
        elif answer in SHAPES:
            colour = colour or next((c for c in COLOURS if c in question.split()), None)
        elif answer in COLOURS:
            shape = shape or next((s for s in SHAPES if s in question.rstrip("?").split()), None)
    return colour, shape


def _question(question: str, answer: str) -> Question:
    return Question("easyvqa", "easyvqa", answer, {"question": question[0].upper() + question[1:]})


def make(studio: Studio) -> tuple[Scene, Question]:
    """A picture of easy-VQA with one of its questions."""
    answer = studio.deal.pick("easyvqa", _ANSWERS)
    image, question = studio.rng.choice(_by_answer(studio.split)[answer])
    official = "test" if studio.split == "test" else "train"
    colour, shape = truth_of(official, image)
    details = {"easyvqa_split": official, "easyvqa_image": image, "colour": colour, "shape": shape}
    return Scene("easyvqa", studio.image_size, details=details), _question(question, answer)


def more(scene: Scene, studio: Studio) -> list[Question]:
    """The other questions of the picture, as many with yes as with no."""
    rows = easyvqa_questions(scene.details["easyvqa_split"])[scene.details["easyvqa_image"]]
    open_ones = [row for row in rows if row[1] not in ("yes", "no")]
    yes = [row for row in rows if row[1] == "yes"]
    no = [row for row in rows if row[1] == "no"]
    closed = min(2, len(yes), len(no))
    chosen = open_ones[:2] + studio.rng.sample(yes, closed) + studio.rng.sample(no, closed)
    return [_question(question, answer) for question, answer in (chosen if len(chosen) >= 4 else rows)]


def caption(scene: Scene, studio: Studio) -> str:
    """The shape and its colour."""
    noun = f"{scene.details['colour']} {scene.details['shape']}"
    return studio.rng.choice((f"{article(noun).capitalize()}.", f"A picture of {article(noun)}."))


def render(scene: Scene) -> Image.Image:
    """The picture of the package, enlarged to the size of the corpus."""
    path = easyvqa_image(scene.details["easyvqa_split"], scene.details["easyvqa_image"])
    with Image.open(path) as image:
        return image.convert("RGB").resize((scene.image_size,) * 2, Image.Resampling.BICUBIC)
