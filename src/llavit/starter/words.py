"""Pictures of one rendered word: which word, which font, where; test fonts and test words are never in train."""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.palette import BACKGROUNDS, COLOURS, backgrounds_for
from llavit.starter.scene import Question, Scene
from llavit.starter.sources import font_path
from llavit.starter.studio import Studio

FONTS: dict[str, tuple[str, ...]] = {
    "DejaVu Sans": ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique"),
    "DejaVu Serif": ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
    "DejaVu Sans Mono": ("DejaVuSansMono", "DejaVuSansMono-Bold"),
    "Computer Modern Roman": ("cmr10", "cmb10"),
    "Computer Modern Typewriter": ("cmtt10",),
}
"""Font families that training uses, with their files."""

HELD_OUT_FONTS: dict[str, tuple[str, ...]] = {
    "STIX": ("STIXGeneral", "STIXGeneralBol"),
    "Computer Modern Sans": ("cmss10",),
}
"""Font families that only the test uses."""

INKS = tuple(colour for colour in COLOURS if colour != "yellow")
"""Colours of letters; thin yellow strokes on a light ground are hard to read."""

_WORDS = """
able about above act add age ago air alarm alone also always among angle animal answer any april area arm around
arrow art ask aunt autumn away back bad bag bake ball band base bath beach bean beat begin below best better big
bill bite black blank block blood blow blue board boat body born both bottom brave break bright bring brown build
busy buy cabin calm camp card care carry case catch cause cave center chance change cheap child choose city class
clean clear clever climb close cloth club coast cold color come cook cool copy corner cost country cover crowd cry
cut dance dark data date dawn day deep desert dinner doctor down dream drive drop dry dust early earth east easy
edge eight empty enjoy enter even event every exit extra face fact fair fall family famous far farm fast father
feel few field fight final find finger first five flat fleet float floor follow force forest forget form four free
fresh friend front full fun game garden gate gentle girl give glad glass gold good grand gray great green ground
group grow guess guest guide half hand happy hard harvest hear heavy help hero high hill history hold holiday hope
hot hotel hour hunt hurry ice idea inside iron island jacket job join joke july jump june just keep kind kitchen
lake land large last late laugh lazy lead learn left legend less letter level life light line list listen little
live local long look lost loud love low lucky lunch machine magic main make many march market master match maybe
meal meet memory metal middle milk mind minute moment money month moon more morning most mother move much museum
music name nation nature near neck need never new news next nice night nine noise north note nothing number ocean
offer office often old once one only open orange order other outside over page paint palace paper parent park part
party past path peace people person photo place plain plan play please point police pond poor power price prize
public pull purple push quick quiet quite rain raise reach read ready real record red rest rich ride right river
road roof room rough round route royal run safe sail salt same sand save school science sea second secret see sell
send seven shade shape share sharp shine ship shop short show sing sister six skill sleep slow small smile smooth
snow soft song soon south space speak speed spring square stage stand start station stay step still stone stop
store storm story street strong summer sure surface sweet swim table talk tall taste teach team test thank thin
thing think three ticket time tiny tired today town track trade travel trip true trust try turn twelve twenty two
uncle under until upper use valley value very view village visit voice wait walk wall want war warm wash watch
water way weak wear week west wet white wide wild wind winter wise wish woman wood word work world worry write
wrong year yellow yes young zero
"""


BRIEF_WORDS = 8
"""How many words a brief corpus shows: few enough to be told apart after a few dozen pictures."""


def shown_words(studio: Studio) -> tuple[str, ...]:
    """Words that may appear in a picture."""
    return words(studio.unseen, BRIEF_WORDS if studio.brief else studio.vocabulary)


@cache
def words(unseen: bool, vocabulary: int | None = None) -> tuple[str, ...]:
    """Short common words, none of them the name of a concept: those of training, or those of the test alone.

    With a vocabulary, the first so many of training's by a hash of the word.
    """
    if vocabulary and not unseen:
        return tuple(sorted(words(False), key=lambda w: hashlib.sha256(w.encode()).digest())[:vocabulary])
    names = {part for c in all_concepts() for part in c.name.split()}
    return tuple(w for w in _WORDS.split() if 3 <= len(w) <= 7 and w not in names and held_out(w) == unseen)


@cache
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path(file)), size)


def make(studio: Studio) -> tuple[Scene, Question]:
    """One word in one colour: read it."""
    rng, scale = studio.rng, studio.scale
    unseen = studio.unseen
    word = rng.choice(shown_words(studio))
    families = HELD_OUT_FONTS if studio.split == "test" else FONTS
    family = rng.choice(list(families))
    font = rng.choice(families[family])
    text = rng.choice((word, word, word.title(), word.upper()))
    colour = studio.deal.pick("colour", INKS)
    background = rng.choice(backgrounds_for(colour))
    largest = _largest(font, text, round(102 * scale), round(40 * scale))
    size = rng.randint(min(largest, round(20 * scale)), largest)
    left, top, right, bottom = _font(font, size).getbbox(text)
    width, height = round(right - left), round(bottom - top)
    margin = round(4 * scale)
    x = rng.randint(margin, max(margin, studio.image_size - margin - width))
    y = rng.randint(margin, max(margin, studio.image_size - margin - height))
    details: dict[str, Any] = {
        "word": word,
        "text": text,
        "colour": colour,
        "font": font,
        "font_family": family,
        "font_size": size,
        "box": [x, y, x + width, y + height],
        "unseen_word": unseen,
        "unseen_style": family in HELD_OUT_FONTS,
    }
    scene = Scene("word", studio.image_size, background, details=details)
    return scene, Question("word", "word.read", word, topic="word")


def _largest(font: str, text: str, width: int, tallest: int) -> int:
    size = tallest
    while size > 8:
        left, _, right, _ = _font(font, size).getbbox(text)
        if right - left <= width:
            break
        size -= 1
    return size


def render(scene: Scene) -> Image.Image:
    """Draw the word."""
    assert scene.background is not None
    image = Image.new("RGB", (scene.image_size, scene.image_size), BACKGROUNDS[scene.background])
    font = _font(scene.details["font"], scene.details["font_size"])
    left, top, _, _ = font.getbbox(scene.details["text"])
    x, y = scene.details["box"][:2]
    paint = COLOURS[scene.details["colour"]]
    ImageDraw.Draw(image).text((x - left, y - top), scene.details["text"], fill=paint, font=font)
    return image


def more(scene: Scene, studio: Studio) -> list[Question]:
    """Further questions about the word."""
    word = scene.details["word"]
    assert scene.background is not None
    wrong = studio.rng.choice([w for w in shown_words(studio) if w != word])
    return [
        Question("word", "word.read", word, topic="word"),
        Question("colour", "word.colour", scene.details["colour"]),
        Question("colour", "colour.background", scene.background),
        Question("word", "word.check", "yes", {"word": word}, topic="word"),
        Question("word", "word.check", "no", {"word": wrong}, topic="word"),
        Question("count", "word.letters", str(len(word))),
    ]


def caption(scene: Scene, studio: Studio) -> str:
    """One sentence that says the word and its colour."""
    word, colour = scene.details["word"], scene.details["colour"]
    return studio.rng.choice(
        (
            f'The word "{word}" in {colour}.',
            f'The word "{word}" in {colour} on a {scene.background} background.',
            f'A picture of the word "{word}".',
            f'{colour.capitalize()} text that says "{word}".',
        )
    )
