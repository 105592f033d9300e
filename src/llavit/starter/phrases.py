"""How a question is put: several phrasings per type, the last two of each kept for tests of unseen wording."""

from __future__ import annotations

from random import Random

INSTRUCTION = "Answer the question using a single word or phrase."
HELD_OUT = 2
"""Number of phrasings at the end of each list that training never uses."""

DESCRIBE = (
    "Describe the image briefly.",
    "Give a short description of the image.",
    "What is in this picture?",
    "Write a short caption for this image.",
    "Describe what you see in one sentence.",
    "Provide a brief description of the given image.",
)

PHRASES: dict[str, tuple[str, ...]] = {
    "name.options": (
        "Which of these is in the picture: {options}?",
        "Which of these does the image show: {options}?",
        "What is shown here: {options}?",
        "What can be seen in the image: {options}?",
        "Choose what the drawing shows: {options}.",
        "Out of {options}, what does this picture contain?",
    ),
    "name": (
        "What is in the picture?",
        "What does the image show?",
        "What object is shown?",
        "What is this?",
        "Name the thing in this drawing.",
        "What has been drawn here?",
    ),
    "category.shown": (
        "What kind of thing is shown: {options}?",
        "Which of these kinds is in the picture: {options}?",
        "What kind of thing does the image show: {options}?",
        "What type of thing is drawn here: {options}?",
        "Which word fits the drawing: {options}?",
    ),
    "colour.thing": (
        "What color is the {thing}?",
        "What is the color of the {thing}?",
        "Which color does the {thing} have?",
        "In what color is the {thing} drawn?",
        "Tell me the color of the {thing}.",
    ),
    "colour.frame": (
        "What color is the frame?",
        "What is the color of the frame around the picture?",
        "Which color does the frame have?",
        "In what color is the border drawn?",
        "Tell me the color of the edge of the picture.",
    ),
    "colour.background": (
        "What color is the background?",
        "What is the color of the background?",
        "Which color does the background have?",
        "In what color is the ground behind everything?",
        "Tell me the background color.",
    ),
    "place": (
        "Where in the picture is the {thing}?",
        "Where is the {thing}?",
        "In which part of the image is the {thing}?",
        "What is the position of the {thing} in the picture?",
        "At which place in the image do you see the {thing}?",
        "The {thing} is in which area of the picture?",
    ),
    "size": (
        "Is the {thing} small or large?",
        "What is the size of the {thing}, small or large?",
        "Does the {thing} look small or large in the picture?",
        "How big is the {thing}: small or large?",
        "Would you call the {thing} small or large?",
    ),
    "count": (
        "How many {things} are there?",
        "How many {things} are in the picture?",
        "What is the number of {things}?",
        "Count the {things} in the image.",
        "How many {things} do you see?",
    ),
    "exist": (
        "Is there {a_thing} in the picture?",
        "Does the image show {a_thing}?",
        "Is {a_thing} in the image?",
        "Can you see {a_thing}?",
        "Does the picture contain {a_thing}?",
    ),
    "relation.check": (
        "Is the {thing} {side} the {other}?",
        "In the picture, is the {thing} {side} the {other}?",
        "Does the {thing} lie {side} the {other}?",
        "Is it true that the {thing} is {side} the {other}?",
        "Would you find the {thing} {side} the {other}?",
    ),
    "relation.side": (
        "Is the {thing} left of, right of, above or below the {other}?",
        "Where is the {thing} relative to the {other}: left, right, above or below?",
        "Seen from the {other}, is the {thing} left, right, above or below?",
        "On which side of the {other} is the {thing}: left, right, above or below?",
    ),
    "relation.what": (
        "What is {side} the {other}?",
        "Which object is {side} the {other}?",
        "What can be seen {side} the {other}?",
        "Name the object {side} the {other}.",
        "What lies {side} the {other}?",
    ),
    "word.read": (
        "What word is in the picture?",
        "What does the text say?",
        "Which word is written here?",
        "Read the word in the image.",
        "What is written in the picture?",
        "What is the text?",
    ),
    "word.check": (
        'Is the word "{word}" in the picture?',
        'Does the text say "{word}"?',
        'Is "{word}" written here?',
        'Can you read "{word}" in the image?',
        'Does the picture show the word "{word}"?',
    ),
    "word.colour": (
        "What color is the word?",
        "In what color is the text?",
        "What is the color of the letters?",
        "Which color do the letters have?",
        "Tell me the color of the text.",
    ),
    "word.letters": (
        "How many letters does the word have?",
        "What is the number of letters?",
        "Count the letters of the word.",
        "How long is the word, in letters?",
        "Of how many letters is the text?",
    ),
    "chart.colour": (
        "What color is the {which} bar?",
        "Which color is the {which} bar?",
        "The {which} bar has what color?",
        "Tell me the color of the {which} bar.",
        "What is the color of the bar that is the {which}?",
    ),
    "chart.letter": (
        "Which bar is the {which}?",
        "What is the letter of the {which} bar?",
        "Which letter is under the {which} bar?",
        "Tell me the label of the {which} bar.",
        "The {which} bar has what label?",
    ),
    "chart.compare": (
        "Is {bar} taller than {other}?",
        "Does {bar} reach higher than {other}?",
        "Is {bar} higher than {other}?",
        "Compared with {other}, is {bar} taller?",
        "Does {bar} stand above {other} in height?",
    ),
    "chart.count": (
        "How many bars are there?",
        "How many bars does the chart have?",
        "What is the number of bars?",
        "Count the bars.",
        "How many bars do you see?",
    ),
    "easyvqa": ("{question}",),
}


def _own(key: str) -> tuple[str, ...]:
    every = PHRASES[key]
    return every if len(every) <= HELD_OUT else every[:-HELD_OUT]


def phrase(key: str, slots: dict[str, str], rng: Random) -> str:
    """A question in one of the phrasings that training uses."""
    return rng.choice(_own(key)).format(**slots)


def unseen_phrase(key: str, slots: dict[str, str], rng: Random) -> str | None:
    """The same question in a phrasing kept for tests; None if its type has a single one."""
    kept = PHRASES[key][len(_own(key)) :]
    return rng.choice(kept).format(**slots) if kept else None


def listed(words: tuple[str, ...] | list[str], last: str = "or") -> str:
    """Words as an enumeration.

    Examples:
        >>> listed(["cat", "dog", "bus"])
        'cat, dog or bus'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
