"""mini-ocrbench: one word, number or string of letters, alone in the picture: read it."""

from __future__ import annotations

from llavit.starter.bench.asking import short, yes_no
from llavit.starter.bench.pen import SMALLEST, Pad, font_for, ground_for, largest, letters_on, width_of
from llavit.starter.concepts import held_out
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import BACKGROUNDS, COLOURS
from llavit.starter.words import INKS

LONGEST = 8
"""Letters of the longest word."""
STRING_LETTERS = "ABCDEFHKLMNPRSTUVXYZ"
"""Letters of strings that are no words; none that a digit or another letter resembles in some font."""

READ = {
    "word": (
        "What word is in the picture?",
        "What does the text say?",
        "Which word is written here?",
        "Read the word in the image.",
        "What is written in the picture?",
        "What is the text?",
    ),
    "number": (
        "What number is in the picture?",
        "Which number is written here?",
        "Read the number in the image.",
        "What number does the image show?",
        "What is the number?",
        "Tell me the number in the picture.",
    ),
    "letters": (
        "What letters are in the picture?",
        "Which letters are written here?",
        "Read the letters in the image.",
        "What letters does the image show?",
        "What are the letters?",
        "Tell me the letters in the picture.",
    ),
}
COLOUR = (
    "What color is the text?",
    "In what color is the text?",
    "What is the color of the writing?",
    "Which color does the text have?",
    "Tell me the color of the writing.",
)
CHECK = (
    'Does the text say "{text}"?',
    'Is "{text}" written here?',
    'Can you read "{text}" in the image?',
    'Is "{text}" the text in the picture?',
)
LENGTH = (
    "How many characters does the text have?",
    "What is the number of characters in the text?",
    "Count the characters of the text.",
    "Of how many characters is the text?",
)


def words_of(kit: Kit, longest: int = LONGEST) -> list[str]:
    """Words of the split with three letters up to `longest`."""
    return [word for word in kit.gallery.words(kit.split) if 3 <= len(word) <= longest]


def random_text(kit: Kit, kind: str) -> str:
    """A text of a kind: a word of the split, a number of two to four digits, or three or four letters."""
    if kind == "word":
        return kit.rng.choice(words_of(kit))
    if kind == "number":
        digits = kit.rng.randint(2, 4)
        return str(kit.rng.randrange(10 ** (digits - 1), 10**digits))
    return "".join(kit.rng.sample(STRING_LETTERS, kit.rng.randint(3, 4)))


def read_text(kit: Kit) -> list[Sample]:
    """One text in one colour, on a light ground or on a painted plate."""
    rng = kit.rng
    kind = kit.deal.pick("kind", ("word", "word", "word", "number", "number", "letters"))
    answer = random_text(kit, kind)
    text = rng.choice((answer, answer.title(), answer.upper())) if kind == "word" else answer
    family, font = font_for(kit, digits=kind == "number")
    plate = rng.random() < 0.3
    colour = rng.choice(list(COLOURS) if plate else INKS)
    ground = ground_for(kit, [colour])
    limit = largest(text, font, (92 if plate else 102) * kit.scale, 30 * kit.scale) / kit.scale
    capital = rng.uniform(min(limit, max(SMALLEST + 3, 0.6 * limit)), limit)
    width = width_of(text, font, capital * kit.scale) / kit.scale
    room_x, room_y = (112 - width) / 2 - (10 if plate else 5), 56 - capital * 0.85 - 8
    at = (56 + rng.uniform(-room_x, room_x), 56 + rng.uniform(-room_y, room_y))
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    if plate:
        half, tall = width / 2 + 6, capital * 0.85 + 6
        frame = (at[0] - half, at[1] - tall, at[0] + half, at[1] + tall)
        pad.box(frame, COLOURS[colour], radius=rng.choice((0, 5)))
    pad.text(text, at, font, capital, letters_on(colour) if plate else COLOURS[colour])
    truth = {"kind": kind, "text": text, "colour": colour, "plate": plate, "ground": ground, "font": family}
    accepted = (text,) if text != answer else ()
    ask = short(kit.phrase(READ[kind]), answer, accepted, topic="text")
    named = f"The {kind} {text}" if kind != "word" else f'The word "{text}"'
    surface = f"on {'an' if colour == 'orange' else 'a'} {colour} plate" if plate else f"in {colour}"
    return [
        Sample(
            pad.finish(),
            ask,
            _more(kit, kind, text, answer, colour, plate),
            f"{named} {surface}.",
            truth,
            names=(answer,) if kind == "word" else (),
            unseen_concept=kind == "word" and held_out(answer),
            unseen_style=kit.split == "test",
        )
    ]


def _more(kit: Kit, kind: str, text: str, answer: str, colour: str, plate: bool) -> tuple[Ask, ...]:
    wrong = answer
    while wrong == answer:
        wrong = random_text(kit, kind)
    truth = kit.rng.random() < 0.5
    asks = [
        yes_no(kit.phrase(CHECK, text=answer if truth else wrong), truth, topic="text"),
        short(kit.phrase(LENGTH), str(len(text)), topic="text"),
    ]
    if not plate:
        asks.append(short(kit.phrase(COLOUR), colour))
    return tuple(asks)
