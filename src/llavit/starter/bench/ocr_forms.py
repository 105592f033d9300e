"""mini-docvqa: forms of three or four lines, and receipts: what stands beside a key?"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image

from llavit.starter.bench.asking import by_turns, short
from llavit.starter.bench.form_values import FIELDS, GOODS, SHOPS, entry
from llavit.starter.bench.pen import INK, PALE, SMALLEST, WHITE, Pad, font_for, largest, width_of
from llavit.starter.kit import Ask, Kit, Sample
from llavit.starter.palette import BACKGROUNDS
from llavit.starter.phrases import listed
from llavit.starter.studio import UNIT

TITLES = ("Form", "Guest", "Ticket", "Pass", "Visit", "Member")
LEFT, RIGHT = 9.0, 103.0
"""Ends of a line on the paper, in units."""

FIELD = (
    "What is the {key}?",
    "What {key} is given?",
    "What is the {key} on the form?",
    "Which {key} does the form show?",
    "What {key} has been filled in?",
    "What stands beside {key} on the form?",
)
PRICE = (
    "How much is the {key}?",
    "What is the price of the {key}?",
    "What does the {key} cost?",
    "Which price does the receipt show for the {key}?",
    "Which amount stands beside {key}?",
)
TOTAL = (
    "What is the total?",
    "What is the total on the receipt?",
    "How much is the total?",
    "What is the sum to pay?",
    "Which amount stands beside total?",
)
WHICH = (
    "What costs {price}?",
    "Which item has the price {price}?",
    "What is sold for {price}?",
    "Which line of the receipt shows {price}?",
    "The price {price} belongs to what?",
)


def read_document(kit: Kit) -> list[Sample]:
    """A form or a receipt on white paper, and a question about one line of it."""
    kind, kit = by_turns(kit, "kind", ("field", "field", "field", "price", "total", "item"))
    return _form(kit) if kind == "field" else _receipt(kit, kind)


def _form(kit: Kit) -> list[Sample]:
    family, font = font_for(kit, small=True)
    asked = kit.deal.pick("field", FIELDS)
    title = kit.rng.choice((None, *TITLES))
    others = kit.rng.sample([field for field in FIELDS if field != asked], 2 if title else 3)
    keys = [asked, *others]
    kit.rng.shuffle(keys)
    lines, capital = _fitted(
        kit, font, lambda: [(key.capitalize() + ":", entry(kit, key)) for key in keys], 4
    )
    values = {key: value for key, (_, value) in zip(keys, lines, strict=True)}
    ruled = kit.rng.random() < 0.4
    picture, ground = _paper(kit, font, capital, title, lines, spread=False, ruled=ruled)
    asks = {key: short(kit.phrase(FIELD, key=key), values[key], topic=key) for key in keys}
    said = [f"the {key} {values[key]}" for key in keys]
    truth = {
        "kind": "form",
        "asked": asked,
        "title": title,
        "lines": values,
        "ground": ground,
        "font": family,
    }
    return [_sample(kit, picture, asks, asked, f"A form with {listed(said, 'and')}.", truth)]


def _receipt(kit: Kit, kind: str) -> list[Sample]:
    family, font = font_for(kit, small=True)
    number = kit.rng.randint(2, 3)
    title = kit.rng.choice(SHOPS) if number == 2 else None
    goods = kit.rng.sample(GOODS, number)
    prices = kit.rng.sample(range(2, 50), number)
    total = sum(prices)
    rows = [(name.capitalize(), str(price)) for name, price in zip(goods, prices, strict=True)]
    lines, capital = _fitted(
        kit, font, lambda: [*rows, ("Total", str(total))], 4 if title or number == 3 else 3
    )
    picture, ground = _paper(kit, font, capital, title, lines, spread=True, ruled=False)
    chosen = kit.deal.pick("line", range(number)) if number == 2 else kit.rng.randrange(number)
    asks: dict[str, Ask] = {
        "price": short(kit.phrase(PRICE, key=goods[chosen]), str(prices[chosen]), topic=goods[chosen]),
        "total": short(kit.phrase(TOTAL), str(total), topic="total"),
        "item": short(kit.phrase(WHICH, price=str(prices[chosen])), goods[chosen], topic=goods[chosen]),
    }
    said = [f"{name} for {price}" for name, price in zip(goods, prices, strict=True)]
    truth = {
        "kind": kind,
        "asked": goods[chosen],
        "title": title,
        "lines": dict(zip(goods, prices, strict=True)),
        "total": total,
        "ground": ground,
        "font": family,
    }
    caption = f"A receipt with {listed(said, 'and')}, {total} in total."
    return [_sample(kit, picture, asks, kind, caption, truth)]


def _sample(
    kit: Kit, picture: Image.Image, asks: dict[str, Ask], asked: str, caption: str, truth: dict[str, Any]
) -> Sample:
    ask = asks.pop(asked)
    more = tuple(asks.values())
    return Sample(picture, ask, more, caption, truth, unseen_style=kit.split == "test")


def _fitted(
    kit: Kit, font: str, write: Callable[[], list[tuple[str, str]]], number: int
) -> tuple[list[tuple[str, str]], float]:
    """Lines that fit on the paper, and the height of their capitals: as large as the longest line allows."""
    while True:
        lines = write()
        room = (RIGHT - LEFT - 4) * kit.scale
        tallest = {3: 14, 4: 12}[number] * kit.scale
        capital = min(largest(f"{key} {value}", font, room, tallest) for key, value in lines) / kit.scale
        if capital >= SMALLEST:
            return lines, capital


def _paper(
    kit: Kit,
    font: str,
    capital: float,
    title: str | None,
    lines: list[tuple[str, str]],
    spread: bool,
    ruled: bool,
) -> tuple[Image.Image, str]:
    """A sheet on a light ground; `spread` puts values at the right end of the lines."""
    ground = kit.rng.choice([name for name in BACKGROUNDS if name != "white"])
    pad = Pad(kit.image_size, BACKGROUNDS[ground])
    pad.box((3, 3, UNIT - 3, UNIT - 3), WHITE, PALE, 1)
    rows = len(lines) + (title is not None)
    pitch = 102 / rows
    y = 5 + pitch / 2
    if title:
        pad.text(title, (UNIT / 2, y), font, min(12, capital + 1))
        pad.line([(LEFT, y + pitch / 2), (RIGHT, y + pitch / 2)], INK, 1)
        y += pitch
    for key, value in lines:
        total = key == "Total"
        if total:
            pad.line([(LEFT, y - pitch / 2), (RIGHT, y - pitch / 2)], INK, 1)
        pad.text(key, (LEFT, y), font, capital, INK, "l")
        wide = width_of(key + " ", font, capital * kit.scale) / kit.scale
        start = LEFT + width_of(key, font, capital * kit.scale) / kit.scale + max(5, wide * 0.06)
        pad.text(value, (RIGHT, y) if spread else (start, y), font, capital, INK, "r" if spread else "l")
        if ruled:
            pad.line([(LEFT, y + pitch / 2 - 2), (RIGHT, y + pitch / 2 - 2)], PALE, 0.8)
        y += pitch
    return pad.finish(), ground
