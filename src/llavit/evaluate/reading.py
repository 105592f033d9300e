"""Read an answer out of what a model wrote: a letter, yes or no, a number. What cannot be read is None, not a guess."""

from __future__ import annotations

import re
from collections.abc import Sequence

from llavit.evaluate.score import normalise

LETTERS = "ABCDEFGHIJ"

_DECORATION = " \t\n\r*_`\"'.,:;!()[]{}<>"
_STATED = re.compile(
    r"\b(?:answer|option|choice|letter)\b(?:\s+(?:is|would be|should be))?\s*[:=]?\s*[*_`\"'(\[]*([a-jA-J])(?![\w'])",
    re.I,
)
_LISTED = re.compile(  # behind a stated letter; "A" before a name or a number is the article, "i" the pronoun
    r"[*_`\"')\].]*(?:\s*(?:[,/&]|\b(?i:or|and)\b))+\s*[*_`\"'(\[]*([A-Ja-hj])(?![\w']|\.\w|(?<=[Aa]) [A-Z\d])"
)
_HEAD = re.compile(r"^[\s*_`\"'(\[]*([A-Ja-j])\s*[*_`\"']*[).:\]]")
_ALONE = re.compile(r"(?<![\w'])([A-J])(?![\w'])")
_NEGATION = re.compile(r"\b(?:not|no|neither|none|never)\b|n't\b", re.I)
_YES_NO_STATED = re.compile(r"\banswer\b(?:\s+is)?\s*[:=]?\s*[*_`\"'(]*(yes|no)\b(?!\s*(?:/|or\b))", re.I)
_NUMBER = re.compile(r"(?<![\w.])[-+−]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+−]?\d+)?")

_MONEY = re.compile(r"(?<=[-+−])\s*[$€£¥]")  # between a sign and its number
_MINUS = re.compile(r"\b(?:minus|negative)\s+(?=[$€£¥]?\.?\d)", re.I)
_SPELLED = re.compile(  # words that change the number beside them: "twenty-one", "one hundred", "minus five"
    r"\b(?:minus|negative|half|dozen|hundred|thousand|million|billion|trillion|eleven|twelve"
    r"|(?:thir|four|fif|six|seven|eigh|nine)teen|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b",
    re.I,
)


def read_letter(text: str, options: Sequence[str]) -> str | None:
    """Read which option an answer chooses.

    The first of these rules that applies decides:

    1. the whole answer is one letter, whatever stands around it: `B`, `b.`, `(B)`, `**B**`;
    2. it states a letter: `Answer: B`, `the correct option is (B)`; two different ones are ambiguous, as in
       `Answer: A or B`, `Answer: A, B`;
    3. it begins with a letter and a mark: `B. cat`, `(B) cat`, `B: because ...`;
    4. it is the text of one option, normalised: `A cat.`;
    5. capital letters stand alone in it (`I think B`; not the article in `A cat`), or the texts of options do (`It is a
       cat`; the longest where one holds another): exactly one letter, or exactly one text, or both if they agree.

    An answer of rules 2 to 5 that names another option's letter in the same way, or whose text is another option's,
    is ambiguous; so is one of rule 5 with a negation. Letters beyond the options do not count.

    Args:
        text: what the model wrote.
        options: the texts behind A, B, ...

    Returns:
        the letter, or None: nothing chosen, or more than one thing.

    Example:
        >>> options = ["dog", "cat", "bus"]
        >>> [read_letter(text, options) for text in ("B", "(b)", "Answer: B", "B. cat", "A cat.", "the cat")]
        ['B', 'B', 'B', 'B', 'B', 'B']
        >>> [read_letter(text, options) for text in ("", "A or B", "B. dog", "D", "not the cat")]
        [None, None, None, None, None]
    """
    letters = LETTERS[: len(options)]
    bare = text.strip(_DECORATION)
    if len(bare) == 1 and bare.isalpha():
        return bare.upper() if bare.upper() in letters else None
    named = _named(text, options)
    if stated := _stated(text, letters):
        return _only(stated, named, letters)
    if head := _HEAD.match(text):
        others = {found.upper() for found in re.findall(r"(?<![\w'])([A-J])\s*[).:\]]", text)}
        return _only({head[1].upper()} | others, named, letters)
    equal = {
        letter
        for letter, option in zip(letters, options, strict=False)
        if normalise(text) == normalise(option)
    }
    if normalise(text) and equal:
        return equal.pop() if len(equal) == 1 else None
    if _NEGATION.search(text):
        return None
    alone = {found[1] for found in _ALONE.finditer(text) if not _article_at(text, found, letters)}
    if alone:
        return _only(alone, named, letters)
    return named.pop() if len(named) == 1 else None


def read_yes_no(text: str) -> str | None:
    """Read yes or no: the first word, or the whole of `answer: yes`, `the answer is no`; `yes or no` is neither.

    Example:
        >>> [read_yes_no(text) for text in ("Yes.", "no, it is not", "The answer is yes", "yes or no", "maybe", "")]
        ['yes', 'no', 'yes', None, None, None]
    """
    stated = {found.lower() for found in _YES_NO_STATED.findall(text)}
    if stated:
        return stated.pop() if len(stated) == 1 else None
    words = re.findall(r"[a-z]+|/", text.lower())
    if not words or words[0] not in ("yes", "no"):
        return None
    other = "no" if words[0] == "yes" else "yes"
    if words[1:2] and words[1] in ("or", "and", "/") and words[2:3] == [other]:
        return None
    return words[0]


def read_number(text: str) -> float | None:
    """Read the one number in an answer, in digits or as a word up to ten; thousands may have commas.

    Signs of percent and money and units are left aside. None where there is no number, or more than one, and where
    words beyond ten, a minus or a fraction go with one in words.

    Example:
        >>> [read_number(text) for text in ("1,250", "about 12.5 %", "Three.", "-$4", "1e3", "3 to 5", "twenty-one")]
        [1250.0, 12.5, 3.0, -4.0, 1000.0, None, None]
    """
    found = _NUMBER.findall(_MONEY.sub("", _MINUS.sub("-", text)))
    if not found and not _SPELLED.search(text):
        found = [word for word in normalise(text).split() if word.isdecimal()]
    if len(found) != 1:
        return None
    return float(found[0].replace(",", "").replace("−", "-"))


def number_of(answer: str) -> float | None:
    """Return the number that an answer is, and not merely holds: with its signs of money and per cent, as a word too.

    Example:
        >>> [number_of(text) for text in ("1,250", "-3.5 %", "$40", "ten", "May 2019", "Q3", "18-29")]
        [1250.0, -3.5, 40.0, 10.0, None, None, None]
    """
    bare = re.sub(r"[\s$€£¥%]", "", answer).rstrip(".")
    whole = _NUMBER.fullmatch(bare) is not None or normalise(bare).isdecimal()
    return read_number(answer) if whole else None


def _stated(text: str, letters: str) -> set[str]:
    """Letters that an answer states, with those that follow behind commas, slashes, "or" and "and"."""
    stated = set()
    for first in _STATED.finditer(text):
        found: re.Match[str] | None = first
        while found and not _article_at(text, found, letters):
            stated.add(found[1].upper())
            found = _LISTED.match(text, found.end(1))
    return stated


def _named(text: str, options: Sequence[str]) -> set[str]:
    """Letters of the options whose texts occur in an answer as whole words; texts within longer ones do not count."""
    left = f" {normalise(text)} "
    found = set()
    for letter, option in sorted(
        zip(LETTERS, options, strict=False), key=lambda pair: -len(normalise(pair[1]))
    ):
        words = normalise(option)
        # One-letter texts would be found in every answer that names a letter.
        if len(words) > 1 and f" {words} " in left:
            found.add(letter)
            left = left.replace(f" {words} ", " | ")
    return found


def _only(chosen: set[str], named: set[str], letters: str) -> str | None:
    """The one chosen letter, if no text of another option contradicts it."""
    if len(chosen) != 1:
        return None
    letter = next(iter(chosen))
    if letter not in letters or (named and letter not in named):
        return None
    return letter


def _article_at(text: str, found: re.Match[str], letters: str) -> bool:
    """Whether a letter is the article ("A cat", "the answer is a cat") or the pronoun "I"; there may be an option I."""
    if found[1] == "I" and "I" not in letters:
        return True
    after = text[found.end(1) :]
    goes_on = re.match(r"\s+[a-z]", after) is not None
    return found[1] in "aAI" and goes_on and not re.match(r"\s+(?:or|and|is|because|as|since)\b", after)
