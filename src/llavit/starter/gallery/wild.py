"""Pictures "in the wild", for the test alone: photos of Tux Paint and GCompris, cartoons of Art4Apps."""

from __future__ import annotations

import io
import re
from functools import cache
from pathlib import Path

from PIL import Image

from llavit.starter.concepts import all_concepts
from llavit.starter.gallery.art import Family
from llavit.starter.gallery.names import accepted_names, concept_of, vendor_names
from llavit.starter.gallery.rcc import read_rcc
from llavit.starter.kit import Drawing
from llavit.starter.packages import unpacked

_STAMPS = "usr/share/tuxpaint/stamps"
_FOLDERS = {
    "animals": "animal", "clothes": "clothing", "food": "food", "hobbies/music": "musical instrument",
    "household/tools": "tool", "plants": "plant", "vehicles": "vehicle", "sports": "sports item",
}  # fmt: skip
_NO_STAMP = re.compile(
    r"symbols|cartoon|roadsigns|mirror|town/flags|military|space/|hanukkah|people/|naturalforces|Shorts|clothes/|"
    r"seasonal/(?:easter|halloween|newyears)|seasonal/christmas/(?!.*photo)|seasonal/holiday|food/pizza|medical/tooth|"
    r"nandou|garlics|police|toilet|sliced|pigface|cylinder|old_naval|cep|holly|lettuce_bolted|butterflyfish|"
    r"bears/toys|mammals/hedgehog|flowers/(?:flower[47]|appoop|bolsom)|eggplant$|rambutan|highlighter|gnu-baby"
)
_ADJECTIVES = re.compile(
    r"^(?:red|green|yellow|blue|pink|brown|white|black|ripe|colorful|little|big eared|large|small|very small|silver|"
    r"sleeping|male|female|freshwater|great|lit|closed|open|adjustable|electric|classical|common|european|garden|"
    r"floppy eared|folded|modern|old fashioned|sumatran|tamworth|sitting|crash|floor|spiny|crowned|helmeted|baby|"
    r"headed|indian|very|poisonous|“[^”]*”|,|and|polo|sedan|sports|race car) +"
)


class _Stamps:
    def __call__(self, key: str, width: int) -> Image.Image:
        with Image.open(unpacked("tuxpaint-stamps-default") / _STAMPS / f"{key}.png") as file:
            image = file.convert("RGBA")
        image.thumbnail((max(width, 256),) * 2, Image.Resampling.LANCZOS)
        return image


def plain_name(sentence: str) -> str | None:
    """The thing that a sentence like "A male black rhino." names, under its canonical name; None if there is none.

    Examples:
        >>> plain_name("A male black rhino."), plain_name("An owl."), plain_name("Boom!!!")
        ('rhinoceros', 'owl', None)
    """
    found = re.match(
        r"^(?:(?:An?|The|Two|Some|Our) )?([^.!?(—:;]+?)(?: \(.*\)| in its shell)?[.!]?$", sentence
    )
    if not found or len(found.group(1).split()) > 5:
        return None
    name = (
        found.group(1).strip().lower().replace("-", " ")
        if "jack" not in sentence.lower()
        else found.group(1).lower()
    )
    while (shorter := _ADJECTIVES.sub("", name)) != name:
        name = shorter
    concepts = {other.lower(): concept for other, concept in concept_of().items()}
    words = name.split()
    for start in range(len(words)):
        tail = " ".join(words[start:])
        if tail in vendor_names("heads"):
            return vendor_names("heads")[tail]
        if tail in concepts:
            return concepts[tail]
    return name if len(words) <= 3 else None


@cache
def stamps() -> Family:
    """Photos of Tux Paint: cut-outs with a sentence each."""
    root = unpacked("tuxpaint-stamps-default") / _STAMPS
    categories = {c.name: c.category for c in all_concepts()}
    made = []
    for path in sorted(root.rglob("*.png")):
        key = path.relative_to(root).with_suffix("").as_posix()
        said = path.with_suffix(".txt")
        if _NO_STAMP.search(key) or not said.exists():
            continue
        sentence = said.read_text(encoding="utf-8", errors="replace").split("\n")[0].strip()
        name = plain_name(sentence)
        if name is None:
            continue
        folder = next((c for f, c in _FOLDERS.items() if key.startswith(f)), None)
        category = categories.get(name, folder)
        accepted = accepted_names(name)
        made.append(Drawing("tuxpaint", key, name, category, photo=True, accepted=accepted, text=sentence))
    return Family("tuxpaint", ("test",), tuple(made), _Stamps())


_ART = "usr/share/games/pysiogame/res/images/art4apps"
_ART_FOLDERS = {
    "animals": "animal", "food": "food", "fruit_n_veg": "food", "clothes_n_accessories": "clothing",
    "construction": "building", "jobs": "job", "transport": "vehicle",
}  # fmt: skip


class _Art:
    def __call__(self, key: str, width: int) -> Image.Image:
        with Image.open(unpacked("pysiogame") / _ART / f"{key}.jpg") as image:
            return image.convert("RGBA")


@cache
def art4apps() -> Family:
    """Cartoons with a word each: things and people at work."""
    root = unpacked("pysiogame") / _ART
    categories = {c.name: c.category for c in all_concepts()}
    made = []
    for path in sorted(root.rglob("*.jpg")):
        folder, stem = path.parent.name, path.stem
        if folder not in _ART_FOLDERS or stem in vendor_names("no_art"):
            continue
        name = vendor_names("art_names").get(stem) or concept_of().get(
            stem.replace("_", " "), stem.replace("_", " ")
        )
        category = categories.get(name, _ART_FOLDERS[folder]) or _ART_FOLDERS[folder]
        key = f"{folder}/{stem}"
        made.append(
            Drawing("art4apps", key, name, category, accepted=accepted_names(name), whole=True, text=name)
        )
    return Family("art4apps", ("test",), tuple(made), _Art())


_MONUMENTS = {name for name in vendor_names("photo_words").values() if name[0].isupper()}
_ANIMALS = {"komodo dragon", "polar bear", "narwhal", "chameleon", "lemur"}


@cache
def _resources() -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for path in sorted(Path(unpacked("gcompris-qt-data")).rglob("*.rcc")):
        files = read_rcc(path)
        found.update(
            {f"{path.stem}/{Path(name).name}": data for name, data in files.items() if name.endswith("webp")}
        )
    return found


class _Photos:
    def __call__(self, key: str, width: int) -> Image.Image:
        with Image.open(io.BytesIO(_resources()[key])) as image:
            return image.convert("RGBA")


@cache
def photos() -> Family:
    """Photos of GCompris whose file name tells what they show."""
    categories = {c.name: c.category for c in all_concepts()}
    made = []
    for key in sorted(_resources()):
        word = re.sub(r"\d+$", "", key.split("/")[1].removesuffix(".webp")).lower()
        name = vendor_names("photo_words").get(word)
        if name is None:
            continue
        category = categories.get(name, vendor_names("photo_categories").get(name))
        category = "monument" if name in _MONUMENTS else "animal" if name in _ANIMALS else category
        accepted = accepted_names(name)
        made.append(
            Drawing(
                "gcompris",
                key,
                name,
                category,
                photo=True,
                accepted=accepted,
                whole=True,
                text=f"a photo of {name}",
            )
        )
    return Family("gcompris", ("test",), tuple(made), _Photos())
