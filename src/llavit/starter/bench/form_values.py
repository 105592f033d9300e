"""What stands on forms and receipts: names, cities and random entries, each short enough for a line of 112 pixels."""

from __future__ import annotations

from llavit.starter.concepts import held_out
from llavit.starter.kit import Kit

_NAMES = """
Adam Agnes Alan Alma Amir Amy Anja Anna Arthur Ben Bella Boris Carl Carmen Carol Cesar Chloe Clara Colin Dana David
Dean Diana Dora Eddie Edgar Elena Elias Ella Elsa Emil Emma Enzo Erik Esther Eva Felix Fiona Frank Frida Gina Greta
Gustav Hanna Harry Hassan Hector Heidi Helen Hugo Ian Ida Igor Ines Irene Ivan Jack Jakob James Jane Jenny Joel John
Jonas Julia Karen Karim Karl Kate Kenji Kira Lara Laura Lea Leo Lena Liam Lily Linda Lola Lucas Lucy Luis Luna Maria
Mark Marta Martin Mary Max Maya Mia Mila Mina Mona Nadia Nico Nina Nora Oliver Olga Omar Oscar Otto Pablo Paula Peter
Petra Rafael Ravi Rita Robert Rosa Ruth Ryan Sam Sara Selma Simon Sofia Sonja Stella Sven Tara Tim Tina Tom Uma
Ursula Vera Victor Vivian Walter Yara Yuri Zoe
"""
_CITIES = """
Accra Athens Austin Basel Beirut Berlin Bern Bogota Bonn Boston Bremen Cairo Cork Dakar Dallas Delhi Denver Doha
Dublin Dubai Genoa Geneva Ghent Graz Hanoi Havana Izmir Kazan Kyiv Kyoto Lagos Leeds Lima Lisbon London Lyon
Madrid Malaga Malmo Manila Miami Milan Minsk Munich Nairobi Naples Nice Osaka Oslo Oxford Palermo Paris Porto Prague
Quito Riga Rome Rouen Seoul Sofia Split Sydney Tallinn Tampa Tokyo Toledo Torino Tunis Turku Venice Verona Vienna
Vilnius Warsaw York Zagreb Zurich
"""
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_LETTERS = "ABCDEFHKLMNPRSTUVXYZ"

GOODS = (
    *("tea", "milk", "bread", "cake", "soup", "rice", "fish", "juice", "salad", "pizza", "eggs", "cheese"),
    *(
        "beans",
        "honey",
        "sugar",
        "salt",
        "butter",
        "jam",
        "nuts",
        "plums",
        "pears",
        "lemon",
        "cocoa",
        "water",
    ),
)
"""What receipts list."""
SHOPS = ("Cafe", "Market", "Bakery", "Kiosk", "Shop", "Bistro")


def names(unseen: bool) -> tuple[str, ...]:
    """First names for forms: those of training, or those of the test alone.

    Example:
        >>> set(names(True)) & set(names(False))
        set()
    """
    return tuple(name for name in _NAMES.split() if held_out(name) == unseen)


def cities(unseen: bool) -> tuple[str, ...]:
    """Cities for forms: those of training, or those of the test alone."""
    return tuple(city for city in _CITIES.split() if held_out(city) == unseen)


FIELDS = ("name", "city", "date", "age", "room", "seat", "code", "time")
"""What a form may ask for."""


def entry(kit: Kit, field: str) -> str:
    """A random entry of a form."""
    rng, unseen = kit.rng, kit.split == "test"
    if field in ("name", "city"):
        return rng.choice((names if field == "name" else cities)(unseen))
    if field == "date":
        return f"{rng.randint(1, 28)} {rng.choice(_MONTHS)}"
    if field == "age":
        return str(rng.randint(18, 79))
    if field == "room":
        return str(rng.randint(101, 989))
    if field == "seat":
        return f"{rng.randint(10, 49)}{rng.choice('ABCDEF')}"
    if field == "code":
        return rng.choice(_LETTERS) + str(rng.randint(2, 9)) + rng.choice(_LETTERS)
    return f"{rng.randint(1, 12)}:{rng.randrange(0, 60, 5):02d}"
