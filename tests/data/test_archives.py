"""Records in tar files (WebDataset) and in Hugging Face data sets."""

import io
import json
import pickle
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image

from llavit.data import from_record, open_reader
from llavit.model.images import load_image

TURNS = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


def png(red):
    out = io.BytesIO()
    Image.new("RGB", (4, 4), (red, 0, 0)).save(out, "PNG")
    return out.getvalue()


def red_of(image):
    return load_image(image).getpixel((0, 0))[0]


def write_tar(path, files, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, content in files:
            content = json.dumps(content).encode() if isinstance(content, dict | list) else content
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Five samples in two tar files, among what tar files also hold."""
    write_tar(
        tmp_path / "shard-00.tar",
        [
            ("./000.png", png(0)),
            ("./000.json", {"id": "zero", "image": "coco/0.jpg", "conversations": TURNS}),
            ("./._001.txt", b"what a Mac adds"),
            ("./001.txt", "Ein Käfer.\n".encode()),
            ("./001.png", png(1)),
            ("README", b"no ending, no sample"),
            ("./" + "long/" * 40 + "002.PNG", png(2)),
            ("./" + "long/" * 40 + "002.json", {"conversations": TURNS}),
        ],
    )
    two = [{"role": "user", "content": "<image> or <image>?"}, {"role": "assistant", "content": "x"}]
    write_tar(
        tmp_path / "shard-01.tar",
        [
            ("003.b.png", png(3)),
            ("003.a.png", png(13)),
            ("003.json", {"messages": two, "images": ["x/003.a.png", "x/003.b.png"]}),
            ("004.json", {"conversations": TURNS[1:]}),
        ],
    )
    return tmp_path


def test_samples_of_tar_files_are_records_or_captions_with_the_images_beside_them(shards):
    reader = open_reader(shards)
    samples = [reader.sample(i) for i in range(len(reader))]
    assert [[red_of(image) for image in sample.images] for sample in samples] == [[0], [1], [2], [13, 3], []]
    assert [sample.record_id for sample in samples][:2] == ["zero", "./001"]
    assert samples[0].messages[0]["content"][1] == {"type": "text", "text": "What?"}
    assert [message["role"] for message in samples[1].messages] == ["user", "assistant"]
    assert samples[1].messages[1]["content"] == [{"type": "text", "text": "Ein Käfer."}]
    assert reader.name(1) == "shard-00.tar/./001 (#1)"
    assert reader.name(4) == "shard-01.tar/004 (#4)"


def test_tar_files_are_read_in_any_order_and_after_a_journey_to_a_worker(shards):
    reader = open_reader(shards)
    assert len(pickle.dumps(reader)) < 2000
    again = pickle.loads(pickle.dumps(reader))
    for index in (4, 0, 3, 1, 2, 0):
        assert again.sample(index) == reader.sample(index)


def test_tar_files_are_named_one_by_one_by_folder_or_by_numbers(shards):
    assert len(open_reader(shards / "shard-00.tar")) == 3
    both = open_reader(f"{shards}/shard-{{00..01}}.tar")
    assert len(both) == 5
    assert both.fingerprint == open_reader(shards).fingerprint
    assert len(open_reader(shards, limit=4)) == 4
    with pytest.raises(FileNotFoundError, match=r"no such tar file: .*shard-02.tar and 1 more"):
        open_reader(f"{shards}/shard-{{00..03}}.tar")


def test_the_fingerprint_of_tar_files_follows_their_samples(shards, tmp_path):
    files = [("0.png", png(0)), ("0.txt", b"cat")]
    (tmp_path / "x").mkdir()

    def fingerprint(files, **options):
        return open_reader(write_tar(tmp_path / "x/a.tar", files, **options)).fingerprint

    first = fingerprint(files)
    assert fingerprint(files, format=tarfile.USTAR_FORMAT) == first  # another way to write the same
    assert fingerprint([("0.png", png(0)), ("0.txt", b"dog")]) != first
    assert fingerprint([("0.png", png(9)), ("0.txt", b"cat")]) != first
    assert fingerprint([*files, ("1.png", png(0)), ("1.txt", b"cat")]) != first


@pytest.mark.extras
def test_webdatasets_own_writer_is_understood(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="an independent writer: make test-extras")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:03d}", "png": png(i), "json": {"conversations": TURNS}})
    reader = open_reader(tmp_path / "a.tar")
    assert [red_of(reader.sample(i).images[0]) for i in range(len(reader))] == [0, 1, 2]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([("0.json", b"{")], r"record a.tar/0 \(#0\): not valid JSON"),
        ([("0.json", [1])], r"record a.tar/0 \(#0\): expected a JSON object, got list"),
        ([("0.json", {"width": 3}), ("0.png", b"")], r"record a.tar/0 .* got json, png"),
        (
            [("0.png", b"")],
            "expected a .json with `conversations` or `messages`, or an image with a .txt, got png",
        ),
        ([("0.png", b""), ("0.txt", b"\xff")], "the caption is not UTF-8"),
        (
            [("0.json", {"conversations": TURNS}), ("0.a.png", b""), ("0.b.png", b"")],
            "1 x <image> and 2 image",
        ),
    ],
)
def test_a_bad_sample_of_a_tar_file_is_named(tmp_path, files, message):
    reader = open_reader(write_tar(tmp_path / "a.tar", files))
    with pytest.raises(ValueError, match=message):
        reader.sample(0)


def test_a_tar_file_that_is_compressed_cut_off_or_damaged_is_named(shards, tmp_path):
    whole = (shards / "shard-00.tar").read_bytes()
    second = whole.index(b"./001.png")
    broken = tmp_path / "broken.tar"
    for content in (
        b"",
        b"no tar file" * 100,
        whole[:700],
        whole[: second + 600],
        whole[:second] + b"\x01" * 512 + whole[second + 512 :],
    ):
        broken.write_bytes(content)
        with pytest.raises(ValueError, match=r"broken.tar: not a readable tar file: .* fetch it again"):
            open_reader(broken)
    with tarfile.open(broken, "w:gz") as tar:
        tar.add(shards / "shard-00.tar")
    with pytest.raises(ValueError, match=r"broken.tar: not a readable tar file: .* unpack it"):
        open_reader(broken)
    write_tar(broken, [("README", b"")])
    with pytest.raises(ValueError, match=r"broken.tar: no samples in 1 tar file"):
        open_reader(broken)


# Hugging Face data sets


def test_a_tar_file_that_is_emptied_after_it_was_opened_is_a_bad_record_by_name(shards):
    reader = open_reader(shards / "shard-01.tar")
    size = (shards / "shard-01.tar").stat().st_size
    (shards / "shard-01.tar").write_bytes(bytes(size))
    assert reader.name(1) == "shard-01.tar (#1)"
    with pytest.raises(
        ValueError, match=r"record #1 at byte \d+ of .*shard-01.tar: .* changed after it was opened"
    ):
        reader.sample(1)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The same six rows as a saved data set, as one with splits and as parquet files."""
    datasets = pytest.importorskip("datasets", reason="the extra `data` is not installed")
    folder = tmp_path_factory.mktemp("datasets")
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
    patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    parts = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    messages = [
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
    ]
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "images": datasets.Sequence(datasets.Image()),
            "messages": [
                {
                    "role": datasets.Value("string"),
                    "content": [{"type": datasets.Value("string"), "text": datasets.Value("string")}],
                }
            ],
        }
    )
    rows = {"id": range(6), "images": [[{"bytes": png(i)}] for i in range(6)], "messages": [messages] * 6}
    rows = datasets.Dataset.from_dict(rows, features=features)
    rows.save_to_disk(folder / "saved")
    datasets.DatasetDict({"train": rows, "val": rows.select(range(2))}).save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    rows.select(range(4)).to_parquet(folder / "parquet/part-0.parquet")
    rows.select(range(4, 6)).to_parquet(folder / "parquet/part-1.parquet")
    yield folder
    datasets.enable_progress_bars()
    patch.undo()


@pytest.mark.parametrize("name", ["saved", "splits", "parquet"])
def test_data_sets_on_disk_hold_the_same_samples(saved, name):
    reader = open_reader(saved / name)
    assert len(reader) == 6
    assert [red_of(reader.sample(i).images[0]) for i in (5, 0, 3)] == [5, 0, 3]
    assert reader.name(5) == "5 (#5)"
    sample = reader.sample(2)
    expected = {"images": [png(2)], "messages": reader._row(2)["messages"]}
    assert sample.messages == from_record(expected, name="").messages
    assert sample.messages[0]["content"][1] == {"type": "text", "text": "What?"}
    assert sample.record_id == "2"
    assert pickle.loads(pickle.dumps(reader)).sample(2) == sample


def test_one_parquet_file_and_a_limit(saved):
    assert len(open_reader(saved / "parquet/part-1.parquet")) == 2
    assert len(open_reader(saved / "parquet", limit=3)) == 3


def test_a_split_is_chosen_by_name(saved):
    assert len(open_reader(saved / "splits", split="val")) == 2
    assert len(open_reader(saved / "parquet", split="train[:50%]")) == 3
    for name, split in [("splits", "test"), ("parquet", "test"), ("saved", "test")]:
        with pytest.raises(ValueError, match=rf"{name}: .*test"):
            open_reader(saved / name, split=split)


def test_the_fingerprint_of_a_data_set_follows_its_rows(saved, tmp_path):
    for name in ("saved", "parquet"):
        first = open_reader(saved / name).fingerprint
        moved = tmp_path / f"moved-{name}"
        moved.symlink_to(saved / name)
        assert open_reader(moved).fingerprint == first
        assert open_reader(moved, limit=3).fingerprint != first
    assert open_reader(saved / "splits", split="val").fingerprint != open_reader(saved / "splits").fingerprint


def test_images_of_a_data_set_reach_the_one_place_that_decodes_them(saved):
    # A 16-bit grey: decoded by `datasets` it would be clipped.
    import datasets

    out = io.BytesIO()
    Image.fromarray(np.full((2, 2), 32768, np.uint16)).save(out, "PNG")
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": out.getvalue()}], "conversations": [TURNS]},
        features=datasets.Features(
            {
                "image": datasets.Image(),
                "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            }
        ),
    )
    rows.save_to_disk(saved / "grey")
    assert red_of(open_reader(saved / "grey").sample(0).images[0]) == 128


def test_without_datasets_the_error_names_the_extra(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"need the package `datasets`: pip install 'llavit\[data\]'"):
        open_reader(saved / "saved")


def test_a_hub_id_is_asked_for_only_when_told_to(saved):
    with pytest.raises(FileNotFoundError, match=r"no such data file: some/set; .* say so with format hf"):
        open_reader("some/set")
    with pytest.raises(OSError, match="some/set"):  # offline: it went as far as it could
        open_reader("some/set", format="hf")
