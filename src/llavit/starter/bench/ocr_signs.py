"""mini-textvqa: signs beside things; what does one of them say, while the others say something else?"""

from __future__ import annotations

from typing import Any

from llavit.starter.bench.asking import by_turns, short
from llavit.starter.bench.ocr_words import words_of
from llavit.starter.bench.pen import INK, SMALLEST, Pad, font_for, largest, letters_on
from llavit.starter.bench.things import everyday, solid
from llavit.starter.concepts import article, confusable, held_out
from llavit.starter.kit import Ask, Drawing, Kit, Sample
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.studio import UNIT

LONGEST = 6
"""Letters of the longest word: a sign is 66 units wide."""
SIGN, ROW = 68, 34
_ROWS = ("top", "middle", "bottom")

BY_COLOUR = (
    "What does the {colour} sign say?",
    "What is written on the {colour} sign?",
    "Which word is on the {colour} sign?",
    "Read the {colour} sign.",
    "What word does the {colour} sign show?",
    "What is the text of the {colour} sign?",
)
BY_THING = (
    "What does the sign next to the {thing} say?",
    "What is written on the sign next to the {thing}?",
    "Which word is on the sign beside the {thing}?",
    "Read the sign that is next to the {thing}.",
    "What word does the sign beside the {thing} show?",
    "What is the text of the sign next to the {thing}?",
)
BY_PLACE = (
    "What does the {place} sign say?",
    "What is written on the {place} sign?",
    "Which word is on the {place} sign?",
    "Read the {place} sign.",
    "What word does the {place} sign show?",
    "What is the text of the {place} sign?",
)
WHOSE = (
    'What color is the sign that says "{text}"?',
    'Which color has the sign with the word "{text}"?',
    'What is the color of the sign "{text}"?',
    'On a sign of which color is the word "{text}"?',
    'In the picture, what color is the "{text}" sign?',
)


def read_sign(kit: Kit) -> list[Sample]:
    """Three rows of a sign and a thing beside it, every sign of another colour; one sign is asked for.

    One question in eight goes the other way: the word is given, the colour of its sign is asked.
    """
    kind, kit = by_turns(
        kit, "kind", ("colour", "colour", "colour", "thing", "thing", "thing", "place", "whose")
    )
    rng = kit.rng
    family, font = font_for(kit, small=True)
    rows = _rows(kit, font)
    asked = kit.deal.pick("row", range(len(rows)))
    if kind in ("colour", "whose"):  # every colour is asked for equally often
        _give_colour(rows, asked, kit.deal.pick("paint", tuple(COLOURS)))
    ground = rng.choice(
        [g for g in BACKGROUNDS if all(g in backgrounds_for(r["colour"]) for r in rows)] or ["white"]
    )
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    drawings = _things(kit, len(rows))
    for place, (row, drawing) in enumerate(zip(rows, drawings, strict=True)):
        y = 4 + ROW / 2 + place * (ROW + 1)
        on_left = rng.random() < 0.5
        x = UNIT - 5 - SIGN / 2 if on_left else 5 + SIGN / 2
        frame = (x - SIGN / 2, y - 12, x + SIGN / 2, y + 12)
        pad.box(frame, COLOURS[row["colour"]], INK, 1, radius=rng.choice((0, 4, 10)))
        pad.text(row["text"], (x, y), font, row["capital"], letters_on(row["colour"]))
        tint = rng.choice([c for c in COLOURS if ground in backgrounds_for(c)]) if drawing.tintable else None
        size = round(29 * kit.scale)
        picture = kit.gallery.render(drawing, size, COLOURS[tint] if tint else None)
        pad.drawing(picture, (19.5 if on_left else UNIT - 19.5, y))
        row.update(thing=drawing.name, place=_ROWS[place], tint=tint)
    asks = {form: _ask(kit, form, rows, asked) for form in ("colour", "thing", "place", "whose")}
    listed = [f'{article(r["colour"])} sign that says "{r["text"]}"' for r in rows]
    names = tuple(drawing.name for drawing in drawings)
    return [
        Sample(
            pad.finish(),
            asks.pop(kind),
            _more(kit, rows, asked, asks),
            f"{listed[0]}, {listed[1]} and {listed[2]}.".capitalize(),
            {"kind": kind, "asked": asked, "signs": rows, "ground": ground, "font": family},
            names=names,
            unseen_concept=any(held_out(name) for name in names),
            unseen_style=kit.split == "test",
        )
    ]


def _rows(kit: Kit, font: str) -> list[dict[str, Any]]:
    """Words, each at the largest size that fits on a sign, and colours of three signs."""
    colours = kit.rng.sample(list(COLOURS), 3)
    rows: list[dict[str, Any]] = []
    among = words_of(kit, LONGEST)
    while len(rows) < 3:
        word = kit.rng.choice(among)
        text = kit.rng.choice((word, word.upper(), word.title()))
        capital = largest(text, font, (SIGN - 8) * kit.scale, 13 * kit.scale) / kit.scale
        if capital >= SMALLEST and word not in [row["word"] for row in rows]:
            rows.append({"word": word, "text": text, "capital": capital, "colour": colours[len(rows)]})
    return rows


def _give_colour(rows: list[dict[str, Any]], asked: int, wanted: str) -> None:
    for row in rows:
        if row["colour"] == wanted:
            row["colour"] = rows[asked]["colour"]
    rows[asked]["colour"] = wanted


def _things(kit: Kit, number: int) -> list[Drawing]:
    """Drawings of things of different categories, which nobody would mistake for one another."""
    among = [d for d in kit.gallery.drawings(kit.split) if d.name in everyday()]
    found: list[Drawing] = []
    while len(found) < number:
        drawing = kit.rng.choice(among)
        other_kind = drawing.category and drawing.category not in [d.category for d in found]
        alike = confusable(drawing.name, [d.name for d in found])
        if other_kind and not alike and solid(kit.gallery, drawing):  # type: ignore[arg-type]  # hashed by identity
            found.append(drawing)
    return found


def _ask(kit: Kit, kind: str, rows: list[dict[str, Any]], asked: int) -> Ask:
    row = rows[asked]
    if kind == "whose":
        return short(kit.phrase(WHOSE, text=row["text"]), row["colour"], topic=f"sign {asked}")
    forms = {"colour": BY_COLOUR, "thing": BY_THING, "place": BY_PLACE}[kind]
    accepted = (row["text"],) if row["text"] != row["word"] else ()
    slot = {kind: row[kind]}
    return short(kit.phrase(forms, **slot), row["word"], accepted, topic=f"sign {asked}")


def _more(kit: Kit, rows: list[dict[str, Any]], asked: int, asks: dict[str, Ask]) -> tuple[Ask, ...]:
    """Another way to ask for the same sign, and one question for each other sign."""
    others = [n for n in range(len(rows)) if n != asked]
    kinds = [kit.rng.choice(("colour", "thing", "place", "whose")) for _ in others]
    again = kit.rng.choice([ask for form, ask in asks.items() if form != "whose"])
    return (again, *(_ask(kit, kind, rows, n) for kind, n in zip(kinds, others, strict=True)))
