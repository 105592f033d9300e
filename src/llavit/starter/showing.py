"""One drawing or picture alone, under its name: captions for pre-training and first questions for instructions."""

from __future__ import annotations

from functools import lru_cache
from random import Random

from PIL import Image

from llavit.starter.concepts import article, confusable, held_out
from llavit.starter.kit import SHORT, YES_NO, Ask, Drawing, Gallery, Kit, Sample, Split
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.phrases import DESCRIBE, PHRASES
from llavit.starter.sprites import plain_backgrounds

KINDS: dict[str, float] = {
    "object": 0.42,
    "icon": 0.14,
    "flag": 0.03,
    "clothes": 0.16,
    "clip art": 0.09,
    "other": 0.16,
}
"""What captions of single pictures show, where a gallery has it: shares out of 1."""


FLAG = (
    "Which country has this flag?",
    "Whose flag is this?",
    "The flag of which country is shown?",
    "To which country does this flag belong?",
    "Name the country of this flag.",
)


def _kind(drawing: Drawing, listed: bool) -> str:
    if drawing.category == "flag":
        return "flag"
    if drawing.source == "fashion-mnist":
        return "clothes"
    if drawing.source == "openclipart":
        return "clip art"
    if drawing.tintable:
        return "icon"
    return "object" if listed else "other"


@lru_cache(maxsize=8)
def _stock(gallery: Gallery, split: Split) -> dict[str, tuple[Drawing, ...]]:
    found: dict[str, list[Drawing]] = {kind: [] for kind in KINDS}
    for drawing in gallery.drawings(split):
        found[_kind(drawing, True)].append(drawing)
    for drawing in gallery.pictures(split):
        found[_kind(drawing, False)].append(drawing)
    return {kind: tuple(drawings) for kind, drawings in found.items() if drawings}


@lru_cache(maxsize=64)
def _order(key: str, number: int) -> tuple[int, ...]:
    order = list(range(number))
    Random(key).shuffle(order)
    return tuple(order)


def _dealt(kit: Kit) -> tuple[str, Drawing]:
    """The next drawing: kinds by their shares, and inside a kind each drawing once before any comes again."""
    stock = _stock(kit.gallery, kit.split)  # type: ignore[arg-type]  # hashed by identity
    total = sum(KINDS[kind] for kind in stock)
    cards = [kind for kind in stock for _ in range(max(1, round(100 * KINDS[kind] / total)))]
    block, place = divmod(kit.deal.ordinal, len(cards))
    order = _order(f"{kit.deal.key}/kind/{block}", len(cards))
    kind = cards[order[place]]
    turn = block * cards.count(kind) + sum(cards[i] == kind for i in order[:place])
    drawings = stock[kind]
    block, place = divmod(turn, len(drawings))
    return kind, drawings[_order(f"{kit.deal.key}/{kind}/{block}", len(drawings))[place]]


def named(name: str) -> str:
    """A name with its article, unless it takes none.

    Examples:
        >>> named("owl"), named("blueberries"), named("Statue of Liberty"), named("Christmas tree")
        ('an owl', 'blueberries', 'Statue of Liberty', 'a Christmas tree')
    """
    words = name.split()
    several = words[-1].endswith("s") and not words[-1].endswith(("ss", "us", "is")) and " of " not in name
    proper = name[0].isupper() and all(
        word[0].isupper() for word in words if len(word) > 3
    )  # "Statue of Liberty"
    bare = several or proper or words[0] in ("a", "an", "the", "two", "some")
    bare = bare or name in ("grass", "ice", "bacon", "soup")
    return name if bare else article(name)


def show(kit: Kit) -> list[Sample]:
    """One picture of one thing: the caption names it, the questions ask for its name, kind and colours."""
    kind, drawing = _dealt(kit)
    colour = kit.rng.choice(list(COLOURS)) if drawing.tintable else None
    if drawing.whole:
        image, ground = _filled(kit, drawing), None
    else:
        image, ground = _placed(kit, drawing, colour)
    caption = _caption(kit, kind, drawing, colour, ground)
    asks = _asks(kit, kind, drawing, colour, ground, caption)
    truth = {
        "kind": kind,
        "source": drawing.source,
        "drawing": drawing.key,
        "name": drawing.name,
        "colour": colour,
        "ground": ground,
    }
    unseen = held_out(drawing.name)
    return [Sample(image, asks[0], tuple(asks[1:]), caption, truth, (drawing.name,), unseen)]


def _filled(kit: Kit, drawing: Drawing) -> Image.Image:
    """A picture as large as fits, over white."""
    drawn = kit.gallery.render(drawing, kit.image_size)
    image = Image.new("RGB", (kit.image_size,) * 2, BACKGROUNDS["white"])
    image.paste(drawn, ((kit.image_size - drawn.width) // 2, (kit.image_size - drawn.height) // 2), drawn)
    return image


def _placed(kit: Kit, drawing: Drawing, colour: str | None) -> tuple[Image.Image, str]:
    """A drawing anywhere on a ground on which it is plain to see."""
    tint = COLOURS[colour] if colour else None
    drawn = kit.gallery.render(drawing, round(kit.rng.randint(44, 104) * kit.scale), tint)
    grounds = backgrounds_for(colour) if colour else plain_backgrounds(drawn)
    ground = kit.rng.choice(list(grounds))
    image = Image.new("RGB", (kit.image_size,) * 2, BACKGROUNDS[ground])
    at = [kit.rng.randint(0, max(0, kit.image_size - side)) for side in drawn.size]
    image.paste(drawn, (at[0], at[1]), drawn)
    return image, ground


def _caption(kit: Kit, kind: str, drawing: Drawing, colour: str | None, ground: str | None) -> str:
    if kind == "flag":
        return kit.rng.choice(("The {}.", "A picture of the {}.")).format(drawing.name)
    if kind == "clothes":
        return f"{drawing.text[0].upper()}{drawing.text[1:]}."
    noun = named(f"{colour} {drawing.name}" if colour else drawing.name)
    forms = ["{noun}.", "{noun}.", "A drawing of {noun}.", "A picture of {noun}."]
    if ground:
        forms.append("{noun} on a {ground} background.")
    if drawing.category and kind == "object":
        forms.append(f"{{noun}}, {article(drawing.category)}.")
    text = kit.rng.choice(forms).format(noun=noun, ground=ground)
    return text[0].upper() + text[1:]


def _asks(
    kit: Kit, kind: str, drawing: Drawing, colour: str | None, ground: str | None, caption: str
) -> list[Ask]:
    """Questions about it; the name is asked openly, as a choice and as yes or no."""
    stock = _stock(kit.gallery, kit.split)[kind]  # type: ignore[arg-type]  # hashed by identity
    if kind == "flag":
        form = kit.phrase(FLAG)
        country = drawing.accepted[0]
        others = [d.accepted[0] for d in stock if d.name != drawing.name]
        return [
            Ask(f"{form}\n{SHORT}", country, (drawing.name,), topic="name"),
            kit.choice(form, country, kit.rng.sample(others, 3), topic="name"),
        ]
    if kind in ("clip art", "other"):  # their titles say more, or less, than one name
        return [Ask(describe(kit), caption, topic="name"), *_grounds(kit, ground)]
    name = kit.phrase(PHRASES["name"])
    asks = [Ask(f"{name}\n{SHORT}", drawing.name, drawing.accepted, topic="name")]
    others = _others(kit, drawing, stock)
    if len(others) == 3:
        asks.append(kit.choice(name, drawing.name, others, topic="name"))
        there = kit.deal.pick("there", (True, False))
        asked = drawing.name if there else others[0]
        check = kit.phrase(PHRASES["exist"], a_thing=named(asked))
        asks.append(Ask(f"{check}\n{YES_NO}", "yes" if there else "no", topic="name"))
    if colour:
        text = kit.phrase(PHRASES["colour.thing"], thing=drawing.name)
        asks.append(Ask(f"{text}\n{SHORT}", colour, topic="colour"))
    return [*asks, *_grounds(kit, ground)]


def _grounds(kit: Kit, ground: str | None) -> list[Ask]:
    text = kit.phrase(PHRASES["colour.background"])
    return [Ask(f"{text}\n{SHORT}", ground, topic="ground")] if ground else []


def _others(kit: Kit, drawing: Drawing, stock: tuple[Drawing, ...]) -> list[str]:
    """Three other names, of the same category where it has so many, that nobody would take for this one's."""
    near = [d.name for d in stock if d.category == drawing.category]
    pool = sorted(set(near if len(set(near)) >= 8 else [d.name for d in stock]))
    chosen: list[str] = []
    for name in kit.rng.sample(pool, len(pool)):
        taken = (drawing.name, *drawing.accepted, *chosen)
        if len(chosen) < 3 and name not in taken and not confusable(name, taken):
            chosen.append(name)
    return chosen


def describe(kit: Kit) -> str:
    """How training asks for a caption."""
    return kit.rng.choice(DESCRIBE)
