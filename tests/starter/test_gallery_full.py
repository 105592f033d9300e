"""Gallery of the full edition: every family in one split, nothing held out in training, names as they should be."""

import pytest
from PIL import ImageFont

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.concepts import all_concepts, held_out
from llavit.starter.gallery import open_gallery, shown_in_training
from llavit.starter.gallery.clipart import _sized, countries
from llavit.starter.gallery.emoji import squashed
from llavit.starter.gallery.names import concept_of, mentions_held_out
from llavit.starter.gallery.rcc import read_rcc
from llavit.starter.packages import missing_packages

SPLITS = ("train", "val", "test")
needs_packages = pytest.mark.skipif(
    bool(missing_packages()), reason="needs the packages of `llavit starter build --full`"
)


@pytest.fixture(scope="module")
def gallery():
    return open_gallery("full")


def everything(gallery, split):
    return (*gallery.drawings(split), *gallery.pictures(split))


@needs_packages
def test_every_art_family_is_in_one_split(gallery):
    families = {split: {d.source for d in everything(gallery, split)} for split in SPLITS}
    # Fashion-MNIST is split as its makers did; each photo is in one split.
    families = {split: found - {"fashion-mnist"} for split, found in families.items()}
    assert not families["train"] & families["test"] and not families["val"] & families["test"]
    assert not families["train"] & families["val"]
    assert len(families["train"]) >= 9 and len(families["test"]) >= 6


@needs_packages
def test_photos_of_clothes_are_in_one_split(gallery):
    shown = {
        split: {d.key for d in gallery.pictures(split) if d.source == "fashion-mnist"} for split in SPLITS
    }
    assert len(shown["train"]) == 5_000 and not shown["train"] & shown["val"]


@needs_packages
def test_training_neither_shows_nor_names_what_is_held_out(gallery):
    for split in ("train", "val"):
        for drawing in everything(gallery, split):
            if drawing.category != "flag":
                assert not held_out(drawing.name), drawing
                assert not mentions_held_out(f"{drawing.name} {drawing.text}"), drawing


@needs_packages
def test_the_test_shows_held_out_concepts_in_four_styles(gallery):
    for source in ("openmoji", "fluent", "game-icons", "tuxpaint"):
        unseen = {d.name for d in gallery.drawings("test") if d.source == source and held_out(d.name)}
        assert len(unseen) >= 15, source


@needs_packages
def test_fonts_tables_and_words_are_in_one_split(gallery):
    for what in ("tables", "words"):
        found = {split: set(getattr(gallery, what)(split)) for split in SPLITS}
        assert not found["test"] & (found["train"] | found["val"]), what
    fonts = {split: {family for family, _ in gallery.fonts(split)} for split in SPLITS}
    assert not fonts["test"] & (fonts["train"] | fonts["val"]) and not fonts["train"] & fonts["val"]
    assert len(fonts["test"]) / sum(map(len, fonts.values())) >= 0.2
    assert {"barley.json", "wheat.json", "disasters.csv", "obesity.json"} <= set(gallery.tables("test"))
    for split in SPLITS:
        for _, path in gallery.fonts(split):
            assert ImageFont.truetype(path, 14).getbbox("word")[2] > 5
        assert all(gallery.columns(table) for table in gallery.tables(split))


@needs_packages
def test_objects_have_a_concept_or_are_photos(gallery):
    names = {c.name for c in all_concepts()}
    for split in SPLITS:
        for drawing in gallery.drawings(split):
            assert drawing.name in names or drawing.source == "tuxpaint", drawing
            assert drawing.name not in drawing.accepted and not drawing.whole


@needs_packages
def test_well_known_drawings_have_their_names(gallery):
    named = {(d.source, d.key): d.name for split in SPLITS for d in everything(gallery, split)}
    for source, key, name in (
        ("noto", "dog", "dog"),
        ("fxemoji", "catside", "cat"),
        ("streamline", "fire-engine", "fire truck"),
        ("emojione", "soccer-ball", "soccer ball"),
        ("fluent", "1f34e", "apple"),
        ("openmoji", "1f697", "car"),
        ("game-icons", "padlock", "lock"),
        ("lucide", "umbrella", "umbrella"),
        ("tuxpaint", "animals/mammals/pig_golden", "pig"),
        ("tuxpaint", "animals/mammals/aquatic/sea_lion", "sea lion"),
        ("art4apps", "animals/alligator", "crocodile"),
        ("gcompris", "explore_world_animals/koala.webp", "koala"),
        ("flag-icons", "ke", "flag of Kenya"),
    ):
        assert named[source, key] == name


@needs_packages
@pytest.mark.slow
def test_every_drawing_can_be_drawn(gallery):
    for split in SPLITS:
        for drawing in everything(gallery, split):
            assert max(gallery.render(drawing, 32).size) == 32, drawing


@needs_packages
def test_countries_share_no_flag():
    codes = {row["code"] for row in countries()}
    assert len(codes) >= 200 and {"ke", "fr", "jp"} <= codes and not {"mq", "sj", "hm"} & codes
    assert "flag-icons" in shown_in_training("full") and "fluent" not in shown_in_training("full")


def test_names_are_matched_without_case_and_punctuation():
    assert squashed("Alarm-Clock-2") == squashed("alarm clock") and squashed("dog") != squashed("dogs")
    assert concept_of()["aubergine"] == "eggplant" and "ship" not in {c.name for c in all_concepts()}


def test_a_clip_art_without_a_usable_size_gets_one():
    assert 'viewBox="0 0 90 45"' in _sized('<svg width="1in" height="0.5in"><g/></svg>')
    assert _sized('<svg width="100%" height="100%" viewBox="0 0 8 4"/>').count("width=") == 1
    assert _sized("no drawing") == "no drawing"


def test_only_resource_collections_are_read(tmp_path):
    (tmp_path / "x.rcc").write_bytes(b"other")
    with pytest.raises(ValueError, match="no Qt resource collection"):
        read_rcc(tmp_path / "x.rcc")
