"""One-colour icons by three hands: Material Design Icons (training), Lucide (validation), game-icons (test)."""

from __future__ import annotations

import json
import re
from functools import cache

from PIL import Image

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery.art import Family, rasterised
from llavit.starter.gallery.emoji import IconifySet
from llavit.starter.gallery.names import accepted_names, concept_of, mentions_held_out, vendor_names
from llavit.starter.kit import Drawing, Split
from llavit.starter.packages import unpacked
from llavit.starter.sources import drawing_path

_MDI_TAGS = {
    "Animal", "Food / Drink", "Sport", "Hardware / Tools", "Clothing", "Holiday", "Music", "Places",
    "Transportation + Road", "Transportation + Water", "Transportation + Flying", "Transportation + Other",
}  # fmt: skip
# Variants of another icon, signs of a user interface, and names put the other way round ("fruit-pear").
_MDI_NOT = re.compile(
    r"outline|\b(off|on|plus|minus|check|alert|remove|edit|cog|sync|search|cancel|arrow|multiple|variant|circle|clock|"
    r"refresh|eye|star|marker|question|import|export|up|down|left|right|wireless|play|pause|stop|account|percent|auto|"
    r"image|filter|human|weather|food|fruit|music|car|fuel|oil|square|chart|state|map|temperature|water|seat|gas|moon|"
    r"cards|scan|hdr|panorama|shield|metering|bus|train|lock|open|closed|full|empty|half|speed|brake|tire|front|rear|"
    r"side|back|store|home|book|party|timer|control|burst|flip|switch|party|gender|needle|iv|mps|nd|movie|clipboard|"
    r"silverware|glass|cup|truck|emoticon|road|sign|flash|pin|pine|bag|shoe|hat|ski|run|jump|cable|data|transit)\b|\d"
)


class _LucideSvg:
    def __call__(self, key: str, width: int) -> Image.Image:
        path = unpacked("lucide-static") / "package/icons" / f"{key}.svg"
        svg = path.read_text(encoding="utf-8").replace("currentColor", "#000")
        return rasterised(svg.replace('stroke-width="2"', 'stroke-width="2.4"'), width)


class _MdiSvg:
    def __call__(self, key: str, width: int) -> Image.Image:
        return rasterised(drawing_path("icon", key).read_text(encoding="utf-8"), width)


def _icons(source: str, split: Split, names: dict[str, str], raster: object) -> Family:
    categories = {c.name: c.category for c in all_concepts()}
    drawings = tuple(
        Drawing(source, key, name, categories[name], tintable=True, accepted=accepted_names(name))
        for key, name in names.items()
        if name in categories and (split == "test" or not held_out(name))
    )
    return Family(source, (split,), drawings, raster)  # type: ignore[arg-type]


def _named(keys: list[str], excluded: dict[str, str]) -> dict[str, str]:
    """Icons whose name is that of a concept; a plural shows several and is left out."""
    plurals = {c.plural for c in all_concepts()}
    found: dict[str, str] = {}
    for key in keys:
        name = key.replace("-", " ")
        if (
            key not in excluded
            and name in concept_of()
            and (name not in plurals or name == concept_of()[name])
        ):
            found[key] = concept_of()[name]
    return found


@cache
def lucide() -> Family:
    """Line icons, for validation."""
    folder = unpacked("lucide-static") / "package/icons"
    return _icons(
        "lucide",
        "val",
        _named(sorted(p.stem for p in folder.glob("*.svg")), vendor_names("not_lucide")),
        _LucideSvg(),
    )


@cache
def game_icons() -> Family:
    """Silhouettes, for the test."""
    iconify = IconifySet("@iconify-json/game-icons")
    keys = list(iconify.data["icons"])
    names = _named(keys, vendor_names("not_game"))
    names.update({key: name for key, name in vendor_names("game").items() if key in iconify.data["icons"]})
    return _icons("game-icons", "test", dict(sorted(names.items())), iconify)


@cache
def mdi() -> tuple[Family, Family]:
    """Material Design Icons, for training: those of concepts, and others that their name tells."""
    known = _icons("mdi", "train", {c.icon: c.name for c in all_concepts() if c.icon}, _MdiSvg())
    rows = json.loads((unpacked("@mdi/svg") / "package/meta.json").read_text(encoding="utf-8"))
    concepts = {c.icon for c in all_concepts()} | {c.name.replace(" ", "-") for c in all_concepts()}
    others = []
    for row in rows:
        key, name = row["name"], row["name"].replace("-", " ")
        usable = not row["deprecated"] and set(row["tags"]) & _MDI_TAGS and key not in concepts
        if not usable or _MDI_NOT.search(name) or " " in name:  # of two words the adjective stands last
            continue
        if not (held_out(name) or mentions_held_out(name)) and drawing_path("icon", key).exists():
            others.append(Drawing("mdi", key, name, tintable=True, text=name))
    return known, Family("mdi", ("train",), tuple(others), _MdiSvg())
