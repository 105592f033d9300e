"""Gallery of the starter edition: what each split may show, and drawings as pixels."""

import pytest
from PIL import ImageFont

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery import open_gallery, shown_in_training
from llavit.starter.gallery.names import _synonyms
from llavit.starter.palette import COLOURS

GALLERY = open_gallery("starter")


def test_training_shows_no_held_out_concept_and_no_style_of_the_test():
    for split in ("train", "val"):
        shown = GALLERY.drawings(split)
        assert not [d.name for d in shown if held_out(d.name)]
        assert {d.source for d in shown} == {"twemoji", "mdi"}
    assert {d.source for d in GALLERY.drawings("test")} == {"openmoji", "mdi"}


def test_the_test_shows_held_out_concepts_in_each_style():
    for source in ("openmoji", "mdi"):
        unseen = {d.name for d in GALLERY.drawings("test") if d.source == source and held_out(d.name)}
        assert len(unseen) >= 40, source


def test_fonts_words_and_tables_of_the_test_are_not_trained_on():
    assert not {f for f, _ in GALLERY.fonts("test")} & {f for f, _ in GALLERY.fonts("train")}
    assert not set(GALLERY.words("test")) & set(GALLERY.words("train"))
    assert not set(GALLERY.tables("test")) & set(GALLERY.tables("train"))
    assert "wheat.json" not in shown_in_training("starter") and "cars.json" in shown_in_training("starter")


def test_no_word_is_the_name_of_a_drawing():
    names = {part for d in GALLERY.drawings("test") for part in d.name.split()}
    assert not names & set(GALLERY.words("train")) and not names & set(GALLERY.words("test"))


def test_fonts_open_and_tables_have_columns():
    for split in ("train", "test"):
        for _, path in GALLERY.fonts(split):
            assert ImageFont.truetype(path, 12).getbbox("word")
        for table in GALLERY.tables(split):
            assert all(len(values) >= 6 for _, values in GALLERY.columns(table)) and GALLERY.columns(table)


def test_a_drawing_fills_its_size_and_takes_a_tint():
    for source in ("mdi", "twemoji"):
        drawing = next(d for d in GALLERY.drawings("train") if d.source == source)
        for size in (28, 50, 300):
            image = GALLERY.render(drawing, size)
            assert image.mode == "RGBA" and max(image.size) == size
    icon = next(d for d in GALLERY.drawings("train") if d.tintable)
    pixels = GALLERY.render(icon, 40, COLOURS["red"])
    assert pixels.getpixel((20, 20))[:3] == COLOURS["red"]
    assert {rgba[:3] for _, rgba in pixels.getcolors()} == {COLOURS["red"]}


def test_synonyms_are_of_concepts_and_never_say_the_name_itself():
    names = {c.name for c in all_concepts()}
    for name, others in _synonyms().items():
        assert name in names, name
        assert name not in others and len(set(others)) == len(others), name


def test_an_unknown_edition_is_refused():
    with pytest.raises(ValueError, match="edition='huge'"):
        open_gallery("huge")  # type: ignore[arg-type]
