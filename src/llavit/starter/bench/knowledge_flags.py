"""mini-mmmu: whose flag is it, what is the capital, on which continent does the country lie?

Facts are for training and test alike, drawings are not: training shows the flags of one art family, the test those
of another.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files

import numpy as np
from PIL import Image

from llavit.starter.bench.asking import PLACES, by_turns, short
from llavit.starter.bench.pen import Pad
from llavit.starter.gallery import shown_in_training
from llavit.starter.kit import Ask, Drawing, Gallery, Kit, Sample, Split
from llavit.starter.palette import BACKGROUNDS

LIKE = 24.0
"""Mean difference of colours (of 255) under which two flags are not told apart in one question."""
TWINS = (5.0, 50.0)
"""Mean difference, and largest difference of any hundredth of the flag, under which two flags count as identical in
a small picture (one art family draws some without their arms); neither is asked about."""

COUNTRY = (
    "Whose flag is this?",
    "Which country has this flag?",
    "The flag of which country is shown?",
    "To which country does this flag belong?",
    "Which country does the flag stand for?",
    "Name the country of this flag.",
)
CAPITAL = (
    "What is the capital of the country with this flag?",
    "Which city is the capital of this country?",
    "What is the capital of the country whose flag is shown?",
    "Which capital belongs to this flag?",
    "The country of this flag has which capital?",
    "Name the capital of the country that this flag belongs to.",
)
CONTINENT = (
    "On which continent is the country with this flag?",
    "Where in the world does this country lie?",
    "In which part of the world is the country whose flag is shown?",
    "Which continent does this flag come from?",
    "The country of this flag lies on which continent?",
    "Name the continent of the country that this flag belongs to.",
)
WHICH = (
    "Which of these is the flag of {country}?",
    "Which flag belongs to {country}?",
    "Where is the flag of {country}?",
    "Which of the four flags is that of {country}?",
    "In which quarter do you see the flag of {country}?",
    "Point out the flag of {country}.",
)
WHICH_CONTINENT = (
    "Which of these is the flag of a country in {continent}?",
    "Which flag belongs to a country in {continent}?",
    "Where is the flag of a country in {continent}?",
    "Which of the four flags comes from {continent}?",
    "In which quarter do you see a flag from {continent}?",
    "Point out the flag of a country in {continent}.",
)
_CENTRES = ((29.0, 29.0), (83.0, 29.0), (29.0, 83.0), (83.0, 83.0))


@dataclass(frozen=True)
class Country:
    """A state; capital and continent are None where a fair person could dispute them."""

    code: str
    name: str
    capital: str | None
    continent: str | None


@cache
def countries() -> tuple[Country, ...]:
    """States whose flags are drawn.

    Example:
        >>> next(country.capital for country in countries() if country.name == "Kenya")
        'Nairobi'
    """
    rows = json.loads(files("llavit.starter.bench").joinpath("countries.json").read_text(encoding="utf-8"))
    return tuple(Country(*row) for row in rows)


@lru_cache(maxsize=8)
def flags(gallery: Gallery, split: Split) -> dict[str, Drawing]:
    """Drawings of flags by the code of the country, in the art family of a split.

    An edition that lists flags gives its own; else they are emoji, of one set for training and another for the test.
    """
    shown: Split = "test" if split == "test" else "train"
    listed = {_code(d): d for d in gallery.pictures(shown) if d.category == "flag"}
    source = "openmoji" if split == "test" else "twemoji"
    emoji = {c.code: Drawing(source, _key(c.code), f"flag of {c.name}", "flag") for c in countries()}
    found = listed or emoji
    return {country.code: found[country.code] for country in countries() if country.code in found}


def _key(code: str) -> str:
    """Code points of a flag.

    Example:
        >>> _key("KE"), _code(Drawing("openmoji", "1f1f0-1f1ea", ""))
        ('1f1f0-1f1ea', 'KE')
    """
    return "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):x}" for letter in code)


def _code(drawing: Drawing) -> str:
    if len(drawing.key) == 2:
        return drawing.key.upper()
    return "".join(chr(int(point, 16) - 0x1F1E6 + ord("A")) for point in drawing.key.split("-"))


@lru_cache(maxsize=4)
def differences(gallery: Gallery, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """Differences of colours (0 to 255) between any two flags of a split, in the order of `flags`.

    Returns:
        The mean over the flag, and the largest of its 12 x 8 fields, each (flags, flags).
    """
    fields = []
    for drawing in flags(gallery, split).values():  # type: ignore[arg-type]  # hashed by identity
        flag = gallery.render(drawing, 96)
        ground = Image.new("RGB", flag.size, (255, 255, 255))
        ground.paste(flag, mask=flag.getchannel("A"))
        fields.append(np.asarray(ground.resize((24, 16), Image.Resampling.BOX), dtype=np.float32))
    every = np.stack(fields)  # (flags, 16, 24, 3)
    coarse = every.reshape(-1, 8, 2, 12, 2, 3).mean(axis=(2, 4))
    mean = np.stack([np.abs(every - one).mean(axis=(1, 2, 3)) for one in every])
    local = np.stack([np.abs(coarse - one).mean(axis=-1).max(axis=(1, 2)) for one in coarse])
    return mean, local


@lru_cache(maxsize=4)
def told_apart(gallery: Gallery, split: Split) -> tuple[tuple[Country, ...], frozenset[tuple[str, str]]]:
    """Countries whose flag no other country has, and the pairs of codes that are too alike for one question."""
    mean, local = differences(gallery, split)  # type: ignore[arg-type]
    shown = flags(gallery, split)  # type: ignore[arg-type]
    every = [country for country in countries() if country.code in shown]
    twin = (mean < TWINS[0]) & (local < TWINS[1]) & ~np.eye(len(every), dtype=bool)
    alike = {(every[i].code, every[j].code) for i, j in np.argwhere(mean < LIKE) if i != j}
    lost = set(np.flatnonzero(twin.any(axis=1)))
    return tuple(country for n, country in enumerate(every) if n not in lost), frozenset(alike)


def geography(kit: Kit) -> list[Sample]:
    """One flag and its country, capital or continent; or four flags, one of them asked for."""
    form, kit = by_turns(kit, "form", ("country", "country", "capital", "continent", "which", "part"))
    return [_one(kit, form) if form in ("country", "capital", "continent") else _four(kit, form)]


def _several(kit: Kit, right: Country, among: Sequence[Country]) -> list[Country]:
    """Three more countries; no two flags of the four are alike."""
    alike = told_apart(kit.gallery, kit.split)[1]  # type: ignore[arg-type]  # hashed by identity
    chosen = [right]
    for other in kit.rng.sample(list(among), len(among)):
        if len(chosen) < 4 and all(
            other.code != c.code and (other.code, c.code) not in alike for c in chosen
        ):
            chosen.append(other)
    return chosen[1:]


def _pool(kit: Kit, need: str) -> list[Country]:
    pool = told_apart(kit.gallery, kit.split)[0]  # type: ignore[arg-type]
    return [c for c in pool if need not in ("capital", "continent") or getattr(c, need)]


def _one(kit: Kit, form: str) -> Sample:
    pool = _pool(kit, form)
    continents = sorted({c.continent for c in pool if c.continent})
    continent = kit.deal.pick("continent", continents)
    right = kit.rng.choice([c for c in pool if c.continent == continent])
    near = _several(kit, right, [c for c in pool if c.continent == continent])
    asks: dict[str, Ask] = {
        "country": kit.choice(kit.phrase(COUNTRY), right.name, [c.name for c in near], "country", "country"),
        "continent": kit.choice(
            kit.phrase(CONTINENT),
            continent,
            kit.rng.sample([c for c in continents if c != continent], 3),
            "continent",
            "letter of continent",
        ),
    }
    if right.capital and all(c.capital for c in near):
        capitals = [str(c.capital) for c in near]
        asks["capital"] = kit.choice(kit.phrase(CAPITAL), right.capital, capitals, "capital", "capital")
    ground = _ground(kit)
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    size = kit.rng.uniform(80, 104)
    slack = (108 - size) / 2
    at = (56 + kit.rng.uniform(-slack, slack), 56 + kit.rng.uniform(-slack, slack) * 1.5)
    flag = flags(kit.gallery, kit.split)[right.code]  # type: ignore[arg-type]
    pad.drawing(kit.gallery.render(flag, round(size * kit.scale)), at)
    ask = asks.pop(form)
    more = [*asks.values(), short(kit.phrase(COUNTRY), right.name, topic="country")]
    if right.capital:
        more.append(short(kit.phrase(CAPITAL), right.capital, topic="capital"))
    truth = {
        "form": form,
        "code": right.code,
        "country": right.name,
        "capital": right.capital,
        "continent": continent,
    }
    return _sample(
        kit, pad, [flag], ask, more, f"The flag of {_the(right.name)}.", truth | {"ground": ground}
    )


def _four(kit: Kit, form: str) -> Sample:
    pool = _pool(kit, "continent")
    continents = sorted({str(c.continent) for c in pool})
    continent = kit.deal.pick("continent", continents)
    right = kit.rng.choice([c for c in pool if c.continent == continent])
    others = _several(kit, right, [c for c in pool if (c.continent == continent) == (form == "which")])
    spot = kit.deal.pick("place", range(4))
    others.insert(spot, right)
    ground = _ground(kit)
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    drawn = [flags(kit.gallery, kit.split)[country.code] for country in others]  # type: ignore[arg-type]
    for flag, centre in zip(drawn, _CENTRES, strict=True):
        pad.drawing(kit.gallery.render(flag, round(48 * kit.scale)), centre)
    forms = WHICH if form == "which" else WHICH_CONTINENT
    question = kit.phrase(forms, country=_the(right.name), continent=continent)
    ask = kit.choice(question, PLACES[spot], [place for place in PLACES if place != PLACES[spot]])
    more = []
    for place, country in zip(PLACES, others, strict=True):
        more.append(short(f"Whose flag is at the {place}?", country.name, topic=place))
    names = [f"{_the(country.name)} at the {place}" for place, country in zip(PLACES, others, strict=True)]
    caption = f"Flags of {', '.join(names[:-1])} and {names[-1]}."
    truth = {
        "form": form,
        "code": right.code,
        "country": right.name,
        "continent": continent,
        "codes": [country.code for country in others],
        "continents": [country.continent for country in others],
        "ground": ground,
    }
    return _sample(kit, pad, drawn, ask, more, caption, truth)


def _sample(
    kit: Kit, pad: Pad, drawn: Sequence[Drawing], ask: Ask, more: Sequence[Ask], caption: str, truth: dict
) -> Sample:
    return Sample(
        pad.finish(),
        ask,
        tuple(more),
        caption,
        truth,
        unseen_style=all(flag.source not in shown_in_training(kit.gallery.edition) for flag in drawn),
    )


def _ground(kit: Kit) -> str:
    return kit.rng.choice([ground for ground in BACKGROUNDS if ground != "white"])


def _the(name: str) -> str:
    """The name of a country after a preposition.

    Example:
        >>> _the("United States"), _the("Kenya")
        ('the United States', 'Kenya')
    """
    united = ("United", "Republic", "Central African Republic", "Dominican Republic", "DR Congo")
    with_article = ("Bahamas", "Netherlands", "Philippines", "Maldives", "Seychelles", "Comoros", "Gambia")
    islands = name.endswith("Islands")
    return f"the {name}" if name.startswith(united) or name in with_article or islands else name
