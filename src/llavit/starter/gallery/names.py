"""Names of concepts: others that are right as well, and whether a text mentions one that training must not."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib.resources import files

from llavit.starter.concepts import all_concepts

_CONTAINERS = ("bunch", "pair", "head", "bulb", "clump", "bouquet", "ball", "spool", "bar", "roll")
# Held-out names that are everyday words of another sense too; a text may hold them.
_EVERYDAY = {"bank", "fly", "iron", "ring", "rock", "wave", "star", "heart", "fan", "train", "scale", "bow"}


@cache
def _synonyms() -> dict[str, list[str]]:
    return json.loads(files("llavit.starter.gallery").joinpath("synonyms.json").read_text(encoding="utf-8"))


@cache
def vendor_names(table: str) -> dict[str, str]:
    """One table of vendors.json: what a family calls a thing, and our name of it; a list names what is left out.

    Tables: vendor and no_emoji (emoji), game (icons) and not_game, not_lucide; heads (Tux Paint);
    no_clipart (Open Clip Art: empty); art_names, no_art (Art4Apps); photo_words, photo_categories (GCompris).
    """
    text = files("llavit.starter.gallery").joinpath("vendors.json").read_text(encoding="utf-8")
    found = json.loads(text)[table]
    return found if isinstance(found, dict) else dict.fromkeys(found, "")


@cache
def accepted_names(name: str) -> tuple[str, ...]:
    """Further right names of a concept, the canonical one not among them.

    Examples:
        >>> accepted_names("bunch of grapes"), accepted_names("airplane")
        (('grapes',), ('plane', 'aeroplane', 'jet'))
    """
    found = []
    head, of, rest = name.partition(" of ")
    if of and head in _CONTAINERS:
        found.append(rest)
    return tuple(dict.fromkeys([*found, *_synonyms().get(name, ())]))


@cache
def concept_of() -> dict[str, str]:
    """The concept behind a name: canonical names first, then synonyms that no two concepts share.

    Examples:
        >>> concept_of()["grapes"], concept_of()["plane"], "bottle" in concept_of()
        ('bunch of grapes', 'airplane', False)
    """
    found = {c.name: c.name for c in all_concepts()}
    shared: dict[str, set[str]] = {}
    for concept in all_concepts():
        for other in (*accepted_names(concept.name), concept.plural):
            shared.setdefault(other, set()).add(concept.name)
    for other, names in shared.items():
        if len(names) == 1:
            found.setdefault(other, next(iter(names)))
    return found


@cache
def _names_pattern() -> tuple[re.Pattern[str], frozenset[str]]:
    """A pattern that finds every name of a concept, the longest first, and those of them that are held out."""
    every = {name.lower(): concept for name, concept in concept_of().items()}
    for concept in all_concepts():  # names that several concepts share, and singulars of none, count as well
        for other in (concept.name, concept.plural, *accepted_names(concept.name)):
            every.setdefault(other.lower(), concept.name)
    held = {c.name for c in all_concepts() if c.held_out}
    forms = "|".join(sorted((re.escape(name) for name in every), key=lambda n: (-len(n), n)))
    found = frozenset(name for name, concept in every.items() if concept in held and name not in _EVERYDAY)
    return re.compile(rf"\b({forms})(?:s|es)?\b", re.IGNORECASE), found


def mentions_held_out(text: str) -> bool:
    """Whether a text names a held-out concept, in one of its names; "egg" in "fried egg" names another concept.

    Examples:
        >>> from llavit.starter.concepts import held_out, pool
        >>> mentions_held_out(f"two {pool(unseen=True)[0].plural} and a hat"), mentions_held_out("nothing")
        (True, False)
        >>> held_out("egg"), held_out("fried egg"), mentions_held_out("a fried egg"), mentions_held_out("an egg")
        (True, False, False, True)
    """
    pattern, held = _names_pattern()
    found = pattern.findall(text.replace("-", " ").replace("_", " "))
    return any(name.lower() in held for name in found)
