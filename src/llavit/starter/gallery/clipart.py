"""Clip art with titles, flags of countries, grey photos of clothes."""

from __future__ import annotations

import gzip
import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery.art import Family, rasterised
from llavit.starter.gallery.names import accepted_names, mentions_held_out, vendor_names
from llavit.starter.kit import Drawing, Split
from llavit.starter.packages import unpacked
from llavit.starter.sources import drawing_path

_CLIPART = "usr/share/openclipart/svg"
_NO_FOLDER = re.compile(
    r"icons|theme|etiquette|shapes|special|logos|signs|cards|dice|unsorted|buttons|connectors|flag|callouts|arrows|"
    r"stickmen|smilies|menu|religion|/hand|creation_day|body|stripper|naked|nude|sexy"
)
_NOT_TITLE = re.compile(
    r"\b(etiquette|signs?|icons?|example|collection|pieces|maps?|dino|number|border|corner|tribal|reminder|sim|hub|"
    r"stick|crystal|homes|ours|switch|server|network|gateway|router|firewall|webcam|label|points|highlight|various|series|test|my|new|thing|logo|hash|simple|stripper|sexy|drunk|"
    r"illustration|joker|me|his|basic|another|gallows|bullet|gun|tux)\b"
)
_DROPPED = re.compile(r"\b(clip ?art|svg|vector|\d+[a-z]?)\b", re.IGNORECASE)


# Pixels of a unit in drawings of the time, at 90 dots per inch.
_PIXELS = {"": 1.0, "px": 1.0, "pt": 1.25, "pc": 15.0, "mm": 3.543307, "cm": 35.43307, "in": 90.0}


class _ClipartSvg:
    def __call__(self, key: str, width: int) -> Image.Image:
        text = (unpacked("openclipart-svg") / _CLIPART / key).read_text(encoding="utf-8", errors="replace")
        return rasterised(_sized(text), width)


def _sized(svg: str) -> str:
    """An SVG with a size in plain pixels: some state none, or one in per cent or millimetres only."""
    found = re.search(r"<svg\b[^>]*>", svg)
    if not found:
        return svg
    head = found.group(0)
    size = {}
    for side in ("width", "height"):
        stated = re.search(rf'\s{side}\s*=\s*"\s*([\d.]+)\s*([a-z%]*)\s*"', head)
        if stated and stated.group(2) in _PIXELS:
            size[side] = float(stated.group(1)) * _PIXELS[stated.group(2)]
        head = re.sub(rf'\s{side}\s*=\s*"[^"]*"', "", head)
    box = re.search(r'\sviewBox\s*=\s*"([^"]*)"', head)
    parts = [float(part) for part in re.split(r"[\s,]+", box.group(1).strip())] if box else []
    if len(parts) == 4 and parts[2] > 0 and parts[3] > 0:
        size = {"width": parts[2], "height": parts[3]}
    wide, high = size.get("width", 400.0), size.get("height", 400.0)
    head = (
        f'{head[:-1]} width="{wide:g}" height="{high:g}"'
        + ("" if box else f' viewBox="0 0 {wide:g} {high:g}"')
        + ">"
    )
    return svg[: found.start()] + head + svg[found.end() :]


@cache
def _english() -> frozenset[str]:
    text = (unpacked("wamerican") / "usr/share/dict/american-english").read_text(encoding="utf-8")
    return frozenset(word for word in text.split() if word.islower() and word.isalpha())


def plain_title(title: str) -> str | None:
    """A title as lower-case English words without numbers and fillers; None if it isn't one to six such words."""
    title = _DROPPED.sub("", re.sub(r"[_\-]", " ", title))
    words = title.lower().split()
    if not 1 <= len(words) <= 6 or _NOT_TITLE.search(" ".join(words)):
        return None
    if not all(word in _english() and (len(word) > 1 or word == "a") for word in words):
        return None
    return " ".join(words)


@cache
def clipart() -> Family:
    """Open Clip Art with an English title, for training; titles are their makers', so nothing is asked by them."""
    root = unpacked("openclipart-svg") / _CLIPART
    categories = {c.name: c.category for c in all_concepts()}
    made: list[Drawing] = []
    for path in sorted(root.rglob("*.svg")):
        key = path.relative_to(root).as_posix()
        if key in vendor_names("no_clipart"):
            continue
        if path.is_symlink() or _NO_FOLDER.search(key) or path.stat().st_size > 400_000:
            continue
        with path.open(encoding="utf-8", errors="replace") as file:
            found = re.search(r"<dc:title>([^<]*)</dc:title>", file.read(60_000))
        name = plain_title(found.group(1)) if found else None
        if name is None or held_out(name) or mentions_held_out(name):
            continue
        made.append(Drawing("openclipart", key, name, categories.get(name), text=name))
    return Family("openclipart", ("train",), tuple(made), _ClipartSvg())


# One of each set of countries whose flags are drawn alike (seen by comparing all pairs).
_SAME_FLAG = {
    "bl", "bq", "bv", "gf", "gp", "hm", "mf", "mq", "nc", "pm", "re", "sh", "sh-ac", "sh-hl", "sh-ta", "sj", "tf", "um",
    "wf", "yt", "td", "mc", "cp", "dg", "ea", "ic", "ac", "ta", "io", "id",
}  # fmt: skip


class _FlagSvg:
    def __call__(self, key: str, width: int) -> Image.Image:
        path = unpacked("flag-icons") / "package/flags/4x3" / f"{key}.svg"
        return rasterised(path.read_text(encoding="utf-8"), width)


class _OpenmojiSvg:
    def __call__(self, key: str, width: int) -> Image.Image:
        return rasterised(drawing_path("openmoji", key).read_text(encoding="utf-8"), width)


@cache
def countries() -> tuple[dict[str, Any], ...]:
    """Sovereign and other countries with a flag of their own: `{"code", "name", "capital", "continent"}`."""
    rows = json.loads((unpacked("flag-icons") / "package/country.json").read_text(encoding="utf-8"))
    return tuple(
        {key: row[key] for key in ("code", "name", "capital", "continent")}
        for row in rows
        if row.get("iso") and row["code"] not in _SAME_FLAG and row.get("capital") and row.get("continent")
    )


def _flags(source: str, split: Split, raster: Any) -> Family:
    made = []
    for row in countries():
        code = row["code"]
        key = code if source == "flag-icons" else "-".join(f"{0x1F1A5 + ord(c.upper()):x}" for c in code)
        if source == "openmoji" and not drawing_path("openmoji", key).exists():
            continue
        name = f"flag of {row['name']}"
        made.append(
            Drawing(source, key, name, "flag", accepted=(row["name"],), whole=True, text=f"the {name}")
        )
    return Family(source, (split,), tuple(made), raster)


@cache
def flags() -> tuple[Family, Family]:
    """Flags for training (flag-icons) and for the test (OpenMoji); facts are to be the same, drawings are not."""
    return _flags("flag-icons", "train", _FlagSvg()), _flags("openmoji", "test", _OpenmojiSvg())


CLOTHES = (
    "t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip


@cache
def _idx(path: Path) -> np.ndarray:
    """An IDX file of bytes, of one or three dimensions."""
    data = gzip.decompress(path.read_bytes())
    dimensions = [int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(data[3])]
    return np.frombuffer(data, np.uint8, offset=4 + 4 * len(dimensions)).reshape(dimensions)


class _Clothes:
    def __init__(self, part: str):
        self.part = part

    def array(self, kind: str) -> np.ndarray:
        """ "images" (n, 28, 28) or "labels" (n,)."""
        name = f"{self.part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte.gz"
        return _idx(unpacked("dataset-fashion-mnist") / "usr/share/datasets/fashion-mnist" / name)

    def __call__(self, key: str, width: int) -> Image.Image:
        grey = Image.fromarray(self.array("images")[int(key)])
        return grey.resize((width, width), Image.Resampling.BICUBIC).convert("RGBA")


@cache
def clothes(split: Split, number: int) -> Family:
    """Grey photos of clothes, the first `number` of the official training or test part that the split may show."""
    part = _Clothes("t10k" if split == "test" else "train")
    start = 50_000 if split == "val" else 0
    made = []
    for index, label in enumerate(part.array("labels")[start : start + 2 * number].tolist()):
        name = CLOTHES[label]
        if split != "test" and (held_out(name) or mentions_held_out(name)):
            continue
        accepted = accepted_names(name)
        made.append(
            Drawing("fashion-mnist", str(start + index), name, "clothing", photo=True, accepted=accepted, whole=True,
                    text=f"a photo of a {name}" if name[0] not in "aeiou" else f"a photo of an {name}")
        )  # fmt: skip
    return Family("fashion-mnist", (split,), tuple(made[:number]), part)
