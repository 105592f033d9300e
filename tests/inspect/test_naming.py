"""Do visual tokens name what is there: shares against the truth, chance against other pictures' truth."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from llavit.cli import app
from llavit.inspect.naming import Naming, _shares, naming_figure, naming_shares
from llavit.starter.truth import Shown
from tests.inspect.test_report import external

LETTERS = {"x": "red", "k": "blue", "z": "green"}


def pictures(folder, names: str = "xkzxkz") -> list[Shown]:
    """One object in the left half of each picture, its colour told by its name."""
    folder.mkdir(parents=True, exist_ok=True)
    found = []
    for number, name in enumerate(names):
        picture = Image.new("RGB", (16, 16), "white")
        picture.paste(LETTERS[name], (0, 0, 8, 16))
        picture.save(folder / f"{number}.png")
        scene = {"objects": [{"name": name, "box": [0, 0, 8, 16]}]}
        found.append(Shown(folder / f"{number}.png", "test", scene, number % 2 == 1, False))
    return found


@pytest.fixture(scope="module")
def reader(tiny):
    """A model whose projector turns the mean colour of a patch into the embedding of that colour's letter."""
    model, processor = tiny.build(dtype=torch.float32)
    model.eval()

    def project(features):
        red, green, blue = project.pixels.unfold(2, 8, 8).unfold(3, 8, 8).mean((-1, -2)).flatten(2).unbind(1)
        table = model.get_input_embeddings().weight
        ids = [processor.tokenizer.encode(letter)[0] for letter in ("x", "k", "z", "w")]
        which = torch.stack([red - green, blue - red, green - blue, torch.full_like(red, 1.0)], -1).argmax(-1)
        return table[torch.tensor(ids)][which]

    def keep(module, args, kwargs):
        project.pixels = kwargs.get("pixel_values", args[0] if args else None)

    model.model.vision_tower.register_forward_pre_hook(keep, with_kwargs=True)
    model.model.multi_modal_projector.forward = project
    return model, processor


def test_a_model_that_reads_objects_as_their_names_is_right_at_every_patch(reader, tmp_path):
    found = naming_shares(*reader, pictures(tmp_path), layers=[-1], k=1, whole_words=False, batch_size=4)
    assert found.views == ("input", "layer 1")
    np.testing.assert_array_equal(found.patch_npk[0, :, 0], 1)  # the object's patches, and no others
    np.testing.assert_array_equal(found.picture_npk[0, :, 0], 0.5)  # half of the patches are background
    # Of the five other pictures one shows the same thing.
    np.testing.assert_allclose(found.patch_chance_npk[0, :, 0], 0.2)
    np.testing.assert_allclose(found.picture_chance_npk[0, :, 0], 0.1)
    row = found.rows()[0]
    assert (row["patch"]["score"], row["patch"]["high"]) == (1, 1) and row["patch"]["low"] < 1
    assert row["patch_above_chance"]["score"] == pytest.approx(0.8)
    assert found.unseen_style_p.tolist() == [False, True] * 3
    assert found.names == {letter: [letter.upper(), letter] for letter in LETTERS}


def test_words_that_have_nothing_to_do_with_the_picture_are_at_chance():
    rng = np.random.default_rng(0)
    names = np.eye(4, dtype=bool)
    shares = []
    for thing in rng.integers(0, 4, 400):
        on_patches = np.where(np.arange(9) < 5, 0, -1)  # the first of the picture's objects, or background
        words = rng.integers(0, 4, (2, 9, 3))
        shares.append(_shares(words, names, on_patches, [thing], [[other] for other in range(4)]))
    patch, chance, *_ = (np.mean(column, 0) for column in zip(*shares, strict=True))
    np.testing.assert_allclose(patch, chance, atol=0.05)
    np.testing.assert_allclose(chance[0], [1 / 4, 1 - (3 / 4) ** 2, 1 - (3 / 4) ** 3], atol=0.03)


def test_shares_are_those_of_a_count_by_hand():
    names = np.zeros((3, 6), bool)
    names[0, [0, 1]] = names[1, 2] = names[2, 3] = True
    ids = np.array([[[0, 5], [5, 1], [2, 5], [5, 5]]])  # one view, four patches, two words
    patch, chance, picture, picture_chance = _shares(
        ids, names, np.array([0, 0, 1, -1]), [0, 1], [[1], [2, 1]]
    )
    np.testing.assert_allclose(patch, [[2 / 3, 1]])
    # Object patches that name thing 1: one of three; thing 2: none. The second other picture has both.
    np.testing.assert_allclose(chance, [[(1 / 3 + 1 / 6) / 2] * 2])
    np.testing.assert_allclose(picture, [[2 / 4, 3 / 4]])
    np.testing.assert_allclose(picture_chance, [[1 / 4] * 2])


def test_more_words_never_name_less_and_intervals_hold_the_mean(tiny, tmp_path):
    model, processor = tiny.build()
    found = naming_shares(model.eval(), processor, pictures(tmp_path), k=40, whole_words=False)
    for array in (found.patch_npk, found.patch_chance_npk, found.picture_npk, found.picture_chance_npk):
        assert array.shape == (3, 6, 40) and (np.diff(array, axis=-1) >= 0).all()
        assert array.min() >= 0 and array.max() <= 1
    for point in found.curve(k=40):
        assert point.low <= point.score <= point.high
    with pytest.raises(ValueError, match="a k from 1 to 40"):
        found.curve(k=41)
    with pytest.raises(ValueError, match="expected patch or picture"):
        found.curve("page")


def test_pictures_without_an_object_on_a_patch_are_left_out(reader, tmp_path):
    shown = pictures(tmp_path, "xkz")
    small = Shown(shown[0].image, "test", {"objects": [{"name": "x", "box": [0, 0, 2, 2]}]}, False, False)
    nothing = Shown(shown[0].image, "test", {"objects": []}, False, False)
    found = naming_shares(*reader, [*shown, small, nothing], layers=[], k=1, whole_words=False)
    assert (
        found.pictures == ("test/0.png", "test/1.png", "test/2.png") and found.settings["pictures given"] == 5
    )
    with pytest.raises(ValueError, match="at least two pictures with an object on a patch, got 1 of 3"):
        naming_shares(*reader, [shown[0], small, nothing], k=1, whole_words=False)


def test_in_one_picture_each_model_has_its_own_layers_and_none_is_left_out():
    """Models of different depths, more of them than there are colours."""

    def named(name: str, *views: str) -> Naming:
        shares = {f"{of}_npk": np.zeros((len(views), 2, 1)) for of in ("patch", "picture")}
        chance = {f"{of}_chance_npk": np.zeros((len(views), 2, 1)) for of in ("patch", "picture")}
        two = dict(unseen_style_p=np.zeros(2, bool), pictures=("a", "b"), names={})
        return Naming(model=name, views=views, **shares, **chance, **two)

    deep = [named(f"deep {n}", "input", "layer 0", "layer 29") for n in range(8)]
    panel, _ = naming_figure([*deep, named("shallow", "input", "layer 0", "layer 9")]).axes
    at = {line.get_label(): line.get_xdata() for line in panel.get_lines()}
    assert len(at) == 9 * 2
    assert list(at["shallow"]) == [0, 1, 2] and list(at["deep 7"]) == [0, 1, 3]
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["input", "0", "9", "29"]


def test_batches_change_nothing(reader, tmp_path):
    one, other = (
        naming_shares(*reader, pictures(tmp_path), k=3, whole_words=False, batch_size=size) for size in (1, 5)
    )
    assert isinstance(one, Naming)
    for name, array in one.arrays().items():
        np.testing.assert_allclose(array, other.arrays()[name])


def test_the_command_measures_models_on_a_file_of_pictures(tiny, tmp_path):
    model, processor = tiny.build(dtype=torch.float32)
    for part in (model, processor):
        part.save_pretrained(tmp_path / "model")
    rows = [
        {"image": f"{n}.png", "scene": each.scene, "unseen_style": False, "unseen_concept": False}
        for n, each in enumerate(pictures(tmp_path / "data"))
    ]
    (tmp_path / "data/shown.json").write_text(json.dumps(rows))
    where = f"{tmp_path / 'model'} {tmp_path / 'model'} --data {tmp_path / 'data/shown.json'} -o {tmp_path / 'out'}"
    done = CliRunner().invoke(app, f"inspect lens {where} --all-tokens --limit 4 -k 2".split())
    assert done.exit_code == 0, done.output
    page = (tmp_path / "out/naming.html").read_text()
    assert external(page) == [] and page.count('<section class="result">') == 2 and 'alt="all models"' in page
    facts = json.loads((tmp_path / "out/naming-1.json").read_text())
    assert len(facts["pictures"]) == 4
    assert [row["view"] for row in facts["by_view"]["k=2"]] == ["input", "layer 0", "layer 1"]
