"""The feature cache: the same features as from pixels, computed once, and never a stale or damaged one."""

import json
import os
import pickle

import pytest
import torch
from PIL import Image

from llavit.data import Collator, ConversationDataset, FeatureCache, cache_key, open_reader
from llavit.data.features import image_digest


class Tower:
    """Counts what it is asked to encode."""

    def __init__(self):
        self.seen = 0

    def __call__(self, images):
        self.seen += len(images)
        return torch.stack([torch.full((2, 4), float(image.getpixel((0, 0))[0])) for image in images])


def pictures(*reds):
    return [Image.new("RGB", (3, 2), (red, 0, 0)) for red in reds]


def test_each_image_is_computed_once_over_runs_and_duplicates(tmp_path):
    tower = Tower()
    assert FeatureCache(tmp_path, {"tower": "a"}).add(pictures(1, 2, 1, 3), tower, batch_size=2) == 3
    again = FeatureCache(tmp_path, {"tower": "a"})
    assert again.add(pictures(3, 2, 4), tower) == 1
    assert tower.seen == 4
    assert [again(picture)[0, 0].item() for picture in pictures(1, 2, 3, 4)] == [1, 2, 3, 4]


def test_another_key_is_another_cache(tmp_path):
    FeatureCache(tmp_path, {"tower": "a"}).add(pictures(1), Tower())
    assert len(FeatureCache(tmp_path, {"tower": "b"})) == 0


def test_the_key_changes_with_each_weight_and_each_setting():
    tower = torch.nn.Linear(2, 2)
    before = cache_key(tower, {"layers": [1]})
    assert before == cache_key(tower, {"layers": [1]}) != cache_key(tower, {"layers": [2]})
    with torch.no_grad():
        tower.bias[0] += 1e-3
    assert before != cache_key(tower, {"layers": [1]})


def test_a_tower_saved_as_bfloat16_computes_it_has_the_key_of_the_one_it_came_from():
    whole, saved = (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3)) for _ in range(2))
    saved.load_state_dict(whole.state_dict())
    saved[0].weight.data = saved[0].weight.data.bfloat16().float()
    assert not torch.equal(saved[0].weight, whole[0].weight)
    keys = [cache_key(one, {}, computed_in=torch.bfloat16) for one in (whole, saved)]
    assert keys[0] == keys[1]
    assert cache_key(whole, {}) != cache_key(saved, {})  # float32 does see the difference
    assert cache_key(whole, {}) != keys[0]
    with torch.no_grad():
        saved[1].weight[0] += 1e-4  # no matrix: computed as it is
    assert cache_key(saved, {}, computed_in=torch.bfloat16) != keys[0]


def test_a_tower_whose_config_alone_was_put_right_has_another_key(tiny):
    tower = tiny.build().model.model.vision_tower
    before = cache_key(tower, {})
    tower.config.dtype = torch.bfloat16
    tower.config._name_or_path = "elsewhere"
    assert cache_key(tower, {}) == before
    for name, value in (("hidden_act", "gelu"), ("layer_norm_eps", 1e-6), ("num_attention_heads", 4)):
        old = getattr(tower.config, name)
        assert old != value
        setattr(tower.config, name, value)
        assert cache_key(tower, {}) != before
        setattr(tower.config, name, old)


def test_a_changed_image_file_has_no_features(tmp_path):
    path = tmp_path / "a.png"
    pictures(7)[0].save(path)
    cache = FeatureCache(tmp_path / "cache", {})
    cache.add([path], lambda paths: Tower()([Image.open(p) for p in paths]))
    assert path in cache
    pictures(8)[0].save(path)
    assert path not in cache
    with pytest.raises(KeyError):
        cache(path)


@pytest.mark.parametrize("harm", ["flipped byte", "cut data", "cut index", "no data", "garbled index"])
def test_a_damaged_entry_is_computed_again(tmp_path, harm):
    cache = FeatureCache(tmp_path, {})
    cache.add(pictures(1, 2, 3), Tower())
    (data,), (index,) = cache.folder.glob("*.bin"), cache.folder.glob("*.idx")
    raw = data.read_bytes()
    if harm == "flipped byte":
        data.write_bytes(raw[:20] + bytes([raw[20] ^ 1]) + raw[21:])
    elif harm == "cut data":
        os.truncate(data, len(raw) - 1)
    elif harm == "cut index":
        os.truncate(index, index.stat().st_size - 5)
    elif harm == "no data":
        data.unlink()
    else:
        index.write_bytes(b"\xff\xfe" + index.read_bytes())
    found = FeatureCache(tmp_path, {})
    computed = found.add(pictures(1, 2, 3), Tower())
    assert computed == (3 if harm in ("no data", "garbled index") else 1)
    assert [found(picture)[0, 0].item() for picture in pictures(1, 2, 3)] == [1, 2, 3]


def test_parts_that_did_not_change_are_not_read_at_the_start_and_damage_shows_when_a_row_is_used(tmp_path):
    FeatureCache(tmp_path, {}).add(pictures(1, 2, 3), Tower())
    (data,) = tmp_path.glob("*/*.bin")
    raw, times = data.read_bytes(), data.stat()
    data.write_bytes(raw[:20] + bytes([raw[20] ^ 1]) + raw[21:])
    os.utime(data, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a disk forgets
    cache = FeatureCache(tmp_path, {})
    assert (len(cache), cache.damaged) == (3, 0)
    assert cache(pictures(1)[0])[0, 0].item() == 1
    with pytest.raises(KeyError, match=r"row 1 of .* is damaged"):
        cache(pictures(2)[0])
    for damaged in (1, 1):  # it is known at each start that follows, and not looked for again
        cache = FeatureCache(tmp_path, {})
        assert (len(cache), cache.damaged) == (2, damaged)
    tower = Tower()
    assert cache.add(pictures(1, 2, 3), tower) == tower.seen == 1
    cache = FeatureCache(tmp_path, {})
    assert (len(cache), cache.damaged) == (3, 0)
    assert [cache(picture)[0, 0].item() for picture in pictures(1, 2, 3)] == [1, 2, 3]


@pytest.mark.parametrize("text", ["", "[]", '{"files": 3}'])
def test_a_mark_of_checked_rows_that_is_not_whole_counts_for_nothing(tmp_path, text):
    FeatureCache(tmp_path, {}).add(pictures(1), Tower())
    (mark,) = tmp_path.glob("*/*.checked")
    whole = mark.read_text()
    mark.write_text(text)
    assert len(FeatureCache(tmp_path, {})) == 1
    assert mark.read_text() == whole


def test_an_unreadable_image_leaves_the_others(tmp_path):
    def encode(images):
        if any(image.getpixel((0, 0))[0] == 2 for image in images):
            raise ValueError("cannot read")
        return Tower()(images)

    cache = FeatureCache(tmp_path, {})
    nowhere = [str(tmp_path / name) for name in ("missing.png", "a\0b.png", "\ud83d.png")]
    assert cache.add([*pictures(1, 2, 3), *nowhere], encode) == 2
    assert [picture in cache for picture in pictures(1, 2, 3)] == [True, False, True]


def test_a_full_disk_is_an_error_that_says_so(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("llavit.data.features.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(ValueError, match="GiB of disk are left"):
        FeatureCache(tmp_path, {}).add(pictures(1), Tower())


def test_the_cache_travels_to_worker_processes(tmp_path):
    cache = FeatureCache(tmp_path, {})
    cache.add(pictures(5), Tower())
    cache(pictures(5)[0])
    assert pickle.loads(pickle.dumps(cache))(pictures(5)[0])[0, 0].item() == 5


def test_pictures_that_differ_in_shape_or_mode_alone_differ():
    digests = {image_digest(Image.new(mode, size)) for mode in ("L", "P") for size in ((2, 3), (3, 2))}
    assert len(digests) == 4


def test_pictures_that_differ_in_palette_or_orientation_alone_differ():
    plain, other, turned = (Image.new("P", (2, 3)) for _ in range(3))
    plain.putpalette([0, 0, 0])
    other.putpalette([255, 0, 0])
    turned.putpalette([0, 0, 0])
    turned.getexif()[0x0112] = 6
    assert len({image_digest(picture) for picture in (plain, other, turned)}) == 3


@torch.no_grad()
def test_cached_features_give_the_loss_of_the_pixels(tiny, tmp_path):
    model, processor = tiny.build()
    reader = open_reader(tiny.data)
    cache = FeatureCache(tmp_path, {})
    paths = [image for index in range(6) for image in reader.sample(index).images]
    cache.add(paths, lambda images: model.model.encode_images(processor.pixel_values(images)))
    losses = []
    for features in (None, cache):
        data = ConversationDataset(reader, processor, features=features)
        batch = Collator(0)([data[index] for index in range(6)])
        assert ("image_features" in batch) == (features is not None)
        batch = {key: value for key, value in batch.items() if key not in ("sample_ids", "skipped")}
        losses.append(model(**batch, use_cache=False).loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)  # features are rounded to bfloat16
    with pytest.raises(ValueError, match="got both"):
        model(**batch, pixel_values=torch.zeros(4, 3, 16, 16))


@pytest.mark.parametrize("image", ["missing.png", "a\0b.png", "."])
def test_an_image_that_cannot_be_read_is_named_with_its_record_with_a_cache_as_without(tiny, tmp_path, image):
    _, processor = tiny.build()
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "A cat."}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": 17, "image": image, "conversations": turns}]))
    for features in (None, FeatureCache(tmp_path, {})):
        data = ConversationDataset(open_reader(tmp_path / "data.json"), processor, features=features)
        with pytest.raises(ValueError, match=r"17 \(#0\): cannot read image"):
            data[0]


def test_an_image_that_changed_under_training_is_named(tiny, tmp_path):
    _, processor = tiny.build()
    data = ConversationDataset(open_reader(tiny.data), processor, features=FeatureCache(tmp_path, {}))
    with pytest.raises(ValueError, match=r"i0 .*0\.png has no features in the cache"):
        data[0]
