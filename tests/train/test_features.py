"""Training from cached features, packed rows and plain captions."""

import threading
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from llavit import LlavitModel
from llavit.data import FeatureCache, open_reader
from llavit.train.features import _one_run_at_a_time, prepare_features
from llavit.train.lora import hold_frozen
from llavit.train.parts import freeze
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


def test_a_run_that_waited_for_another_computes_nothing_of_what_that_one_did(tmp_path):
    images = [Image.new("RGB", (2, 2), (shade, 0, 0)) for shade in range(6)]
    one, waiting = FeatureCache(tmp_path, {}), []

    def encode(batch):
        if one.rows:  # the other run starts now, with a part of this one's images on the disk
            waiting.append(FeatureCache(tmp_path, {}))
        return torch.ones(len(batch), 4, 8)

    with _one_run_at_a_time(one):
        assert one.add(images, encode, batch_size=2) == 6
    other = waiting[0]
    assert 0 < len(other) < 6
    with _one_run_at_a_time(other):
        assert other.add(images, lambda batch: pytest.fail("computed again")) == 0
    assert len(other) == 6


def test_both_stages_share_features_though_the_first_saves_a_rounded_tower(tiny, tmp_path):
    recipe = tiny.recipe(
        *("dtype=bfloat16", "stages.0.frozen_dtype=bfloat16", "stages.0.steps=1", "stages.1.steps=1"),
        f"feature_cache={tmp_path / 'features'}",
    )
    train(recipe, output=tmp_path / "out", progress=False)
    (key,) = (tmp_path / "features").iterdir()
    assert len(list(key.glob("*.bin"))) == 1  # the second stage computed nothing


@torch.no_grad()
def test_a_tower_held_in_bfloat16_gives_the_same_features_to_the_bit(tiny):
    model, pixels = tiny.build().model, torch.rand(2, 3, 16, 16)
    freeze(model, {"projector": 1e-3, "visual_qkv": 1e-3})
    found = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            found.append(model.model.encode_images(pixels))
        hold_frozen(model, torch.bfloat16, computes_in=torch.bfloat16)
    for parameter in model.parameters():  # as the next stage loads it
        parameter.data = parameter.data.float()
    with torch.autocast("cpu", torch.bfloat16):
        found.append(model.model.encode_images(pixels))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


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


def test_parts_that_another_process_wrote_are_waited_for_until_they_are_seen(tiny, tmp_path, monkeypatch):
    """As shared storage shows them late to another machine."""
    model, processor = tiny.build()

    def prepare(rank, gather):
        state = SimpleNamespace(process_index=rank, num_processes=2, wait_for_everyone=lambda: None)
        monkeypatch.setattr("llavit.train.features.PartialState", lambda: state)
        monkeypatch.setattr("llavit.train.features.gather_object", gather)
        return prepare_features(
            tmp_path / "features",
            model,
            processor,
            open_reader(tiny.data),
            dtype=torch.float32,
            device=torch.device("cpu"),
            console=Console(quiet=True),
        )

    other = prepare(1, list)
    for name in other.written:
        (other.folder / name).rename(tmp_path / name)

    def gathered(mine):
        for name in other.written:
            late.append(threading.Timer(0.2, (tmp_path / name).rename, [other.folder / name]))
            late[-1].start()
        return [*mine, *other.written.items()]

    late = []
    cache = prepare(0, gathered)
    pictures = [picture for index in range(12) for picture in open_reader(tiny.data).sample(index).images]
    assert len(other.written) == len(cache.written) == 2 and all(picture in cache for picture in pictures)
    for timer in late:
        timer.join()
