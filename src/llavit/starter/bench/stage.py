"""Where the scenes of a task are put together: the corpus' studio, with the drawings that a kit may show.

    Kit -> Stage -> Things in a Scene -> Sample

Composition (no overlap, plain relations, look-alikes apart) is that of `llavit.starter.studio`; only what is drawn
comes from the kit's gallery, so that the same makers serve both editions and all splits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

from PIL import Image

from llavit.starter import ask as corpus_ask
from llavit.starter.bench.asking import short, yes_no
from llavit.starter.captions import caption
from llavit.starter.concepts import Concept, confusable, countable, held_out, plural
from llavit.starter.kit import Ask, Drawing, Gallery, Kit, Sample, Split
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.phrases import PHRASES
from llavit.starter.scene import Question, Scene, Thing
from llavit.starter.sprites import plain_backgrounds
from llavit.starter.studio import GAP, Studio, size_word

ENOUGH = 100
"""A style of which a split shows fewer concepts gives way to a broader one."""
THINNEST = 5
"""Least length, in units, of the shorter side of an object."""


class Unfit(Exception):
    """These objects make no picture that could be asked about; others will."""


@dataclass(frozen=True)
class Shown(Thing):
    """An object with the drawing that shows it; `turned` if it stands on its head."""

    drawing: Drawing | None = None
    turned: bool = False

    @property
    def file(self) -> str:
        """Name of its drawing in the source."""
        assert self.drawing is not None
        return self.drawing.key


@dataclass(frozen=True)
class Stock:
    """What one split of a gallery has of one style: its concepts, seen and unseen, and their drawings."""

    gallery: Gallery
    concepts: dict[bool, tuple[Concept, ...]]
    drawings: dict[str, tuple[Drawing, ...]]
    trained: frozenset[str]


@lru_cache(maxsize=32)
def stock(gallery: Gallery, split: Split, style: str) -> Stock:
    """The objects of a split, by style.

    Args:
        gallery: of the edition.
        split: whose drawings.
        style: "any"; "mono" for what can be tinted, "coloured" for the rest; "whole" for pictures with a ground
            of their own, "wild" for photographs, or an art family. Where the split shows too little of one of the
            last three, "coloured" takes its place.
    """
    trained = frozenset(d.source for d in (*gallery.drawings("train"), *gallery.pictures("train")))
    objects = [d for d in gallery.drawings(split) if style == "any" or d.tintable == (style == "mono")]
    if style not in ("any", "mono", "coloured"):
        wanted = [d for d in gallery.drawings(split) if d.source == style or (d.photo and style == "wild")]
        if style == "whole":
            wild = [d for d in gallery.pictures(split) if split != "test" or d.source not in trained]
            wanted = [d for d in wild if d.whole and d.category not in (None, "flag")]
        if len({d.name for d in wanted}) >= ENOUGH:
            objects = wanted
    drawings: dict[str, list[Drawing]] = {}
    for drawing in objects:
        drawings.setdefault(drawing.name, []).append(drawing)
    concepts: dict[bool, list[Concept]] = {True: [], False: []}
    for name, found in drawings.items():
        coloured = next((d.key for d in found if not d.tintable), None)
        icon = next((d.key for d in found if d.tintable), None)
        category = next((d.category for d in found if d.category), None)
        made = Concept(name, plural(name), category, coloured, icon, countable(name))
        concepts[held_out(name)].append(made)
    return Stock(
        gallery,
        {unseen: tuple(found) for unseen, found in concepts.items()},
        {name: tuple(found) for name, found in drawings.items()},
        trained,
    )


def topic_of(key: str, **slots: str) -> str:
    """Topic of a question that has none of its own: what it asks about.

    Example:
        >>> topic_of("count", things="dogs")
        'count things=dogs'
    """
    return " ".join([key, *(f"{slot}={value}" for slot, value in sorted(slots.items()))])


@dataclass(frozen=True)
class Stage(Studio):
    """A studio that draws what its kit's gallery has; made by `on`."""

    kit: Kit = None  # type: ignore[assignment]  # always given; a dataclass wants a default after defaults
    style: str = "any"

    @classmethod
    def on(cls, kit: Kit, style: str = "any") -> Stage:
        """The stage of a kit; stages of one kit share its randomness and show seen or unseen concepts alike."""
        return cls(kit.split, kit.rng, kit.deal, kit.image_size, kit=kit, style=style)

    @cached_property
    def stock(self) -> Stock:
        """What may be shown."""
        return stock(self.kit.gallery, self.kit.split, self.style)  # type: ignore[arg-type]  # hashed by identity

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concepts that may appear: in a test 3 of 10 pictures show held-out ones only, the others none."""
        return self.stock.concepts[self.unseen]

    @cached_property
    def _used(self) -> dict[tuple[str, str], Drawing]:
        return {}

    def source(self, concept: Concept) -> str:
        """Art family of the next drawing of a concept; "icon" for one that is tinted."""
        found = self.stock.drawings[concept.name]
        coloured = [d for d in found if not d.tintable]
        if not coloured or (len(coloured) < len(found) and self.rng.random() < 0.35):
            return "icon"
        return self.rng.choice(coloured).source

    def thing(
        self,
        concept: Concept,
        source: str,
        size: float,
        centre: tuple[float, float] | None = None,
        colour: str | None = None,
        margin: int = GAP,
    ) -> Shown:
        """An object of `size` units at `centre` (anywhere if None), moved inside the margins."""
        tinted = source == "icon"
        found = self.stock.drawings[concept.name]
        fits = [d for d in found if d.tintable == tinted and (tinted or d.source == source)]
        # Copies of one concept in a picture are one drawing.
        drawing = self._used.setdefault((concept.name, source), self.rng.choice(fits))
        return self.shown(drawing, concept, size, centre, colour, margin)

    def shown(
        self,
        drawing: Drawing,
        concept: Concept,
        size: float,
        centre: tuple[float, float] | None = None,
        colour: str | None = None,
        margin: int = GAP,
    ) -> Shown:
        """An object that shows a certain drawing.

        Raises:
            Unfit: it is a mere line at that size.
        """
        if drawing.tintable and colour is None:
            colour = self.rng.choice(list(COLOURS))
        if drawing.whole:
            size, centre, margin = self.image_size / self.scale, None, 0
        width, height = self.kit.gallery.render(drawing, round(size * self.scale)).size
        if min(width, height) < THINNEST * self.scale:
            raise Unfit
        box = self.box(width, height, centre, margin)
        return Shown(
            concept=concept,
            source=drawing.source,
            box=box,
            colour=colour if drawing.tintable else None,
            drawing=drawing,
            size=size_word(size),
            place=self.place_word(box, size),
        )

    def grounds(self, thing: Thing) -> tuple[str, ...]:
        """Backgrounds on which one object stands out."""
        if thing.colour:
            return backgrounds_for(thing.colour)
        assert isinstance(thing, Shown) and thing.drawing is not None
        if thing.drawing.whole:
            return ("white",)
        return _grounds(self.kit.gallery, thing.drawing)  # type: ignore[arg-type]  # hashed by identity

    def ground(self, things: Sequence[Thing]) -> str | None:
        """A background on which every object stands out; None if there is none."""
        fit = [name for name in BACKGROUNDS if all(name in self.grounds(thing) for thing in things)]
        return self.rng.choice(fit) if fit else None

    def alike(self, concept: Concept, number: int) -> list[Concept]:
        """Other concepts of the same category, none of which could be mistaken for another one.

        Raises:
            Unfit: the category has too few; choose concepts out of `rich`.
        """
        same = [c for c in self.concepts if c.category == concept.category]
        self.rng.shuffle(same)
        found: list[Concept] = []
        for other in same:
            if len(found) < number and not confusable(other.name, [concept.name, *(c.name for c in found)]):
                found.append(other)
        if len(found) < number:
            raise Unfit
        return found

    @cached_property
    def rich(self) -> tuple[Concept, ...]:
        """Concepts whose category has enough members for choices of four."""
        sizes: dict[str | None, int] = {}
        for concept in self.concepts:
            sizes[concept.category] = sizes.get(concept.category, 0) + 1
        return tuple(c for c in self.concepts if sizes[c.category] >= 10)

    def scene(self, kind: str, things: Sequence[Thing], ground: str) -> Scene:
        """The truth of a picture."""
        return Scene(kind, self.image_size, ground, None, tuple(things))

    def draw(self, scene: Scene) -> Image.Image:
        """The picture of a scene; later objects lie in front of earlier ones."""
        assert scene.background is not None
        image = Image.new("RGB", (scene.image_size,) * 2, BACKGROUNDS[scene.background])
        for thing in scene.things:
            drawn = self.pixels(thing)
            image.paste(drawn, thing.box[:2], drawn)
        return image

    def pixels(self, thing: Thing) -> Image.Image:
        """One object as RGBA, in the size of its box."""
        assert isinstance(thing, Shown) and thing.drawing is not None
        size = (thing.box[2] - thing.box[0], thing.box[3] - thing.box[1])
        tint = COLOURS[thing.colour] if thing.colour else None
        drawn = self.kit.gallery.render(thing.drawing, max(size), tint)
        if thing.turned:
            drawn = drawn.transpose(Image.Transpose.ROTATE_180)
        return drawn if drawn.size == size else drawn.resize(size, Image.Resampling.LANCZOS)

    def sample(self, scene: Scene, ask: Ask, image: Image.Image | None = None, text: str = "") -> Sample:
        """The picture with its question and, for training, with further questions and a caption."""
        training = self.split != "test"
        return Sample(
            image=image or self.draw(scene),
            ask=ask,
            more=tuple(self.more(scene, ask)) if training else (),
            caption=text or caption(scene, self),
            truth={**scene.to_json(), "ground": scene.background},
            names=tuple(dict.fromkeys(t.concept.name for t in scene.things)),
            unseen_concept=any(t.concept.held_out for t in scene.things),
            unseen_style=any(t.source not in self.stock.trained for t in scene.things),
        )

    def more(self, scene: Scene, first: Ask) -> list[Ask]:
        """Every other question that the scene answers beyond dispute, one per topic, without that of `first`."""
        single = len(scene.things) == 1 and scene.kind != "count"
        found = corpus_ask.about_single(scene, self) if single else corpus_ask.about_many(scene, self)
        self.rng.shuffle(found)
        chosen: dict[str, Ask] = {}
        for question in found:
            made = self.asked(question)
            if made.topic != first.topic:
                chosen.setdefault(made.topic, made)
        return list(chosen.values())

    def asked(self, question: Question) -> Ask:
        """A question of the corpus in words, with its instruction."""
        text = self.kit.phrase(PHRASES[question.key], **question.slots)
        topic = question.topic or topic_of(question.key, **question.slots)
        if question.answer in ("yes", "no"):
            return yes_no(text, question.answer == "yes", topic)
        return short(text, question.answer, self.accepted(question.answer), topic)

    def accepted(self, name: str) -> tuple[str, ...]:
        """Further right names of a concept."""
        found = self.stock.drawings.get(name, ())
        return tuple(dict.fromkeys(other for drawing in found for other in drawing.accepted))


@lru_cache(maxsize=8192)
def _grounds(gallery: Gallery, drawing: Drawing) -> tuple[str, ...]:
    return plain_backgrounds(gallery.render(drawing, 64))
