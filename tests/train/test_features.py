"""Training from cached features, packed rows and plain captions."""

import pytest

from llavit import LlavitModel
from llavit.train.progress import read_step_log
from llavit.train.run import train


def losses(folder):
    return [row["loss"] for row in read_step_log(folder / "train_log.jsonl")]


@pytest.fixture(scope="module")
def plain(tiny, tmp_path_factory):
    return losses(train(tiny.recipe(), output=tmp_path_factory.mktemp("plain") / "out", progress=False))


@pytest.mark.parametrize(
    "overrides",
    [
        ("stages.0.pack_length=120", "stages.1.pack_length=64"),
        ("stages.1.group_by_length=true", "stages.1.micro_batch_size=2"),
    ],
    ids=["packed", "grouped"],
)
def test_packing_and_grouping_change_speed_only(tiny, plain, tmp_path, overrides):
    found = losses(train(tiny.recipe(*overrides), output=tmp_path / "out", progress=False))
    assert found == pytest.approx(plain, rel=1e-5)


def test_a_second_run_computes_no_features_and_has_the_same_losses(tiny, plain, tmp_path, monkeypatch):
    recipe = tiny.recipe(f"feature_cache={tmp_path / 'features'}")
    first = losses(train(recipe, output=tmp_path / "first", progress=False))
    assert first == pytest.approx(plain, rel=1e-2)  # features are rounded to bfloat16

    def encode_images(self, pixel_values):
        raise AssertionError("an image was encoded again")

    monkeypatch.setattr(LlavitModel, "encode_images", encode_images)
    assert losses(train(recipe, output=tmp_path / "second", progress=False)) == first


def test_a_tower_that_trains_sees_pixels(tiny, tmp_path):
    recipe = tiny.recipe(
        f"feature_cache={tmp_path / 'features'}", "stages.0.learning_rates.vision_tower=1e-3"
    )
    train(recipe, output=tmp_path / "out", progress=False)
    (key,) = (tmp_path / "features").iterdir()  # of the second stage, with the tower that the first one made
    assert list(key.glob("*.bin"))


def test_plain_captions_leave_the_prompt_out(tiny, plain, tmp_path):
    folder = train(tiny.recipe("stages.0.style=plain"), output=tmp_path / "out", progress=False)
    rows = [
        read_step_log(folder.parent / stage / "train_log.jsonl")[0]["tokens"]
        for stage in ("pretrain", "instruct")
    ]
    assert rows[0] < rows[1]
