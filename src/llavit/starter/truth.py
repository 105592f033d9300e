"""What is where in the pictures of a corpus: for analyses that look at patches, and for probes.

`val.json` and `test.json` hold the scene of each picture. Of the training splits it lies beside them, in `truth.json`;
of a corpus that was built before there was one, the scenes are made again from the settings in its manifest.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavit.starter.items import SPLITS, Factory, Item
from llavit.starter.sources import LAYOUT, package_versions

TRUTH = "truth.json"
"""Scenes of the splits whose json has the form of training data."""


@dataclass(frozen=True)
class Shown:
    """One picture of a corpus, and what it shows.

    Attributes:
        image: path of the picture.
        split: "pretrain", "instruct", "val" or "test"; of a file of its own, the file's name without its ending.
        scene: kind, background, frame, and "objects": name, category, source (art style), colour (None if the
            drawing has its own), size, place, and box: left, top, right, bottom in pixels of the picture.
        unseen_style: art family, font or table is one that training never shows.
        unseen_concept: something in it has a name that training never holds.
    """

    image: Path
    split: str
    scene: dict[str, Any]
    unseen_style: bool
    unseen_concept: bool

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The objects of the scene; none in a picture of a word or of a chart."""
        return self.scene.get("objects", [])

    @property
    def concepts(self) -> set[str]:
        """Names of what is there."""
        return {thing["name"] for thing in self.objects}


def facts(scene: dict[str, Any]) -> list[str]:
    """Put a scene in words, a fact at a time: what a reader must know to answer the corpus' questions about it.

    Example:
        >>> facts({"background": "white", "objects": [{"name": "cat", "colour": "red", "place": "top left"}]})
        ['white background', 'red cat at the top left']
    """
    said = [f"{scene[part]} {part}" for part in ("background", "frame") if scene.get(part)]
    for thing in scene.get("objects", []):
        words = [thing[key] for key in ("size", "colour", "name") if thing.get(key)]
        said.append(" ".join([*words, f"at the {thing['place']}"] if thing.get("place") else words))
    if scene.get("text"):
        said.append(f"{scene['colour']} word {scene['text']}")
    if scene.get("shape"):
        said.append(f"{scene['colour']} {scene['shape']}")
    for bar in scene.get("bars", []):
        label = f" {bar['name']}" if scene.get("mode") == "letter" else ""
        said.append(f"{bar['colour']} bar{label}, {round(10 * bar['height'])} high")
    return said


def truth_row(item: Item) -> dict[str, Any]:
    """One row of `truth.json`: a picture's path and its scene."""
    return {
        "image": item.image,
        "unseen_style": item.scene.unseen_style,
        "unseen_concept": item.scene.unseen_concept,
        "scene": item.scene.to_json(),
    }


def read_truth(source: Path | str, splits: Sequence[str] = ("val", "test")) -> list[Shown]:
    """Read what the pictures of a corpus show.

    Args:
        source: folder of a corpus (`llavit.starter.corpus.build_corpus`); or a json file of rows with "image" (a path
            relative to the file's folder) and "scene", as `test.json` has them.
        splits: of a folder.

    Raises:
        FileNotFoundError: no such file, or no corpus in the folder.
        ValueError: a split that there is not; rows without a scene; or scenes that must be made again, which takes the
            versions of the packages that the corpus was made from.

    Examples:
        >>> from tempfile import mkdtemp
        >>> from llavit.starter.corpus import build_corpus
        >>> corpus = build_corpus(mkdtemp(), pretrain=0, instruct=3, val=0, test=0, kinds={"name": 1}, workers=1)
        >>> shown = read_truth(corpus.root, ["instruct"])[0]
        >>> shown.split, len(shown.objects), sorted(shown.objects[0])
        ('instruct', 1, ['box', 'category', 'colour', 'name', 'place', 'size', 'source'])
    """
    source = Path(source)
    if source.is_file():
        return [_shown(row, source.parent, source.stem, source) for row in _load(source)]
    if not (source / "manifest.json").exists():
        raise FileNotFoundError(
            f"{source}: expected a corpus of the starter (manifest.json), or a json file of rows with image and scene"
        )
    unknown = [split for split in splits if split not in SPLITS]
    if unknown:
        raise ValueError(f"splits: expected some of {', '.join(SPLITS)}, got {', '.join(unknown)}")
    return [shown for split in splits for shown in _of_split(source, split)]


def _of_split(root: Path, split: str) -> Iterator[Shown]:
    if split in ("val", "test"):
        rows = _load(root / f"{split}.json")
    elif (root / TRUTH).exists():
        rows = _load(root / TRUTH)[split]
    else:
        rows = _made_again(root, split)
    for row in rows:
        yield _shown(row, root, split, root / f"{split}.json")


def _made_again(root: Path, split: str) -> list[dict[str, Any]]:
    """Make the scenes of a split from the settings of the corpus, without drawing them."""
    manifest = _load(root / "manifest.json")
    settings = manifest["settings"]
    there, needed = package_versions(), settings["packages"]
    differs = [f"{name} {version}" for name, version in needed.items() if there.get(name) != version]
    if LAYOUT in there and LAYOUT not in needed:
        differs.append("FriBiDi (Debian: libfribidi0)")
    if differs:
        raise ValueError(
            f"{root} has no {TRUTH}, and its scenes can be made again only with the packages it was made from: "
            f"install {', '.join(differs)}, or build the corpus again"
        )
    kinds = tuple(settings["kinds"].items())
    factory = Factory(
        split, kinds, settings["image_size"], settings["seed"], settings["vocabulary"], settings["brief"]
    )
    return [truth_row(factory.item(index)) for index in range(manifest["counts"][split])]


def _load(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _shown(row: dict[str, Any], root: Path, split: str, file: Path) -> Shown:
    if not isinstance(row, dict) or "image" not in row or "scene" not in row:
        keys = sorted(row) if isinstance(row, dict) else type(row).__name__
        raise ValueError(f"{file}: expected rows with 'image' and 'scene', got {keys}")
    return Shown(
        root / row["image"],
        split,
        row["scene"],
        bool(row.get("unseen_style", False)),
        bool(row.get("unseen_concept", False)),
    )
