"""Probes: features and labels are of the right pictures and patches, scores and intervals are what they say."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("resvg_py", reason="of the extra `starter`, which a core install lacks")
pytest.importorskip("sklearn", reason="of the extra `inspect`, which a core install lacks")

from llavit.inspect.features import Kept, Place, kept_features, layer_features, places_of
from llavit.inspect.probe import GROUPS, Probe, ProbePictures, _patches, _Task, probe_layers, probe_pictures
from llavit.inspect.probe_report import best_places
from llavit.inspect.probing import balanced_accuracy, linear, mean_iou, patch_interval, tallies
from llavit.inspect.truth import patch_objects
from llavit.starter.corpus import build_corpus
from llavit.starter.truth import Shown

KINDS = {"name": 1, "size": 1, "count": 1}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    sizes = dict(pretrain=0, instruct=30, val=150, test=60, vocabulary=24, brief=True, kinds=KINDS)
    return build_corpus(tmp_path_factory.mktemp("probe"), **sizes, image_size=112, workers=1)


@pytest.fixture(scope="module")
def pictures(corpus) -> ProbePictures:
    return probe_pictures(corpus.root, least=2)


def test_probes_learn_in_styles_of_training_and_are_asked_in_both(pictures):
    assert pictures.source == "val" and {s.split for s in pictures.train} == {"val"}
    assert {s.split for s in pictures.test} == {"test"}
    assert not any(s.unseen_style for s in pictures.train)
    assert {s.unseen_style for s in pictures.test} == {True, False}
    assert all(s.concepts <= set(pictures.classes) for s in pictures.train + pictures.test)


def test_pictures_of_an_unseen_style_hold_no_drawing_of_training_and_none_is_learned_and_asked(
    corpus, pictures
):
    learned = {thing["source"] for s in pictures.train for thing in s.objects}
    unseen = [s for s in pictures.test if s.unseen_style]
    assert unseen and not any(learned & {thing["source"] for thing in s.objects} for s in unseen)
    with pytest.raises(ValueError, match="to be learned from and asked about"):
        probe_pictures(corpus.root, train="test", least=1)
    with pytest.raises(ValueError, match="1 of them are to be learned from"):
        ProbePictures(pictures.train, [*pictures.test, pictures.train[0]], pictures.classes, "val")


def test_without_val_the_probes_learn_from_pictures_of_training_and_say_so(tmp_path):
    sizes = dict(pretrain=0, instruct=150, val=0, test=40, vocabulary=24, kinds=KINDS, workers=1)
    found = probe_pictures(build_corpus(tmp_path, **sizes).root, least=2)
    assert found.source == "instruct" and {s.split for s in found.train} == {"instruct"}


def test_too_few_pictures_are_refused_with_the_remedy(corpus):
    with pytest.raises(ValueError, match=r"got 0 concepts .*build_corpus\(\.\.\., val=600"):
        probe_pictures(corpus.root, limit=5)


def test_kept_features_are_those_of_the_pictures_and_patches(tiny, pictures):
    model, processor = tiny.build(dtype=torch.float32)
    model.eval()
    images = [s.image for s in pictures.test[:5]]
    places = places_of(model, layers=[0, -1], tower_layers=[1, 3])
    assert [str(place) for place in places] == ["tower 1", "tower 3", "projector reads", "LLM 0", "LLM 2"]
    picks = np.array([[0, 3], [1, 1], [2, 0], [3, 2], [0, 1]])
    kept = kept_features(model, processor, images, places, picks, batch_size=2)
    for row, image in enumerate(images):
        pixels = processor.pixel_values([image])
        last = model.encode_image(pixels, -1, prefix=processor.image_prefix()).patches.flatten(0, 2)
        with torch.no_grad():
            tower = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[1][0, 1:]
            read = model.model.encode_images(pixels)[0]
        for place, want in [(Place("llm", 2), last), (Place("tower", 1), tower), (Place("read"), read)]:
            np.testing.assert_allclose(kept[place].pooled_nd[row], want.mean(0), atol=1e-5)
            np.testing.assert_allclose(kept[place].picked_nkd[row], want[picks[row]], atol=1e-5)


def test_the_image_alone_has_other_features_than_behind_a_prefix(tiny, pictures):
    model, processor = tiny.build(dtype=torch.float32)
    model.eval()
    (_, behind), (_, alone) = (
        next(
            layer_features(
                model, processor, [pictures.test[0].image], [Place("llm", 0), Place("llm", 2)], prefix=prefix
            )
        )
        for prefix in (True, False)
    )
    assert torch.equal(behind[Place("llm", 0)], alone[Place("llm", 0)])
    assert not torch.allclose(behind[Place("llm", 2)], alone[Place("llm", 2)], atol=1e-3)


def test_places_are_spread_from_the_first_to_the_last_layer(tiny):
    model, _ = tiny.build()
    assert [str(p) for p in places_of(model)] == [
        *[f"tower {n}" for n in range(4)],
        "projector reads",
        *[f"LLM {n}" for n in range(3)],
    ]
    with pytest.raises(ValueError, match="layer 3: expected 0"):
        places_of(model, layers=[3])
    assert places_of(model, layers=[], tower_layers=[]) == [Place("read")]


def test_patches_are_labelled_by_the_object_that_is_on_them(tiny, pictures):
    _, processor = tiny.build()
    shown = pictures.train[:60]
    picks, truth = _patches(shown, pictures.classes, processor, count=3, seed=0)
    background, on = len(pictures.classes), 0
    for row, each in enumerate(shown):
        grid = patch_objects(each.objects, processor, 112, 112).flatten()
        for patch, label in zip(picks[row], truth[row], strict=True):
            if label in (-1, background):
                assert label == -1 or grid[patch] == -1
            else:
                assert each.objects[grid[patch]]["name"] == pictures.classes[label]
                on += 1
        asked = picks[row][truth[row] >= 0]
        assert len(set(asked)) == len(asked)
    assert on > 20 and (truth == background).any()
    again = _patches(shown, pictures.classes, processor, count=3, seed=0)
    assert (again[0] == picks).all() and (again[1] == truth).all()


def task(pictures: ProbePictures, patches: int = 2) -> _Task:
    """Labels of real pictures; of each, one patch with its object and one of background."""
    shown = pictures.train + pictures.test
    numbers = {name: number for number, name in enumerate(pictures.classes)}
    truth = [[numbers[next(iter(s.concepts))], len(numbers)] for s in shown]
    return _Task.of(pictures, np.array(truth)[:, :patches])


def features(labels: _Task, noise: float) -> Kept:
    """One-hot labels in noise."""
    rng = np.random.default_rng(0)
    width = len(labels.classes) + 1
    pooled, picked = np.eye(width)[labels.concept_n], np.eye(width)[labels.truth_nk]
    return Kept(*(x * (noise < 2) + noise * rng.standard_normal(x.shape) for x in (pooled, picked)))


def test_probes_read_what_is_in_the_features_and_guess_what_is_not(pictures):
    labels = task(pictures)
    know, guess = (labels.scores(features(labels, noise), 5, 0.1, 0) for noise in (0.05, 5.0))
    for measure in ("knn", "linear", "dense", "miou"):
        for column in range(2):
            assert know[measure][column][0] > 0.95, measure
            assert guess[measure][column][0] < 0.35, measure
            score, low, high = guess[measure][column]
            assert 0 <= low <= score <= high <= 1


def test_a_style_that_moves_features_costs_only_the_pictures_in_it(pictures):
    """Groups are not mixed up: where unseen pictures wear another picture's features, their scores alone fall."""
    labels = task(pictures)
    kept = features(labels, 0.05)
    wrong = np.roll(np.arange(len(labels.unseen_n)), 7)
    for x in (kept.pooled_nd, kept.picked_nkd):
        x[labels.unseen_n] = x[wrong][labels.unseen_n]
    found = labels.scores(kept, 5, 0.1, 0)
    for measure in ("knn", "linear", "dense"):
        seen, unseen = found[measure]
        assert seen[0] > 0.95 and unseen[0] < 0.8, measure


def test_balanced_accuracy_and_iou_are_scikit_learns():
    from sklearn.metrics import balanced_accuracy_score, jaccard_score

    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 5, 300), rng.integers(0, 5, 300)
    guess[:150] = truth[:150]
    counts = tallies(truth, guess, rng.integers(0, 20, 300), 5)
    assert counts.shape == (20, 3, 5)
    assert counts.sum((0, 2)).tolist() == [(truth == guess).sum(), 300, 300]
    assert balanced_accuracy(counts.sum(0)) == pytest.approx(balanced_accuracy_score(truth, guess))
    assert mean_iou(counts.sum(0)) == pytest.approx(jaccard_score(truth, guess, average="macro"))


def test_the_interval_of_patches_covers_what_other_samples_give():
    """Of many samples of 60 pictures, about 95 of 100 intervals hold the truth."""
    rng = np.random.default_rng(0)
    held = 0
    for sample in range(100):
        skill = rng.beta(6, 4, 60)  # of each picture: patches of one are not independent
        truth = rng.integers(0, 2, (60, 8))
        guess = np.where(rng.random((60, 8)) < skill[:, None], truth, 1 - truth)
        counts = tallies(truth.ravel(), guess.ravel(), np.repeat(np.arange(60), 8), 2)
        _, low, high = patch_interval(counts, balanced_accuracy, seed=sample)
        held += low <= 0.6 <= high
    assert 88 <= held <= 100


def test_the_interval_of_many_classes_takes_little_memory():
    """Of 400 classes and 500 pictures a table of truth by guess for each resample would be gigabytes."""
    import tracemalloc

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 400, 2000)
    tracemalloc.start()
    try:
        counts = tallies(truth, truth, np.arange(2000) // 4, 400)
        score, low, high = patch_interval(counts, mean_iou)
        assert tracemalloc.get_traced_memory()[1] < 200e6
    finally:
        tracemalloc.stop()
    assert (score, low, high) == (1.0, 1.0, 1.0)


def test_a_linear_probe_does_not_care_for_the_scale_of_a_feature():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 120)
    x = np.eye(3)[labels] + 0.3 * rng.standard_normal((120, 3))
    guesses = [linear(x[:80] * scale + 5, labels[:80], x[80:] * scale + 5) for scale in (1.0, [1e3, 1, 1e-3])]
    assert (guesses[0] == guesses[1]).all() and (guesses[0] == labels[80:]).mean() > 0.9


@pytest.fixture(scope="module")
def probed(tiny, pictures) -> list[Probe]:
    results = []
    for name, switches in [
        ("llavit", {}),
        ("llava", {"visual_qkv": False, "bidirectional_visual_attention": False}),
    ]:
        model, processor = tiny.build(dtype=torch.float32, **switches)
        results.append(probe_layers(model.eval(), processor, pictures, name=name, layers=[0, -1], patches=2))
    return results


def test_a_result_has_every_place_and_group_and_says_how_it_was_made(probed, tmp_path):
    result = probed[0]
    assert result.places[-3:] == ["projector reads", "LLM 0", "LLM 2"] and result.groups == list(GROUPS)
    for measure in ("knn", "linear", "dense", "miou"):
        values = getattr(result, measure)
        assert values.shape == (len(result.places), 2, 3) and not np.isnan(values).any()
    # One tower: what the two models differ in begins with the projector.
    np.testing.assert_array_equal(probed[0].linear[:-2], probed[1].linear[:-2])
    page = result.save(tmp_path)
    facts = json.loads((tmp_path / "probe.json").read_text())
    assert facts["scores"]["LLM 2"]["linear"]["unseen style"][0] == pytest.approx(
        result.linear[-1, 1, 0], abs=1e-4
    )
    assert facts["settings"]["learned from"] == "val" and facts["counts"]["classes"] > 5
    with Image.open(tmp_path / "probe.png") as picture:
        assert picture.width > 800
    assert "data:image/png" in page.read_text()


def test_the_best_place_is_the_one_with_the_highest_score(probed):
    place, score = probed[0].best("linear", "LLM", "seen style")
    rows = [probed[0].places.index(name) for name in ("LLM 0", "LLM 2")]
    assert score == probed[0].linear[rows, 0, 0].max() and place in ("LLM 0", "LLM 2")
    with pytest.raises(ValueError, match="part='head'"):
        probed[0].best(part="head")


def test_a_group_without_pictures_is_nan_and_not_zero(tiny, pictures):
    seen = [s for s in pictures.test if not s.unseen_style]
    model, processor = tiny.build(dtype=torch.float32)
    only = ProbePictures(pictures.train, seen, pictures.classes, "val")
    found = probe_layers(model.eval(), processor, only, layers=[], tower_layers=[], patches=2)
    assert np.isnan(found.linear[:, 1]).all() and not np.isnan(found.linear[:, 0]).any()
    found.figure()
    assert (
        found.facts()["scores"]["projector reads"]["linear"]["unseen style"] == [None] * 3
    )  # JSON has no NaN
    tower = probe_layers(model.eval(), processor, only, layers=[], tower_layers=[0], patches=2)
    assert best_places([tower]) == [["model", "tower", *["no pictures"] * 3]]


def test_without_scikit_learn_the_extra_is_named(tiny, pictures, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    model, processor = tiny.build()
    with pytest.raises(ImportError, match=r"pip install 'llavit\[inspect\]'"):
        probe_layers(model, processor, pictures)


def test_importing_the_package_does_not_import_scikit_learn():
    import subprocess

    code = "import llavit.inspect.probe, sys; assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_command_sets_models_side_by_side(tiny, corpus, tmp_path):
    from typer.testing import CliRunner

    from llavit.cli import app

    for name, switches in [("llavit", {}), ("llava", {"visual_qkv": False})]:
        model, processor = tiny.build(dtype=torch.float32, **switches)
        model.save_pretrained(tmp_path / name)
        processor.save_pretrained(tmp_path / name)
    command = [
        "inspect",
        "probe",
        str(tmp_path / "llava"),
        str(tmp_path / "llavit"),
        "--data",
        str(corpus.root),
    ]
    options = ["--layers", "0,2", "--tower-layers", "1", "--pictures", "2", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*command, *options])
    assert done.exit_code == 0, done.output
    assert done.output.count("llavit") >= 2 and "nearest neighbours" in done.output
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"probe.html", "probe.png", "probe.json", "probe-1.npz", "probe-2.json"} <= names
    both = json.loads((tmp_path / "out/probe.json").read_text())
    assert [each["model"] for each in both["models"]] == ["llava", "llavit"]
    assert np.load(tmp_path / "out/probe-1.npz")["pca_rgb"].shape == (4, 2, 2, 2, 3)
    assert (tmp_path / "out/probe.html").read_text().count("<img") == 2 * 2 + 2


def test_shown_pictures_of_two_concepts_are_no_label(pictures):
    labels = _Task.of(pictures, np.zeros((len(pictures.train) + len(pictures.test), 1), int))
    shown: list[Shown] = pictures.train + pictures.test
    for number, each in zip(labels.concept_n, shown, strict=True):
        if len(each.concepts) == 1:
            assert each.concepts == {pictures.classes[number]}
        else:
            assert number == -1
