"""Other right names of a concept, for scoring an answer that names it in a word of its own."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

_CONTAINERS = ("bunch", "pair", "head", "bulb", "clump", "bouquet", "ball", "spool", "bar", "roll")


@cache
def _synonyms() -> dict[str, list[str]]:
    return json.loads(files("llavit.starter.gallery").joinpath("synonyms.json").read_text(encoding="utf-8"))


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
